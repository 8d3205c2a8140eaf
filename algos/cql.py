"""CQL: conservative Q-learning (Kumar, Zhou, Tucker, Levine 2020, arXiv 2006.04779), and Cal-QL (Nakamoto et al. 2023).

SAC on the dataset, whose critics also learn to be low where the data are not: CQL(H) pushes down the soft maximum of Q
over actions and pushes up Q of the dataset's action. Cal-QL (arXiv 2303.05479) keeps what is pushed down from falling
below the return that the data achieved from there, so that fine-tuning online does not begin with a dip.

Presets: `cql` (default) and `cal_ql`; both with most of CORL's constants. Equations, deviations, settings by domain,
results: docs/algorithms/cql.md.

Run: python algos/cql.py --preset cal_ql --dataset hoard/pendulum/mixed-v0 --online-steps 5000
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import Run, main
from hoard.runners.nn import (
    ObsNormalizer,
    compiled,
    frozen_copy,
    gradient_step,
    linear,
    normal_like,
    polyak_update,
)


@dataclass
class Config:
    """CQL and Cal-QL, offline and fine-tuned online. Defaults follow CORL."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    data: str = "all"  # all of it, or top=F, weight=return, weight=advantage, hubl=rank:A; see docs/datasets.md
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after a minute of compiling; needs a C++ compiler
    updates: int = 1_000_000  # gradient updates on the dataset
    online_steps: int = 0  # environment steps after them, one update each; *_every count steps there
    guide: str = "none"  # or a finished run's folder, whose policy begins every episode; see docs/protocol.md
    log_every: int = 1000  # updates or steps per row of training metrics
    eval_every: int = 5000  # updates or steps between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # updates or steps between checkpoints; online they wait for the end of the episode
    # --- optimisation ---
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 3e-4  # Adam's step size for the critics
    actor_lr: float = 3e-5  # for policy and temperature
    hidden: tuple[int, ...] = (256, 256, 256)  # widths of the hidden layers of every network
    # --- data ---
    normalize_obs: bool = True  # standardise observations inside the networks
    offline_ratio: float | None = None  # share of the dataset in online batches; none draws from everything alike
    reward_scale: float = 1.0  # rewards trained on are reward_scale * (r + reward_shift), in data and replay alike
    reward_shift: float = 0.0  # see reward_scale
    # --- SAC ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    init_alpha: float = 1.0  # temperature at the start
    target_entropy: float = -1.0  # of the policy, in nats per action dimension
    backup_entropy: bool = False  # whether the target contains the entropy of the next action
    # --- CQL ---
    cql_alpha: float = 10.0  # weight of the conservative term
    cql_actions: int = 10  # uniform, present and next actions of each kind behind the soft maximum
    cql_temp: float = 1.0  # temperature of the soft maximum
    target_gap: float | None = None  # gap that a tuned factor of cql_alpha keeps; none: no such factor
    max_target: bool = False  # targets ask the best of cql_actions next actions
    calibrate: bool = False  # Cal-QL: the policy's actions are not pushed below the return of the data

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if self.cql_alpha < 0 or self.cql_temp <= 0:
            raise ValueError(f"cql_alpha {self.cql_alpha} must not be negative, cql_temp {self.cql_temp} above 0")
        if self.cql_actions < 1 or self.actor_lr <= 0:
            raise ValueError(f"cql_actions {self.cql_actions}: at least 1; actor_lr {self.actor_lr}: above 0")


PRESETS: dict[str, dict[str, Any]] = {
    "cql": {},
    "cal_ql": {"calibrate": True, "offline_ratio": 0.5},
}
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


# --- networks ---


class Actor(nn.Module):
    """A Gaussian squashed by tanh to [-1, 1], its standard deviation dependent on the state."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim, *cfg.hidden, 2 * action_dim]
        self.layers = nn.ModuleList(linear(a, b, generator, "torch") for a, b in pairwise(sizes))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-std before the tanh, each (..., action_dim)."""
        x = self.normalize(obs)
        for layer in self.layers[:-1]:
            x = torch.relu_(layer(x))
        mean, log_std = self.layers[-1](x).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A reparameterised action for standard normal noise, both (..., action_dim), and its log-density, (...)."""
        mean, log_std = self(obs)
        return squash(mean, log_std, noise)

    def act(self, obs: Tensor) -> Tensor:
        """The image of the mean, tanh(mean)."""
        return torch.tanh(self(obs)[0])

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A sampled action."""
        mean, log_std = self(obs)
        return squash(mean, log_std, normal_like(mean, generator))[0]


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std * noise) and its log-density; log(1 - tanh(u)^2) in the form that does not overflow."""
    u = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))
    return torch.tanh(u), log_prob.sum(dim=-1)


class Critic(nn.Module):
    """Two Q functions of (obs, action), each (..., dim), returned as (2, ...). Layer k of both is one weight."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        n, device = 2, generator.device
        self.normalize = ObsNormalizer(obs_dim, device)
        sizes = list(pairwise([obs_dim + action_dim, *cfg.hidden, 1]))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(n, a, b, device=device)) for a, b in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.empty(n, 1, b, device=device)) for _, b in sizes)
        for (inputs, _), weight, bias in zip(sizes, self.weights, self.biases):
            bound = 1 / math.sqrt(inputs)
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            nn.init.uniform_(bias, -bound, bound, generator=generator)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([self.normalize(obs), action], dim=-1)
        shape = x.shape[:-1]
        x = x.flatten(0, -2).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if k < last:
                x = torch.relu_(x)
        return x.view(-1, *shape)


class Alpha(nn.Module):
    """The temperature; its logarithm is learnt."""

    def __init__(self, start: float, device: torch.device) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(math.log(start), device=device))

    def forward(self) -> Tensor:
        return self.log.exp()


class Returns(nn.Module):
    """Discounted return to go of every transition in the buffer, of the rewards trained on; -inf while not known."""

    values: Tensor

    def __init__(self, buffer: ReplayBuffer, to_go: Tensor) -> None:
        super().__init__()
        values = torch.full((buffer.offline_size + buffer.online_capacity,), -torch.inf, device=buffer.device)
        values[: len(to_go)] = to_go
        self.register_buffer("values", values)

    def finish_episode(self, buffer: ReplayBuffer, first: int, discount: float) -> None:
        """Fill in the online episode that began at transition `first` and ended with the newest one."""
        rewards = buffer.reward[first : len(buffer)].tolist()
        to_go = 0.0
        for step in reversed(range(len(rewards))):
            to_go = rewards[step] + discount * to_go
            self.values[first + step] = to_go


# --- losses: a scalar and detached metrics ---


def with_noise(batch: dict[str, Tensor], cfg: Config, generator: torch.Generator) -> dict[str, Tensor]:
    """The batch, and all that an update draws: uniform actions, and standard normal numbers for the policy's own.

    `noise` is for the policy's step, `next_noise` for the target, the others for the conservative term.
    """
    one = batch["action"][:, None]
    several = one.expand(-1, cfg.cql_actions, -1)
    drawn = {
        "noise": normal_like(batch["action"], generator),
        "next_noise": normal_like(several if cfg.max_target else one, generator),
        "uniform": 2 * torch.rand(several.shape, generator=generator, device=one.device, dtype=one.dtype) - 1,
        "present_noise": normal_like(several, generator),
        "following_noise": normal_like(several, generator),
    }
    return batch | drawn


def backup_of(target: Critic, actor: Actor, alpha: Tensor, batch: dict[str, Tensor], cfg: Config) -> Tensor:
    """r + discount * the smaller target Q of the policy's next action, or of the best of several, (B,)."""
    next_obs = batch["next_obs"][:, None].expand(-1, batch["next_noise"].shape[1], -1)
    action, log_prob = actor.sample(next_obs, batch["next_noise"])
    value, best = target(next_obs, action).amin(dim=0).max(dim=1)
    if cfg.backup_entropy:
        value = value - alpha * log_prob.gather(1, best[:, None])[:, 0]
    return batch["reward"] + cfg.discount * (1 - batch["terminated"]) * value


def gap_of(critic: Critic, actor: Actor, batch: dict[str, Tensor], cfg: Config) -> tuple[Tensor, Tensor]:
    """Soft maximum of Q over actions less Q of the dataset's action, averaged over the batch, (2,), and that Q, (2, B).

    The integral of exp(Q / temperature) is estimated by importance sampling from the uniform distribution and from the
    policy at s and at s', `cql_actions` of each.
    """
    obs, n, dim = batch["obs"], cfg.cql_actions, batch["action"].shape[1]
    with torch.no_grad():
        present, present_log_prob = actor.sample(obs[:, None].expand(-1, n, -1), batch["present_noise"])
        next_obs = batch["next_obs"][:, None].expand(-1, n, -1)
        following, following_log_prob = actor.sample(next_obs, batch["following_noise"])
    actions = torch.cat([batch["action"][:, None], batch["uniform"], following, present], dim=1)
    q, drawn = critic(obs[:, None].expand(-1, 1 + 3 * n, -1), actions).split([1, 3 * n], dim=2)
    if cfg.calibrate:
        of_policy = torch.maximum(drawn[:, :, n:], batch["return_to_go"][:, None])
        drawn = torch.cat([drawn[:, :, :n], of_policy], dim=2)
    log_density = torch.cat(
        [torch.full_like(present_log_prob, -dim * math.log(2)), following_log_prob, present_log_prob], dim=1
    )
    soft_max = cfg.cql_temp * torch.logsumexp((drawn - log_density) / cfg.cql_temp, dim=2)
    q = q.squeeze(2)
    return (soft_max - q).mean(dim=1), q


def critic_loss(
    q: Tensor, backup: Tensor, gap: Tensor, factor: Tensor, cfg: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error and conservative term of both heads, summed over them; `factor` multiplies the latter."""
    error = (q - backup).square().mean(dim=1).sum()
    conservative = factor * cfg.cql_alpha * (gap - (cfg.target_gap or 0.0)).sum()
    loss = error + conservative
    metrics = {
        "losses/critic": loss.detach(),
        "losses/conservative": conservative.detach(),
        "values/q": q.detach().mean(),
        "values/gap": gap.detach().mean(),
    }
    return loss, metrics


def actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """`q` (2, B) and `log_prob` (B,) of the actor's own actions."""
    loss = (alpha * log_prob - q.amin(dim=0)).mean()
    return loss, {"losses/actor": loss.detach(), "policy/entropy": -log_prob.detach().mean()}


def alpha_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Its descent raises the temperature while the entropy is below its target."""
    loss = log_alpha * (entropy - target_entropy)
    return loss, {"losses/alpha": loss.detach(), "policy/alpha": log_alpha.detach().exp()}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    scale, shift = cfg.reward_scale, cfg.reward_shift
    buffer = ReplayBuffer(
        dataset, device, cfg.online_steps, reward_scale=scale, reward_shift=shift, discount=cfg.discount
    )
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    alpha = Alpha(cfg.init_alpha, device)
    factor = Alpha(1.0, device)  # of cql_alpha, where a gap is asked for
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        for net in (actor, critic):
            net.normalize.fit(mean, std + 1e-3)
    target = frozen_copy(critic)
    # Rewards are shifted alike at each step, which moves a return to go by the shift's own.
    to_go = scale * (dataset.returns_to_go(cfg.discount) + shift * steps_to_go(dataset, cfg.discount))
    returns = Returns(buffer, torch.as_tensor(to_go, dtype=torch.float32, device=device))
    networks = {"actor": actor, "critic": critic, "alpha": alpha, "factor": factor}
    rates = {"actor": cfg.actor_lr, "critic": cfg.lr, "alpha": cfg.actor_lr, "factor": cfg.lr}
    optimizers = {
        name: torch.optim.Adam(net.parameters(), lr=rates[name], fused=True) for name, net in networks.items()
    }

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        obs = batch["obs"]
        # temperature: towards the target entropy
        action, log_prob = actor.sample(obs, batch["noise"])
        loss, metrics = alpha_loss(alpha.log, -log_prob.detach().mean(), cfg.target_entropy * dataset.action_dim)
        gradient_step(optimizers["alpha"], loss)
        temperature = alpha().detach()
        # policy: towards actions of high Q and high entropy
        loss, of_actor = actor_loss(critic(obs, action), log_prob, temperature)
        gradient_step(optimizers["actor"], loss)
        # Q: towards its target, low on other actions than the data's
        with torch.no_grad():
            backup = backup_of(target, actor, temperature, batch, cfg)
        gap, q = gap_of(critic, actor, batch, cfg)
        if cfg.target_gap is not None:
            loss = -factor() * cfg.cql_alpha * (gap.detach() - cfg.target_gap).mean()
            gradient_step(optimizers["factor"], loss)
        loss, of_critic = critic_loss(q, backup, gap, factor().detach().clamp(max=1e6), cfg)
        gradient_step(optimizers["critic"], loss)
        polyak_update(target, critic, cfg.target_tau)
        return metrics | of_actor | of_critic

    def sample(offline_ratio: float | None = None) -> dict[str, Tensor]:
        index = buffer.draw(cfg.batch_size, generator, offline_ratio)
        batch = buffer.gather(index) | {"return_to_go": returns.values[index]}
        return with_noise(batch, cfg, generator)

    update = compiled(update, optimizers.values(), cfg.compile)
    env = run.training_env() if cfg.online_steps else None
    run.register(networks=networks, target=target, returns=returns, optimizers=optimizers, buffer=buffer)
    for _ in run.loop(cfg.updates):
        run.log(update(sample()))
        if run.evaluation_due:
            run.evaluate(actor)
    if env is None:
        return

    first = len(buffer)  # of the present episode: checkpoints wait for its end
    for _ in run.online(cfg.online_steps):
        step = env.step(actor.explore(env.obs, generator))
        buffer.add(*step)
        if step.terminated or step.truncated:
            returns.finish_episode(buffer, first, cfg.discount)
            first = len(buffer)
        run.log(update(sample(cfg.offline_ratio)))
        if run.evaluation_due:
            run.evaluate(actor)


def steps_to_go(dataset: Dataset, discount: float) -> np.ndarray:
    """sum_k discount^k over the steps that remain in the transition's own episode, its own included, (N,)."""
    left = dataset.lengths[dataset.episode_index] - dataset.timestep
    return left.astype(float) if discount == 1 else (1 - discount**left) / (1 - discount)


# The authors' weights are 5 and 10 (from memory).
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "actor_lr": ("log", 1e-5, 1e-3),
    "cql_alpha": ("log", 0.3, 30.0),
    "target_tau": ("log", 2e-3, 5e-2),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
