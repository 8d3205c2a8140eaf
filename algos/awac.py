"""AWAC: advantage-weighted actor-critic (Nair, Gupta, Dalal, Levine 2020, arXiv 2006.09359).

An off-policy critic of the policy itself, and a policy that is never pushed up the critic: it is cloned from the data
with weights exp(beta * advantage), where the advantage is Q(s, a) - Q(s, pi(s)). `online_steps` goes on in the
environment in the same way, on one buffer that begins with the dataset and grows.

Defaults follow CORL. Equations, deviations, settings, results: docs/algorithms/awac.md.

Run: python algos/awac.py --dataset hoard/pendulum/mixed-v0 --seed 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hoard.datasets import ReplayBuffer
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
    """AWAC, offline and fine-tuned online. Defaults follow CORL."""

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
    lr: float = 3e-4  # Adam's step size
    hidden: tuple[int, ...] = (256, 256, 256)  # widths of the hidden layers of every network
    # --- data ---
    normalize_obs: bool = True  # standardise observations inside the networks
    offline_ratio: float | None = None  # share of the dataset in online batches; none draws from everything alike
    # --- AWAC ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    beta: float = 1.0  # inverse temperature of the policy weights, 1 / the paper's lambda
    max_weight: float = 100.0  # cap of exp(beta * advantage)

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if self.beta < 0 or self.max_weight <= 0:
            raise ValueError(f"beta {self.beta} must not be negative, max_weight {self.max_weight} above 0")


PRESETS: dict[str, dict[str, Any]] = {"awac": {}}
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


# --- networks ---


class Actor(nn.Module):
    """A plain Gaussian, neither mean nor sample squashed; standard deviation independent of the state."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim, *cfg.hidden, action_dim]
        self.layers = nn.ModuleList(linear(a, b, generator, "torch") for a, b in pairwise(sizes))
        self.log_std = nn.Parameter(torch.zeros(action_dim, device=generator.device))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, action_dim) and log-std (action_dim,)."""
        x = self.normalize(obs)
        for layer in self.layers[:-1]:
            x = torch.relu_(layer(x))
        return self.layers[-1](x), self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def act(self, obs: Tensor) -> Tensor:
        """The mean, cut to [-1, 1]."""
        return self(obs)[0].clamp(-1, 1)

    def sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        """The action for standard normal noise, cut to [-1, 1]."""
        mean, log_std = self(obs)
        return (mean + log_std.exp() * noise).clamp(-1, 1)

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """A draw, cut to [-1, 1]."""
        mean, log_std = self(obs)
        return (mean + log_std.exp() * normal_like(mean, generator)).clamp(-1, 1)


class Critic(nn.Module):
    """Two Q functions of (obs, action), returned as (2, B). Layer k of both is one weight (2, in, out)."""

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
        x = torch.cat([self.normalize(obs), action], dim=-1).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if k < last:
                x = torch.relu_(x)
        return x.squeeze(-1)


# --- losses: a scalar and detached metrics ---


def with_noise(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The batch, and standard normal numbers for the policy's actions at s' and at s: all that an update draws."""
    drawn = {name: normal_like(batch["action"], generator) for name in ("next_noise", "noise")}
    return batch | drawn


def critic_loss(
    critic: Critic, target: Critic, actor: Actor, batch: dict[str, Tensor], cfg: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of both heads, summed over them."""
    with torch.no_grad():
        next_action = actor.sample(batch["next_obs"], batch["next_noise"])
        next_q = target(batch["next_obs"], next_action).amin(dim=0)
        backup = batch["reward"] + cfg.discount * (1 - batch["terminated"]) * next_q
    q = critic(batch["obs"], batch["action"])
    loss = (q - backup).square().mean(dim=1).sum()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(actor: Actor, critic: Critic, batch: dict[str, Tensor], cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    obs, action = batch["obs"], batch["action"]
    with torch.no_grad():
        value = critic(obs, actor.sample(obs, batch["noise"])).amin(dim=0)
        advantage = critic(obs, action).amin(dim=0) - value
        weight = torch.exp(cfg.beta * advantage).clamp(max=cfg.max_weight)
    mean, log_std = actor(obs)
    log_prob = -(0.5 * ((action - mean) / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)
    loss = -(weight * log_prob).mean()
    metrics = {
        "losses/actor": loss.detach(),
        "policy/weight": weight.mean(),
        "policy/weight_capped": (weight >= cfg.max_weight).float().mean(),
        "policy/std": log_std.detach().exp().mean(),
    }
    return loss, metrics


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(dataset, device, cfg.online_steps, discount=cfg.discount)
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        for net in (actor, critic):
            net.normalize.fit(mean, std + 1e-3)
    target = frozen_copy(critic)
    networks = {"actor": actor, "critic": critic}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True) for name, net in networks.items()}

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # Q: towards r + discount * the smaller target Q of the policy's next action
        loss, metrics = critic_loss(critic, target, actor, batch, cfg)
        gradient_step(optimizers["critic"], loss)
        # policy: the buffer's actions, weighted by exp(beta * advantage)
        loss, of_actor = actor_loss(actor, critic, batch, cfg)
        gradient_step(optimizers["actor"], loss)
        polyak_update(target, critic, cfg.target_tau)
        return metrics | of_actor

    update = compiled(update, optimizers.values(), cfg.compile)
    env = run.training_env() if cfg.online_steps else None
    run.register(networks=networks, target=target, optimizers=optimizers, buffer=buffer)
    for _ in run.loop(cfg.updates):
        run.log(update(with_noise(buffer.sample(cfg.batch_size, generator), generator)))
        if run.evaluation_due:
            run.evaluate(actor)
    if env is None:
        return

    for _ in run.online(cfg.online_steps):
        buffer.add(*env.step(actor.explore(env.obs, generator)))
        batch = buffer.sample(cfg.batch_size, generator, cfg.offline_ratio)
        run.log(update(with_noise(batch, generator)))
        if run.evaluation_due:
            run.evaluate(actor)


# The paper's lambda, 1 / beta, is 0.3 and 1 (from memory).
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "beta": ("log", 0.3, 10.0),
    "target_tau": ("log", 2e-3, 5e-2),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
