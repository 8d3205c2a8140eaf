"""MBRCSL: model-based return-conditioned supervised learning (Zhou et al., ICLR 2024).

Return-conditioned learning recalls the best trajectory of its data and combines nothing. MBRCSL makes the missing
trajectories first: (1) an ensemble learns the dynamics, (2) a diffusion model imitates the data's actions, (3) the
imitated behaviour acts in the learnt model from the data's starts, and rollouts above the data's best return are kept,
(4) a network of (observation, return still to come) is fitted to the kept rollouts, and to nothing else.

Presets: `small` (default, for one CPU core, with four departures of ours) and `paper` (the authors' code, for a GPU).
Equations, departures, results: docs/algorithms/mbrcsl.md.

Run: python algos/mbrcsl.py --dataset hoard/pointmaze/stitch-v0 --seed 0
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import History, Run, main
from hoard.runners.nn import (
    ObsNormalizer,
    cosine_lr,
    frozen_copy,
    gaussian_noise,
    gradient_step,
    linear,
    polyak_update,
)


@dataclass
class Config:
    """MBRCSL. Defaults are a small version for one CPU core; preset `paper` has the authors' sizes."""

    # --- experiment ---
    dataset: str = "hoard/pointmaze/stitch-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    updates: int = 6000  # gradient updates of the output policy
    log_every: int = 500  # updates per row of training metrics
    eval_every: int = 2000  # updates between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 2000  # updates (in the rollout phase: batches) between checkpoints
    # --- dynamics ---
    dynamics_members: int = 7  # networks of the ensemble
    dynamics_elites: int = 5  # those with the lowest hold-out error, which are used
    dynamics_hidden: tuple[int, ...] = (64, 64, 64, 64)  # widths of their hidden layers
    dynamics_decay: tuple[float, ...] = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)  # L2 per layer
    dynamics_lr: float = 1e-3  # Adam's step size
    dynamics_batch: int = 256  # transitions per member and update
    dynamics_epochs: int = 10  # at most so many epochs; 0 is no limit
    dynamics_patience: int = 5  # stop after so many epochs in which no member improved
    dynamics_selection: Literal["likelihood", "mse"] = "likelihood"  # what the hold-out is judged by
    clip_predictions: bool = True  # keep predicted observations and rewards within the range of the data
    # --- behaviour policy ---
    diffusion_widths: tuple[int, ...] = (128,)  # widths of the U-Net's stages; with one it is a residual MLP
    diffusion_embedding: int = 32  # width of the embedding of the denoising step
    diffusion_steps: int = 10  # denoising steps
    diffusion_updates: int = 10_000  # gradient updates
    diffusion_batch: int = 256  # transitions per update, drawn with replacement
    diffusion_lr: float = 1e-3  # AdamW's step size, weight decay 1e-6
    diffusion_lr_schedule: Literal["cosine", "constant", "released"] = "cosine"  # see `diffusion_lr`
    ema_decay: float = 0.9999  # limit of the averaging of the weights that are sampled with
    # --- rollouts ---
    rollout_batch: int = 200  # rollouts at a time
    rollout_batches: int = 1000  # at most so many batches
    num_need_traj: int = 800  # rollouts above the threshold that end the phase
    best_share: float = 0.2  # train on this share of them, the best by predicted return
    filter: bool = True  # keep what beats the data; false (ablation): as many rollouts, whatever they return
    keep_above: float | None = None  # predicted return that a rollout must exceed; none: the data's best return
    # --- output policy ---
    hidden: tuple[int, ...] = (256, 256)  # widths of its hidden layers
    batch_size: int = 256  # transitions per update, drawn with replacement
    lr: float = 5e-4  # Adam's step size
    lr_schedule: Literal["cosine", "constant"] = "cosine"  # cosine falls to 0 at the last update
    weight_decay: float = 0.0  # L2 inside Adam
    normalize_obs: bool = True  # standardise observations by the kept rollouts
    rtg_input: Literal["raw", "normalised"] = "normalised"  # divide the return still to come by the target or not
    input_noise: float = 0.2  # standard deviation of Gaussian noise on the network's inputs while training
    holdout: float = 0.1  # share of the kept transitions that is not trained on
    reload_best: Literal["on_stop", "always", "never"] = "never"  # return to the best hold-out loss: see `Search`
    search_from: float = 0.8  # share of the updates after which the hold-out loss is watched
    patience: int = 5  # epochs without an improvement of 1 % that end the training

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if len(self.dynamics_decay) != len(self.dynamics_hidden) + 1:
            raise ValueError(
                f"dynamics_decay needs {len(self.dynamics_hidden) + 1} values, one per layer of dynamics_hidden and "
                f"one for the output; it has {len(self.dynamics_decay)}"
            )
        if not 1 <= self.dynamics_elites <= self.dynamics_members:
            raise ValueError(
                f"dynamics_elites {self.dynamics_elites}: must be 1 to {self.dynamics_members}, the members"
            )
        if not self.diffusion_widths or self.diffusion_embedding < 4 or self.diffusion_embedding % 2:
            raise ValueError("diffusion_widths needs at least one stage, diffusion_embedding an even number above 2")
        if not 0 < self.best_share <= 1:
            raise ValueError(f"best_share {self.best_share}: must be above 0 and at most 1")
        for name in (
            "dynamics_batch", "dynamics_patience", "diffusion_steps", "diffusion_updates", "diffusion_batch",
            "rollout_batch", "rollout_batches", "num_need_traj", "patience",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        for name in ("dynamics_epochs", "input_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be 0 or more")
        for name in ("dynamics_lr", "diffusion_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be above 0")
        for name in ("ema_decay", "search_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be between 0 and 1")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout {self.holdout}: must be at least 0 and below 1")
        if self.reload_best != "never" and not self.holdout:
            raise ValueError(f"reload_best {self.reload_best} needs a holdout above 0")


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "paper": {
        "updates": 7100,  # 100 epochs of 71 batches
        "dynamics_hidden": (200, 200, 200, 200),
        "dynamics_epochs": 0,
        "dynamics_selection": "mse",
        "clip_predictions": False,
        "diffusion_widths": (256, 512, 1024),
        "diffusion_embedding": 256,
        "diffusion_updates": 38_900,  # 50 epochs of 778 batches
        "diffusion_lr": 1e-4,
        "num_need_traj": 100,
        "best_share": 1.0,
        "hidden": (1024, 1024),
        "lr": 5e-5,
        "lr_schedule": "constant",
        "weight_decay": 0.1,
        "normalize_obs": False,
        "rtg_input": "raw",
        "input_noise": 0.0,
        "reload_best": "on_stop",
    },
}


# --- phase 1, dynamics: an ensemble as one network with a leading member dimension ---


class Ensemble(nn.Module):
    """Mean and log-variance of (s' - s, r) for every member; inputs are standardised, outputs are in the data's units.

    The log-variance is clamped softly between learnt bounds, shared by all members.
    """

    shift: Tensor
    scale: Tensor
    elites: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, inputs: int, outputs: int, shift: Tensor, scale: Tensor, cfg: Config, generator: torch.Generator
    ) -> None:
        super().__init__()
        device, members = generator.device, cfg.dynamics_members
        self.decay = cfg.dynamics_decay
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in pairwise([inputs, *cfg.dynamics_hidden, 2 * outputs]):
            weight = torch.empty(members, a, b, device=device)
            self.weights.append(nn.init.trunc_normal_(weight, std=1 / (2 * math.sqrt(a)), generator=generator))
            self.biases.append(torch.zeros(members, 1, b, device=device))
        self.max_log_var = nn.Parameter(torch.full((outputs,), 0.5, device=device))
        self.min_log_var = nn.Parameter(torch.full((outputs,), -10.0, device=device))
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)
        self.register_buffer("elites", torch.arange(cfg.dynamics_elites, device=device))
        # Range of what `step` predicts, (next obs, reward); no limit unless `train` sets one.
        self.register_buffer("low", torch.full((outputs,), -torch.inf, device=device))
        self.register_buffer("high", torch.full((outputs,), torch.inf, device=device))

    def forward(self, x: Tensor, members: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (E, B, inputs), or (B, inputs) for all -> mean and log-variance (E, B, outputs); `members` picks the E."""
        h = (x - self.shift) / self.scale
        pick = (lambda p: p) if members is None else (lambda p: p[members])
        if h.ndim == 2:
            h = h.expand(len(pick(self.biases[0])), *h.shape)
        last = len(self.weights) - 1
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            h = torch.baddbmm(pick(bias), h, pick(weight))
            if k < last:
                h = F.silu(h)
        mean, log_var = h.chunk(2, dim=-1)
        log_var = self.max_log_var - F.softplus(self.max_log_var - log_var)
        return mean, self.min_log_var + F.softplus(log_var - self.min_log_var)

    def step(self, obs: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sampled next observation (B, obs_dim) and reward (B,), each row from an elite drawn for it."""
        mean, log_var = self(torch.cat([obs, action], dim=-1), self.elites)
        rows = torch.arange(len(obs), device=obs.device)
        member = torch.randint(len(self.elites), (len(obs),), generator=generator, device=obs.device)
        mean, std = mean[member, rows], (0.5 * log_var[member, rows]).exp()
        sample = mean + std * torch.randn(mean.shape, generator=generator, device=obs.device)
        after = torch.cat([obs + sample[:, :-1], sample[:, -1:]], dim=-1).clamp(self.low, self.high)
        return after[:, :-1], after[:, -1]


def dynamics_loss(model: Ensemble, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Gaussian negative log-likelihood, summed over members, with L2 per layer and a pull on the bounds.

    x (E, B, inputs), y (E, B, outputs).
    """
    mean, log_var = model(x)
    error = (mean - y).square()
    nll = ((error * (-log_var).exp()).mean(dim=(1, 2)) + log_var.mean(dim=(1, 2))).sum()
    decay = torch.stack([d * 0.5 * w.square().sum() for d, w in zip(model.decay, model.weights)]).sum()
    loss = nll + decay + 0.01 * (model.max_log_var.sum() - model.min_log_var.sum())
    return loss, {"dynamics/loss": loss.detach(), "dynamics/mse": error.detach().mean()}


class DynamicsFit:
    """Hold-out, bootstrap and early stopping of the ensemble. All that is drawn follows from one seed and the epoch."""

    def __init__(self, model: Ensemble, buffer: ReplayBuffer, cfg: Config, seed: int) -> None:
        self.model, self.buffer, self.cfg, self.seed = model, buffer, cfg, seed
        self.epoch, self.stale, self.done = 0, 0, False
        self.errors = torch.full((cfg.dynamics_members,), torch.inf, device=buffer.device)  # best on the hold-out
        self.best = [p.detach().clone() for p in self._parameters()]
        n = len(buffer)
        held = min(int(0.2 * n), 1000)
        order = torch.randperm(n, generator=self._generator(0), device=buffer.device)
        self.held, self.trained = order[:held], order[held:]
        self.batches = math.ceil(len(self.trained) / cfg.dynamics_batch)  # updates per epoch
        self.order = self._shuffled()

    def _generator(self, stream: int) -> torch.Generator:
        state = int(np.random.SeedSequence([self.seed, stream]).generate_state(1, np.uint64)[0] >> 1)
        return torch.Generator(self.buffer.device).manual_seed(state)

    def _parameters(self) -> list[Tensor]:
        """What belongs to single members: (members, ...) each. The bounds of the log-variance are shared."""
        return [*self.model.weights, *self.model.biases]

    def _shuffled(self) -> Tensor:
        """(members, n): each member's own bootstrap list, in the order of this epoch."""
        members, n, device = self.cfg.dynamics_members, len(self.trained), self.buffer.device
        own = torch.randint(n, (members, n), generator=self._generator(1), device=device)
        shuffle = torch.rand(members, n, generator=self._generator(2 + self.epoch), device=device).argsort(dim=1)
        return self.trained[own.gather(1, shuffle)]

    def pairs(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (..., obs_dim + action_dim) and targets (..., obs_dim + 1) of transitions."""
        rows = self.buffer.rows[index]
        obs = self.buffer.observations[rows]
        change = self.buffer.observations[rows + 1] - obs
        x = torch.cat([obs, self.buffer.action[index]], dim=-1)
        return x, torch.cat([change, self.buffer.reward[index][..., None]], dim=-1)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Every member's own batch for update `number` = 1, 2, ...; call in order."""
        k = (number - 1) % self.batches
        return self.pairs(self.order[:, k * self.cfg.dynamics_batch : (k + 1) * self.cfg.dynamics_batch])

    @torch.no_grad()
    def end_of_epoch(self) -> Tensor:
        """Look at the hold-out, keep what improved, decide whether to go on; the members' errors (members,)."""
        x, y = self.pairs(self.held)
        mean, log_var = self.model(x)
        errors = (mean - y).square()
        if self.cfg.dynamics_selection == "mse":
            errors = errors.mean(dim=(1, 2))
            better = errors < 0.99 * self.errors
        else:
            errors = (errors * (-log_var).exp() + log_var).mean(dim=(1, 2))
            better = errors < self.errors - 0.01
        self.errors = torch.where(better, errors, self.errors)
        for kept, now in zip(self.best, self._parameters()):
            kept[better] = now[better]
        self.epoch += 1
        self.stale = 0 if bool(better.any()) else self.stale + 1
        self.done = self.stale >= self.cfg.dynamics_patience
        self.order = self._shuffled()
        return errors

    @torch.no_grad()
    def finish(self) -> None:
        """Give every member its best weights and choose the elites."""
        for kept, now in zip(self.best, self._parameters()):
            now.copy_(kept)
        self.model.elites = self.errors.argsort()[: self.cfg.dynamics_elites].sort().values

    def report(self) -> str:
        """One line on how the fit ended."""
        elites = self.model.elites.tolist()
        best = f"hold-out {self.cfg.dynamics_selection} {self.errors.mean():.3g}"
        return f"dynamics: {self.epoch} epochs, {best}, elites {elites}"

    def state_dict(self) -> dict[str, Any]:
        names = ("seed", "epoch", "stale", "done", "errors", "best")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.buffer.device
        self.__init__(self.model, self.buffer, self.cfg, state["seed"])  # type: ignore[misc]
        self.epoch, self.stale, self.done = state["epoch"], state["stale"], state["done"]
        self.errors = state["errors"].to(device)
        self.best = [value.to(device) for value in state["best"]]
        self.order = self._shuffled()


def train_dynamics(cfg: Config, run: Run, model: Ensemble, fit: DynamicsFit, optimizer: torch.optim.Optimizer) -> None:
    most = fit.batches * (cfg.dynamics_epochs or 10_000)
    for number in run.phase("dynamics", most):
        loss, metrics = dynamics_loss(model, *fit.batch(number))
        gradient_step(optimizer, loss)
        if number % fit.batches == 0:
            metrics["dynamics/holdout"] = fit.end_of_epoch().mean()
            if fit.done or number == most:
                fit.finish()
                run.say(fit.report())
                run.end_phase()
        run.log(metrics)


# --- phase 2, behaviour: a diffusion model (DDPM) of one action ---


class Block(nn.Module):
    """Two layers (linear, layer norm, Mish); between them FiLM: scale and shift from the condition."""

    def __init__(self, inputs: int, outputs: int, condition: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = linear(inputs, outputs, generator), linear(outputs, outputs, generator)
        self.norms = nn.ModuleList(nn.LayerNorm(outputs, device=generator.device) for _ in range(2))
        self.film = linear(condition, 2 * outputs, generator)
        self.skip = linear(inputs, outputs, generator) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = F.mish(self.norms[0](self.first(x)))
        scale, shift = self.film(F.mish(condition)).chunk(2, dim=-1)
        h = scale * h + shift  # the scale itself, not 1 + scale
        return F.mish(self.norms[1](self.second(h))) + self.skip(x)


class Stage(nn.Module):
    """Two blocks; the first changes the width."""

    def __init__(self, inputs: int, outputs: int, condition: int, generator: torch.Generator) -> None:
        super().__init__()
        self.one = Block(inputs, outputs, condition, generator)
        self.two = Block(outputs, outputs, condition, generator)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.two(self.one(x, condition), condition)


class UNet(nn.Module):
    """Predicts the noise in an action: stages of linear blocks down, in the middle, and up again beside the way down.

    As released: the output of the first stage is not joined on the way up, and the condition has a place for a return,
    which is always 0 because the behaviour is not return-conditioned. With one width it is a residual MLP.
    """

    def __init__(self, obs_dim: int, action_dim: int, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        widths, self.embedding = list(cfg.diffusion_widths), cfg.diffusion_embedding
        condition = self.embedding + obs_dim + 1
        stage = lambda a, b: Stage(a, b, condition, generator)  # noqa: E731
        self.encode = linear(self.embedding, 4 * self.embedding, generator)
        self.decode = linear(4 * self.embedding, self.embedding, generator)
        self.down = nn.ModuleList(stage(a, b) for a, b in pairwise([action_dim, *widths]))
        self.middle = stage(widths[-1], widths[-1])
        self.up = nn.ModuleList(stage(2 * b, a) for a, b in reversed(list(pairwise(widths))))
        self.last, self.norm = linear(widths[0], widths[0], generator), nn.LayerNorm(widths[0], device=generator.device)
        self.out = linear(widths[0], action_dim, generator)

    def forward(self, x: Tensor, step: Tensor, obs: Tensor) -> Tensor:
        """Noisy action (B, action_dim) in [-1, 1] units, denoising step (B,) or (1,), obs (B, obs_dim)."""
        half = self.embedding // 2
        frequency = torch.exp(torch.arange(half, device=x.device) * (-math.log(10_000) / (half - 1)))
        angle = step[:, None] * frequency
        embedding = self.decode(F.mish(self.encode(torch.cat([angle.sin(), angle.cos()], dim=-1))))
        embedding = embedding.expand(len(obs), -1)
        condition = torch.cat([embedding, obs, torch.zeros_like(obs[:, :1])], dim=-1)
        beside = []
        for down in self.down:
            x = down(x, condition)
            beside.append(x)
        x = self.middle(x, condition)
        for up in self.up:
            x = up(torch.cat([x, beside.pop()], dim=-1), condition)
        return self.out(F.mish(self.norm(self.last(x))))


class Schedule:
    """DDPM with cosine noise levels (`squaredcos_cap_v2`): alpha_bar(t) = cos^2((t + 0.008) / 1.008 * pi / 2)."""

    def __init__(self, steps: int, device: torch.device | str = "cpu") -> None:
        level = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
        beta = [min(1 - level((k + 1) / steps) / level(k / steps), 0.999) for k in range(steps)]
        self.beta = torch.tensor(beta, dtype=torch.float64, device=device)
        self.alpha_bar = torch.cumprod(1 - self.beta, dim=0)
        before = torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])
        # Posterior of the less noisy action: mean = of_clean * x0 + of_noisy * x, and its variance.
        self.of_clean = (before.sqrt() * self.beta / (1 - self.alpha_bar)).float()
        self.of_noisy = ((1 - self.beta).sqrt() * (1 - before) / (1 - self.alpha_bar)).float()
        self.std = ((1 - before) / (1 - self.alpha_bar) * self.beta).sqrt().float()
        self.signal, self.noise = self.alpha_bar.sqrt().float(), (1 - self.alpha_bar).sqrt().float()

    def __len__(self) -> int:
        return len(self.beta)

    def add_noise(self, action: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """q(x_step | action), step (B,)."""
        return self.signal[step][:, None] * action + self.noise[step][:, None] * noise

    @torch.no_grad()
    def sample(self, net: Any, obs: Tensor, action_dim: int, generator: torch.Generator) -> Tensor:
        """Actions (B, action_dim) in [-1, 1], by ancestral sampling with the predicted clean action clipped."""
        normal = lambda: torch.randn(len(obs), action_dim, generator=generator, device=obs.device)  # noqa: E731
        x = normal()
        for k in reversed(range(len(self))):
            step = torch.full((1,), k, device=obs.device)
            clean = ((x - self.noise[k] * net(x, step, obs)) / self.signal[k]).clamp(-1, 1)
            x = self.of_clean[k] * clean + self.of_noisy[k] * x
            if k:
                x = x + self.std[k] * normal()
        return x


def diffusion_loss(
    net: UNet, schedule: Schedule, obs: Tensor, action: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error on the noise at a uniformly drawn step; action in [-1, 1] units."""
    step = torch.randint(len(schedule), (len(obs),), generator=generator, device=obs.device)
    noise = torch.randn(action.shape, generator=generator, device=obs.device)
    loss = (net(schedule.add_noise(action, noise, step), step, obs) - noise).square().mean()
    return loss, {"diffusion/loss": loss.detach()}


def diffusion_lr(number: int, batches: int, cfg: Config) -> float:
    """Step size of update `number` = 1, 2, ...; `batches` are the updates of one epoch."""
    if cfg.diffusion_lr_schedule == "constant":
        return cfg.diffusion_lr
    if cfg.diffusion_lr_schedule == "released":
        return cfg.diffusion_lr * min((number - 1) // batches / 500, 1.0)
    if number <= 500:
        return cfg.diffusion_lr * number / 500
    return cfg.diffusion_lr * 0.5 * (1 + math.cos(math.pi * (number - 500) / max(1, cfg.diffusion_updates - 500)))


def update_average(average: nn.Module, net: nn.Module, number: int, limit: float) -> None:
    """Moving average of the weights with decay min(limit, (1 + k) / (10 + k)), k = updates before; k = 0 copies."""
    decay = min(limit, number / (number + 9)) if number > 1 else 0.0
    polyak_update(average, net, 1 - decay)


def train_behaviour(
    cfg: Config,
    run: Run,
    buffer: ReplayBuffer,
    net: UNet,
    average: UNet,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
) -> None:
    batches = math.ceil(len(buffer) / cfg.diffusion_batch)
    for number in run.phase("diffusion", cfg.diffusion_updates):
        optimizer.param_groups[0]["lr"] = diffusion_lr(number, batches, cfg)
        batch = buffer.sample(cfg.diffusion_batch, run.generator)
        loss, metrics = diffusion_loss(net, schedule, batch["obs"], batch["action"], run.generator)
        gradient_step(optimizer, loss)
        update_average(average, net, number, cfg.ema_decay)
        run.log(metrics)


# --- phase 3, rollouts of the behaviour in the dynamics ---


@torch.no_grad()
def roll_out(
    model: Ensemble, act: Callable[[Tensor], Tensor], starts: Tensor, horizon: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole episodes in the model: observations (B, T, obs_dim), actions (B, T, action_dim), rewards (B, T).

    `act(obs)` gives actions in [-1, 1].
    """
    obs, seen, actions, rewards = starts, [], [], []
    for _ in range(horizon):
        action = act(obs)
        seen.append(obs)
        actions.append(action)
        obs, reward = model.step(obs, action, generator)
        rewards.append(reward)
    return torch.stack(seen, 1), torch.stack(actions, 1), torch.stack(rewards, 1)


class Kept:
    """Rollouts to train on.

    Filtered, it takes every rollout above the threshold until there are `num_need_traj`, of which the best share is
    trained on. Beside them it remembers as many of the best others: if none has passed when the phase ends, those are
    what the run goes on with. Unfiltered it takes the first, as many as would be trained on.
    """

    _FIELDS = ("obs", "action", "reward")

    def __init__(self, dataset: Dataset, horizon: int, cfg: Config, device: torch.device) -> None:
        self.device, self.filter, self.best_share = device, cfg.filter, cfg.best_share
        self.wanted = math.ceil(cfg.best_share * cfg.num_need_traj)  # to train on
        self.need = cfg.num_need_traj if cfg.filter else self.wanted
        self.threshold = float(dataset.returns.max()) if cfg.keep_above is None else cfg.keep_above
        sizes = ((horizon, dataset.obs_dim), (horizon, dataset.action_dim), (horizon,))
        empty = {name: torch.zeros(0, *size, device=device) for name, size in zip(self._FIELDS, sizes)}
        empty["number"] = torch.zeros(0, dtype=torch.int64, device=device)  # place in `tried`
        self.passed, self.others = empty, dict(empty)
        self.tried = torch.zeros(0, device=device)  # predicted return of every rollout, in order

    def add(self, obs: Tensor, action: Tensor, reward: Tensor) -> dict[str, Tensor]:
        """Sort in a batch of rollouts (B, T, ...); what the run logs about it."""
        batch = dict(zip(self._FIELDS, (obs, action, reward)))
        batch["number"] = len(self.tried) + torch.arange(len(obs), device=self.device)
        predicted = reward.sum(dim=1)
        finite = predicted.isfinite() & obs.isfinite().all(dim=(1, 2))  # a model can diverge
        passes = finite & (predicted > self.threshold) if self.filter else finite
        join = lambda a, b, rows: {name: torch.cat([a[name], b[name][rows]]) for name in b}  # noqa: E731
        self.passed = join(self.passed, batch, passes)
        if not self.filter:
            self.passed = {name: value[: self.need] for name, value in self.passed.items()}
        others = join(self.others, batch, finite & ~passes)
        best = others["reward"].sum(dim=1).argsort(descending=True, stable=True)[: self.wanted]
        self.others = {name: value[best] for name, value in others.items()}
        self.tried = torch.cat([self.tried, torch.where(finite, predicted, -torch.inf)])
        return {
            "rollouts/predicted_return": predicted[finite].mean() if bool(finite.any()) else predicted.new_zeros(()),
            "rollouts/accepted": passes.float().mean(),
            "rollouts/kept": torch.tensor(float(len(self.passed["obs"]))),
        }

    @property
    def enough(self) -> bool:
        return len(self.passed["obs"]) >= self.need

    @property
    def rollouts(self) -> dict[str, Tensor]:
        """What to train on: obs (K, T, obs_dim), action (K, T, action_dim), reward (K, T), number (K,)."""
        if not len(self.passed["obs"]):
            return self.others
        if not self.filter:
            return self.passed
        order = self.passed["reward"].sum(dim=1).argsort(descending=True, stable=True)
        best = order[: math.ceil(self.best_share * len(order))].sort().values
        return {name: value[best] for name, value in self.passed.items()}

    def returns_to_go(self) -> Tensor:
        """Predicted return still to come at every step, (K, T): the total less what was paid before."""
        reward = self.rollouts["reward"]
        return reward.sum(dim=1, keepdim=True) - (reward.cumsum(dim=1) - reward)

    def report(self, dataset: Dataset) -> str:
        """One line on what was kept. Raises FloatingPointError if there is nothing to go on with."""
        if not len(self.rollouts["obs"]):
            raise FloatingPointError("every rollout of the dynamics model diverged: nothing to train a policy on")
        total = self.rollouts["reward"].sum(dim=1)
        share = len(self.passed["obs"]) / len(self.tried)
        numbers = (
            f"predicted return {total.mean():.1f} on average, {total.min():.1f} to {total.max():.1f}; the data's best "
            f"is {dataset.returns.max():.1f}"
        )
        if not self.filter:
            return f"rollouts: {len(total)} unfiltered, {numbers}"
        if not len(self.passed["obs"]):
            return (
                f"rollouts: none of {len(self.tried)} is predicted to return more than {self.threshold:.1f}; going on "
                f"with the best {len(total)}: {numbers}"
            )
        few = "" if self.enough else f", fewer than the {self.need} asked for"
        kept = f"rollouts: kept {len(self.passed['obs'])} of {len(self.tried)} ({100 * share:.2f} %{few})"
        return f"{kept}; training on the best {len(total)}: {numbers}"

    def table(self) -> pa.Table:
        """One row per rollout tried: `predicted_return` (-inf: diverged) and whether it is `trained_on`.

        Where it is, also `start`, its first observation, and `action`, its actions in [-1, 1] one after another: enough
        to replay it in the real environment.
        """
        rows: list[dict[str, Any]] = [{"predicted_return": v, "trained_on": False} for v in self.tried.tolist()]
        chosen = self.rollouts
        for k, number in enumerate(chosen["number"].tolist()):
            start, action = chosen["obs"][k, 0].tolist(), chosen["action"][k].flatten().tolist()
            rows[number] |= {"trained_on": True, "start": start, "action": action}
        numbers = pa.list_(pa.float32())
        fields = [
            ("predicted_return", pa.float64()),
            ("trained_on", pa.bool_()),
            ("start", numbers),
            ("action", numbers),
        ]
        return pa.Table.from_pylist(rows, schema=pa.schema(fields))

    def state_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "others": self.others, "tried": self.tried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("passed", "others"):
            setattr(self, name, {key: value.to(self.device) for key, value in state[name].items()})
        self.tried = state["tried"].to(self.device)


def make_rollouts(
    cfg: Config, run: Run, model: Ensemble, behave: Callable[[Tensor], Tensor], starts: Tensor, kept: Kept
) -> None:
    """Fill `kept` with rollouts from `starts` (N, obs_dim); say what was kept and save it."""
    for _ in run.phase("rollouts", cfg.rollout_batches):
        chosen = torch.randint(len(starts), (cfg.rollout_batch,), generator=run.generator, device=run.device)
        run.log(kept.add(*roll_out(model, behave, starts[chosen], run.episode_limit, run.generator)))
        if kept.enough:
            run.end_phase()
    if run.update == 0:
        run.say(kept.report(run.dataset))
        run.save_table("rollouts", kept.table())


# --- phase 4, the policy: fitted to the kept rollouts and to nothing else ---


class Actor(nn.Module):
    """ReLU network of (obs, return still to come) with linear output."""

    target: Tensor

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalised, self.noise = cfg.rtg_input == "normalised", cfg.input_noise
        sizes = [obs_dim + 1, *cfg.hidden, action_dim]
        layers = [linear(a, b, generator) for a, b in pairwise(sizes)]
        nn.init.xavier_uniform_(layers[-1].weight, gain=0.01, generator=generator)
        nn.init.zeros_(layers[-1].bias)
        self.layers = nn.ModuleList(layers)
        # Known once there are rollouts: the statistics of their observations, and the return that is asked for.
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        self.register_buffer("target", torch.ones((), device=generator.device))

    def forward(self, obs: Tensor, return_to_go: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(B, obs_dim), (B,) -> (B, action_dim); with a generator, as in training, with noise on the inputs."""
        if self.normalised:
            return_to_go = return_to_go / self.target.abs().clamp(min=1e-6)
        x = torch.cat([self.normalize(obs), return_to_go[:, None]], dim=-1)
        x = gaussian_noise(x, self.noise, generator)
        for layer in self.layers[:-1]:
            x = torch.relu_(layer(x))
        return self.layers[-1](x)

    def act(self, obs: Tensor, history: History) -> Tensor:
        """The action for the target less the reward collected."""
        return self(obs, self.target - history.return_so_far)


def actor_loss(
    actor: Actor, batch: dict[str, Tensor], generator: torch.Generator | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error on the actions of kept rollouts; `batch` has obs, return_to_go, action."""
    loss = (actor(batch["obs"], batch["return_to_go"], generator) - batch["action"]).square().mean()
    return loss, {"losses/actor": loss.detach()}


class Search:
    """The hold-out loss of the actor, its best weights, and whether the training has ended.

    `reload_best` says what becomes of the best weights: `on_stop` takes them if the loss stops improving, which ends
    the training; `always` takes them at the last update too.
    """

    def __init__(self, actor: Actor, cfg: Config, seed: int) -> None:
        self.actor, self.cfg, self.seed = actor, cfg, seed
        self.best, self.stale, self.ended = math.inf, 0, False
        self.weights = copy.deepcopy(actor.state_dict())

    def split(self, n: int) -> tuple[Tensor, Tensor]:
        """Rows to train on and rows held out, of n."""
        device = self.actor.target.device
        order = torch.randperm(n, generator=torch.Generator(device).manual_seed(self.seed), device=device)
        held = min(int(self.cfg.holdout * n), n - 1)
        return order[held:], order[:held]

    def look(self, loss: Tensor) -> None:
        """Once per epoch from `search_from` on."""
        value = float(loss)
        if value < 0.99 * self.best:
            self.best, self.stale = value, 0
            self.weights = copy.deepcopy(self.actor.state_dict())
        else:
            self.stale += 1
        if self.stale >= self.cfg.patience:
            self.reload()
            self.ended = True

    def reload(self) -> None:
        """The best weights; the present ones where nobody has looked yet."""
        if math.isfinite(self.best):
            self.actor.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("seed", "best", "stale", "ended", "weights")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def train_actor(
    cfg: Config, run: Run, kept: Kept, actor: Actor, search: Search, optimizer: torch.optim.Optimizer
) -> None:
    return_to_go = kept.returns_to_go()
    actor.target.copy_(return_to_go[:, 0].max())
    data = {name: kept.rollouts[name].flatten(0, 1) for name in ("obs", "action")}
    data["return_to_go"] = return_to_go.flatten()
    if cfg.normalize_obs:
        actor.normalize.fit(*statistics(data["obs"]))
    trained, held = search.split(len(data["obs"]))
    epoch = math.ceil(len(trained) / cfg.batch_size)

    def update(number: int) -> dict[str, Tensor]:
        # clone the kept actions, given the observation and the predicted return still to come
        drawn = torch.randint(len(trained), (cfg.batch_size,), generator=run.generator, device=run.device)
        loss, metrics = actor_loss(actor, rows(data, trained[drawn]), run.generator)
        gradient_step(optimizer, loss)
        # once an epoch, late in the training: is the hold-out loss still falling?
        if cfg.reload_best != "never" and number % epoch == 0 and number > cfg.search_from * cfg.updates:
            with torch.no_grad():
                _, at_rest = actor_loss(actor, rows(data, held))
            metrics["losses/holdout"] = at_rest["losses/actor"]
            search.look(at_rest["losses/actor"])
        return metrics

    for number in run.loop(cfg.updates):
        if cfg.lr_schedule == "cosine":
            cosine_lr(optimizer, cfg.lr, number, cfg.updates)
        if not search.ended:
            run.log(update(number))
        if number == cfg.updates and cfg.reload_best == "always":
            search.reload()
        if run.evaluation_due:
            run.evaluate(actor)


def rows(data: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: values[index] for name, values in data.items()}


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    buffer = ReplayBuffer(dataset, device)
    obs_dim, action_dim = dataset.obs_dim, dataset.action_dim
    seeds = torch.randint(2**31, (2,), generator=generator, device=device).tolist()
    obs = buffer.observations[buffer.rows]
    inputs = torch.cat([obs, buffer.action], dim=-1)

    model = Ensemble(obs_dim + action_dim, obs_dim + 1, *statistics(inputs), cfg, generator)
    if cfg.clip_predictions:
        model.low = torch.cat([buffer.observations.amin(dim=0), buffer.reward.amin()[None]])
        model.high = torch.cat([buffer.observations.amax(dim=0), buffer.reward.amax()[None]])
    fit = DynamicsFit(model, buffer, cfg, seeds[0])
    net = UNet(obs_dim, action_dim, cfg, generator)
    average = frozen_copy(net)
    schedule = Schedule(cfg.diffusion_steps, device)
    kept = Kept(dataset, run.episode_limit, cfg, device)
    actor = Actor(cfg, obs_dim, action_dim, generator)
    search = Search(actor, cfg, seeds[1])
    optimizers: dict[str, torch.optim.Optimizer] = {
        "dynamics": torch.optim.Adam(model.parameters(), lr=cfg.dynamics_lr, fused=True),
        "diffusion": torch.optim.AdamW(net.parameters(), lr=cfg.diffusion_lr, weight_decay=1e-6, fused=True),
        "actor": torch.optim.Adam(actor.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True),
    }
    networks = {"dynamics": model, "diffusion": net, "average": average, "actor": actor}
    run.register(networks=networks, optimizers=optimizers, fit=fit, kept=kept, search=search)

    train_dynamics(cfg, run, model, fit, optimizers["dynamics"])
    train_behaviour(cfg, run, buffer, net, average, schedule, optimizers["diffusion"])

    def behave(obs: Tensor) -> Tensor:
        return schedule.sample(average, obs, action_dim, generator)

    starts = obs[torch.as_tensor(dataset.starts[:-1], device=device)]
    make_rollouts(cfg, run, model, behave, starts, kept)
    train_actor(cfg, run, kept, actor, search, optimizers["actor"])


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column; a column that never changes is only shifted."""
    scale = x.std(dim=0, unbiased=False)
    return x.mean(dim=0), torch.where(scale < 1e-12, 1.0, scale)


SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "input_noise": ("uniform", 0.0, 0.4),
    "best_share": ("log", 0.05, 1.0),
    "dynamics_lr": ("log", 3e-4, 3e-3),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
