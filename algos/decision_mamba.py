"""Decision Mamba (Lv et al. 2024, arXiv 2406.05427): multi-grained state-space model with self-evolution.

Return-conditioned cloning of windows, as Decision Transformer does it, by blocks that add two Mamba mixers to the
stream: a coarse one over its tokens and a fine one over its steps. With pi the policy, a the data, p an earlier copy:

    loss = 0.90 |pi - ((1 - beta) a + beta p)|^2 + 0.05 SmoothL1(next state) + 0.05 SmoothL1(next return-to-go)

Presets: `small` (default, ours, SSD mixers), `mamba1`, `paper` (in part inferred), `released`. Equations, deviations,
results: docs/algorithms/decision_mamba.md.

Run: python algos/decision_mamba.py --dataset hoard/pendulum/mixed-v0
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
    frozen_copy,
    linear,
    set_lr,
    uniform,
)
from hoard.runners.scans import SCANS


@dataclass
class Config:
    """Decision Mamba. Defaults are a small version for a laptop; preset `paper` has larger sizes."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    data: str = "all"  # all of it, or top=F, weight=return, weight=advantage; see docs/datasets.md
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    compile: bool = False  # one compiled graph per update: quicker, after minutes of compiling; needs a C++ compiler
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
    weight_decay: float = 1e-4  # on weight matrices, convolutions and the time table only
    clip_norm: float = 0.25  # global norm that gradients are clipped to
    init: Literal["torch", "normal"] = "torch"  # weight initialisation
    dropout: float = 0.0  # on embeddings and residual branches while training
    # --- return conditioning ---
    return_scale: float = 0.0  # divisor of returns-to-go; 0 is their range in the dataset
    target_rule: Literal["max_return", "dataset_range", "reference_range"] = "max_return"  # see `target_of`
    target_fraction: float = 1.0  # share of the range, or of the best return, that is asked for
    extra_targets: tuple[float, ...] = ()  # further fractions, evaluated once at the end as variants
    # --- Decision Mamba: the model ---
    context: int = 10  # K, steps of a window; three tokens each
    width: int = 64  # d, size of a token
    blocks: int = 2  # layers
    heads: int = 4  # heads of SSD; mamba1 has none
    time_rows: int = 1000  # rows of the table of time embeddings; later steps share the last one
    embedding: Literal["mlp", "linear"] = "mlp"  # residual MLP and MLP action head, or one linear layer each
    ssm: Literal["ssd", "mamba1"] = "ssd"  # one decay per head (Mamba-2), or one per channel and state
    scan: Literal["auto", "loop", "two_level"] = "auto"  # of mamba1; auto: loop on CPU, two_level on CUDA
    state: int = 16  # N, numbers of state per channel
    expand: int = 2  # channels of a mixer per token size
    conv: int = 4  # taps of the causal convolution
    fine: bool = True  # the fine branch over steps, beside the coarse one over tokens
    recurrent_eval: bool = False  # act by O(1) recurrent steps from the episode's start, not on the last K steps
    # --- Decision Mamba: the losses ---
    action_weight: float = 0.90  # of the squared error of actions
    auxiliary: bool = True  # heads for the next state and the next return-to-go
    state_weight: float = 0.05  # of the next state's SmoothL1 loss
    return_weight: float = 0.05  # of the next return-to-go's SmoothL1 loss
    self_evolution: bool = True  # mix the actions of an earlier copy of the policy into the labels
    beta: float = 0.85  # the copy's share after the last block of updates, before the cap
    beta_max: float = 0.5  # cap of the copy's share
    teacher_every: int = 250  # updates per block: the copy is taken anew at the start of each but the first

    def check(self) -> None:
        """Raise ValueError for options that make no sense, naming what would be right."""
        for name in ("state", "expand", "conv", "teacher_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.ssm == "ssd" and self.expand * self.width % self.heads:
            raise ValueError(f"heads {self.heads}: must divide {self.expand * self.width}, the channels of a layer")
        if self.scan != "auto" and self.ssm != "mamba1":
            raise ValueError(f"scan {self.scan}: only ssm mamba1 has a choice of scans; use auto")
        if self.beta < 0 or not 0 <= self.beta_max <= 1:
            raise ValueError(f"beta {self.beta} must not be negative, beta_max {self.beta_max} between 0 and 1")
        if self.self_evolution and self.teacher_every >= self.updates:
            raise ValueError(
                f"teacher_every {self.teacher_every}: in {self.updates} updates there would never be a teacher; "
                "make it smaller or set self_evolution false"
            )


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
    "mamba1": {"ssm": "mamba1"},
    "paper": LONG | {"ssm": "mamba1", "width": 128, "blocks": 3, "warmup": 2500, "teacher_every": 2500},
    "released": LONG
    | {"ssm": "mamba1", "width": 768, "blocks": 24, "warmup": 2500, "teacher_every": 2500, "weight_decay": 1e-5},
}


# --- mixers: (B, L, width) -> the same; with a state, one recurrent step (n, width) -> the same ---

State = dict[str, Any]
"""What a layer remembers between recurrent steps; an empty dict is the start of an episode."""


class Conv(nn.Module):
    """Depthwise causal convolution with bias, then SiLU: (B, L, channels), or (n, channels) with a state."""

    def __init__(self, channels: int, taps: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(taps)
        weight = torch.empty(taps, channels, device=generator.device)
        self.weight = nn.Parameter(weight.uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.zeros(channels, device=generator.device))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        if state is not None:
            window = [*state.get("conv", [torch.zeros_like(x)] * (len(self.weight) - 1)), x]
            state["conv"] = window[1:]
            return F.silu(self.bias + (self.weight[:, None] * torch.stack(window)).sum(dim=0))
        # A sum of shifted products: on CPU twice as fast, forward and backward, as a grouped conv1d.
        out: Tensor = self.bias
        padded = F.pad(x, (0, 0, len(self.weight) - 1, 0))
        for k, tap in enumerate(self.weight):
            out = torch.addcmul(out, padded[:, k : k + x.shape[1]], tap)
        return F.silu(out)


def inverse_softplus_dt(count: int, generator: torch.Generator) -> Tensor:
    """Biases for which softplus gives steps dt log-uniform in [1e-3, 1e-1], at least 1e-4."""
    draw = torch.rand(count, generator=generator, device=generator.device)
    dt = torch.exp(math.log(1e-3) + draw * math.log(100.0)).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))


class Mamba1(nn.Module):
    """Selective state space (S6), (B, L, width) -> the same: every channel and state decays at its own rate."""

    def __init__(self, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        inner, rank = cfg.expand * cfg.width, math.ceil(cfg.width / 16)
        self.splits = [rank, cfg.state, cfg.state]
        name = cfg.scan if cfg.scan != "auto" else "two_level" if generator.device.type == "cuda" else "loop"
        self.scan = SCANS[name]
        self.in_proj = linear(cfg.width, 2 * inner, generator, cfg.init, bias=False)
        self.conv = Conv(inner, cfg.conv, generator)
        self.x_proj = linear(inner, sum(self.splits), generator, cfg.init, bias=False)
        self.dt_proj = linear(rank, inner, generator, cfg.init)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus_dt(inner, generator))
        levels = torch.arange(1, cfg.state + 1, dtype=torch.float32, device=generator.device)
        self.A_log = nn.Parameter(levels.log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner, device=generator.device))
        self.out_proj = linear(inner, cfg.width, generator, cfg.init, bias=False)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """With a state, one recurrent step: (n, width) -> (n, width)."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = self.conv(u, state)
        q, B, C = self.x_proj(u).split(self.splits, dim=-1)
        dt, A = F.softplus(self.dt_proj(q)), -torch.exp(self.A_log)
        if state is None:
            y = self.scan(u, dt, A, B, C)
        else:
            h = torch.exp(dt[..., None] * A) * state.get("h", 0.0) + (dt * u)[..., None] * B[:, None]
            state["h"] = h  # (n, channels, N)
            y = torch.matmul(h, C[..., None]).squeeze(-1)
        return self.out_proj((y + self.D * u) * F.silu(z))


def ssd_quadratic(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """SSD as one masked (L, L) product per head: u (B, L, H, P), dt (B, L, H), A (H,), B, C (B, L, N) -> like u."""
    total = (dt * A).cumsum(dim=1).transpose(1, 2)  # S, (B, H, L)
    length = u.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=u.device).triu(1)
    # Masked before the exponential: above the diagonal the exponent is positive, and inf * 0 would be NaN.
    decay = torch.exp((total[..., :, None] - total[..., None, :]).masked_fill(later, -torch.inf))
    weights = decay * torch.matmul(C, B.transpose(1, 2))[:, None]
    return torch.matmul(weights, (u * dt[..., None]).transpose(1, 2)).transpose(1, 2)


class SSD(nn.Module):
    """State-space duality (Mamba-2), (B, L, width) -> the same: one decay per head, so training is matrix products."""

    def __init__(self, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        inner, self.heads = cfg.expand * cfg.width, cfg.heads
        self.splits = [inner, inner + 2 * cfg.state, cfg.heads]
        self.inner_splits = [inner, cfg.state, cfg.state]
        self.in_proj = linear(cfg.width, sum(self.splits), generator, cfg.init, bias=False)
        self.conv = Conv(self.splits[1], cfg.conv, generator)
        self.dt_bias = nn.Parameter(inverse_softplus_dt(cfg.heads, generator))
        draw = torch.rand(cfg.heads, generator=generator, device=generator.device)
        self.A_log = nn.Parameter(torch.log(1 + 15 * draw))
        self.D = nn.Parameter(torch.ones(cfg.heads, device=generator.device))
        self.norm = nn.RMSNorm(inner, eps=1e-5, device=generator.device)
        self.out_proj = linear(inner, cfg.width, generator, cfg.init, bias=False)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        """With a state, one recurrent step: (n, width) -> (n, width)."""
        z, v, raw = self.in_proj(x).split(self.splits, dim=-1)
        v, B, C = self.conv(v, state).split(self.inner_splits, dim=-1)
        u, dt, A = v.unflatten(-1, (self.heads, -1)), F.softplus(raw + self.dt_bias), -torch.exp(self.A_log)
        if state is None:
            y = ssd_quadratic(u, dt, A, B, C)
        else:
            h = torch.exp(dt * A)[..., None, None] * state.get("h", 0.0)
            h = state["h"] = h + (u * dt[..., None])[..., None] * B[:, None, None]  # (n, heads, size of a head, N)
            y = torch.matmul(h, C[:, None, :, None]).squeeze(-1)
        return self.out_proj(self.norm((y + self.D[:, None] * u).flatten(-2) * F.silu(z)))


# --- networks ---


class Block(nn.Module):
    """x + coarse(RMSNorm x) + fine: the coarse mixer sees all 3K tokens, the fine one the K groups (a_{t-1}, R_t, s_t).

    Each group is the stream shifted right by one token, so what is added at step t knows nothing of a_t.
    """

    def __init__(self, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        mixer: type[Mamba1] | type[SSD] = SSD if cfg.ssm == "ssd" else Mamba1
        self.norm = nn.RMSNorm(cfg.width, eps=1e-5, device=generator.device)
        self.coarse = mixer(cfg, generator)
        self.has_fine, self.dropout = cfg.fine, cfg.dropout
        if cfg.fine:
            self.group = linear(3 * cfg.width, cfg.width, generator, cfg.init)
            self.fine = mixer(cfg, generator)
            self.fine_norm = nn.LayerNorm(cfg.width, device=generator.device)

    def forward(self, x: Tensor, draw: Tensor | None) -> Tensor:
        """(B, 3K, width) -> the same; `draw`: uniform numbers of that shape for the dropout, or None."""
        normed = self.norm(x)
        out = self.coarse(normed)
        if self.has_fine:
            groups = F.pad(normed, (0, 0, 1, -1)).unflatten(1, (-1, 3)).flatten(2)  # (B, K, 3 width)
            fine = self.fine_norm(self.fine(self.group(groups)))
            out = (out.unflatten(1, (-1, 3)) + fine[:, :, None]).flatten(1, 2)
        return x + drop(out, self.dropout, draw)

    def step(self, x: Tensor, state: State) -> Tensor:
        """The same for the new tokens (a_{t-1}, R_t, s_t) alone, (n, 3, width); at t = 0 for (R_0, s_0)."""
        count, normed = x.shape[1], self.norm(x)
        out = torch.stack([self.coarse(token, state.setdefault("coarse", {})) for token in normed.unbind(1)], dim=1)
        if self.has_fine:
            group = F.pad(normed, (0, 0, 3 - count, 0)).flatten(1)
            fine = self.fine_norm(self.fine(self.group(group), state.setdefault("fine", {})))
            out = out + torch.stack([state.get("added", fine), fine, fine], dim=1)[:, -count:]  # a_{t-1} is of step t-1
            state["added"] = fine
        return x + out


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
    """Windows (B, K) of (R, s, a) -> for each step the action read at s_t, next state and return read at a_t.

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
        self.recurrent = cfg.recurrent_eval
        self.normalize = ObsNormalizer(obs_dim, device)
        self.embed_return = Embedding(1, cfg, generator)
        self.embed_obs = Embedding(obs_dim, cfg, generator)
        self.embed_action = Embedding(action_dim, cfg, generator)
        self.embed_norm = nn.LayerNorm(width, device=device)
        time = torch.empty(cfg.time_rows, width, device=device)
        self.time = nn.Parameter(time.normal_(std=1.0, generator=generator))
        self.blocks = nn.ModuleList(Block(cfg, generator) for _ in range(cfg.blocks))
        self.norm = nn.RMSNorm(width, eps=1e-5, device=device)
        hidden = [linear(width, width, generator, cfg.init), nn.GELU()] if cfg.embedding == "mlp" else []
        self.action_head = nn.Sequential(*hidden, linear(width, action_dim, generator, cfg.init), nn.Tanh())
        if cfg.auxiliary:
            self.obs_head = linear(width, obs_dim, generator, cfg.init)
            self.return_head = linear(width, 1, generator, cfg.init)
        self.register_buffer("return_scale", torch.ones((), dtype=torch.float64, device=device))
        self.register_buffer("target", torch.zeros((), dtype=torch.float64, device=device))
        self._states: list[State] = []  # of the recurrent evaluation, since the reset

    def embed(self, window: dict[str, Tensor]) -> Tensor:
        """Tokens before the first block, (B, K, 3, width) in the order R, s, a."""
        parts = (
            self.embed_return(window["return_to_go"][..., None]),
            self.embed_obs(self.normalize(window["obs"])),
            self.embed_action(window["action"]),
        )
        time = self.time[window["timestep"].clamp(max=len(self.time) - 1)][:, :, None]
        return self.embed_norm(torch.stack(parts, dim=2)) + time

    def draws(self, window: dict[str, Tensor], generator: torch.Generator) -> list[Tensor]:
        """Uniform numbers for the dropout of a training step on `window`; none where nothing is dropped."""
        if not self.dropout:
            return []
        size, steps = window["obs"].shape[:2]
        return [uniform((size, 3 * steps, self.time.shape[1]), generator) for _ in range(1 + len(self.blocks))]

    def tokens(self, window: dict[str, Tensor], draws: Sequence[Tensor] = ()) -> Tensor:
        """Tokens after the last block, (B, K, 3, width); dropout only with `draws`."""
        given: Sequence[Tensor | None] = draws or [None] * (1 + len(self.blocks))
        x = drop(self.embed(window).flatten(1, 2), self.dropout, given[0])
        for block, draw in zip(self.blocks, given[1:]):
            x = block(x, draw)
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
        if self.recurrent:
            return self.act_recurrently(target, history)
        return self(self.window(target, history, self.context))[:, -1]

    def act_recurrently(self, target: Tensor, history: History) -> Tensor:
        """The same from states kept since the reset: equal while t < context, beyond what was trained after that."""
        if history.t == 0:
            self._states = [{} for _ in self.blocks]
        # New since the last step are a_{t-1}, R_t and s_t; at t = 0 only R_0 and s_0.
        x = self.embed(self.window(target, history, 2)).flatten(1, 2)[:, -4:-1]
        for block, state in zip(self.blocks, self._states):
            x = block.step(x, state)
        return self.action_head(self.norm(x[:, -1]))


# --- losses: a scalar and detached metrics ---


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, K, n) over the steps where mask (B, K) is 1; 0 if there are none."""
    return (x.mean(dim=-1) * mask).sum() / mask.sum().clamp(min=1)


def actor_loss(
    actor: Actor,
    batch: dict[str, Tensor],
    cfg: Config,
    beta: Tensor | float = 0.0,
    teacher_action: Tensor | None = None,
    draws: Sequence[Tensor] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error towards (1 - beta) a + beta teacher_action, and SmoothL1 of next state and return-to-go.

    The action counts on every real step, the other two where the next step is real as well. `draws` for the dropout.
    """
    x, mask = actor.tokens(batch, draws), batch["mask"]
    action, label = actor.action_head(x[:, :, 1]), batch["action"]
    metrics = {"losses/bc": masked_mean((action.detach() - label).square(), mask)}
    if teacher_action is not None:
        metrics["evolution/teacher_gap"] = masked_mean((teacher_action - label).square(), mask)
        label = (1 - beta) * label + beta * teacher_action
    error = masked_mean((action - label).square(), mask)
    loss = cfg.action_weight * error
    metrics["losses/action"] = error.detach()
    if cfg.auxiliary:
        pair = mask[:, 1:] * mask[:, :-1]
        last = x[:, :-1, 2]
        wanted = actor.normalize(batch["obs"][:, 1:])
        next_obs = masked_mean(F.smooth_l1_loss(actor.obs_head(last), wanted, reduction="none"), pair)
        wanted = batch["return_to_go"][:, 1:, None]
        next_return = masked_mean(F.smooth_l1_loss(actor.return_head(last), wanted, reduction="none"), pair)
        loss = loss + cfg.state_weight * next_obs + cfg.return_weight * next_return
        metrics |= {"losses/next_obs": next_obs.detach(), "losses/next_return": next_return.detach()}
    return loss, metrics | {"losses/actor": loss.detach()}


def teacher_share(update: int, cfg: Config) -> float:
    """beta_k = min(beta_max, beta k / blocks) in the k-th block of updates; 0 in the first, which has no teacher."""
    k = (update - 1) // cfg.teacher_every + 1
    if not cfg.self_evolution or k == 1:
        return 0.0
    return min(cfg.beta_max, cfg.beta * k / math.ceil(cfg.updates / cfg.teacher_every))


# --- targets and parameter groups ---


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


def parameter_groups(actor: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decayed: weight matrices, convolutions, time table. Not decayed: norms, biases, A_log and D."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in actor.named_parameters():
        (decayed if parameter.ndim > 1 and not name.endswith("A_log") else plain).append(parameter)
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
    teacher = frozen_copy(actor)
    optimizer = torch.optim.AdamW(parameter_groups(actor, cfg.weight_decay), lr=cfg.lr, eps=1e-6, fused=True)

    def update(batch: dict[str, Tensor], draws: Sequence[Tensor], beta: Tensor, taught: bool) -> dict[str, Tensor]:
        # self-evolution: the earlier policy's actions have a share in the labels
        teacher_action = None
        if taught:
            with torch.no_grad():
                teacher_action = teacher(batch)
        # actions, next states and next returns
        loss, metrics = actor_loss(actor, batch, cfg, beta, teacher_action, draws)
        metrics["policy/grad_norm"] = clipped_gradient_step(optimizer, loss, cfg.clip_norm)
        return metrics | {"evolution/beta": beta}

    def evaluate_variants() -> None:
        for fraction in cfg.extra_targets:
            target = torch.tensor(target_of(dataset, cfg, fraction), device=device)
            run.evaluate(partial(actor.act_towards, target), variant=f"target={fraction:g}")

    update = compiled(update, [optimizer], cfg.compile)
    run.register(actor=actor, optimizer=optimizer, **({"teacher": teacher} if cfg.self_evolution else {}))
    for number in run.loop(cfg.updates):
        set_lr(optimizer, cfg.lr * min(1.0, number / max(1, cfg.warmup)))
        beta = teacher_share(number, cfg)
        if beta and (number - 1) % cfg.teacher_every == 0:
            teacher.load_state_dict(actor.state_dict())
        batch = buffer.sample_sequences(cfg.batch_size, cfg.context, generator)
        share = torch.tensor(beta, device=device)  # a number would be compiled into the graph
        run.log(update(batch, actor.draws(batch, generator), share, beta > 0))
        if run.evaluation_due:
            run.evaluate(actor)
            if run.evaluation_final:
                evaluate_variants()


# The paper's beta: 0 to 1.
SEARCH: dict[str, tuple[Any, ...]] = {
    "lr": ("log", 1e-4, 3e-3),
    "context": ("choice", [5, 10, 20]),
    "beta": ("uniform", 0.0, 1.0),
    "target_fraction": ("uniform", 0.5, 1.5),
}


if __name__ == "__main__":
    main(Config, train, PRESETS)
