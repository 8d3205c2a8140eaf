"""DRBC in finite MDPs: a smoothed clone, then UCBVI-Ent+ towards it (Tiapkin et al., ICLR 2024, arXiv 2310.17303).

The setting the paper's statements are about, with one table for everything: clone the demonstrations, plan
optimistically for the reward less kl_weight * KL(pi || clone) after every episode, and explore where the bounds on Q
are furthest apart. `algos/drbc.py` is the version for continuous actions.

Presets: `drbc` (default), `uniform` (no demonstrations), `ucbvi` (no penalty either). The recursion, its bound, what is
from memory or simplified, results: docs/algorithms/drbc_tabular.md.

Run: python algos/drbc_tabular.py --dataset hoard/doublechain/expert-v0 --demonstrations 10
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from hoard.datasets import Dataset
from hoard.datasets.recipes.tabular import expert_policy
from hoard.envs import TabularEnv, make_env, tabular
from hoard.runners import History, Run, main


@dataclass
class Config:
    """Tabular DRBC. `updates` counts plans; the first `updates` rounds only evaluate the prior."""

    # --- experiment ---
    dataset: str = "hoard/doublechain/expert-v0"  # dataset id, of a set with one-hot states and actions
    seed: int = 0  # seed of everything random in this run
    device: str = "cpu"  # where the evaluation keeps its tensors; planning is numpy
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    updates: int = 1  # rounds before the online stage; they evaluate the prior, which is counted, not trained
    online_steps: int = 4000  # environment steps; *_every count them; 0: the prior alone
    log_every: int = 100  # steps per row of training metrics
    eval_every: int = 500  # steps between evaluations
    eval_episodes: int = 20  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 1000  # steps between checkpoints
    # --- data ---
    demonstrations: int = 10  # episodes of the dataset, drawn with the seed; 0 takes all
    smoothing: float = 1.0  # pseudo-count of every action; 0 is maximum likelihood, uniform where nothing was seen
    prior: Literal["clone", "uniform"] = "clone"  # what the policy is held to
    # --- DRBC ---
    kl_weight: float | None = None  # w, weight of the penalty; None is the theory's, 0 is UCBVI
    epsilon: float = 0.5  # accuracy asked for: sets the theory's w, and when the bound counts as reached
    kl_constant: float = 0.05  # KL(expert || clone) is taken for this * S A H / demonstrations
    bonus: float = 0.02  # c, scale of the bonus
    delta: float = 0.1  # probability of failure in the bonus
    pooled: bool = True  # one count for all steps of an episode; false: one for each
    explore: bool = True  # try the least certain action at one step of each episode; false never does

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        for name in ("epsilon", "kl_constant", "delta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)} must be positive")
        if self.kl_weight == 0 and self.prior != "uniform":
            raise ValueError("kl_weight 0 makes no use of a clone: say so with prior uniform, or take the preset ucbvi")
        for name in ("smoothing", "bonus", "demonstrations", "kl_weight"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must not be negative")


PRESETS: dict[str, dict[str, Any]] = {
    "drbc": {},
    "uniform": {"prior": "uniform"},
    "ucbvi": {"prior": "uniform", "kl_weight": 0.0, "explore": False},
}


# --- the policy ---


class Actor(nn.Module):
    """A table of action probabilities, (H, S, A), from which one-hot actions are drawn."""

    scale_actions = False  # a one-hot action is what the environment takes
    table: Tensor

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator, horizon: int) -> None:
        super().__init__()
        self.horizon = horizon
        uniform = torch.full((horizon, obs_dim, action_dim), 1 / action_dim, dtype=torch.float64)
        self.register_buffer("table", uniform.to(generator.device))

    def act(self, obs: Tensor, history: History) -> Tensor:
        """A drawn action, (n, action_dim)."""
        probabilities = self.table[history.t][obs.argmax(dim=1)]
        action = torch.multinomial(probabilities, 1, generator=history.generator)[:, 0]
        return nn.functional.one_hot(action, self.table.shape[-1]).float()


# --- planning ---


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
    """Optimistic values, the policy that is greedy in them under the penalty, and a bound on what it lacks.

    `prior` (H, S, A) is what the penalty holds the policy to; weight 0 makes no use of it. With bonus 0, the plan of
    the model as estimated.
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
        # gap bounds what the policy lacks in the penalised problem, V* - V, if the bonus covers the model's errors:
        #   (V* - V)_h <= <policy, (1 + 1/H) p gap_{h+1} + b> + max_a (Q_up - Q_lo)^2 / 2w
        # With weight 0 the policy is greedy in Q_up, whose optimism of up to 2b replaces the quadratic term:
        #   (V* - V)_h <= <policy, (1 + 1/H) p gap_{h+1} + 3b>
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


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, horizon = run.dataset, run.device, run.episode_limit
    states, actions = dataset.obs_dim, dataset.action_dim
    clone = clone_of(dataset, cfg, horizon)
    prior = clone if cfg.prior == "clone" else np.full_like(clone, 1 / actions)
    weight = weight_of(cfg, states, actions, horizon, cfg.demonstrations or dataset.num_episodes)
    report = exact_report(dataset, prior)
    model = Model(states, actions, 1 if cfg.pooled else horizon)
    actor, estimated_actor = (Actor(cfg, states, actions, run.generator, horizon) for _ in range(2))
    env = run.training_env(scale_actions=False) if cfg.online_steps else None
    run.register(model=model, actor=actor)

    if not run.update and not run.env_step:
        run.say(f"{states} states, {actions} actions, {horizon} steps; kl_weight {weight:.4g}")
    for _ in run.loop(cfg.updates):
        if run.evaluation_due:
            run.log(report(prior, prior))
            actor.table.copy_(torch.as_tensor(prior))
            run.evaluate(actor)
    if env is None:
        return

    plan = make_plan(model, prior, weight, cfg.bonus, cfg.delta)
    for _ in run.online(cfg.online_steps):
        # plan before every episode
        if env.between_episodes:
            plan = make_plan(model, prior, weight, cfg.bonus, cfg.delta)
            h = 0
            curious = int(torch.randint(horizon + 1, (), generator=run.generator, device=device)) - 1
            bound = float(plan.gap[0, env.obs[0].argmax()])
            if bound <= cfg.epsilon and not model.stopped:
                model.stopped = run.env_step
                run.say(f"bound {bound:.3f} <= epsilon after {run.env_step} steps")
            run.log({"learner/gap": torch.tensor(bound), "learner/stopped": torch.tensor(float(model.stopped))})
        # follow the plan, but for one step at which the least certain action is played
        state = int(env.obs[0].argmax())
        if cfg.explore and h == curious:
            action = int(plan.width[h, state].argmax())
        else:
            u = torch.rand((), generator=run.generator, device=device, dtype=torch.float64).item()
            action = min(int((plan.policy[h, state].cumsum() <= u).sum()), actions - 1)
        step = env.step(torch.eye(actions)[action])
        model.add(h, state, action, step.reward, int(step.next_obs.argmax()))
        h += 1
        if run.evaluation_due:
            estimated = make_plan(model, prior, weight, 0.0, cfg.delta).policy
            run.log(report(plan.policy, estimated), updates=0)
            actor.table.copy_(torch.as_tensor(plan.policy))
            run.evaluate(actor)
            if run.evaluation_final:
                estimated_actor.table.copy_(torch.as_tensor(estimated))
                run.evaluate(estimated_actor, variant="model")


def exact_report(dataset: Dataset, prior: np.ndarray) -> Callable[[np.ndarray, np.ndarray], dict[str, Tensor]]:
    """Metrics `exact/*` of a headline policy and of the estimated model's, from the true MDP where it is known.

    `optimum` is V*, `suboptimality` V* - V of the headline policy and `model_suboptimality` of the other, `kl` is
    KL(headline || prior) over an episode, `expert_kl` KL(expert || prior). The learner never sees any of it.
    """
    assert dataset.env_spec is not None
    truth = make_env(dataset.env_spec).unwrapped
    if not isinstance(truth, TabularEnv):
        return lambda headline, estimated: {}
    exact = truth.mdp
    best = exact.start @ tabular.value_iteration(exact)[1][0]
    expert = expert_policy(dataset.id, exact)
    expert_kl = np.inf if expert is None else tabular.trajectory_kl(exact, expert, prior)

    def report(headline: np.ndarray, estimated: np.ndarray) -> dict[str, Tensor]:
        lacking = [best - exact.start @ tabular.evaluate_policy(exact, policy)[0] for policy in (headline, estimated)]
        found = {"optimum": best, "suboptimality": lacking[0], "model_suboptimality": lacking[1]}
        found |= {"kl": tabular.trajectory_kl(exact, headline, prior), "expert_kl": expert_kl}
        return {f"exact/{name}": torch.tensor(number) for name, number in found.items() if np.isfinite(number)}

    return report


SEARCH: dict[str, tuple[Any, ...]] = {
    "smoothing": ("log", 0.01, 10.0),
    "kl_weight": ("log", 0.01, 1.0),
    "bonus": ("log", 2e-3, 0.2),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
