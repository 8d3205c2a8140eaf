"""Decision Transformer (Chen et al. 2021, arXiv 2106.01345): return-conditioned cloning of windows by causal attention.

A window of K steps is a stream of 3K tokens R_1 s_1 a_1 R_2 ..., R being the return-to-go; the action is read at s_t
and fitted by squared error. At test time the return asked for is reduced by what was collected.

Presets: `small` (default, ours, to compare with Decision Mamba on a laptop) and `paper` (the released code's and
CORL's settings). Deviations, results: docs/algorithms/decision_transformer.md.

Run: python algos/decision_transformer.py --dataset hoard/pendulum/mixed-v0
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import History, Run, main
from hoard.runners.nn import (
    ObsNormalizer,
    clipped_gradient_step,
    compiled,
    drop,
    gaussian_noise,
    linear,
    set_lr,
    uniform,
)


@dataclass
class Config:
    """Decision Transformer. Defaults are a small version for a laptop; preset `paper` has the authors' sizes."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    data: str = "all"  # all of it, or top=F, weight=return, weight=advantage; see docs/datasets.md
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after a minute of compiling; needs a C++ compiler
    updates: int = 10_000  # gradient updates on the dataset
    log_every: int = 250  # updates per row of training metrics
    eval_every: int = 1000  # updates between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 1000  # updates between checkpoints
    # --- optimisation ---
    batch_size: int = 64  # windows per update
    lr: float = 1e-3  # AdamW's step size after the warm-up
    warmup: int = 100  # updates over which the step size rises linearly from 0
    weight_decay: float = 1e-4  # on weight matrices and the time table only
    clip_norm: float = 0.25  # global norm that gradients are clipped to
    init: Literal["normal", "torch"] = "normal"  # weight initialisation
    dropout: float = 0.1  # on embeddings, attention and residual branches while training
    input_noise: float = 0.0  # standard deviation of Gaussian noise on standardised obs and returns-to-go in training
    # --- return conditioning ---
    return_scale: float = 0.0  # divisor of returns-to-go; 0 is their range in the dataset
    target_rule: Literal["max_return", "dataset_range", "reference_range"] = "max_return"  # see `target_of`
    target_fraction: float = 1.0  # share of the range, or of the best return, that is asked for
    extra_targets: tuple[float, ...] = ()  # further fractions, evaluated once at the end as variants
    # --- Decision Transformer ---
    context: int = 10  # K, steps of a window; three tokens each
    width: int = 64  # d, size of a token
    blocks: int = 2  # layers
    heads: int = 4  # attention heads
    time_rows: int = 1000  # rows of the table of time embeddings; later steps share the last one
    embedding: Literal["linear", "mlp"] = "linear"  # one linear layer each, or residual MLP and MLP action head

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads}: must divide width {self.width}")
        if self.input_noise < 0:
            raise ValueError(f"input_noise {self.input_noise}: must be 0 or more")


LONG: dict[str, Any] = {
    "updates": 100_000,
    "log_every": 500,
    "eval_every": 5000,
    "checkpoint_every": 2500,
    "context": 20,
    "lr": 1e-4,
}
PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "paper": LONG | {"width": 128, "blocks": 3, "heads": 1, "warmup": 10_000},
}


# --- networks ---


class Block(nn.Module):
    """Pre-norm causal attention and a GELU MLP, as in GPT-2."""

    def __init__(self, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.heads, self.dropout = cfg.heads, cfg.dropout
        self.norm1 = nn.LayerNorm(cfg.width, device=generator.device)
        self.norm2 = nn.LayerNorm(cfg.width, device=generator.device)
        self.qkv = linear(cfg.width, 3 * cfg.width, generator, cfg.init)
        self.out = linear(cfg.width, cfg.width, generator, cfg.init)
        self.up = linear(cfg.width, 4 * cfg.width, generator, cfg.init)
        self.down = linear(4 * cfg.width, cfg.width, generator, cfg.init)

    def forward(self, x: Tensor, draws: Sequence[Tensor | None]) -> Tensor:
        """(B, L, width) -> the same; `draws`: uniform numbers for the dropout of attention, mixing and MLP, or None."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        # Written out, since torch's fused attention draws its dropout from the global generator.
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        weights = drop(torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1), self.dropout, draws[0])
        mixed = self.out(torch.matmul(weights, v).transpose(1, 2).flatten(2))
        x = x + drop(mixed, self.dropout, draws[1])
        return x + drop(self.down(F.gelu(self.up(self.norm2(x)))), self.dropout, draws[2])


class Embedding(nn.Module):
    """h = W1 x + b1, then h + W2 GELU(h) + b2; or h alone."""

    def __init__(self, inputs: int, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.first = linear(inputs, cfg.width, generator, cfg.init)
        self.second = linear(cfg.width, cfg.width, generator, cfg.init) if cfg.embedding == "mlp" else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h if self.second is None else h + self.second(F.gelu(h))


class Actor(nn.Module):
    """Windows (B, K) of (R, s, a) -> for each step the action read at s_t.

    Takes observations as they are, actions in [-1, 1] and returns-to-go divided by their scale. Windows are padded on
    the right, which a causal model never looks at, so it needs no mask.
    """

    return_scale: Tensor
    target: Tensor
    blocks: Any  # a ModuleList, whose items type checkers take for plain modules

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        device, width = generator.device, cfg.width
        self.context, self.dropout = cfg.context, cfg.dropout
        self.normalize = ObsNormalizer(obs_dim, device)
        self.embed_return = Embedding(1, cfg, generator)
        self.embed_obs = Embedding(obs_dim, cfg, generator)
        self.embed_action = Embedding(action_dim, cfg, generator)
        self.embed_norm = nn.LayerNorm(width, device=device)
        time = torch.empty(cfg.time_rows, width, device=device)
        self.time = nn.Parameter(time.normal_(std=0.02, generator=generator))
        self.blocks = nn.ModuleList(Block(cfg, generator) for _ in range(cfg.blocks))
        self.norm = nn.LayerNorm(width, eps=1e-5, device=device)
        hidden = [linear(width, width, generator, cfg.init), nn.GELU()] if cfg.embedding == "mlp" else []
        self.action_head = nn.Sequential(*hidden, linear(width, action_dim, generator, cfg.init), nn.Tanh())
        self.register_buffer("return_scale", torch.ones((), dtype=torch.float64, device=device))
        self.register_buffer("target", torch.zeros((), dtype=torch.float64, device=device))

    def embed(self, window: dict[str, Tensor]) -> Tensor:
        """Tokens before the first block, (B, K, 3, width) in the order R, s, a."""
        parts = (
            self.embed_return(window["return_to_go"][..., None]),
            self.embed_obs(self.normalize(window["obs"])),
            self.embed_action(window["action"]),
        )
        time = self.time[window["timestep"].clamp(max=len(self.time) - 1)][:, :, None]
        return self.embed_norm(torch.stack(parts, dim=2) + time)

    def draws(self, window: dict[str, Tensor], generator: torch.Generator) -> list[Tensor]:
        """Uniform numbers for the dropout of a training step on `window`; none where nothing is dropped."""
        if not self.dropout:
            return []
        size, steps = window["obs"].shape[:2]
        stream, pairs = (size, 3 * steps, self.time.shape[1]), (size, self.blocks[0].heads, 3 * steps, 3 * steps)
        return [uniform(shape, generator) for shape in (stream, *len(self.blocks) * (pairs, stream, stream))]

    def tokens(self, window: dict[str, Tensor], draws: Sequence[Tensor] = ()) -> Tensor:
        """Tokens after the last block, (B, K, 3, width); dropout only with `draws`."""
        given: Sequence[Tensor | None] = draws or [None] * (1 + 3 * len(self.blocks))
        x = drop(self.embed(window).flatten(1, 2), self.dropout, given[0])
        for k, block in enumerate(self.blocks):
            x = block(x, given[3 * k + 1 : 3 * k + 4])
        return self.norm(x).unflatten(1, (-1, 3))

    def forward(self, window: dict[str, Tensor], draws: Sequence[Tensor] = ()) -> Tensor:
        """Actions in [-1, 1], (B, K, action_dim)."""
        return self.action_head(self.tokens(window, draws)[:, :, 1])

    def act(self, obs: Tensor, history: History) -> Tensor:
        """The action for the target less the reward collected."""
        return self.act_towards(self.target, obs, history)

    def window(self, target: Tensor, history: History, length: int) -> dict[str, Tensor]:
        """The last `length` steps of an episode in which `target` was asked for at the start."""
        t = history.t
        first = max(0, t + 1 - length)
        collected = history.reward[:, : t + 1].cumsum(dim=1) - history.reward[:, : t + 1]
        return {
            "obs": history.obs[:, first : t + 1],
            "action": F.pad(history.action[:, first:t], (0, 0, 0, 1)),  # a_t is not known yet, and not looked at
            "return_to_go": (target - collected[:, first:]) / self.return_scale,
            "timestep": torch.arange(first, t + 1, device=collected.device).expand(len(collected), -1),
        }

    def act_towards(self, target: Tensor, obs: Tensor, history: History) -> Tensor:
        """The action for `target` less the reward collected, from the last `context` steps computed anew."""
        return self(self.window(target, history, self.context))[:, -1]


# --- losses: a scalar and detached metrics ---


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, K, n) over the steps where mask (B, K) is 1; 0 if there are none."""
    return (x.mean(dim=-1) * mask).sum() / mask.sum().clamp(min=1)


def actor_loss(
    actor: Actor, batch: dict[str, Tensor], draws: Sequence[Tensor] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error towards the dataset's action on every real step; `draws` for the dropout, or none."""
    loss = masked_mean((actor(batch, draws) - batch["action"]).square(), batch["mask"])
    return loss, {"losses/actor": loss.detach()}


# --- targets, noise, parameter groups ---


def target_of(dataset: Dataset, cfg: Config, fraction: float) -> float:
    """The return asked for at the start of an episode, by `target_rule` with f = `fraction`.

    `max_return`: f * the best episode's return. `dataset_range`: smallest + f * (largest - smallest) episode return.
    `reference_range`: the same of the dataset's reference returns. Raises ValueError where these are asked for and
    there are none.
    """
    if cfg.target_rule == "max_return":
        return float(fraction * dataset.returns.max())
    if cfg.target_rule == "dataset_range":
        low, high = dataset.returns.min(), dataset.returns.max()
        return float(low + fraction * (high - low))
    if dataset.ref_min is None or dataset.ref_max is None:
        raise ValueError(f"target_rule reference_range: {dataset.id} has no reference returns; use dataset_range")
    return dataset.ref_min + fraction * (dataset.ref_max - dataset.ref_min)


def noisy(
    batch: dict[str, Tensor], obs_std: Tensor, input_noise: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """The windows with Gaussian noise on obs, in units of `obs_std` (obs_dim,), and on returns-to-go."""
    if not input_noise:
        return batch
    obs = batch["obs"] + obs_std * gaussian_noise(torch.zeros_like(batch["obs"]), input_noise, generator)
    return batch | {"obs": obs, "return_to_go": gaussian_noise(batch["return_to_go"], input_noise, generator)}


def parameter_groups(actor: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decayed: weight matrices, time table. Not decayed: norms, biases."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for parameter in actor.parameters():
        (decayed if parameter.ndim > 1 else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


# --- training ---


def train(cfg: Config, run: Run) -> None:
    dataset, device, generator = run.dataset, run.device, run.generator
    return_to_go = dataset.returns_to_go()
    scale = cfg.return_scale or float(return_to_go.max() - return_to_go.min()) or 1.0
    buffer = ReplayBuffer(dataset, device, extra={"return_to_go": return_to_go / scale})
    actor = Actor(cfg, dataset.obs_dim, dataset.action_dim, generator)
    mean, std = buffer.obs_stats()
    actor.normalize.fit(mean, std + 1e-6)
    actor.return_scale.fill_(scale)
    actor.target.fill_(target_of(dataset, cfg, cfg.target_fraction))
    optimizer = torch.optim.AdamW(parameter_groups(actor, cfg.weight_decay), lr=cfg.lr, eps=1e-6, fused=True)

    def update(batch: dict[str, Tensor], draws: Sequence[Tensor]) -> dict[str, Tensor]:
        loss, metrics = actor_loss(actor, batch, draws)
        metrics["policy/grad_norm"] = clipped_gradient_step(optimizer, loss, cfg.clip_norm)
        return metrics

    def evaluate_variants() -> None:
        for fraction in cfg.extra_targets:
            target = torch.tensor(target_of(dataset, cfg, fraction), device=device)
            run.evaluate(partial(actor.act_towards, target), variant=f"target={fraction:g}")

    update = compiled(update, [optimizer], cfg.compile)
    run.register(actor=actor, optimizer=optimizer)
    for number in run.loop(cfg.updates):
        set_lr(optimizer, cfg.lr * min(1.0, number / max(1, cfg.warmup)))
        batch = buffer.sample_sequences(cfg.batch_size, cfg.context, generator)
        batch = noisy(batch, actor.normalize.std, cfg.input_noise, generator)
        run.log(update(batch, actor.draws(batch, generator)))
        if run.evaluation_due:
            run.evaluate(actor)
            if run.evaluation_final:
                evaluate_variants()


SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "context": ("choice", [5, 10, 20]),
    "dropout": ("uniform", 0.0, 0.3),
    "input_noise": ("uniform", 0.0, 0.4),
    "target_fraction": ("uniform", 0.5, 1.5),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
