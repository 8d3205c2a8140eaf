"""ReBRAC (Tarasov, Kurenkov, Nikulin, Kolesnikov 2023, arXiv 2305.09836): TD3+BC with today's parts.

The distance to the dataset's action is a penalty twice, each time with its own coefficient: on the policy, and on the
value of the next action in the critic's target. Networks are deeper, critics have LayerNorm, batches are larger.

Presets: `rebrac` (default) for locomotion, `antmaze`, `adroit`, `maze2d`; the two coefficients are to be set for each
dataset. Equations, deviations, all settings of the paper, results: docs/algorithms/rebrac.md.

Run: python algos/rebrac.py --dataset hoard/pendulum/mixed-v0 --actor-bc-coef 0.1
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
    """ReBRAC. Defaults follow the authors' released code for locomotion."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after a minute of compiling; needs a C++ compiler
    updates: int = 1_000_000  # gradient updates on the dataset
    log_every: int = 1000  # updates per row of training metrics
    eval_every: int = 5000  # updates between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # updates between checkpoints
    # --- optimisation ---
    batch_size: int = 1024  # transitions per update, drawn with replacement
    lr: float = 1e-3  # Adam's step size
    critic_lr: float | None = None  # Adam's step size for the critics; none takes lr
    hidden: tuple[int, ...] = (256, 256, 256)  # widths of the hidden layers of every network
    # --- data ---
    normalize_obs: bool = False  # standardise observations inside the networks
    reward_scale: float = 1.0  # rewards trained on are reward_scale * r
    # --- TD3 ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target networks, at each actor step
    policy_delay: int = 2  # critic steps per actor step
    policy_noise: float = 0.2  # standard deviation of the noise on the target's action
    noise_clip: float = 0.5  # largest size of that noise
    # --- ReBRAC ---
    actor_bc_coef: float = 0.01  # beta1: weight of the squared distance to the data in the policy's loss
    critic_bc_coef: float = 0.01  # beta2: weight of the next action's in the critic's target
    normalize_q: bool = True  # divide Q by its mean size in the policy's loss
    layer_norm: bool = True  # after the ReLU of each hidden layer of the critics

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if self.policy_delay < 1:
            raise ValueError(f"policy_delay {self.policy_delay}: must be at least 1")
        for name in ("policy_noise", "noise_clip", "actor_bc_coef", "critic_bc_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: must not be negative")
        if self.critic_lr is not None and self.critic_lr <= 0:
            raise ValueError(f"critic_lr {self.critic_lr}: must be above 0, or none for lr")


# The coefficients of a domain are those of one of its sets; docs/algorithms/rebrac.md has them all.
PRESETS: dict[str, dict[str, Any]] = {
    "rebrac": {},
    "antmaze": {
        "lr": 3e-4,
        "critic_lr": 5e-5,
        "batch_size": 256,
        "reward_scale": 100.0,
        "discount": 0.999,
        "actor_bc_coef": 0.002,
        "critic_bc_coef": 0.001,
    },
    "adroit": {"lr": 3e-4, "batch_size": 256, "actor_bc_coef": 0.1, "critic_bc_coef": 0.1},
    "maze2d": {"lr": 3e-4, "batch_size": 256, "actor_bc_coef": 0.003, "critic_bc_coef": 0.001},
}


# --- networks ---


class Actor(nn.Module):
    """A deterministic policy, its output bounded by tanh."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim, *cfg.hidden, action_dim]
        layers = [linear(a, b, generator, "torch") for a, b in pairwise(sizes)]
        for layer in layers[:-1]:
            nn.init.constant_(layer.bias, 0.1)
        for parameter in layers[-1].parameters():  # the first actions lie near the centre
            nn.init.uniform_(parameter, -1e-3, 1e-3, generator=generator)
        self.layers = nn.ModuleList(layers)

    def forward(self, obs: Tensor) -> Tensor:
        """(B, obs_dim) -> (B, action_dim) in [-1, 1]."""
        x = self.normalize(obs)
        for layer in self.layers[:-1]:
            x = torch.relu_(layer(x))
        return torch.tanh(self.layers[-1](x))

    def act(self, obs: Tensor) -> Tensor:
        """The action."""
        return self(obs)


class Critic(nn.Module):
    """Two Q functions of (obs, action), returned as (2, B). Layer k of both is one weight (2, in, out)."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        n, device = 2, generator.device
        self.normalize = ObsNormalizer(obs_dim, device)
        sizes = list(pairwise([obs_dim + action_dim, *cfg.hidden, 1]))
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(n, a, b, device=device)) for a, b in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.full((n, 1, b), 0.1, device=device)) for _, b in sizes)
        for (inputs, _), weight in zip(sizes, self.weights):
            bound = 1 / math.sqrt(inputs)
            nn.init.uniform_(weight, -bound, bound, generator=generator)
        for parameter in (self.weights[-1], self.biases[-1]):
            nn.init.uniform_(parameter, -3e-3, 3e-3, generator=generator)
        widths = cfg.hidden if cfg.layer_norm else ()  # each head's LayerNorm has its own scale and shift
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(n, 1, width, device=device)) for width in widths)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(n, 1, width, device=device)) for width in widths)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([self.normalize(obs), action], dim=-1).expand(len(self.weights[0]), -1, -1)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            if k < last:
                x = torch.relu_(x)
                if len(self.scales):
                    x = F.layer_norm(x, x.shape[-1:], eps=1e-6) * self.scales[k] + self.shifts[k]
        return x.squeeze(-1)


# --- losses: a scalar and detached metrics ---


def with_noise(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The batch, and standard normal numbers for the noise on the target's action: all that an update draws."""
    return batch | {"next_noise": normal_like(batch["action"], generator)}


def smoothed_action(actor: Actor, obs: Tensor, noise: Tensor, cfg: Config) -> Tensor:
    """The actor's action under clipped Gaussian noise, within [-1, 1]: a critic flat around it cannot be exploited."""
    noise = (cfg.policy_noise * noise).clamp(-cfg.noise_clip, cfg.noise_clip)
    return (actor(obs) + noise).clamp(-1, 1)


def critic_loss(
    critic: Critic, target: Critic, target_actor: Actor, batch: dict[str, Tensor], cfg: Config
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of both heads, summed over them. `batch` has `next_action`, the one that the data took next."""
    with torch.no_grad():
        next_action = smoothed_action(target_actor, batch["next_obs"], batch["next_noise"], cfg)
        distance = (next_action - batch["next_action"]).square().sum(dim=-1)
        penalty = cfg.critic_bc_coef * (1 - batch["terminated"]) * distance
        next_q = target(batch["next_obs"], next_action).amin(dim=0) - penalty
        backup = batch["reward"] + cfg.discount * (1 - batch["terminated"]) * next_q
    q = critic(batch["obs"], batch["action"])
    loss = (q - backup).square().mean(dim=1).sum()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean(), "values/penalty": penalty.mean()}


def actor_loss(q: Tensor, action: Tensor, data_action: Tensor, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """`q` (2, B): both heads' values of the actor's own `action` (B, action_dim); `data_action`: the dataset's."""
    q = q.amin(dim=0)
    distance = (action - data_action).square().sum(dim=-1).mean()
    weight = 1 / q.detach().abs().mean() if cfg.normalize_q else torch.ones_like(distance)
    loss = cfg.actor_bc_coef * distance - weight * q.mean()
    return loss, {"losses/actor": loss.detach(), "losses/distance": distance.detach(), "policy/q_weight": weight}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(dataset, device, reward_scale=cfg.reward_scale)
    followed = torch.as_tensor(steps_followed(dataset), device=device)
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        for net in (actor, critic):
            net.normalize.fit(mean, std + 1e-3)
    target, target_actor = frozen_copy(critic), frozen_copy(actor)
    networks = {"actor": actor, "critic": critic}
    lr = {"actor": cfg.lr, "critic": cfg.lr if cfg.critic_lr is None else cfg.critic_lr}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=lr[name], fused=True) for name, net in networks.items()}

    def sample() -> dict[str, Tensor]:
        """A batch with the action that the data took next; behind a termination that is another episode's, unused."""
        index = followed[torch.randint(len(followed), (cfg.batch_size,), generator=generator, device=device)]
        next_action = buffer.action[(index + 1).clamp(max=len(buffer) - 1)]
        return buffer.gather(index) | {"next_action": next_action}

    def update_critic(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # Q: towards r + discount * the smaller target Q of the slow policy's action - its distance to the data
        loss, metrics = critic_loss(critic, target, target_actor, batch, cfg)
        gradient_step(optimizers["critic"], loss)
        return metrics

    def update_actor(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # policy: towards actions of high Q that are near the dataset's
        action = actor(batch["obs"])
        loss, metrics = actor_loss(critic(batch["obs"], action), action, batch["action"], cfg)
        gradient_step(optimizers["actor"], loss)
        polyak_update(target, critic, cfg.target_tau)
        polyak_update(target_actor, actor, cfg.target_tau)
        return metrics

    update_critic = compiled(update_critic, [optimizers["critic"]], cfg.compile)
    update_actor = compiled(update_actor, [optimizers["actor"]], cfg.compile)
    run.register(networks=networks, target=target, target_actor=target_actor, optimizers=optimizers)
    for number in run.loop(cfg.updates):
        batch = with_noise(sample(), generator)
        metrics = update_critic(batch)
        if number % cfg.policy_delay == 0:
            metrics |= update_actor(batch)
        run.log(metrics)
        if run.evaluation_due:
            run.evaluate(actor)


def steps_followed(dataset: Dataset) -> np.ndarray:
    """Indices of the transitions whose target can be computed: another one follows, or they terminate.

    The last step of an episode that was cut off lacks its next action. Raises ValueError if no transition is left.
    """
    last = np.zeros(len(dataset), bool)
    last[dataset.starts[1:] - 1] = True
    index = np.flatnonzero(~last | dataset.terminated)
    if not len(index):
        raise ValueError(f"{dataset.id}: every episode has one step and none terminates, so no next action is known")
    return index


# Around the paper's grid: 1e-3 to 0.1, and 0 to 0.5 (from memory).
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "actor_bc_coef": ("log", 1e-3, 1.0),
    "critic_bc_coef": ("log", 1e-4, 0.5),
    "target_tau": ("log", 2e-3, 5e-2),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
