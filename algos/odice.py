"""O-DICE: distribution correction by an orthogonal-gradient update (Mao, Xu, Zhang, Zhan, ICLR 2024, arXiv 2402.00348).

One value function and no critic. The residual r + discount * V(s') - V(s) is pushed through the conjugate f* of a
divergence between the policy's visits and the data's. Its gradients through V(s) (forward) and through V(s') (backward)
can undo each other, so the backward one is projected onto the normal plane of the forward one. The policy clones the
data's actions with weights that grow with the residual.

Defaults follow the authors' released code. Equations, deviations, settings, results: docs/algorithms/odice.md.

Run: python algos/odice.py --dataset hoard/pendulum/mixed-v0 --seed 0
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
    frozen_copy,
    gradient,
    gradient_step,
    linear,
    polyak_update,
    step_along,
)


@dataclass
class Config:
    """O-DICE. Defaults follow the authors' released class; its page names where their script departs from it."""

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
    lr: float = 1e-4  # Adam's step size
    weight_decay: float = 1e-5  # L2 inside the actor's Adam
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers of both networks
    # --- data ---
    reward_mode: Literal["return_range", "minus_one", "none"] = "return_range"  # transform of the rewards trained on
    normalize_obs: bool = False  # standardise observations inside the networks
    # --- O-DICE ---
    discount: float = 0.99  # gamma
    target_tau: float = 0.005  # Polyak step of the target value
    divergence: Literal["pearson", "reverse_kl"] = "pearson"  # f, between the policy's visits and the data's
    residual_weight: float = 0.6  # the paper's lambda: weight of f*, 1 - lambda that of V itself
    backward_weight: float = 1.0  # the paper's eta: weight of the backward gradient
    gradient: Literal["orthogonal", "true", "semi"] = "orthogonal"  # projected, both as they are, or forward alone
    max_weight: float = 100.0  # cap of the policy's weights

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if not 0 < self.residual_weight < 1:
            raise ValueError(f"residual_weight {self.residual_weight}: must lie between 0 and 1")
        if self.backward_weight < 0 or self.max_weight <= 0:
            raise ValueError(
                f"backward_weight {self.backward_weight} must not be negative, max_weight {self.max_weight} above 0"
            )
        if self.gradient != "orthogonal" and self.backward_weight != 1:
            raise ValueError(f"backward_weight {self.backward_weight}: only gradient orthogonal has one")


PRESETS: dict[str, dict[str, Any]] = {
    "odice": {},
    "antmaze": {"reward_mode": "minus_one"},
    "true_gradient": {"gradient": "true"},
    "semi_gradient": {"gradient": "semi"},
}
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


# --- networks ---


class MLP(nn.Module):
    """ReLU network behind fixed observation statistics, (B, obs_dim) -> (B, outputs)."""

    def __init__(self, cfg: Config, obs_dim: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim, *cfg.hidden, outputs]
        self.layers = nn.ModuleList(linear(a, b, generator, "torch") for a, b in pairwise(sizes))

    def forward(self, obs: Tensor) -> Tensor:
        x = self.normalize(obs)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


class Actor(MLP):
    """A plain Gaussian, neither mean nor sample squashed; standard deviation independent of the state."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__(cfg, obs_dim, action_dim, generator)
        self.log_std = nn.Parameter(torch.zeros(action_dim, device=generator.device))

    def log_prob(self, obs: Tensor, action: Tensor) -> Tensor:
        """Log-density of the actions, (B,)."""
        log_std = self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)
        error = (action - self(obs)) / log_std.exp()
        return -(0.5 * error.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def act(self, obs: Tensor) -> Tensor:
        """The mean, cut to [-1, 1]."""
        return self(obs).clamp(-1, 1)


# --- losses: a scalar and detached metrics ---


def conjugate(residual: Tensor, cfg: Config) -> Tensor:
    """f*(x) = max over w >= 0 of w x - f(w), with f(w) = (w - 1)^2 (pearson) or w log w (reverse_kl)."""
    if cfg.divergence == "reverse_kl":
        return torch.exp(residual - 1)
    w = (residual / 2 + 1).clamp(min=0)
    return residual * w - (w - 1).square()


def policy_weight(residual: Tensor, cfg: Config) -> Tensor:
    """Weights of the cloned actions: the authors' max(x, 0) for pearson, f*'(x) = exp(x - 1) for reverse_kl; capped."""
    weight = torch.exp(residual - 1) if cfg.divergence == "reverse_kl" else residual.clamp(min=0)
    return weight.clamp(max=cfg.max_weight)


def residuals(value: MLP, target: MLP, batch: dict[str, Tensor], cfg: Config) -> tuple[Tensor, Tensor, Tensor]:
    """V(s), and r + discount * V(s') - V(s) with the slow V at s' (forward) and at s (backward), each (B,)."""
    keeps_on = cfg.discount * (1 - batch["terminated"])
    with torch.no_grad():
        slow, slow_next = target(batch["obs"]).squeeze(-1), target(batch["next_obs"]).squeeze(-1)
    v = value(batch["obs"]).squeeze(-1)
    if cfg.gradient == "semi":
        return v, batch["reward"] + keeps_on * slow_next - v, torch.zeros_like(v)
    v_next = value(batch["next_obs"]).squeeze(-1)
    if cfg.gradient == "true":  # one residual, with the learnt V at both ends
        return v, batch["reward"] + keeps_on * v_next - v, torch.zeros_like(v)
    return v, batch["reward"] + keeps_on * slow_next - v, batch["reward"] + keeps_on * v_next - slow


def value_gradient(
    value: MLP, v: Tensor, forward: Tensor, backward: Tensor, cfg: Config
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The gradient of every parameter of V: that of (1 - lambda) V, the forward one, the projected backward one."""
    parameters = list(value.parameters())
    of = lambda loss: gradient(loss, parameters)  # noqa: E731
    dual = cfg.residual_weight * conjugate(forward, cfg).mean()
    metrics = {"losses/value": dual.detach(), "values/v": v.detach().mean(), "values/residual": forward.detach().mean()}
    linear_term, ahead = of((1 - cfg.residual_weight) * v.mean()), of(dual)
    if cfg.gradient != "orthogonal":
        return [a + b for a, b in zip(linear_term, ahead)], metrics
    back = of(cfg.residual_weight * cfg.backward_weight * conjugate(backward, cfg).mean())
    dot = lambda one, other: sum((a * b).sum() for a, b in zip(one, other))  # noqa: E731
    share = dot(ahead, back) / dot(ahead, ahead).clamp(min=1e-10)  # f* may be flat everywhere
    metrics["values/overlap"] = share
    return [a + (1 - share) * f + b for a, f, b in zip(linear_term, ahead, back)], metrics


def actor_loss(actor: Actor, obs: Tensor, action: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cloning with weights (B,)."""
    loss = -(weight * actor.log_prob(obs, action)).mean()
    return loss, {
        "losses/actor": loss.detach(),
        "policy/weight": weight.mean(),
        "policy/ignored": (weight == 0).float().mean(),
    }


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    scale, shift = reward_transform(dataset, run.episode_limit, cfg)
    buffer = ReplayBuffer(dataset, device, reward_scale=scale, reward_shift=shift, discount=cfg.discount)
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    value = MLP(cfg, dataset.obs_dim, 1, generator)
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        for net in (actor, value):
            net.normalize.fit(mean, std + 1e-3)
    target = frozen_copy(value)
    optimizers = {
        "actor": torch.optim.Adam(actor.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True),
        "value": torch.optim.Adam(value.parameters(), lr=cfg.lr, fused=True),
    }

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        # V: forward and backward gradients, the latter without its part along the former
        v, forward, backward = residuals(value, target, batch, cfg)
        gradients, metrics = value_gradient(value, v, forward, backward, cfg)
        step_along(optimizers["value"], gradients)
        polyak_update(target, value, cfg.target_tau)
        # policy: the data's actions, weighted by the residual as it was before V's step
        weight = policy_weight(forward.detach(), cfg)
        loss, of_actor = actor_loss(actor, batch["obs"], batch["action"], weight)
        gradient_step(optimizers["actor"], loss)
        return metrics | of_actor

    update = compiled(update, optimizers.values(), cfg.compile)
    run.register(networks={"actor": actor, "value": value}, target=target, optimizers=optimizers)
    for _ in run.loop(cfg.updates):
        run.log(update(buffer.sample(cfg.batch_size, generator)))
        if run.evaluation_due:
            run.evaluate(actor)


def reward_transform(dataset: Dataset, episode_limit: int, cfg: Config) -> tuple[float, float]:
    """Scale and shift of the rewards trained on; the scale is the time limit over the range of returns.

    Raises ValueError where that range is 0.
    """
    if cfg.reward_mode == "minus_one":
        return 1.0, -1.0
    if cfg.reward_mode == "none":
        return 1.0, 0.0
    span = float(dataset.returns.max() - dataset.returns.min())
    if span == 0:
        raise ValueError(f"reward_mode return_range: every episode of {dataset.id} has the same return; use none")
    return episode_limit / span, 0.0


# The released code takes lambda, eta and the step size from a file for each set; the ranges are ours.
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "residual_weight": ("uniform", 0.4, 0.9),
    "backward_weight": ("uniform", 0.2, 1.0),
    "target_tau": ("log", 2e-3, 5e-2),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
