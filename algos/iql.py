"""IQL: implicit Q-learning (Kostrikov, Nair, Levine 2021, arXiv 2110.06169).

Offline value learning that never evaluates an action outside the data: V(s) is an upper expectile of Q over dataset
actions, Q is regressed on r + discount * V(s'), and the policy is cloned with weights exp(beta * advantage).
`online_steps` fine-tunes it in the environment, on one buffer that begins with the dataset and grows.

Presets: `paper` (default) follows the authors' code, `corl` CORL's. Equations, deviations, settings by domain, results:
docs/algorithms/iql.md.

Run: python algos/iql.py --dataset hoard/maze2d/umaze-v0 --seed 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import Run, main
from hoard.runners.nn import (
    ObsNormalizer,
    compiled,
    cosine_lr,
    dropout,
    frozen_copy,
    gradient_step,
    linear,
    polyak_update,
    set_lr,
)


@dataclass
class Config:
    """IQL, offline and fine-tuned online. Defaults follow the authors' released code."""

    # --- experiment ---
    dataset: str = "hoard/maze2d/umaze-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
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
    actor_lr_schedule: Literal["cosine", "constant"] = "cosine"  # cosine falls to 0 at the last offline update
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of every network
    init: Literal["orthogonal", "torch"] = "orthogonal"  # weight initialisation
    # --- data ---
    reward_mode: Literal["return_range", "minus_one", "none"] = "return_range"  # transform of the rewards trained on
    clip_actions: bool = True  # clip actions trained on to +-(1 - 1e-5) of their range
    normalize_obs: bool = False  # standardise observations inside the networks
    offline_ratio: float | None = None  # share of the dataset in online batches; none draws from everything alike
    # --- IQL ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target critic
    expectile: float = 0.7  # tau of the value loss; 0.5 is the mean, 1 the maximum over the data
    beta: float = 3.0  # inverse temperature of the policy weights
    max_weight: float = 100.0  # cap of exp(beta * advantage)
    update_order: Literal["paper", "corl"] = "paper"  # Q's target and the advantage use V after its step, or before
    q_loss: Literal["sum", "mean"] = "sum"  # over the two heads
    actor: Literal["gaussian", "deterministic"] = "gaussian"  # log-likelihood or squared error on dataset actions
    actor_dropout: float = 0.0  # dropout after each hidden layer of the actor while training
    log_std_min: float = -5.0  # lower bound of the actor's log standard deviation; the upper one is 2

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile {self.expectile}: must lie between 0 and 1")
        if self.beta < 0 or self.max_weight <= 0:
            raise ValueError(f"beta {self.beta} must not be negative, max_weight {self.max_weight} above 0")
        if self.log_std_min > 2:
            raise ValueError(f"log_std_min {self.log_std_min}: must be at most 2")
        if self.actor == "deterministic" and self.online_steps:
            raise ValueError("actor deterministic: it learns no noise to explore with; online_steps needs gaussian")
        if self.compile and self.actor_dropout:
            raise ValueError(f"actor_dropout {self.actor_dropout}: must be 0 with compile, which cannot trace it")


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "corl": {
        "update_order": "corl",
        "q_loss": "mean",
        "init": "torch",
        "log_std_min": -20.0,
        "normalize_obs": True,
        "clip_actions": False,
        "reward_mode": "none",
    },
}


# --- networks ---


class MLP(nn.Module):
    """ReLU network, (B, sizes[0]) -> (B, sizes[-1]); dropout only with a generator."""

    def __init__(self, cfg: Config, sizes: list[int], generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(a, b, generator, cfg.init) for a, b in pairwise(sizes))

    def forward(self, x: Tensor, share: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        for layer in self.layers[:-1]:
            x = dropout(torch.relu_(layer(x)), share, generator)
        return self.layers[-1](x)


class Actor(nn.Module):
    """Mean bounded by tanh, a plain (not squashed) Gaussian around it, standard deviation independent of the state."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.dropout, self.log_std_min = cfg.actor_dropout, cfg.log_std_min
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        self.net = MLP(cfg, [obs_dim, *cfg.hidden, action_dim], generator)
        self.log_std = nn.Parameter(torch.zeros(action_dim, device=generator.device))

    def forward(self, obs: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Mean (B, action_dim) and log-std (action_dim,); with a generator, as in training, with dropout."""
        mean = torch.tanh(self.net(self.normalize(obs), self.dropout, generator))
        return mean, self.log_std.clamp(self.log_std_min, 2.0)

    def act(self, obs: Tensor) -> Tensor:
        """The mean action."""
        return self(obs)[0]

    @torch.no_grad()
    def explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """An action drawn from the Gaussian; the environment clips it."""
        mean, log_std = self(obs)
        return mean + log_std.exp() * torch.randn(mean.shape, generator=generator, device=mean.device)


class Value(nn.Module):
    """V of obs, (B,)."""

    def __init__(self, cfg: Config, obs_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        self.net = MLP(cfg, [obs_dim, *cfg.hidden, 1], generator)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(self.normalize(obs)).squeeze(-1)


class Critic(nn.Module):
    """Two Q functions of (obs, action), returned as (2, B)."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        self.heads = nn.ModuleList(MLP(cfg, [obs_dim + action_dim, *cfg.hidden, 1], generator) for _ in range(2))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([self.normalize(obs), action], dim=-1)
        return torch.stack([head(x).squeeze(-1) for head in self.heads])


# --- losses: a scalar and detached metrics ---


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile - 1(error < 0)| * error^2 (the authors' critic.py)."""
    return (torch.where(error > 0, expectile, 1 - expectile) * error.square()).mean()


def value_loss(value: Value, obs: Tensor, target_q: Tensor, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    v = value(obs)
    loss = expectile_loss(target_q - v, cfg.expectile)
    return loss, {"losses/value": loss.detach(), "values/v": v.detach().mean()}


def critic_loss(
    critic: Critic, obs: Tensor, action: Tensor, backup: Tensor, cfg: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    q = critic(obs, action)
    per_head = (q - backup).square().mean(dim=1)
    loss = per_head.sum() if cfg.q_loss == "sum" else per_head.mean()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(
    actor: Actor, obs: Tensor, action: Tensor, advantage: Tensor, cfg: Config, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    weight = torch.exp(cfg.beta * advantage).clamp(max=cfg.max_weight)
    mean, log_std = actor(obs, generator)
    error = action - mean
    if cfg.actor == "gaussian":
        log_prob = -(0.5 * (error / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)
        loss = -(weight * log_prob).mean()
    else:
        loss = (weight * error.square().sum(dim=-1)).mean()
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
    reward_scale, reward_shift = reward_transform(dataset, cfg)
    buffer = ReplayBuffer(
        dataset,
        device,
        cfg.online_steps,
        clip_actions=1e-5 if cfg.clip_actions else 0.0,
        reward_scale=reward_scale,
        reward_shift=reward_shift,
        discount=cfg.discount,
    )
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    value = Value(cfg, dataset.obs_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        for net in (actor, value, critic):
            net.normalize.fit(mean, std + 1e-3)
    target = frozen_copy(critic)
    networks = {"actor": actor, "value": value, "critic": critic}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True) for name, net in networks.items()}

    @torch.no_grad()
    def bootstrap(batch: dict[str, Tensor], target_q: Tensor) -> tuple[Tensor, Tensor]:
        """Target of Q, r + discount * V(s'), and advantage, Q - V(s), each (B,)."""
        v, next_v = value(torch.stack([batch["obs"], batch["next_obs"]]))
        return batch["reward"] + cfg.discount * (1 - batch["terminated"]) * next_v, target_q - v

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        obs, action = batch["obs"], batch["action"]
        with torch.no_grad():
            target_q = target(obs, action).amin(dim=0)
        if cfg.update_order == "corl":
            backup, advantage = bootstrap(batch, target_q)
        # V: the upper expectile of the target Q over the dataset's actions
        loss, metrics = value_loss(value, obs, target_q, cfg)
        gradient_step(optimizers["value"], loss)
        if cfg.update_order == "paper":
            backup, advantage = bootstrap(batch, target_q)
        # Q: one step of the Bellman equation with that V
        loss, of_critic = critic_loss(critic, obs, action, backup, cfg)
        gradient_step(optimizers["critic"], loss)
        polyak_update(target, critic, cfg.target_tau)
        # policy: dataset actions, weighted by exp(beta * advantage)
        loss, of_actor = actor_loss(actor, obs, action, advantage, cfg, generator)
        gradient_step(optimizers["actor"], loss)
        return metrics | of_critic | of_actor

    update = compiled(update, optimizers.values(), cfg.compile)
    env = run.training_env() if cfg.online_steps else None
    run.register(networks=networks, target=target, optimizers=optimizers, buffer=buffer)
    for number in run.loop(cfg.updates):
        if cfg.actor_lr_schedule == "cosine":
            cosine_lr(optimizers["actor"], cfg.lr, number, cfg.updates)
        run.log(update(buffer.sample(cfg.batch_size, generator)))
        if run.evaluation_due:
            run.evaluate(actor)
    if env is None:
        return

    set_lr(optimizers["actor"], cfg.lr)
    for _ in run.online(cfg.online_steps):
        buffer.add(*env.step(actor.explore(env.obs, generator)))
        run.log(update(buffer.sample(cfg.batch_size, generator, cfg.offline_ratio)))
        if run.evaluation_due:
            run.evaluate(actor)


def reward_transform(dataset: Dataset, cfg: Config) -> tuple[float, float]:
    """Scale and shift of the rewards trained on. Raises ValueError where the range of returns is 0."""
    if cfg.reward_mode == "minus_one":
        return 1.0, -1.0
    if cfg.reward_mode == "none":
        return 1.0, 0.0
    span = float(dataset.returns.max() - dataset.returns.min())
    if span == 0:
        raise ValueError(f"reward_mode return_range: every episode of {dataset.id} has the same return; use none")
    return 1000 / span, 0.0


# The paper has expectile 0.7 and 0.9, beta 0.5, 3 and 10.
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "expectile": ("uniform", 0.5, 0.95),
    "beta": ("log", 0.3, 30.0),
    "target_tau": ("log", 2e-3, 5e-2),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
