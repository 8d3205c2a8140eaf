"""RCSL: return-conditioned supervised learning, with plain BC and top-x% BC as settings of the same file.

Fit pi(a | s, w) to dataset actions, where w is the return still to come in the transition's own episode; at test time
set w to a target. No bootstrapping, so nothing is stitched: the method recalls good episodes, it combines no pieces.

Sources: Emmons, Eysenbach, Kostrikov, Levine 2021 (RvS-R); Brandfonbrener, Bietti, Buckman, Laroche, Bruna 2022 ("When
does return-conditioned supervised learning work?"); titles and authors from memory, constants from the released code.

    preset   network             loss, output              label     target during the episode   optimiser
    rcsl     256, 256            MSE, tanh                 sum       reduced by collected reward Adam 1e-3, batch 256
    rvs      1024, 1024          log-likelihood, linear    average   constant                    Adam 1e-3, batch 16384
    bc       256, 256            MSE, tanh                 none      -                           Adam 3e-4, batch 256
    bc10     as bc, on the best 10 % of the episodes by undiscounted return

`rcsl` (the default) follows Brandfonbrener et al.'s code, `rvs` RvS's, `bc` and `bc10` CORL's (observations
standardised after filtering).

The label of step t is the sum of the rewards still to come, or that sum divided by (T_max - t), T_max being the longest
episode of the dataset. Average labels go with a constant target and sums with a target reduced by what was collected;
the file ties them together, since mixing them silently changes the method.

The target (`target_rule`), with f = `target_fraction`:
    dataset_range     smallest + f * (largest - smallest) of all labels of the training data
    reference_range   ref_min + f * (ref_max - ref_min) of the dataset's reference returns (divided by the episode limit
                      when labels are averages), as RvS does
    max_return        f * the best episode's return (for averages: f * the largest label)
`extra_targets` evaluates further fractions with the final policy, recorded as variants: scores are reported per target.

Deviations: labels are divided by the range of the labels in the data before they enter the network (rcsl-paper scales
rewards so that the range of episode returns is 1, which is the same idea; RvS feeds raw averages: preset `rvs` keeps
that); unlike in rcsl-paper, dataset actions are not clipped to 1 - 1e-5 and no trajectory is held out; episodes are cut
at terminated or truncated.

Run: `python algos/rcsl.py --preset bc10 --dataset hoard/pointmaze/stitch-v0`. Shared with every algorithm:
hoard.datasets (data, replay), hoard.runners (evaluation, records, checkpoints, resume).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import History, Run, main


@dataclass
class Config:
    """RCSL, or behaviour cloning with `--condition none`."""

    # --- experiment ---
    dataset: str = "hoard/pointmaze/stitch-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    updates: int = 500_000  # gradient updates
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
    init: Literal["orthogonal", "torch"] = "orthogonal"  # weight initialisation
    normalize_obs: bool = False  # standardise observations inside the network
    # --- what is cloned ---
    top_fraction: float = 1.0  # keep this share of the episodes, the best by return (0.1: 10 % BC)
    condition: Literal["return", "none"] = "return"  # none is behaviour cloning
    output: Literal["tanh", "gaussian"] = "tanh"  # bounded mean with squared error, or linear mean with log-likelihood
    # --- return conditioning ---
    label: Literal["sum", "average"] = "sum"  # return-to-go, or return-to-go per remaining step
    scale_label: bool = True  # divide labels and targets by the range of the labels
    target_rule: Literal["dataset_range", "reference_range", "max_return"] = "dataset_range"  # see above
    target_fraction: float = 1.0  # f of the rule
    extra_targets: tuple[float, ...] = ()  # further fractions, evaluated once at the end as variants


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
    "bc": {"condition": "none", "lr": 3e-4, "init": "torch", "normalize_obs": True},
    "bc10": {"condition": "none", "lr": 3e-4, "init": "torch", "normalize_obs": True, "top_fraction": 0.1},
}


# --- network ---


class Policy(nn.Module):
    """Mean of the action, mapped to [-1, 1], given the observation and, if conditioned, one number."""

    shift: Tensor
    scale: Tensor
    center: Tensor
    half_range: Tensor

    def __init__(self, dataset: Dataset, cfg: Config, device: torch.device, generator: torch.Generator) -> None:
        super().__init__()
        self.output, self.dropout = cfg.output, cfg.dropout
        sizes = [dataset.obs_dim + (cfg.condition == "return"), *cfg.hidden, dataset.action_dim]
        # RvS's small last layer keeps the first actions of the linear output near the centre (from memory).
        gains = [math.sqrt(2)] * len(cfg.hidden) + [0.01 if cfg.output == "gaussian" else math.sqrt(2)]
        self.layers = nn.ModuleList(
            linear(a, b, cfg.init, gain, generator) for a, b, gain in zip(sizes[:-1], sizes[1:], gains)
        )
        self.log_std = nn.Parameter(torch.zeros(dataset.action_dim, device=device))
        obs = torch.as_tensor(dataset.obs, device=device)
        self.register_buffer("shift", obs.mean(dim=0) if cfg.normalize_obs else torch.zeros_like(obs[0]))
        std = obs.std(dim=0, unbiased=False) + 1e-3
        self.register_buffer("scale", std if cfg.normalize_obs else torch.ones_like(obs[0]))
        low, high = (torch.as_tensor(b, device=device) for b in (dataset.action_space.low, dataset.action_space.high))
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def forward(self, obs: Tensor, label: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """(B, obs_dim), (B,) -> (B, action_dim)."""
        x = (obs - self.shift) / self.scale
        if label is not None:
            x = torch.cat([x, label[:, None]], dim=-1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
            if self.dropout and generator is not None:
                x = x * (torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout) / (1 - self.dropout)
        x = self.layers[-1](x)
        return torch.tanh(x) if self.output == "tanh" else x

    def act(self, obs: Tensor, label: Tensor | None) -> Tensor:
        """The mean action, in environment units."""
        return self.center + self.half_range * self(obs, label)


def linear(inputs: int, outputs: int, init: str, gain: float, generator: torch.Generator) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, device=generator.device)
    if init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain=gain, generator=generator)
        nn.init.zeros_(layer.bias)
    else:  # torch's own default, from the run's generator
        bound = 1 / math.sqrt(inputs)
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


# --- loss: a scalar and detached metrics ---


def policy_loss(
    policy: Policy, batch: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    error = batch["action"] - policy(batch["obs"], batch.get("label"), generator)
    mse = error.square().mean()
    if policy.output == "tanh":
        return mse, {"losses/policy": mse.detach()}
    log_std = policy.log_std
    log_prob = -(0.5 * (error / log_std.exp()).square() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=-1)
    loss = -log_prob.mean()
    return loss, {"losses/policy": loss.detach(), "losses/mse": mse.detach()}


# --- labels and targets ---


def labels_of(dataset: Dataset, kind: str) -> np.ndarray:
    """Return-to-go of every transition, (N,), or its average over the steps that remain until T_max."""
    to_go = dataset.returns_to_go()
    if kind == "sum":
        return to_go
    return to_go / (dataset.lengths.max() - dataset.timestep)


def target_of(dataset: Dataset, labels: np.ndarray, cfg: Config, fraction: float, episode_limit: int) -> float:
    """The label asked for at the start of an episode (see the file's notes). Raises ValueError without references."""
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
    device, generator = run.device, run.generator
    dataset = run.dataset.top_episodes(cfg.top_fraction)
    conditioned = cfg.condition == "return"
    labels = labels_of(dataset, cfg.label)
    span = float(labels.max() - labels.min()) or 1.0
    scale = span if cfg.scale_label else 1.0
    buffer = ReplayBuffer(dataset, device, extra={"label": labels / scale} if conditioned else None)

    policy = Policy(dataset, cfg, device, generator)
    optimizer = torch.optim.Adam(policy.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    buffer.action = (buffer.action - policy.center) / policy.half_range

    def towards(fraction: float):
        """A policy for evaluation that asks for the target of this fraction."""
        target = target_of(dataset, labels, cfg, fraction, run.episode_limit) if conditioned else 0.0

        def act(obs: Tensor, history: History) -> Tensor:
            if not conditioned:
                return policy.act(obs, None)
            wanted = torch.full((len(obs),), target, device=device)
            if cfg.label == "sum":
                wanted -= history.return_so_far
            return policy.act(obs, wanted / scale)

        return act

    run.register(policy=policy, adam=optimizer)
    for number in run.loop(cfg.updates):
        if cfg.lr_schedule == "cosine":
            optimizer.param_groups[0]["lr"] = 0.5 * cfg.lr * (1 + math.cos(math.pi * (number - 1) / cfg.updates))
        loss, metrics = policy_loss(policy, buffer.sample(cfg.batch_size, generator), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.log(metrics)
        if run.evaluation_due:
            run.evaluate(towards(cfg.target_fraction))
            if conditioned and number == cfg.updates:
                for fraction in cfg.extra_targets:
                    run.evaluate(towards(fraction), variant=f"target={fraction:g}")


if __name__ == "__main__":
    main(Config, train, PRESETS)
