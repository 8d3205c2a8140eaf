"""BC: behaviour cloning, and cloning of the best episodes alone (top-x% BC).

Fits the policy to the dataset's actions by squared error. `top_fraction` keeps that share of the episodes, the best by
undiscounted return: the simplest offline method that looks at rewards, and a hard one to beat on good data.

Presets: `bc` (default) and `bc10`, the best tenth; both with CORL's constants. Deviations, results:
docs/algorithms/bc.md.

Run: python algos/bc.py --preset bc10 --dataset hoard/pendulum/mixed-v0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hoard.datasets import ReplayBuffer
from hoard.runners import History, Run, main
from hoard.runners.nn import ObsNormalizer, compiled, cosine_lr, dropout, gaussian_noise, gradient_step, linear


@dataclass
class Config:
    """Behaviour cloning, of all episodes or of the best ones. Defaults follow CORL."""

    # --- experiment ---
    dataset: str = "hoard/pointmaze/stitch-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    data: str = "all"  # all of it, or top=F, weight=return, weight=advantage; see docs/datasets.md
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after a minute of compiling; needs a C++ compiler
    updates: int = 500_000  # gradient updates on the dataset
    log_every: int = 1000  # updates per row of training metrics
    eval_every: int = 5000  # updates between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 5000  # updates between checkpoints
    # --- optimisation ---
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 3e-4  # Adam's step size
    lr_schedule: Literal["constant", "cosine"] = "constant"  # cosine falls to 0 at the last update
    weight_decay: float = 0.0  # L2 inside Adam
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers
    dropout: float = 0.0  # after each hidden layer while training
    input_noise: float = 0.0  # standard deviation of Gaussian noise on the network's inputs while training
    init: Literal["orthogonal", "torch"] = "torch"  # weight initialisation
    # --- data ---
    top_fraction: float = 1.0  # keep this share of the episodes, the best by return
    normalize_obs: bool = True  # standardise observations inside the network, by the episodes that are kept
    # --- BC ---
    output: Literal["tanh", "gaussian"] = "tanh"  # bounded mean with squared error, or linear mean with log-likelihood
    eval_actions: Literal["mean", "sample"] = "mean"  # actions of the evaluated policy; sample needs output gaussian

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction {self.top_fraction}: must be above 0 and at most 1")
        if self.input_noise < 0:
            raise ValueError(f"input_noise {self.input_noise}: must be 0 or more")
        for name in ("dropout", "input_noise"):
            if self.compile and getattr(self, name):
                raise ValueError(f"{name} {getattr(self, name)}: must be 0 with compile, which cannot trace it")
        if self.eval_actions == "sample" and self.output != "gaussian":
            raise ValueError(f"eval_actions sample: only output gaussian has a spread to sample, not {self.output}")


PRESETS: dict[str, dict[str, Any]] = {
    "bc": {},
    "bc10": {"top_fraction": 0.1},
}


# --- networks ---


class Actor(nn.Module):
    """Mean of the action given the observation."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.output, self.dropout, self.noise = cfg.output, cfg.dropout, cfg.input_noise
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim, *cfg.hidden, action_dim]
        # RvS's small last layer keeps the first actions of the linear output near the centre (from memory). Init torch
        # has torch's ordinary one.
        gains = [math.sqrt(2)] * len(cfg.hidden) + [0.01 if cfg.output == "gaussian" else math.sqrt(2)]
        self.layers = nn.ModuleList(
            linear(a, b, generator, cfg.init, gain) for (a, b), gain in zip(pairwise(sizes), gains)
        )
        self.log_std = nn.Parameter(torch.zeros(action_dim, device=generator.device))

    def forward(self, obs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, obs_dim) -> (B, action_dim); with a generator, as in training, with noise and dropout."""
        x = gaussian_noise(self.normalize(obs), self.noise, generator)
        for layer in self.layers[:-1]:
            x = dropout(torch.relu_(layer(x)), self.dropout, generator)
        x = self.layers[-1](x)
        return torch.tanh(x) if self.output == "tanh" else x

    def act(self, obs: Tensor) -> Tensor:
        """The mean action."""
        return self(obs)


class SampledActor(Actor):
    """The same, evaluated with samples of the Gaussian."""

    def act(self, obs: Tensor, history: History) -> Tensor:  # type: ignore[override]
        """A sample."""
        mean = self(obs)
        noise = torch.randn(mean.shape, generator=history.generator, device=mean.device)
        return mean + self.log_std.exp() * noise


# --- losses: a scalar and detached metrics ---


def actor_loss(actor: Actor, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error towards the dataset's action, or its negative log-likelihood."""
    error = batch["action"] - actor(batch["obs"], generator)
    mse = error.square().mean()
    if actor.output == "tanh":
        return mse, {"losses/actor": mse.detach()}
    log_std = actor.log_std
    log_prob = -(0.5 * (error / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)
    loss = -log_prob.mean()
    return loss, {"losses/actor": loss.detach(), "losses/mse": mse.detach()}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset.top_episodes(cfg.top_fraction), run.device, run.generator
    buffer = ReplayBuffer(dataset, device)
    kind = Actor if cfg.eval_actions == "mean" else SampledActor
    actor = kind(cfg, dataset.obs_dim, dataset.action_dim, generator)
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        actor.normalize.fit(mean, std + 1e-3)
    optimizer = torch.optim.Adam(actor.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss, metrics = actor_loss(actor, batch, generator)
        gradient_step(optimizer, loss)
        return metrics

    update = compiled(update, [optimizer], cfg.compile)
    run.register(actor=actor, optimizer=optimizer)
    for number in run.loop(cfg.updates):
        if cfg.lr_schedule == "cosine":
            cosine_lr(optimizer, cfg.lr, number, cfg.updates)
        run.log(update(buffer.sample(cfg.batch_size, generator)))
        if run.evaluation_due:
            run.evaluate(actor)


SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 1e-2),
    "top_fraction": ("log", 0.05, 1.0),
    "dropout": ("uniform", 0.0, 0.3),
    "input_noise": ("uniform", 0.0, 0.4),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
