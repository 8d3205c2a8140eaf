"""RCSL: return-conditioned supervised learning (Emmons et al. 2021, RvS; Brandfonbrener et al. 2022).

Fits pi(a | s, w) to dataset actions, where w is the return still to come in the transition's own episode; at test time
w is set to a target. No bootstrapping, so nothing is stitched: it recalls good episodes and combines no pieces.

Presets: `rcsl` (default) follows Brandfonbrener et al.'s code, `rvs` RvS's. Labels, targets, deviations, results:
docs/algorithms/rcsl.md.

Run: python algos/rcsl.py --dataset hoard/pendulum/mixed-v0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import History, Run, main
from hoard.runners.nn import ObsNormalizer, compiled, cosine_lr, dropout, gaussian_noise, gradient_step, linear


@dataclass
class Config:
    """Return-conditioned supervised learning. Defaults follow Brandfonbrener et al.'s code."""

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
    lr: float = 1e-3  # Adam's step size
    lr_schedule: Literal["constant", "cosine"] = "constant"  # cosine falls to 0 at the last update
    weight_decay: float = 0.0  # L2 inside Adam
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers
    dropout: float = 0.0  # after each hidden layer while training
    input_noise: float = 0.0  # standard deviation of Gaussian noise on the network's inputs while training
    init: Literal["orthogonal", "torch"] = "orthogonal"  # weight initialisation
    # --- data ---
    top_fraction: float = 1.0  # keep this share of the episodes, the best by return
    normalize_obs: bool = False  # standardise observations inside the network, by the episodes that are kept
    # --- RCSL ---
    output: Literal["tanh", "gaussian"] = "tanh"  # bounded mean with squared error, or linear mean with log-likelihood
    label: Literal["sum", "average"] = "sum"  # return-to-go, or return-to-go per remaining step
    scale_label: bool = True  # divide labels and targets by the range of the labels
    target_rule: Literal["dataset_range", "reference_range", "max_return"] = "dataset_range"  # see `target_of`
    target_fraction: float = 1.0  # share of the range, or of the best return, that is asked for
    extra_targets: tuple[float, ...] = ()  # further fractions, evaluated once at the end as variants

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction {self.top_fraction}: must be above 0 and at most 1")
        if self.input_noise < 0:
            raise ValueError(f"input_noise {self.input_noise}: must be 0 or more")
        for name in ("dropout", "input_noise"):
            if self.compile and getattr(self, name):
                raise ValueError(f"{name} {getattr(self, name)}: must be 0 with compile, which cannot trace it")


PRESETS: dict[str, dict[str, Any]] = {
    "rcsl": {},
    "rvs": {
        "hidden": (1024, 1024),
        "batch_size": 16384,
        "output": "gaussian",
        "label": "average",
        "scale_label": False,
        "target_rule": "reference_range",
    },
}


# --- networks ---


class Actor(nn.Module):
    """Mean of the action given the observation and the label, the return still to come."""

    label_scale: Tensor
    target: Tensor

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.output, self.dropout, self.noise = cfg.output, cfg.dropout, cfg.input_noise
        self.label = cfg.label
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = [obs_dim + 1, *cfg.hidden, action_dim]
        # RvS's small last layer keeps the first actions of the linear output near the centre (from memory). Init torch
        # has torch's ordinary one.
        gains = [math.sqrt(2)] * len(cfg.hidden) + [0.01 if cfg.output == "gaussian" else math.sqrt(2)]
        self.layers = nn.ModuleList(
            linear(a, b, generator, cfg.init, gain) for (a, b), gain in zip(pairwise(sizes), gains)
        )
        self.log_std = nn.Parameter(torch.zeros(action_dim, device=generator.device))
        self.register_buffer("label_scale", torch.ones((), dtype=torch.float64, device=generator.device))
        self.register_buffer("target", torch.zeros((), dtype=torch.float64, device=generator.device))

    def forward(self, obs: Tensor, label: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, obs_dim), (B,) -> (B, action_dim); with a generator, as in training, with noise and dropout."""
        x = torch.cat([self.normalize(obs), label[:, None]], dim=-1)
        x = gaussian_noise(x, self.noise, generator)
        for layer in self.layers[:-1]:
            x = dropout(torch.relu_(layer(x)), self.dropout, generator)
        x = self.layers[-1](x)
        return torch.tanh(x) if self.output == "tanh" else x

    def act(self, obs: Tensor, history: History) -> Tensor:
        """The mean action for the target."""
        return self.act_towards(self.target, obs, history)

    def act_towards(self, target: Tensor, obs: Tensor, history: History) -> Tensor:
        """The mean action for `target`: constant for averages, reduced by the collected reward for sums."""
        wanted = target.to(obs.dtype).expand(obs.shape[0])
        if self.label == "sum":
            wanted = wanted - history.return_so_far
        return self(obs, wanted / self.label_scale.to(obs.dtype))


# --- losses: a scalar and detached metrics ---


def actor_loss(actor: Actor, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error towards the dataset's action, or its negative log-likelihood."""
    error = batch["action"] - actor(batch["obs"], batch["label"], generator)
    mse = error.square().mean()
    if actor.output == "tanh":
        return mse, {"losses/actor": mse.detach()}
    log_std = actor.log_std
    log_prob = -(0.5 * (error / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)
    loss = -log_prob.mean()
    return loss, {"losses/actor": loss.detach(), "losses/mse": mse.detach()}


# --- labels and targets ---


def labels_of(dataset: Dataset, kind: str) -> np.ndarray:
    """Return-to-go of every transition, (N,), or its average over the steps that remain until T_max.

    T_max is the longest episode of the dataset.
    """
    return_to_go = dataset.returns_to_go()
    if kind == "sum":
        return return_to_go
    return return_to_go / (dataset.lengths.max() - dataset.timestep)


def target_of(dataset: Dataset, labels: np.ndarray, cfg: Config, fraction: float, episode_limit: int) -> float:
    """The label asked for at the start of an episode, by `target_rule` with f = `fraction`.

    `dataset_range`: smallest + f * (largest - smallest) of all labels. `reference_range`: the same of the dataset's
    reference returns, divided by the episode limit for averages. `max_return`: f * the best episode's return, for
    averages f * the largest label. Raises ValueError where reference returns are asked for and there are none.
    """
    if cfg.target_rule == "dataset_range":
        return float(labels.min() + fraction * (labels.max() - labels.min()))
    if cfg.target_rule == "max_return":
        return float(fraction * (dataset.returns.max() if cfg.label == "sum" else labels.max()))
    if dataset.ref_min is None or dataset.ref_max is None:
        raise ValueError(f"target_rule reference_range: {dataset.id} has no reference returns; use dataset_range")
    target = dataset.ref_min + fraction * (dataset.ref_max - dataset.ref_min)
    return target / episode_limit if cfg.label == "average" else target


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset.top_episodes(cfg.top_fraction), run.device, run.generator
    labels = labels_of(dataset, cfg.label)
    scale = (float(labels.max() - labels.min()) or 1.0) if cfg.scale_label else 1.0
    buffer = ReplayBuffer(dataset, device, extra={"label": labels / scale})
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    if cfg.normalize_obs:
        mean, std = buffer.obs_stats()
        actor.normalize.fit(mean, std + 1e-3)
    actor.label_scale.fill_(scale)
    actor.target.fill_(target_of(dataset, labels, cfg, cfg.target_fraction, run.episode_limit))
    optimizer = torch.optim.Adam(actor.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)

    def update(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss, metrics = actor_loss(actor, batch, generator)
        gradient_step(optimizer, loss)
        return metrics

    def evaluate_variants() -> None:
        for fraction in cfg.extra_targets:
            target = torch.tensor(target_of(dataset, labels, cfg, fraction, run.episode_limit), device=device)
            run.evaluate(partial(actor.act_towards, target), variant=f"target={fraction:g}")

    update = compiled(update, [optimizer], cfg.compile)
    run.register(actor=actor, optimizer=optimizer)
    for number in run.loop(cfg.updates):
        if cfg.lr_schedule == "cosine":
            cosine_lr(optimizer, cfg.lr, number, cfg.updates)
        run.log(update(buffer.sample(cfg.batch_size, generator)))
        if run.evaluation_due:
            run.evaluate(actor)
            if run.evaluation_final:
                evaluate_variants()


# The authors ask for 0.8, 1.0 and 1.2 of the range; RvS has dropout 0 and 0.1.
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 1e-2),
    "target_fraction": ("uniform", 0.8, 1.2),
    "dropout": ("uniform", 0.0, 0.3),
    "input_noise": ("uniform", 0.0, 0.4),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
