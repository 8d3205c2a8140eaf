"""DRBC: demonstration-regularised RL from a behaviour clone (Tiapkin et al., ICLR 2024, arXiv 2310.17303).

Clone a few demonstrations; then do RL on the true reward under a penalty kl_weight * KL(pi(.|s) || clone(.|s)) at every
step. The paper is theory for finite and linear MDPs (algos/drbc_tabular.py). This is our own version for continuous
actions: soft actor-critic whose entropy is replaced by the KL.

Presets: `drbc` (default, annealed weight), `fixed`, and the controls `uniform` and `uniform_from_clone`. Equations,
choices, results: docs/algorithms/drbc.md.

Run: python algos/drbc.py --dataset hoard/pendulum/mixed-v0 --online-steps 20000
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import History, Run, main
from hoard.runners.nn import compiled, frozen_copy, gradient_step, linear, normal_like, polyak_update


@dataclass
class Config:
    """Behaviour cloning of demonstrations, then KL-regularised RL towards the clone. All defaults are ours."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after a minute of compiling; needs a C++ compiler
    updates: int = 10_000  # gradient updates of the clone
    online_steps: int = 100_000  # environment steps after them, one update each; *_every count steps there
    guide: str = "none"  # or a finished run's folder, whose policy begins every episode; see docs/protocol.md
    log_every: int = 1000  # updates or steps per row of training metrics
    eval_every: int = 5000  # updates or steps between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # updates or steps between checkpoints; online they wait for the end of the episode
    # --- optimisation ---
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 3e-4  # Adam's step size
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of every network
    # --- data ---
    reward_scale: float | None = None  # factor of the rewards; none is 1 / (largest - smallest reward of the dataset)
    demo_ratio: float = 0.0  # share of demonstrations in every RL batch
    # --- SAC ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    layer_norm: bool = True  # after each hidden layer of the critics, before the ReLU
    # --- DRBC: the clone ---
    demonstrations: int = 20  # episodes cloned, drawn from the pool; 0, or more than it has, takes all of it
    expert_fraction: float = 0.1  # the pool: this share of the dataset's episodes, the best by undiscounted return
    holdout: float = 0.1  # share of the demonstrations held out, whole episodes; the clone that fits them best is kept
    action_clip: float = 0.05  # actions cloned are clipped to +-(1 - this), where the tanh still has a slope
    ref_log_std_min: float = -2.0  # lower bound of the reference's log standard deviation; -5 is none
    ref_mixture: float | None = None  # share of the uniform distribution in the reference; none: see `mixture_share`
    # --- DRBC: the penalty ---
    kl_weight: float = 0.3  # w: initial KL weight, in units of the scaled reward
    kl_rule: Literal["anneal", "fixed", "budget"] = "anneal"  # schedule of the KL weight
    anneal_to: float = 0.1  # anneal: falls linearly to this share of w ...
    anneal_by: float = 0.5  # ... at this share of the online steps, and stays
    kl_budget: float = 3.0  # budget: nats per step and action dimension that w is tuned to
    kl_in_target: bool = True  # false: the KL is in the actor's loss only
    kl_estimate: Literal["sample", "analytic"] = "sample"  # analytic needs ref_mixture 0
    actor_init: Literal["clone", "random"] = "clone"  # where RL starts
    warmup_steps: int = 1000  # environment steps in which that actor acts unchanged and only the critics learn

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        for name in ("demo_ratio", "anneal_to", "ref_mixture"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: must lie in [0, 1]")
        for name in ("anneal_by", "expert_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: must lie in (0, 1]")
        for name in ("demonstrations", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: must not be negative")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout {self.holdout}: must lie in [0, 1)")
        if not 0 < self.action_clip < 1:
            raise ValueError(f"action_clip {self.action_clip}: must lie in (0, 1)")
        if not LOG_STD_MIN <= self.ref_log_std_min <= LOG_STD_MAX:
            raise ValueError(f"ref_log_std_min {self.ref_log_std_min}: must lie in [{LOG_STD_MIN}, {LOG_STD_MAX}]")
        if self.reward_scale is not None and self.reward_scale <= 0:
            raise ValueError(f"reward_scale {self.reward_scale}: must be above 0")
        if self.kl_estimate == "analytic" and self.ref_mixture != 0:
            raise ValueError("kl_estimate analytic holds for a reference without a uniform part: give ref_mixture 0")
        if self.updates == 0 and (self.ref_mixture != 1 or self.actor_init == "clone"):
            raise ValueError("updates 0 leaves the clone untrained: only with ref_mixture 1 and actor_init random")
        if self.kl_weight < 0 or (self.kl_rule == "budget" and self.kl_weight == 0):
            raise ValueError(f"kl_weight {self.kl_weight}: must not be negative, and above 0 with kl_rule budget")


PRESETS: dict[str, dict[str, Any]] = {
    "drbc": {},
    "fixed": {"kl_rule": "fixed"},
    "uniform": {"ref_mixture": 1.0, "actor_init": "random", "kl_rule": "fixed", "updates": 0},
    "uniform_from_clone": {"ref_mixture": 1.0},
}
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


# --- networks ---


class Actor(nn.Module):
    """A Gaussian squashed by tanh to [-1, 1], its standard deviation dependent on the state."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [obs_dim, *cfg.hidden, 2 * action_dim]
        self.layers = nn.ModuleList(linear(a, b, generator, "xavier") for a, b in pairwise(sizes))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std before the tanh, each (B, action_dim)."""
        x = obs
        for layer in self.layers[:-1]:
            x = torch.relu_(layer(x))
        mean, log_std = self.layers[-1](x).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def act(self, obs: Tensor) -> Tensor:
        """The image of the mean, tanh(mean)."""
        return torch.tanh(self(obs)[0])

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sampled action."""
        mean, log_std = self(obs)
        return torch.tanh(mean + log_std.exp() * normal_like(mean, generator))


class Critic(nn.Module):
    """Two Q functions of (obs, action), returned as (2, B)."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [obs_dim + action_dim, *cfg.hidden, 1]
        self.heads = nn.ModuleList()
        for _ in range(2):
            layers: list[nn.Module] = []
            for inputs, outputs in pairwise(sizes):
                layers.append(linear(inputs, outputs, generator, "xavier"))
                if cfg.layer_norm:
                    layers.append(nn.LayerNorm(outputs, device=generator.device))
                layers.append(nn.ReLU())
            self.heads.append(nn.Sequential(*layers[: -2 if cfg.layer_norm else -1]))  # the last layer is linear

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([obs, action], dim=-1)
        return torch.stack([head(x).squeeze(-1) for head in self.heads])


class KLWeight(nn.Module):
    """The KL weight for `kl_rule budget`; its logarithm is learnt."""

    def __init__(self, start: float, device: torch.device) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start), device=device))

    def forward(self) -> Tensor:
        return self.log.exp()


# --- densities; u is an action before the tanh ---


def squashed_log_prob(mean: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    """log-density of tanh(u), (B,), when u ~ N(mean, std); log(1 - tanh(u)^2) in the form that does not overflow."""
    log_prob = -0.5 * ((u - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
    return (log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))).sum(dim=-1)


def reference_log_prob(mean: Tensor, log_std: Tensor, u: Tensor, mixture: float) -> Tensor:
    """log((1 - k) clone(tanh u) + k 2^-dim), (B,), with k = `mixture`; never below log k - dim log 2."""
    uniform = torch.full(u.shape[:-1], -u.shape[-1] * math.log(2), device=u.device, dtype=u.dtype)
    if mixture == 1:
        return uniform
    log_prob = squashed_log_prob(mean, log_std, u)
    if mixture == 0:
        return log_prob
    return torch.logaddexp(math.log1p(-mixture) + log_prob, math.log(mixture) + uniform)


def gaussian_kl(mean: Tensor, log_std: Tensor, ref_mean: Tensor, ref_log_std: Tensor) -> Tensor:
    """KL of two diagonal Gaussians, (B,). The tanh does not change it, since it is invertible."""
    ratio = 2 * (log_std - ref_log_std)
    distance = ((mean - ref_mean) / ref_log_std.exp()).square()
    return 0.5 * (ratio.exp() + distance - 1 - ratio).sum(dim=-1)


def sample_with_kl(
    actor: Actor, reference: Actor, mixture: float, obs: Tensor, noise: Tensor, cfg: Config
) -> tuple[Tensor, Tensor]:
    """A reparameterised action in [-1, 1] for standard normal noise, both (B, dim), and the KL to the reference or its
    estimate from the action, (B,).
    """
    mean, log_std = actor(obs)
    with torch.no_grad():
        ref_mean, ref_log_std = reference(obs)
        ref_log_std = ref_log_std.clamp(min=cfg.ref_log_std_min)
    u = mean + log_std.exp() * noise
    if cfg.kl_estimate == "analytic":
        return torch.tanh(u), gaussian_kl(mean, log_std, ref_mean, ref_log_std)
    kl = squashed_log_prob(mean, log_std, u) - reference_log_prob(ref_mean, ref_log_std, u, mixture)
    return torch.tanh(u), kl


# --- losses: a scalar and detached metrics ---


def clone_loss(clone: Actor, obs: Tensor, action: Tensor, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of actions in [-1, 1], clipped to +-(1 - clip)."""
    mean, log_std = clone(obs)
    loss = -squashed_log_prob(mean, log_std, torch.atanh(action.clamp(-1 + clip, 1 - clip))).mean()
    return loss, {"clone/nll": loss.detach(), "clone/std": log_std.detach().exp().mean()}


def soft_backup(
    reward: Tensor, terminated: Tensor, next_q: Tensor, next_kl: Tensor, weight: Tensor, discount: float
) -> Tensor:
    """r + discount (1 - terminated) (min_j Q_j - weight * KL), for next_q (2, B)."""
    return reward + discount * (1 - terminated) * (next_q.amin(dim=0) - weight * next_kl)


def critic_loss(critic: Critic, obs: Tensor, action: Tensor, backup: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    q = critic(obs, action)
    loss = (q - backup).square().mean(dim=1).sum()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(q: Tensor, kl: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """`q` (2, B) and `kl` (B,) of the actor's own actions."""
    loss = (weight * kl - q.amin(dim=0)).mean()
    return loss, {"losses/actor": loss.detach(), "policy/kl": kl.detach().mean()}


def kl_weight_loss(log_weight: Tensor, kl: Tensor, budget: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Its descent raises the weight while the KL exceeds the budget."""
    loss = -log_weight * (kl - budget)
    return loss, {"losses/kl_weight": loss.detach()}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(dataset, device, cfg.online_steps, reward_scale=reward_scale(dataset, cfg.reward_scale))
    clone = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    kl_weight = KLWeight(max(cfg.kl_weight, 1e-8), device)  # learnt with kl_rule budget, where the weight is above 0
    target = frozen_copy(critic)
    networks = {"clone": clone, "actor": actor, "critic": critic, "kl_weight": kl_weight}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True) for name, net in networks.items()}

    chosen = choose_demonstrations(dataset, cfg)
    fitted, held_out = (torch.as_tensor(np.flatnonzero(np.isin(dataset.episode_index, c))).to(device) for c in chosen)
    # With demonstrations held out the reference is the best clone so far, else the clone itself.
    reference = frozen_copy(clone) if len(held_out) else clone
    best_nll = nn.ParameterList([nn.Parameter(torch.tensor(math.inf, device=device), requires_grad=False)])
    mixture = mixture_share(cfg, demonstrations=len(chosen[0]) + len(chosen[1]))

    def demonstrations(count: int) -> dict[str, Tensor]:
        return buffer.gather(fitted[torch.randint(len(fitted), (count,), generator=generator, device=device)])

    def fit_clone(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss, metrics = clone_loss(clone, batch["obs"], batch["action"], cfg.action_clip)
        gradient_step(optimizers["clone"], loss)
        return metrics

    def update_clone(look: bool) -> dict[str, Tensor]:
        metrics = fit_clone(demonstrations(cfg.batch_size))
        if look and len(held_out):
            with torch.no_grad():
                batch = buffer.gather(held_out)
                nll = clone_loss(clone, batch["obs"], batch["action"], cfg.action_clip)[0]
                better = nll < best_nll[0]
                for kept, now in zip([*best_nll, *reference.parameters()], [nll, *clone.parameters()]):
                    kept.copy_(torch.where(better, now, kept))  # avoids a GPU sync
            metrics |= {"clone/nll_held_out": nll}
        return metrics

    def update_critic(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # Q: towards r + discount * (the smaller target Q of the policy's next action - its KL to the reference)
        weight = kl_weight().detach() if cfg.kl_rule == "budget" else batch["scheduled"]
        with torch.no_grad():
            next_obs, noise = batch["next_obs"], batch["next_noise"]
            next_action, next_kl = sample_with_kl(actor, reference, mixture, next_obs, noise, cfg)
            next_q = target(batch["next_obs"], next_action)
            in_target = weight if cfg.kl_in_target else torch.zeros_like(weight)
            backup = soft_backup(batch["reward"], batch["terminated"], next_q, next_kl, in_target, cfg.discount)
        loss, metrics = critic_loss(critic, batch["obs"], batch["action"], backup)
        gradient_step(optimizers["critic"], loss)
        polyak_update(target, critic, cfg.target_tau)
        return metrics

    def update_actor(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # policy: towards actions of high Q, near the reference
        weight = kl_weight().detach() if cfg.kl_rule == "budget" else batch["scheduled"]
        action, kl = sample_with_kl(actor, reference, mixture, batch["obs"], batch["noise"], cfg)
        loss, metrics = actor_loss(critic(batch["obs"], action), kl, weight)
        gradient_step(optimizers["actor"], loss)
        metrics["policy/kl_weight"] = weight
        # KL weight: towards the budget
        if cfg.kl_rule == "budget":
            budget = cfg.kl_budget * dataset.action_dim
            loss, of_weight = kl_weight_loss(kl_weight.log, metrics["policy/kl"], budget)
            gradient_step(optimizers["kl_weight"], loss)
            metrics |= of_weight
        return metrics

    def update(batch: dict[str, Tensor], with_actor: bool) -> dict[str, Tensor]:
        scheduled = torch.full((), scheduled_weight(cfg, run.env_step), device=device)
        batch |= {"scheduled": scheduled, "next_noise": normal_like(batch["action"], generator)}
        metrics = update_critic(batch)
        if with_actor:
            metrics |= update_actor(batch | {"noise": normal_like(batch["action"], generator)})
        return metrics

    fit_clone = compiled(fit_clone, [optimizers["clone"]], cfg.compile)
    update_critic = compiled(update_critic, [optimizers["critic"]], cfg.compile)
    update_actor = compiled(update_actor, [optimizers["actor"], optimizers["kl_weight"]], cfg.compile)

    def sample_batch() -> dict[str, Tensor]:
        """Online steps, with `demo_ratio` of demonstrations among them."""
        from_demos = round(cfg.demo_ratio * cfg.batch_size)
        if from_demos == cfg.batch_size:
            return demonstrations(from_demos)
        online = buffer.sample(cfg.batch_size - from_demos, generator, 0.0)
        if from_demos == 0:
            return online
        demos = demonstrations(from_demos)
        return {name: torch.cat([demos[name], online[name]]) for name in online}

    env = run.training_env() if cfg.online_steps else None
    run.register(
        networks=networks, reference=reference, target=target, optimizers=optimizers, best_nll=best_nll, buffer=buffer
    )
    if not run.update and not run.env_step:
        run.say(f"demonstrations: {len(chosen[0])} episodes to fit, {len(chosen[1])} held out")
    for number in run.loop(cfg.updates):
        run.log(update_clone(look=number % 100 == 0 or number == cfg.updates or run.evaluation_due))
        if run.evaluation_due:
            run.evaluate(reference)
    if env is None:
        run.evaluate(sampled(reference), variant="sampled")
        return

    if run.env_step == 0 and cfg.actor_init == "clone":
        actor.load_state_dict(reference.state_dict())
    for _ in run.online(cfg.online_steps):
        buffer.add(*env.step(actor.explore(env.obs, generator)))
        if buffer.online_size >= cfg.batch_size:
            run.log(update(sample_batch(), with_actor=run.env_step > cfg.warmup_steps))
        if run.evaluation_due:
            run.evaluate(actor)
            if run.evaluation_final:
                run.evaluate(sampled(actor), variant="sampled")


def choose_demonstrations(dataset: Dataset, cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Episodes to fit and episodes held out (none if their share is less than one), drawn with the run's seed.

    They are drawn from the best episodes; the very best are often those with an easy start.
    """
    pool = np.argsort(-dataset.returns, kind="stable")[: max(1, int(cfg.expert_fraction * dataset.num_episodes))]
    drawn = np.random.default_rng(cfg.seed).permutation(pool)[: cfg.demonstrations or None]
    held = int(cfg.holdout * len(drawn))
    return np.sort(drawn[held:]), np.sort(drawn[:held])


def mixture_share(cfg: Config, demonstrations: int) -> float:
    """k, the share of the uniform distribution in the reference: 1 / (demonstrations + 1) within [1e-3, 0.1]."""
    if cfg.ref_mixture is not None:
        return cfg.ref_mixture
    return min(max(1 / (demonstrations + 1), 1e-3), 0.1)


def scheduled_weight(cfg: Config, env_step: int) -> float:
    """w of rules `fixed` and `anneal` at an environment step."""
    if cfg.kl_rule == "fixed":
        return cfg.kl_weight
    progress = min(env_step / (cfg.anneal_by * cfg.online_steps), 1.0)
    return cfg.kl_weight * (1 + progress * (cfg.anneal_to - 1))


def reward_scale(dataset: Dataset, scale: float | None) -> float:
    """The factor of the rewards. Raises ValueError if it is left to the range of the rewards and that is 0."""
    if scale is not None:
        return scale
    span = float(dataset.reward.max() - dataset.reward.min())
    if span == 0:
        raise ValueError(f"every reward of {dataset.id} is the same: give reward_scale")
    return 1 / span


def sampled(actor: Actor) -> Callable[[Tensor, History], Tensor]:
    """The objective's own policy: actions drawn from the actor."""
    return lambda obs, history: actor.explore(obs, history.generator)


SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "kl_weight": ("log", 0.01, 1.0),
    "anneal_to": ("uniform", 0.0, 1.0),
    "ref_log_std_min": ("uniform", -5.0, -1.0),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
