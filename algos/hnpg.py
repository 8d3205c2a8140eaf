"""HNPG: hybrid natural policy gradient (Zhou, Sekhari, Song, Sun, ICLR 2024, arXiv 2311.08384).

On-policy learning whose critic and Fisher matrix see offline data too. Each round rolls out whole episodes, fits Q of
the present policy by two regressions at once (online pairs on Monte-Carlo returns; offline pairs on r + Q(s', a'), a'
from the policy), and takes one trust-region step on online and offline states together. There is no offline phase.

Presets: `released` (default) follows the authors' code, `paper` its text, `trpo` drops every use of the data;
`continuous` is the form for continuous control, with normalised observations, returns and advantages. Networks per time
step or shared ones, deviations, results: docs/algorithms/hnpg.md.

Run: python algos/hnpg.py --dataset hoard/comblock/h10-v0 --seed 0
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hoard.datasets import ReplayBuffer
from hoard.runners import History, Run, main
from hoard.runners.nn import ObsNormalizer, gradient_step
from hoard.runners.training_env import TrainingBatch, TrainingEnv


@dataclass
class Config:
    """HNPG, hybrid; TRPO with `--hybrid false`. Defaults follow the authors' released code."""

    # --- experiment ---
    dataset: str = "hoard/comblock/h5-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    updates: int = 0  # offline updates: there are none, anything but 0 is refused
    online_steps: int = 1_500_000  # environment steps; *_every count steps there
    log_every: int = 1000  # updates or steps per row of training metrics
    eval_every: int = 10_000  # updates or steps between evaluations
    eval_episodes: int = 30  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 10_000  # updates or steps between checkpoints
    eval_actions: Literal["sample", "mean"] = "sample"  # actions of the evaluated policy
    # --- form ---
    hybrid: bool = True  # false: TRPO, which never reads the data
    per_step: Literal["auto", "yes", "no"] = "auto"  # networks for each time step; auto: where episodes have <= 64
    discount: float | None = None  # gamma; None is 1 with networks per step, 0.99 without
    batch_steps: int = 1000  # environment steps of a round, rounded up to whole episodes
    online_weight: float = 1.0  # lambda: weight of online against offline terms
    reward_scale: float = 1.0  # rewards are multiplied by it before learning
    normalize: bool = False  # standardise observations, returns and each source's advantages; shared networks only
    # --- critic ---
    critic_hidden: tuple[int, ...] = (64, 64)  # widths of its hidden layers
    critic_lr: float = 3e-4  # step size of Adam, which starts anew in every fit
    critic_steps: int = 30  # full-batch steps of a fit, or its most epochs where critic_batch is set
    critic_batch: int | None = None  # rows of each source per step; none takes all of them
    critic_tolerance: float = 0.01  # with critic_batch: a fit ends once two epochs gain less than this share
    critic_sweeps: int = 1  # fits of every critic in a round
    value_samples: int = 10  # V(s) is the mean of Q over so many actions of the policy
    # --- policy ---
    policy_hidden: tuple[int, ...] = (16, 16)  # widths of its hidden layers
    gae_lambda: float = 0.97  # of the online advantages (the paper's tau)
    offline_adv_action: Literal["policy", "dataset"] = "policy"  # action whose advantage offline states contribute
    max_kl: float = 0.01  # size of the trust region
    damping: float = 0.1  # added to the Fisher matrix's diagonal
    cg_steps: int = 10  # conjugate gradient iterations
    cg_tolerance: float = 1e-10  # squared residual at which a row stops
    ls_steps: int = 10  # halvings of the line search
    ls_accept: float = 0.1  # least ratio of actual to expected improvement
    ls_kl_check: bool = False  # also require KL <= max_kl of a step that is accepted

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if self.updates:
            raise ValueError(f"updates {self.updates}: HNPG has no offline phase; use updates 0 and online_steps")
        for name in ("batch_steps", "critic_steps", "critic_sweeps", "value_samples", "cg_steps", "ls_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.critic_batch is not None and self.critic_batch < 1:
            raise ValueError(f"critic_batch {self.critic_batch}: must be at least 1, or none")
        if self.critic_tolerance < 0:
            raise ValueError(f"critic_tolerance {self.critic_tolerance}: must not be negative")
        for name in ("online_weight", "reward_scale", "critic_lr", "max_kl"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be above 0")
        if not self.hybrid and (self.online_weight != 1 or self.offline_adv_action != "policy"):
            raise ValueError("online_weight, offline_adv_action: without hybrid there are no offline terms; leave both")


PRESETS: dict[str, dict[str, Any]] = {
    "released": {},
    "paper": {"offline_adv_action": "dataset", "ls_kl_check": True},
    "trpo": {"hybrid": False},
    "continuous": {
        "per_step": "no",
        "normalize": True,
        "batch_steps": 2000,
        "critic_batch": 256,
        "critic_lr": 1e-3,
        "critic_sweeps": 3,
        "policy_hidden": (64, 64),
        "max_kl": 0.02,
        "ls_kl_check": True,
        "eval_actions": "mean",
    },
}


FAR_OFF = 10  # rounds after which values far from the returns are warned of


# --- networks: G of a kind, stacked; x is (G, B, inputs) ---


class Stack(nn.Module):
    """G tanh networks of the same sizes. The last layer starts with a tenth of its weights and no bias."""

    def __init__(self, groups: int, sizes: list[int], generator: torch.Generator) -> None:
        super().__init__()
        new = lambda *shape: torch.empty(shape, dtype=torch.float64, device=generator.device)  # noqa: E731
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):
            bound = 1 / math.sqrt(inputs)  # torch's default of a linear layer
            self.weights.append(nn.init.uniform_(new(groups, inputs, outputs), -bound, bound, generator=generator))
            self.biases.append(nn.init.uniform_(new(groups, 1, outputs), -bound, bound, generator=generator))
        with torch.no_grad():
            self.weights[-1].mul_(0.1)
            self.biases[-1].zero_()

    def forward(self, x: Tensor) -> Tensor:
        return mlp(list(self.weights), list(self.biases), x)

    def at(self, group: int, x: Tensor) -> Tensor:
        """Network `group` alone: (B, inputs) -> (B, outputs)."""
        return mlp([w[group] for w in self.weights], [b[group] for b in self.biases], x)


def mlp(weights: list[Tensor], biases: list[Tensor], x: Tensor) -> Tensor:
    for weight, bias in zip(weights[:-1], biases[:-1]):
        x = torch.tanh(x @ weight + bias)
    return x @ weights[-1] + biases[-1]


class Actor(nn.Module):
    """Diagonal Gaussians, not squashed, one per time step where `steps` > 1; log-std of their own, 0 at the start."""

    scale_actions = False  # it acts in environment units, as released

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator, steps: int) -> None:
        super().__init__()
        self.steps, self.eval_actions = steps, cfg.eval_actions
        self.normalize = ObsNormalizer(obs_dim, generator.device).double()
        self.mean = Stack(steps, [obs_dim, *cfg.policy_hidden, action_dim], generator)
        self.log_std = nn.Parameter(self.mean.weights[0].new_zeros(steps, 1, action_dim))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(G, B, obs_dim) -> mean (G, B, action_dim), log-std (G, 1, action_dim)."""
        return self.mean(self.normalize(obs)), self.log_std

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Sampled actions, (G, B, obs_dim) -> (G, B, action_dim)."""
        return normal(self.mean(self.normalize(obs)), self.log_std, generator)

    @torch.no_grad()
    def explore_at(self, t: int, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Sampled actions at time step t, (B, obs_dim) -> (B, action_dim)."""
        group = t if self.steps > 1 else 0
        return normal(self.mean.at(group, self.normalize(obs)), self.log_std[group], generator)

    def act(self, obs: Tensor, history: History) -> Tensor:
        """A sampled action, or the mean, as `eval_actions` says."""
        if self.eval_actions == "sample":
            return self.explore_at(history.t, obs.double(), history.generator)
        return self.mean.at(history.t if self.steps > 1 else 0, self.normalize(obs.double()))


def normal(mean: Tensor, log_std: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + log_std.exp() * noise


class Critic(nn.Module):
    """Q of (obs, action), one per group. Actions are clipped first, as the environment clips them.

    The networks' outputs are in units of returns that have mean `shift` and standard deviation `scale`.
    """

    low: Tensor
    high: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(
        self, cfg: Config, obs_dim: int, low: np.ndarray, high: np.ndarray, generator: torch.Generator, steps: int
    ) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device).double()
        self.net = Stack(steps, [obs_dim + len(low), *cfg.critic_hidden, 1], generator)
        for name, value in (("low", low), ("high", high), ("shift", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64, device=generator.device))

    def inputs(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.cat([self.normalize(obs), action.clamp(self.low, self.high)], dim=-1)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """(G, B, ...) -> (G, B)."""
        return self.net(self.inputs(obs, action)).squeeze(-1) * self.scale + self.shift

    def at(self, group: int, obs: Tensor, action: Tensor) -> Tensor:
        """Of group `group` alone: (B, ...) -> (B,)."""
        return self.net.at(group, self.inputs(obs, action)).squeeze(-1) * self.scale + self.shift

    @torch.no_grad()
    def rescale(self, returns: Tensor) -> None:
        """Take shift and scale from these returns, and change the last layer so that no prediction moves (PopArt)."""
        shift, scale = returns.mean(), returns.std(correction=0).clamp(min=1e-6)
        self.net.weights[-1].mul_(self.scale / scale)
        self.net.biases[-1].mul_(self.scale / scale).add_((self.shift - shift) / scale)
        self.shift.copy_(shift)
        self.scale.copy_(scale)


# --- critic ---


def critic_loss(
    q: Tensor, online_target: Tensor, offline_target: Tensor | None, online_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """online_weight * mean square on the online rows, which come first in `q`, + mean square on the offline ones."""
    n = len(online_target)
    loss = online_weight * (q[:n] - online_target).square().mean()
    if offline_target is not None:
        loss = loss + (q[n:] - offline_target).square().mean()
    return loss, {"losses/critic": loss.detach()}


def plateau(losses: list[float], tolerance: float) -> bool:
    """Whether the last two epochs brought the least loss down by less than this share of it."""
    return len(losses) > 2 and min(losses[-2:]) > (1 - tolerance) * min(losses[:-2])


def fit(
    critic: Critic,
    group: int,
    inputs: Tensor,
    online: Tensor,
    offline: Tensor | None,
    cfg: Config,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], int]:
    """Adam, newly started, on one group's critic; metrics of its last step or epoch, and how many steps it took.

    `inputs` (B, obs + action), the online rows first; `online` and `offline` are targets in the networks' units.
    """
    own = [p[group].detach().clone().requires_grad_() for p in (*critic.net.weights, *critic.net.biases)]
    weights, biases = own[: len(own) // 2], own[len(own) // 2 :]
    optimizer = torch.optim.Adam(own, lr=cfg.critic_lr, fused=True)
    if cfg.critic_batch is None:
        steps = cfg.critic_steps
        for _ in range(steps):
            q = mlp(weights, biases, inputs).squeeze(-1)
            loss, metrics = critic_loss(q, online, offline, cfg.online_weight)
            gradient_step(optimizer, loss)
    else:
        n, size = len(online), cfg.critic_batch
        losses: list[float] = []
        while len(losses) < cfg.critic_steps and not plateau(losses, cfg.critic_tolerance):
            order = torch.randperm(n, generator=generator, device=inputs.device)
            other = torch.randperm(n, generator=generator, device=inputs.device)
            total = torch.zeros((), dtype=inputs.dtype, device=inputs.device)
            for first in range(0, n, size):
                index, rows = order[first : first + size], other[first : first + size]
                both = index if offline is None else torch.cat([index, n + rows])
                q = mlp(weights, biases, inputs[both]).squeeze(-1)
                target = None if offline is None else offline[rows]
                loss, metrics = critic_loss(q, online[index], target, cfg.online_weight)
                gradient_step(optimizer, loss)
                total += metrics["losses/critic"] * len(index) / n
            losses.append(total.item())
        metrics = {"losses/critic": total, "losses/critic_epochs": torch.tensor(float(len(losses)))}
        steps = len(losses) * math.ceil(n / size)
    with torch.no_grad():
        for whole, part in zip((*critic.net.weights, *critic.net.biases), own):
            whole[group] = part
    return metrics, steps


def fit_critics(
    critic: Critic,
    actor: Actor,
    online: dict[str, Tensor],
    offline: dict[str, Tensor] | None,
    cfg: Config,
    per_step: bool,
    discount: float,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], int]:
    """One sweep over the critics, from the last step to the first; targets from the critic of the following step.

    Returns the mean of their metrics, and the most steps that one of them took.

    `online` has obs, action, target (G, B, ...), `offline` obs, action, reward, next_obs, terminated (G, B, ...).
    Without `per_step` there is one group, and the following step has its critic, as it was before the sweep.
    """
    groups = len(online["obs"])
    fits = []
    unit = lambda returns: (returns - critic.shift) / critic.scale  # noqa: E731
    for g in reversed(range(groups)):
        inputs = critic.inputs(online["obs"][g], online["action"][g])
        target = None
        if offline is not None:
            target = offline["reward"][g]
            following = g + 1 if per_step else 0
            if following < groups:
                next_obs = offline["next_obs"][g]
                with torch.no_grad():
                    q = critic.at(following, next_obs, actor.explore_at(following, next_obs, generator))
                target = target + discount * (1 - offline["terminated"][g]) * q
            inputs = torch.cat([inputs, critic.inputs(offline["obs"][g], offline["action"][g])])
        wanted = unit(online["target"][g])
        fits.append(fit(critic, g, inputs, wanted, None if target is None else unit(target), cfg, generator))
    metrics = {name: torch.stack([one[name] for one, _ in fits]).mean() for name in fits[0][0]}
    return metrics, max(steps for _, steps in fits)


@torch.no_grad()
def state_value(critic: Critic, actor: Actor, obs: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Mean Q over actions of the policy: (G, B, obs_dim) -> (G, B)."""
    groups, n, _ = obs.shape
    mean, log_std = actor(obs)
    action = normal(mean[:, None].expand(-1, samples, -1, -1), log_std[:, None], generator)
    repeated = obs[:, None].expand(-1, samples, -1, -1)
    q = critic(repeated.reshape(groups, samples * n, -1), action.reshape(groups, samples * n, -1))
    return q.reshape(groups, samples, n).mean(dim=1)


def returns_to_go(reward: Tensor, alive: Tensor, bootstrap: Tensor, discount: float) -> Tensor:
    """(T, n), steps of n episodes (`alive` is 1 on real steps), each continued by `bootstrap` (n,) after its end."""
    out, following = torch.zeros_like(reward), bootstrap
    for t in reversed(range(len(reward))):
        following = torch.where(alive[t] > 0, reward[t] + discount * following, following)
        out[t] = following * alive[t]
    return out


def gae(reward: Tensor, value: Tensor, alive: Tensor, bootstrap: Tensor, discount: float, decay: float) -> Tensor:
    """Generalised advantage estimates (T, n); arguments as in `returns_to_go`, `value` (T, n), `decay` GAE's lambda."""
    out, following, advantage = torch.zeros_like(reward), bootstrap, torch.zeros_like(bootstrap)
    for t in reversed(range(len(reward))):
        delta = reward[t] + discount * following - value[t]
        advantage = torch.where(alive[t] > 0, delta + discount * decay * advantage, advantage)
        following = torch.where(alive[t] > 0, value[t], following)
        out[t] = advantage * alive[t]
    return out


# --- trust-region step; every quantity has a row for each of the G policies, which do not touch one another ---


def log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    return -(0.5 * ((action - mean) / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def mean_kl(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], weight: Tensor) -> Tensor:
    """KL(old, new) of diagonal Gaussians (mean, log-std), weighted over the states by `weight` (B,): (G,)."""
    (mean0, log0), (mean1, log1) = old, new
    kl = log1 - log0 + ((2 * log0).exp() + (mean0 - mean1).square()) / (2 * (2 * log1).exp()) - 0.5
    return kl.sum(dim=-1) @ weight


def flat(tensors: Any) -> Tensor:
    """Stacked parameters, (G, ...) each, as one (G, P)."""
    return torch.cat([t.reshape(len(t), -1) for t in tensors], dim=1)


@torch.no_grad()
def assign(actor: Actor, theta: Tensor) -> None:
    """Put (G, P), as `flat` gives it, into the actor's parameters."""
    start = 0
    for p in actor.parameters():
        size = p[0].numel()
        p.copy_(theta[:, start : start + size].reshape(p.shape))
        start += size


def fisher(actor: Actor, obs: Tensor, weight: Tensor, damping: float) -> Callable[[Tensor], Tensor]:
    """v (G, P) -> (F + damping) v, F being the Fisher matrix of each policy averaged over its states by `weight`.

    F is the Hessian of KL(present, theta) at the present parameters.
    """
    parameters = list(actor.parameters())
    mean, log_std = actor(obs)
    kl = mean_kl((mean.detach(), log_std.detach()), (mean, log_std), weight)
    gradient = flat(torch.autograd.grad(kl.sum(), parameters, create_graph=True))

    def product(v: Tensor) -> Tensor:
        return flat(torch.autograd.grad((gradient * v).sum(), parameters, retain_graph=True)) + damping * v

    return product


def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float) -> Tensor:
    """Solve product(x) = b row by row, (G, P). A row stops once its squared residual is at most `tolerance`."""
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    square = (residual * residual).sum(dim=1, keepdim=True)
    for _ in range(steps):
        active = square > tolerance
        image = product(direction)
        curvature = (direction * image).sum(dim=1, keepdim=True)
        alpha = torch.where(active, square / torch.where(active, curvature, 1), 0)
        x, residual = x + alpha * direction, residual - alpha * image
        following = torch.where(active, (residual * residual).sum(dim=1, keepdim=True), square)
        direction = torch.where(active, residual + following / torch.where(active, square, 1) * direction, direction)
        square = following
    return x


def trust_region_step(
    actor: Actor, obs: Tensor, action: Tensor, advantage: Tensor, weight: Tensor, cfg: Config
) -> dict[str, Tensor]:
    """One natural-gradient step with line search: (G, B, ...), states weighted by `weight` (B,), which sums to 1.

    The surrogate is the weighted mean of advantage * pi / pi_old. The step has 0.5 x'(F + damping)x = max_kl; a policy
    for which no shortened step improves enough stays as it is.
    """
    with torch.no_grad():
        mean, log_std = actor(obs)
        before = mean, log_std.clone()  # the parameters change in place
        old_log_prob = log_prob(mean, log_std, action)

    def surrogate() -> tuple[Tensor, Tensor]:
        mean, log_std = actor(obs)
        ratio = (log_prob(mean, log_std, action) - old_log_prob).exp()
        return (advantage * ratio) @ weight, mean_kl(before, (mean, log_std), weight)

    start, _ = surrogate()
    gradient = flat(torch.autograd.grad(start.sum(), list(actor.parameters())))
    product = fisher(actor, obs, weight, cfg.damping)
    direction = conjugate_gradient(product, gradient, cfg.cg_steps, cfg.cg_tolerance)
    length = 0.5 * (direction * product(direction)).sum(dim=1, keepdim=True)
    step = torch.where(length > 0, direction * torch.sqrt(cfg.max_kl / length.clamp(min=1e-300)), 0)
    expected = (gradient * step).sum(dim=1)

    with torch.no_grad():
        start = start.detach()
        theta = chosen = flat(actor.parameters()).clone()
        accepted = torch.zeros_like(expected, dtype=torch.bool)
        for k in range(cfg.ls_steps):
            fraction = 0.5**k
            trial = theta + fraction * step
            assign(actor, trial)
            value, kl = surrogate()
            gain = value - start
            good = (gain > 0) & (gain > cfg.ls_accept * fraction * expected) & ~accepted
            if cfg.ls_kl_check:
                good &= kl <= cfg.max_kl
            chosen = torch.where(good[:, None], trial, chosen)
            accepted |= good
        assign(actor, chosen)
        value, kl = surrogate()
    return {
        "policy/kl": kl.mean(),
        "policy/gain": (value - start).mean(),
        "policy/accepted": accepted.double().mean(),
        "policy/std": actor.log_std.detach().exp().mean(),
    }


# --- rollouts: n whole episodes, padded to the longest: obs, action (T, n, ...), reward, alive (T, n) with alive 1 on
# --- real steps and 0 on padding, last_obs (n, obs_dim), terminated (n,)


def rollout_batch(
    batch: TrainingBatch, actor: Actor, run: Run, low: np.ndarray, high: np.ndarray
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All episodes at once; also metrics: mean return, and the share of episodes that succeeded."""
    seen: list[Tensor] = []
    acted, paid, ended = [], [], False
    new = lambda array: torch.as_tensor(array, dtype=torch.float64, device=run.device)  # noqa: E731
    obs, success = new(batch.reset(run.env_step // batch.horizon)), None
    while not ended:
        action = actor.explore_at(len(seen), obs, run.generator)
        after, reward, ended, success = batch.step(np.clip(action.cpu().numpy(), low, high))
        seen.append(obs)
        acted.append(action)
        paid.append(new(reward))
        obs = new(after)
    rewards = torch.stack(paid)
    steps = {
        "obs": torch.stack(seen),
        "action": torch.stack(acted),
        "reward": rewards,
        "alive": torch.ones_like(rewards),
        "last_obs": obs,
        "terminated": torch.ones_like(rewards[0]),
    }
    return steps, {"online/return": rewards.sum(dim=0).mean(), "online/optimal": new(success).mean()}


def rollout_single(env: TrainingEnv, actor: Actor, run: Run, batch_steps: int) -> dict[str, Tensor]:
    """One episode after the other until `batch_steps` steps are done. Raises ValueError where `steps` does not fit."""
    new = lambda array: torch.as_tensor(np.asarray(array), dtype=torch.float64, device=run.device)  # noqa: E731
    episodes, total = [], 0
    while total < batch_steps:
        seen: list[Tensor] = []
        acted, paid, ended = [], [], False
        while not ended:
            if actor.steps > 1 and len(seen) >= actor.steps:
                raise ValueError(f"an episode lasts longer than the {actor.steps} steps with networks: per_step no")
            obs = env.obs[0].double()
            action = actor.explore_at(len(seen), obs[None], run.generator)[0]
            step = env.step(action)
            seen.append(obs)
            acted.append(action)
            paid.append(step.reward)
            ended = step.terminated or step.truncated
        if actor.steps > 1 and len(seen) != actor.steps:
            raise ValueError(f"an episode ended after {len(seen)} of {actor.steps} steps: use per_step no")
        last_obs, terminated = new(step.next_obs), new(float(step.terminated))
        episodes.append((torch.stack(seen), torch.stack(acted), new(paid), last_obs, terminated))
        total += len(seen)
    pad = nn.utils.rnn.pad_sequence
    observations, actions, rewards, last, terminated_at = (list(column) for column in zip(*episodes))
    return {
        "obs": pad(observations),
        "action": pad(actions),
        "reward": pad(rewards),
        "alive": pad([torch.ones_like(r) for r in rewards]),
        "last_obs": torch.stack(last),
        "terminated": torch.stack(terminated_at),
    }


def offline_batch(
    buffer: ReplayBuffer, starts: Tensor, steps: int, n: int, cfg: Config, generator: torch.Generator
) -> dict[str, Tensor]:
    """n transitions for each group, with replacement: (G, n, ...) float64; group g draws from the g-th steps."""
    if steps > 1:
        episode = torch.randint(len(starts), (steps, n), generator=generator, device=buffer.device)
        index = starts[episode] + torch.arange(steps, device=buffer.device)[:, None]
    else:
        index = torch.randint(len(buffer), (1, n), generator=generator, device=buffer.device)
    out = {name: values.double() for name, values in buffer.gather(index).items()}
    out["reward"] *= cfg.reward_scale
    return out


# --- normalisation ---


class ObsStats(nn.Module):
    """Mean and variance of all observations so far, merged batch by batch."""

    count: Tensor
    mean: Tensor
    var: Tensor

    def __init__(self, obs_dim: int, device: torch.device) -> None:
        super().__init__()
        for name, shape in (("count", ()), ("mean", (obs_dim,)), ("var", (obs_dim,))):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64, device=device))

    @torch.no_grad()
    def add(self, obs: Tensor) -> None:
        """Take in observations (B, obs_dim)."""
        n, mean, var = len(obs), obs.mean(dim=0), obs.var(dim=0, correction=0)
        total, gap = self.count + n, mean - self.mean
        spread = self.var * self.count + var * n + gap.square() * self.count * n / total
        self.mean += gap * n / total
        self.var.copy_(spread / total)
        self.count.copy_(total)

    def fit(self, *networks: Actor | Critic) -> None:
        for net in networks:
            net.normalize.fit(self.mean, self.var.sqrt() + 1e-3)


def standardized(advantage: Tensor) -> Tensor:
    """(G, B) with mean 0 and standard deviation 1 in each group."""
    centred = advantage - advantage.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True).sqrt() + 1e-8)


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """1 - variance of what V misses / variance of the returns; 1 is exact, 0 as good as their mean."""
    return 1 - (target - value).var(correction=0) / target.var(correction=0).clamp(min=1e-12)


# --- training ---


def has_step_networks(run: Run, cfg: Config) -> bool:
    """Whether each time step gets networks of its own. Raises ValueError where that is asked for and cannot be."""
    fixed = bool((run.dataset.lengths == run.episode_limit).all())
    if cfg.per_step == "yes" and not fixed:
        raise ValueError(
            f"per_step yes: not every episode of {run.dataset.id} lasts the time limit of {run.episode_limit} steps"
        )
    return cfg.per_step == "yes" or (cfg.per_step == "auto" and fixed and run.episode_limit <= 64)


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    per_step = has_step_networks(run, cfg)
    if per_step and cfg.normalize:
        raise ValueError("normalize: only for shared networks; use per_step no")
    steps = run.episode_limit if per_step else 1
    discount = cfg.discount if cfg.discount is not None else (1.0 if per_step else 0.99)
    low, high = dataset.action_space.low, dataset.action_space.high
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator, steps)
    critic = Critic(cfg, dataset.obs_dim, low, high, generator, steps)
    buffer = ReplayBuffer(dataset, device, scale_actions=False) if cfg.hybrid else None
    starts = torch.as_tensor(dataset.starts[:-1], device=device)
    stats = ObsStats(dataset.obs_dim, device)
    if cfg.normalize and cfg.hybrid:
        stats.add(torch.as_tensor(dataset.obs, dtype=torch.float64, device=device))
        stats.fit(actor, critic)
    far_off = 0  # rounds in a row whose values told the returns no better than their mean
    batch = run.training_batch(math.ceil(cfg.batch_steps / run.episode_limit))
    env = run.training_env(scale_actions=False) if batch is None else None

    def collect() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if batch is not None:
            return rollout_batch(batch, actor, run, low, high)
        assert env is not None
        return rollout_single(env, actor, run, cfg.batch_steps), {}

    def value(obs: Tensor) -> Tensor:
        return state_value(critic, actor, obs, cfg.value_samples, generator)

    def bootstrap(rollout: dict[str, Tensor]) -> Tensor:
        """Value after the last step, (n,): zero with per-step networks, else the critic's where episodes were cut."""
        if per_step:
            return torch.zeros_like(rollout["terminated"])
        return (1 - rollout["terminated"]) * value(rollout["last_obs"][None])[0]

    def update() -> tuple[dict[str, Tensor], int]:
        """A round: its metrics, and the gradient steps that a critic got, with the policy's one."""
        # roll out whole episodes
        rollout, metrics = collect()
        reward, alive = rollout["reward"] * cfg.reward_scale, rollout["alive"]
        real = alive > 0

        def rows(x: Tensor) -> Tensor:
            """(T, n, ...) -> (G, B, ...)."""
            return x if per_step else x[real][None]

        # fit Q: online pairs on Monte-Carlo returns, offline pairs on r + Q(s', a')
        online = {"obs": rows(rollout["obs"]), "action": rows(rollout["action"])}
        target = returns_to_go(reward, alive, bootstrap(rollout), discount)
        online["target"] = rows(target)
        if cfg.normalize:
            critic.rescale(online["target"])
        n = online["obs"].shape[1]
        offline = offline_batch(buffer, starts, steps, n, cfg, generator) if buffer is not None else None
        updates = 1
        for _ in range(cfg.critic_sweeps):
            of_critic, fitted = fit_critics(critic, actor, online, offline, cfg, per_step, discount, generator)
            updates += fitted

        # advantages: GAE online, Q - V offline
        values = torch.zeros_like(reward)
        values[real] = value(online["obs"]).flatten()
        advantage = rows(gae(reward, values, alive, bootstrap(rollout), discount, cfg.gae_lambda))
        metrics["values/explained_variance"] = explained_variance(values[real], target[real])
        metrics["values/return"] = target[real].mean()
        metrics["advantages/online"] = advantage.std(correction=0)
        scaled = standardized if cfg.normalize else lambda advantage: advantage
        parts = [(online["obs"], online["action"], scaled(advantage))]
        weight = torch.full((n,), 1 / n, dtype=torch.float64, device=device)
        if offline is not None:
            obs, action = offline["obs"], offline["action"]
            if cfg.offline_adv_action == "policy":
                action = actor.explore(obs, generator)
            with torch.no_grad():
                advantage = critic(obs, action) - value(obs)
            metrics["advantages/offline"] = advantage.std(correction=0)
            parts.append((obs, action, scaled(advantage)))
            weight = torch.cat([cfg.online_weight * weight, weight]) / (1 + cfg.online_weight)

        # one trust-region step on both
        obs, action, advantage = (torch.cat(tensors, dim=1) for tensors in zip(*parts))
        of_actor = trust_region_step(actor, obs, action, advantage, weight, cfg)
        if cfg.normalize:  # for the next round: behaviour and update of this one saw the same numbers
            stats.add(online["obs"][0])
            stats.fit(actor, critic)
        return metrics | of_critic | of_actor | {"values/q": values.sum() / alive.sum()}, updates

    run.register(actor=actor, critic=critic, stats=stats)
    for _ in run.online(cfg.online_steps):
        metrics, updates = update()
        far_off = far_off + 1 if metrics["values/explained_variance"] < 0 else 0
        if far_off == FAR_OFF:
            warnings.warn(
                f"for {FAR_OFF} rounds V has told the returns no better than their mean would (V "
                f"{metrics['values/q']:.4g}, returns {metrics['values/return']:.4g}): more critic_steps or "
                "critic_sweeps, or preset continuous",
                stacklevel=1,
            )
        run.log(metrics, updates=updates)
        if run.evaluation_due:
            run.evaluate(actor)


# The paper's grid: max_kl 1e-3 to 1e-1, lambda 0.1 to 10, tau 0.9 and 0.97.
SEARCH: dict[str, tuple[Any, ...]] = {
    "max_kl": ("log", 1e-3, 1e-1),
    "online_weight": ("log", 0.1, 10.0),
    "gae_lambda": ("uniform", 0.9, 1.0),
    "critic_lr": ("log", 1e-4, 1e-2),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
