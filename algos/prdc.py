"""PRDC (Ran, Li, Zhang, Zhang, Yu 2023, arXiv 2306.06569): TD3 whose policy stays near the dataset's nearest step.

TD3+BC holds the policy to the action taken in this very state. PRDC searches the whole dataset for the step nearest to
(beta s, pi(s)) and holds the policy to that step's action: where a state was seen with poor actions only, the policy
may take a good one from a state nearby. A KD-tree on the CPU finds the neighbours.

Presets: `prdc` (default) as for Hopper and Walker2d, `halfcheetah`, `antmaze`. Equations, deviations, results:
docs/algorithms/prdc.md.

Run: python algos/prdc.py --dataset hoard/pendulum/mixed-v0 --seed 0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.spatial import KDTree
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
    """PRDC. Defaults follow the authors' released code."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    data: str = "all"  # all of it, or top=F, weight=return, weight=advantage, hubl=rank:A; see docs/datasets.md
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
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 3e-4  # Adam's step size
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of every network
    # --- data ---
    normalize_obs: bool = True  # standardise observations inside the networks and in the search
    reward_scale: float = 1.0  # rewards trained on are reward_scale * (r + reward_shift)
    reward_shift: float = 0.0  # see reward_scale
    # --- TD3 ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target networks, at each actor step
    policy_delay: int = 2  # critic steps per actor step
    policy_noise: float = 0.2  # standard deviation of the noise on the target's action
    noise_clip: float = 0.5  # largest size of that noise
    # --- PRDC ---
    alpha: float = 2.5  # weight of Q against the distance, once Q is divided by its mean size
    beta: float = 2.0  # weight of the state against the action when neighbours are searched
    neighbor: int = 1  # 1 takes the nearest step's action, 2 the second nearest's, ...

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        for name in ("policy_delay", "neighbor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        for name in ("policy_noise", "noise_clip", "alpha", "beta"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: must not be negative")


PRESETS: dict[str, dict[str, Any]] = {
    "prdc": {},
    "halfcheetah": {"alpha": 40.0},
    "antmaze": {"alpha": 7.5, "beta": 7.5, "reward_scale": 10_000.0, "reward_shift": -1.0},
}


# --- networks ---


class Actor(nn.Module):
    """A deterministic policy, its output bounded by tanh."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim, *cfg.hidden, action_dim]
        self.layers = nn.ModuleList(linear(a, b, generator, "torch") for a, b in pairwise(sizes))

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


# --- neighbours ---


class Neighbors:
    """The steps of the dataset by (beta * observation, action), in a KD-tree."""

    def __init__(self, obs: Tensor, action: Tensor, cfg: Config) -> None:
        """Take `obs` (N, obs_dim), standardised if the networks' are, and `action` (N, action_dim) in [-1, 1].

        Raises ValueError if there are fewer than `neighbor` steps.
        """
        if len(obs) < cfg.neighbor:
            raise ValueError(f"neighbor {cfg.neighbor}: the dataset has only {len(obs)} steps")
        self.beta, self.k, self.threads = cfg.beta, cfg.neighbor, cfg.threads
        self.action = action
        # Midpoint splits: on mazes, where many steps share coordinates, ten times quicker than SciPy's default.
        self.tree = KDTree(self.key(obs, action), leafsize=32, balanced_tree=False, compact_nodes=False)

    def key(self, obs: Tensor, action: Tensor) -> np.ndarray:
        return torch.cat([self.beta * obs, action], dim=-1).cpu().numpy()

    @torch.no_grad()
    def actions(self, obs: Tensor, action: Tensor) -> Tensor:
        """The action (B, action_dim) of the step that is the k-th nearest to each row."""
        _, index = self.tree.query(self.key(obs, action), k=[self.k], workers=self.threads)
        return self.action[torch.as_tensor(index[:, 0], device=self.action.device)]


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
    """Squared error of both heads, summed over them."""
    with torch.no_grad():
        next_action = smoothed_action(target_actor, batch["next_obs"], batch["next_noise"], cfg)
        next_q = target(batch["next_obs"], next_action).amin(dim=0)
        backup = batch["reward"] + cfg.discount * (1 - batch["terminated"]) * next_q
    q = critic(batch["obs"], batch["action"])
    loss = (q - backup).square().mean(dim=1).sum()
    return loss, {"losses/critic": loss.detach(), "values/q": q.detach().mean()}


def actor_loss(q: Tensor, action: Tensor, data_action: Tensor, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
    """`q` (B,): the first head's values of the actor's own `action` (B, action_dim); `data_action`: the neighbour's."""
    mse = (action - data_action).square().mean()
    weight = cfg.alpha / q.detach().abs().mean()
    loss = mse - weight * q.mean()
    return loss, {"losses/actor": loss.detach(), "losses/mse": mse.detach(), "policy/q_weight": weight}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(
        dataset, device, reward_scale=cfg.reward_scale, reward_shift=cfg.reward_shift, discount=cfg.discount
    )
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    critic = Critic(cfg, dataset.obs_dim, dataset.action_dim, generator)
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        for net in (actor, critic):
            net.normalize.fit(mean, std + 1e-3)
    with torch.no_grad():
        everything = buffer.gather(torch.arange(len(buffer), device=device))
        neighbors = Neighbors(actor.normalize(everything["obs"]), everything["action"], cfg)
    target, target_actor = frozen_copy(critic), frozen_copy(actor)
    networks = {"actor": actor, "critic": critic}
    optimizers = {name: torch.optim.Adam(net.parameters(), lr=cfg.lr, fused=True) for name, net in networks.items()}

    @torch.no_grad()
    def nearest_action(obs: Tensor) -> Tensor:
        # looked up outside of the policy's step: a tree is no tensor
        return neighbors.actions(actor.normalize(obs), actor(obs))

    def update_critic(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # Q: towards r + discount * the smaller target Q of the slow policy's action, blurred
        loss, metrics = critic_loss(critic, target, target_actor, batch, cfg)
        gradient_step(optimizers["critic"], loss)
        return metrics

    def update_actor(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # policy: towards actions of high Q that are near those of the nearest steps in the dataset
        action = actor(batch["obs"])
        loss, metrics = actor_loss(critic(batch["obs"], action)[0], action, batch["nearest_action"], cfg)
        gradient_step(optimizers["actor"], loss)
        polyak_update(target, critic, cfg.target_tau)
        polyak_update(target_actor, actor, cfg.target_tau)
        return metrics

    update_critic = compiled(update_critic, [optimizers["critic"]], cfg.compile)
    update_actor = compiled(update_actor, [optimizers["actor"]], cfg.compile)
    run.register(networks=networks, target=target, target_actor=target_actor, optimizers=optimizers)
    for number in run.loop(cfg.updates):
        batch = with_noise(buffer.sample(cfg.batch_size, generator), generator)
        metrics = update_critic(batch)
        if number % cfg.policy_delay == 0:
            metrics |= update_actor(batch | {"nearest_action": nearest_action(batch["obs"])})
        run.log(metrics)
        if run.evaluation_due:
            run.evaluate(actor)


# The paper's alpha is 2.5, 7.5 and 40, its beta 2 and 7.5.
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "alpha": ("log", 0.5, 40.0),
    "beta": ("log", 0.5, 15.0),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
