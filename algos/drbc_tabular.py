"""DRBC in finite MDPs: a smoothed clone, then UCBVI-Ent+ towards it (Tiapkin et al., ICLR 2024, arXiv 2310.17303).

The setting the paper's statements are about, with one table for everything. `algos/drbc.py` is the version for
continuous actions.

1. Clone: pi_BC,h(a|s) = (count + c) / (count(s) + c A), c = `smoothing` = 1 being the paper's regulariser (as we recall
   it) in closed form.
2. Optimistic planning for the penalised reward r - w KL(pi || pi_BC), after every episode, on the estimated model with
   bonus b: Q_up = clip(r + p V_up + b), Q_lo = clip(r + p V_lo - b), both within [0, steps that remain];
   V = w log sum_a pi_BC exp(Q / w); policy proportional to pi_BC exp(Q_up / w).
3. Bound on what the policy may lack: G = min(steps that remain, <pi, (1 + 1/H) p G' + b> + max_a (Q_up - Q_lo)^2 / 2w).
4. Act by the policy, except that at one step, drawn uniformly from 0..H (0: at none), the action with the widest
   Q_up - Q_lo is played.

We could read the paper's abstract and reviews only. The recursion of the bound, the mixture of step 4 and the clone's
regulariser are from memory, in part inferred; the bonus is simplified, the paper's uses the variance of values:
b = c (H - h) sqrt(log(4 S A H n / delta) / n), c = `bonus`, and (H - h) where n = 0. c = 1 is vacuous for the budgets
here, so with a smaller one the bound is an indication, not a guarantee. Further choices of ours: rewards are estimated
too; the policy goes on improving once G <= epsilon, which the log and `learner/stopped` record; and n and p are pooled
over the steps of an episode, since the transitions do not depend on them. `pooled false` counts each step for itself,
as the theory does, which makes exploring up to H times as long (and takes H tables of S A S numbers).

`w` is `kl_weight`, or the theory's epsilon / KL(expert || clone) with the KL put at kl_constant * S A H /
demonstrations, as it cannot be observed, and at most at H log A, which no policy's KL to the uniform one exceeds.
Measured constants: 0.02 to 0.08 in hoard's chain (10 to 3000 demonstrations), 0.10 to 0.17 on a 5 x 5 grid, 0.002 to
0.016 on the 21 x 21 grid, most of which no expert enters.

`prior uniform` ignores the demonstrations: entropy-regularised RL, its theory's w being epsilon / (H log A).
`kl_weight 0` is UCBVI, without any prior: V = max_a Q, the policy greedy in Q_up (actions of equal value share the
probability), and a bound without the quadratic term, G = min(steps that remain, <pi, (1 + 1/H) p G' + 3b>): what Q_up
of the action taken exceeds the truth by, which is its own b and the b that the estimate may err by, and the b with
which step 3, too, goes from the true to the estimated p (derived here, second-order terms left to that b as there).
UCBVI proper has no step 4 either: the preset `ucbvi`.

The headline policy is that of step 2; the variant `model` plans without a bonus. Metrics `exact/*`, a value at each
evaluation, come from the true MDP, which the learner never sees: `optimum` is V*, `suboptimality` is V* - V of the
headline policy and `model_suboptimality` of the variant's, `kl` is KL(headline || prior) over an episode, and
`expert_kl` is KL(expert || prior) where the expert is known, on the datasets of hoard's recipe. With `eval_every` a
multiple of `log_every` no two of them are averaged; `python -m hoard.analysis.demonstrations` reads them.

Run: `python algos/drbc_tabular.py --dataset hoard/doublechain/expert-v0 --demonstrations 10`. Shared with every
algorithm: hoard.datasets, hoard.runners, and the exact solvers of hoard.envs.tabular.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from hoard.datasets import Dataset
from hoard.datasets.recipes.tabular import expert_policy
from hoard.envs import TabularEnv, make_env, tabular
from hoard.runners import History, Run, main


@dataclass
class Config:
    """Tabular DRBC. `updates` counts plans; the first `updates` rounds only evaluate the prior."""

    # --- experiment ---
    dataset: str = "hoard/doublechain/expert-v0"  # a dataset with one-hot states and actions
    seed: int = 0  # seed of everything random in this run
    device: str = "cpu"  # where the evaluation keeps its tensors; planning is numpy
    threads: int = 1  # torch CPU threads
    updates: int = 1  # rounds before the online stage, which evaluate the prior (it is a count: nothing to train)
    online_steps: int = 4000  # environment steps; *_every count them; 0: the prior alone
    log_every: int = 100  # steps per row of training metrics
    eval_every: int = 500  # steps between evaluations
    eval_episodes: int = 20  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 1000  # steps between checkpoints
    # --- clone ---
    demonstrations: int = 10  # episodes of the dataset, drawn with the seed; 0 takes all
    smoothing: float = 1.0  # pseudo-count of every action; 0 is maximum likelihood, uniform where nothing was seen
    prior: Literal["clone", "uniform"] = "clone"  # what the policy is held to
    # --- RL ---
    kl_weight: float | None = None  # w; None is the theory's, 0 is UCBVI, see above
    epsilon: float = 0.5  # accuracy asked for: sets the theory's w, and when the bound counts as reached
    kl_constant: float = 0.05  # KL(expert || clone) is taken for this * S A H / demonstrations
    bonus: float = 0.02  # c, scale of the bonus
    delta: float = 0.1  # probability of failure in the bonus
    pooled: bool = True  # one count for all steps of an episode; false: one for each
    explore: bool = True  # the one step of step 4; false follows the optimistic policy throughout


PRESETS: dict[str, dict[str, Any]] = {
    "drbc": {},
    "uniform": {"prior": "uniform"},
    "ucbvi": {"prior": "uniform", "kl_weight": 0.0, "explore": False},
}


class Model:
    """What has been seen: transition counts (K, S, A, S), reward sums (K, S, A); K = H, or 1 where steps are pooled."""

    def __init__(self, states: int, actions: int, tables: int = 1) -> None:
        self.counts = np.zeros((tables, states, actions, states))
        self.rewards = np.zeros((tables, states, actions))
        self.stopped = 0  # environment step at which the bound was first reached; 0: not yet

    def table(self, h: int) -> int:
        """The table of step h."""
        return h if len(self.counts) > 1 else 0

    def add(self, h: int, state: int, action: int, reward: float, following: int) -> None:
        self.counts[self.table(h), state, action, following] += 1
        self.rewards[self.table(h), state, action] += reward

    def state_dict(self) -> dict[str, Any]:
        return {
            "counts": torch.as_tensor(self.counts).to_sparse(),
            "rewards": torch.as_tensor(self.rewards).clone(),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = state["counts"].to_dense().numpy()
        self.rewards, self.stopped = state["rewards"].numpy(), state["stopped"]


@dataclass
class Plan:
    """`policy` (H, S, A); `width` (H, S, A), Q_up - Q_lo; `gap` (H + 1, S), the bound; `value` (S,), V_up at step 0."""

    policy: np.ndarray
    width: np.ndarray
    gap: np.ndarray
    value: np.ndarray


def make_plan(model: Model, prior: np.ndarray, weight: float, bonus: float, delta: float) -> Plan:
    """Steps 2 and 3 of the file's notes; `prior` (H, S, A), which weight 0 makes no use of.

    With bonus 0, the plan of the model as estimated.
    """
    horizon, states, actions = prior.shape
    counts = [csr_array(table) for table in model.counts.reshape(-1, states * actions, states)]
    n = model.counts.sum(axis=-1)
    seen = np.maximum(n, 1)
    radius = np.sqrt(np.log(4 * states * actions * horizon * seen / delta) / seen)
    policy, width = np.empty(prior.shape), np.empty(prior.shape)
    up, lo, gap = np.zeros(states), np.zeros(states), np.zeros((horizon + 1, states))
    for h in reversed(range(horizon)):
        remain, k = horizon - h, model.table(h)
        b = np.where(n[k] > 0, bonus * remain * radius[k], remain) if bonus else np.zeros((states, actions))
        ahead = (counts[k] @ np.stack([up, lo, gap[h + 1]], axis=-1)).reshape(states, actions, 3) / seen[k][..., None]
        r = model.rewards[k] / seen[k]
        q_up = np.clip(r + ahead[..., 0] + b, 0, remain)
        q_lo = np.clip(r + ahead[..., 1] - b, 0, remain)
        (up, lo), (policy[h], _) = tabular.soft_backup(np.stack([q_up, q_lo]), prior[h], weight)
        width[h] = q_up - q_lo
        carried = (policy[h] * ((1 + 1 / horizon) * ahead[..., 2] + (b if weight else 3 * b))).sum(axis=-1)
        curvature = width[h].max(axis=-1) ** 2 / (2 * weight) if weight else 0.0
        gap[h] = np.minimum(carried + curvature, remain)
    return Plan(policy, width, gap, up)


def indices(array: np.ndarray, what: str, dataset: Dataset) -> np.ndarray:
    """The states or actions behind one-hot rows. Raises ValueError if they are not one-hot."""
    if not (((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all()):
        raise ValueError(
            f"{dataset.id}: its {what} are not one-hot; drbc_tabular needs a finite MDP such as "
            "hoard/gridworld/expert-v0, and drbc takes continuous ones"
        )
    return array.argmax(axis=1)


def clone_of(dataset: Dataset, cfg: Config, horizon: int) -> np.ndarray:
    """The smoothed clone of the demonstrations, (H, S, A). Raises ValueError for data of another shape."""
    states, actions = indices(dataset.obs, "observations", dataset), indices(dataset.action, "actions", dataset)
    if (dataset.lengths != horizon).any():
        raise ValueError(f"{dataset.id}: every episode must have {horizon} steps, as its environment's have")
    if cfg.demonstrations > dataset.num_episodes:
        raise ValueError(f"demonstrations {cfg.demonstrations}: {dataset.id} has {dataset.num_episodes} episodes")
    order = np.random.default_rng(cfg.seed).permutation(dataset.num_episodes)[: cfg.demonstrations or None]
    shape = (dataset.num_episodes, horizon)
    chosen = states.reshape(shape)[order], actions.reshape(shape)[order]
    return tabular.laplace_clone(*chosen, dataset.obs_dim, dataset.action_dim, cfg.smoothing)


def weight_of(cfg: Config, states: int, actions: int, horizon: int, demonstrations: int) -> float:
    """w: as given, or the theory's."""
    if cfg.kl_weight is not None:
        return cfg.kl_weight
    kl = horizon * np.log(actions)  # no policy is further from the uniform one
    if cfg.prior == "clone":
        kl = min(kl, cfg.kl_constant * states * actions * horizon / demonstrations)
    return float(cfg.epsilon / kl)


def acting(policy: np.ndarray, run: Run):
    """A tabular policy for an evaluation, sampled from a generator of its own."""
    table = torch.as_tensor(policy, device=run.device)
    generator = torch.Generator(run.device).manual_seed(run.env_step)

    def act(obs: Tensor, history: History) -> Tensor:
        probabilities = table[history.t][obs.argmax(dim=1)]
        action = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        return torch.nn.functional.one_hot(action, table.shape[-1]).float()

    return act


def train(cfg: Config, run: Run) -> None:
    check(cfg)
    dataset, horizon = run.dataset, run.episode_limit
    states, actions = dataset.obs_dim, dataset.action_dim
    clone = clone_of(dataset, cfg, horizon)
    prior = clone if cfg.prior == "clone" else np.full_like(clone, 1 / actions)
    weight = weight_of(cfg, states, actions, horizon, cfg.demonstrations or dataset.num_episodes)
    assert dataset.env_spec is not None
    truth = make_env(dataset.env_spec).unwrapped
    exact = truth.mdp if isinstance(truth, TabularEnv) else None
    best = exact.start @ tabular.value_iteration(exact)[1][0] if exact else 0.0
    expert = expert_policy(dataset.id, exact) if exact else None
    expert_kl = tabular.trajectory_kl(exact, expert, prior) if exact and expert is not None else np.inf
    model = Model(states, actions, 1 if cfg.pooled else horizon)
    env = run.training_env() if cfg.online_steps else None
    run.register(model=model)

    def report(headline: np.ndarray, estimated: np.ndarray) -> dict[str, Tensor]:
        if exact is None:
            return {}
        lacking = [best - exact.start @ tabular.evaluate_policy(exact, policy)[0] for policy in (headline, estimated)]
        found = {"optimum": best, "suboptimality": lacking[0], "model_suboptimality": lacking[1]}
        found |= {"kl": tabular.trajectory_kl(exact, headline, prior), "expert_kl": expert_kl}
        return {f"exact/{name}": torch.tensor(number) for name, number in found.items() if np.isfinite(number)}

    if not run.update and not run.env_step:
        run.say(f"{states} states, {actions} actions, {horizon} steps; kl_weight {weight:.4g}")
    for _ in run.loop(cfg.updates):
        if run.evaluation_due:
            run.log(report(prior, prior))
            run.evaluate(acting(prior, run))
    if env is None:
        return

    plan = make_plan(model, prior, weight, cfg.bonus, cfg.delta)
    for _ in run.online(cfg.online_steps):
        if env.between_episodes:
            plan = make_plan(model, prior, weight, cfg.bonus, cfg.delta)
            run.update += 1
            h = 0
            curious = int(torch.randint(horizon + 1, (), generator=run.generator, device=run.device)) - 1
            bound = float(plan.gap[0, env.obs.argmax()])
            if bound <= cfg.epsilon and not model.stopped:
                model.stopped = run.env_step
                run.say(f"bound {bound:.3f} <= epsilon after {run.env_step} steps")
            run.log({"learner/gap": torch.tensor(bound), "learner/stopped": torch.tensor(float(model.stopped))})
        state = int(env.obs.argmax())
        if cfg.explore and h == curious:
            action = int(plan.width[h, state].argmax())
        else:
            u = torch.rand((), generator=run.generator, device=run.device, dtype=torch.float64).item()
            action = min(int((plan.policy[h, state].cumsum() <= u).sum()), actions - 1)
        _, _, reward, following, _, _ = env.step(np.eye(actions, dtype=np.float32)[action])
        model.add(h, state, action, reward, int(following.argmax()))
        h += 1
        if run.evaluation_due:
            estimated = make_plan(model, prior, weight, 0.0, cfg.delta).policy
            run.log(report(plan.policy, estimated))
            run.evaluate(acting(plan.policy, run))
            if run.env_step >= cfg.online_steps:
                run.evaluate(acting(estimated, run), variant="model")


def check(cfg: Config) -> None:
    """Raise ValueError for options that make no sense, naming what would be right."""
    for name in ("epsilon", "kl_constant", "delta"):
        if getattr(cfg, name) <= 0:
            raise ValueError(f"{name} {getattr(cfg, name)} must be positive")
    if cfg.kl_weight == 0 and cfg.prior != "uniform":
        raise ValueError("kl_weight 0 makes no use of a clone: say so with prior uniform, or take the preset ucbvi")
    for name in ("smoothing", "bonus", "demonstrations", "kl_weight"):
        if (getattr(cfg, name) or 0) < 0:
            raise ValueError(f"{name} {getattr(cfg, name)} must not be negative")


if __name__ == "__main__":
    main(Config, train, PRESETS)
