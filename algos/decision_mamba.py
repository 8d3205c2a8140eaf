"""Decision Mamba: return-conditioned cloning of windows by a multi-grained state-space model with self-evolution.

Sources: Lv, Deng, Chen, Wang, Nie 2024 (arXiv 2406.05427; abstract, figure 1 and table 1 read, self-evolution at second
hand) and its released code of December 2024; SSD (Mamba-2), its initialisation from memory. The baseline in the same
file is Decision Transformer (Chen et al. 2021), settings of the kzl and CORL code.

A window of K steps is a stream of 3K tokens R_1 s_1 a_1 R_2 ..., R being the return-to-go. A block adds two Mamba
mixers to the stream: a coarse one over the tokens and a fine one over K groups of three. The action is read at s_t;
next state and next return are predicted at a_t. With pi the policy, a the data and p an earlier copy of the policy,

    loss = 0.90 |pi - ((1 - beta_k) a + beta_k p)|^2 + 0.05 SmoothL1(next state) + 0.05 SmoothL1(next return-to-go)
    beta_k = min(beta_max, beta k / blocks of updates), 0 in the first block, which has no earlier copy

Self-evolution is that mixed label. The copy is frozen and taken anew every `teacher_every` updates. That k counts
blocks, and that beta is the copy's share, follow the code; how the paper means them is not known.

Deviations from the released code, where it does not do what the paper says:
- It sets beta to 0 just after computing it, and its earlier policy would be the current one. Here both are real.
- Its groups hold a_t beside s_t, so that all but the last step of a window see the action they predict, and step t gets
  other steps' groups. Here a group is (a_{t-1}, R_t, s_t), as in figure 1, with a zero vector for the first a_{t-1}.
- It pads on the left without a mask. Here windows are padded on the right, which a causal model cannot see, and losses
  are masked: T actions, T - 1 next states and returns.
- Its MLP action head is unbounded; here both heads end in tanh. Its weight decay hits norms, A_log and D; here not.
- Switching self-evolution off changes its other losses; here each term depends on its own weight alone.
Ours too: return_scale (by default the range of returns-to-go, so that the input is about 1; the code divides by 1000 in
locomotion), the target (below), observations standardised inside the network, actions mapped to [-1, 1]. Left out: the
shared-gate fusion of figure 1; branches are summed, as released. The transformer leaves out the MLP embedding, the
auxiliary losses and self-evolution; all can be switched on.

    preset             model              d, blocks  K   lr, warm-up  updates, block  from
    small (default)    SSD, 4 heads       64, 2      10  1e-3, 100    10k, 250        ours, for a laptop
    mamba1             Mamba-1            64, 2      10  1e-3, 100    10k, 250        ours
    small_transformer  attention, 4 heads 64, 2      10  1e-3, 100    10k             ours, to compare with small
    paper              Mamba-1            128, 3     20  1e-4, 2500   100k, 2500      d, blocks, decay inferred
    released           Mamba-1            768, 24    20  1e-4, 2500   100k, 2500      code (decay 1e-5: launch script)
    transformer        attention, 1 head  128, 3     20  1e-4, 10k    100k            code (GELU as in CORL)

State 16, expand 2, 4 taps, batch 64, clipping at 0.25, AdamW eps 1e-6, loss weights, beta 0.85 and its cap 0.5 are the
code's; the widths behind the paper's tables and its decay and schedule per task are not known. `released` is for GPUs.

Targets (`target_rule`), with f = `target_fraction`: max_return f * the best episode's return; dataset_range smallest +
f * (largest - smallest) episode return; reference_range ref_min + f * (ref_max - ref_min). `extra_targets` evaluates
further fractions with the final policy, recorded as variants. Acting recomputes the last K steps; `recurrent_eval` runs
the O(1) recurrence from the episode's start, equal while t < K and beyond what was trained after that.

What an update costs, by size and form of scan, is measured by tests/benchmarks/scan_cost.py; the numbers are in
analysis/experiments/README.md.

Run: `python algos/decision_mamba.py --dataset hoard/pendulum/mixed-v0`. Shared with every algorithm: hoard.datasets
(data, replay), hoard.runners (evaluation, records, checkpoints, resume).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hoard.datasets import Dataset, ReplayBuffer
from hoard.runners import History, Run, main


@dataclass
class Config:
    """Decision Mamba, or Decision Transformer with `--preset transformer`."""

    # --- experiment ---
    dataset: str = "hoard/pendulum/mixed-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "auto"  # cpu, cuda, cuda:1, ...; auto is CUDA if there is one
    threads: int = 1  # torch CPU threads; with 1 the result does not depend on the number of cores
    updates: int = 10_000  # gradient updates
    log_every: int = 250  # updates per row of training metrics
    eval_every: int = 1000  # updates between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 100  # episodes of the last one, which is the score
    checkpoint_every: int = 1000  # updates between checkpoints
    # --- optimisation ---
    batch_size: int = 64  # windows per update
    lr: float = 1e-3  # AdamW's step size after the warm-up
    warmup: int = 100  # updates over which the step size rises linearly from 0
    weight_decay: float = 1e-4  # on weight matrices only: not on norms, biases, A_log and D
    clip_norm: float = 0.25  # global norm that gradients are clipped to
    # --- model ---
    model: Literal["mamba", "transformer"] = "mamba"  # transformer is Decision Transformer
    context: int = 10  # K, steps of a window; three tokens each
    width: int = 64  # d, size of a token
    blocks: int = 2  # layers
    heads: int = 4  # heads of SSD or of attention; mamba1 has none
    embedding: Literal["mlp", "linear"] = "mlp"  # residual MLP and MLP action head, or one linear layer each
    time_rows: int = 1000  # rows of the table of time embeddings; later steps share the last one
    dropout: float = 0.0  # on embeddings, attention and residual branches while training
    ssm: Literal["ssd", "mamba1"] = "ssd"  # one decay per head (Mamba-2), or one per channel and state
    scan: Literal["auto", "loop", "two_level"] = "auto"  # of mamba1; auto: loop on CPU, two_level on CUDA
    state: int = 16  # N, numbers of state per channel
    expand: int = 2  # channels of a mixer per token size
    conv: int = 4  # taps of the causal convolution
    fine: bool = True  # the fine branch over steps, beside the coarse one over tokens
    # --- losses ---
    action_weight: float = 0.90  # of the squared error of actions
    auxiliary: bool = True  # heads for the next state and the next return-to-go
    state_weight: float = 0.05  # of the next state's SmoothL1 loss
    return_weight: float = 0.05  # of the next return-to-go's SmoothL1 loss
    self_evolution: bool = True  # mix the actions of an earlier copy of the policy into the labels
    beta: float = 0.85  # the copy's share after the last block, before the cap
    beta_max: float = 0.5  # cap of the copy's share
    teacher_every: int = 250  # updates per block: the copy is taken anew at the start of each but the first
    # --- return conditioning ---
    return_scale: float = 0.0  # divisor of returns-to-go; 0 is their range in the dataset
    target_rule: Literal["max_return", "dataset_range", "reference_range"] = "max_return"  # see above
    target_fraction: float = 1.0  # f of the rule
    extra_targets: tuple[float, ...] = ()  # further fractions, evaluated once at the end as variants
    recurrent_eval: bool = False  # act by O(1) recurrent steps from the episode's start, not on the last K steps


DT: dict[str, Any] = {
    "model": "transformer",
    "embedding": "linear",
    "dropout": 0.1,
    "auxiliary": False,
    "self_evolution": False,
    "action_weight": 1.0,
}
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
    "small_transformer": DT,
    "paper": LONG | {"ssm": "mamba1", "width": 128, "blocks": 3, "warmup": 2500, "teacher_every": 2500},
    "released": LONG
    | {"ssm": "mamba1", "width": 768, "blocks": 24, "warmup": 2500, "teacher_every": 2500, "weight_decay": 1e-5},
    "transformer": LONG | DT | {"width": 128, "blocks": 3, "heads": 1, "warmup": 10_000},
}


# --- scans: u, dt (B, L, channels), A (channels, N), B, C (B, L, N) -> y (B, L, channels), without the D term ---


def scan_loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, y_t = C_t h_t: small tensors, which stay in a CPU's cache."""
    h, out = u.new_zeros(u.shape[0], *A.shape), []
    for dt_t, x_t, B_t, C_t in zip(dt.unbind(1), (dt * u).unbind(1), B.unbind(1), C.unbind(1)):
        h = torch.exp(dt_t[..., None] * A) * h + x_t[..., None] * B_t[:, None, :]
        out.append(torch.matmul(h, C_t[..., None]).squeeze(-1))
    return torch.stack(out, dim=1)


def scan_two_level(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Chunks of about sqrt(L) steps: first all chunks at once from zero, then the carry from chunk to chunk.

    2 sqrt(L) launches one after another instead of L, for the price of keeping every state: for GPUs.
    """
    length = u.shape[1]
    size = math.ceil(math.sqrt(length))
    pad = -length % size
    u, dt, B, C = (F.pad(x, (0, 0, 0, pad)).unflatten(1, (-1, size)) for x in (u, dt, B, C))  # (batch, chunks, size, .)
    decay = torch.exp(dt[..., None] * A)  # (batch, chunks, size, channels, N)
    x = (dt * u)[..., None] * B[..., None, :]
    h, product = torch.zeros_like(x[:, :, 0]), torch.ones_like(x[:, :, 0])
    local, products = [], []
    for decay_q, x_q in zip(decay.unbind(2), x.unbind(2)):
        h, product = decay_q * h + x_q, decay_q * product
        local.append(h)
        products.append(product)
    carry, carries = torch.zeros_like(h[:, 0]), []
    for end, through in zip(h.unbind(1), product.unbind(1)):
        carries.append(carry)
        carry = end + through * carry
    states = torch.stack(local, 2) + torch.stack(products, 2) * torch.stack(carries, 1)[:, :, None]
    return (states * C[..., None, :]).sum(dim=-1).flatten(1, 2)[:, :length]


SCANS = {"loop": scan_loop, "two_level": scan_two_level}


def ssd_quadratic(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """SSD as one masked (L, L) product per head: u (B, L, H, P), dt (B, L, H), A (H,), B, C (B, L, N) -> like u."""
    total = (dt * A).cumsum(dim=1).transpose(1, 2)  # S, (B, H, L)
    length = u.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=u.device).triu(1)
    # Masked before the exponential: above the diagonal the exponent is positive, and inf * 0 would be NaN.
    decay = torch.exp((total[..., :, None] - total[..., None, :]).masked_fill(later, -torch.inf))
    weights = decay * torch.matmul(C, B.transpose(1, 2))[:, None]
    return torch.matmul(weights, (u * dt[..., None]).transpose(1, 2)).transpose(1, 2)


# --- layers ---


def linear(inputs: int, outputs: int, cfg: Config, generator: torch.Generator, bias: bool = True) -> nn.Linear:
    """torch's default initialisation, or Decision Transformer's: N(0, 0.02) and zero biases."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, device=generator.device)
    bound = 1 / math.sqrt(inputs)
    if cfg.model == "transformer":
        nn.init.normal_(layer.weight, std=0.02, generator=generator)
    else:
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if bias:
        bound = 0.0 if cfg.model == "transformer" else bound
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def inverse_softplus_dt(count: int, generator: torch.Generator) -> Tensor:
    """Biases for which softplus gives steps dt log-uniform in [1e-3, 1e-1], at least 1e-4."""
    draw = torch.rand(count, generator=generator, device=generator.device)
    dt = torch.exp(math.log(1e-3) + draw * math.log(100.0)).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))


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


class Mamba1(nn.Module):
    """Selective state space (S6), (B, L, width) -> the same: every channel and state decays at its own rate."""

    def __init__(self, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        inner, rank = cfg.expand * cfg.width, math.ceil(cfg.width / 16)
        self.splits = [rank, cfg.state, cfg.state]
        name = cfg.scan if cfg.scan != "auto" else "two_level" if generator.device.type == "cuda" else "loop"
        self.scan = SCANS[name]
        self.in_proj = linear(cfg.width, 2 * inner, cfg, generator, bias=False)
        self.conv = Conv(inner, cfg.conv, generator)
        self.x_proj = linear(inner, sum(self.splits), cfg, generator, bias=False)
        self.dt_proj = linear(rank, inner, cfg, generator)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus_dt(inner, generator))
        levels = torch.arange(1, cfg.state + 1, dtype=torch.float32, device=generator.device)
        self.A_log = nn.Parameter(levels.log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner, device=generator.device))
        self.out_proj = linear(inner, cfg.width, cfg, generator, bias=False)

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


class SSD(nn.Module):
    """State-space duality (Mamba-2), (B, L, width) -> the same: one decay per head, so training is matrix products."""

    def __init__(self, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        inner, self.heads = cfg.expand * cfg.width, cfg.heads
        self.splits = [inner, inner + 2 * cfg.state, cfg.heads]
        self.inner_splits = [inner, cfg.state, cfg.state]
        self.in_proj = linear(cfg.width, sum(self.splits), cfg, generator, bias=False)
        self.conv = Conv(self.splits[1], cfg.conv, generator)
        self.dt_bias = nn.Parameter(inverse_softplus_dt(cfg.heads, generator))
        draw = torch.rand(cfg.heads, generator=generator, device=generator.device)
        self.A_log = nn.Parameter(torch.log(1 + 15 * draw))
        self.D = nn.Parameter(torch.ones(cfg.heads, device=generator.device))
        self.norm = nn.RMSNorm(inner, eps=1e-5, device=generator.device)
        self.out_proj = linear(inner, cfg.width, cfg, generator, bias=False)

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


Dropout = Callable[[Tensor], Tensor]


class MambaBlock(nn.Module):
    """x + coarse(RMSNorm x) + fine: the coarse mixer sees all 3K tokens, the fine one the K groups (a_{t-1}, R_t, s_t).

    Each group is the stream shifted right by one token, so what is added at step t knows nothing of a_t.
    """

    def __init__(self, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        mixer: type[Mamba1] | type[SSD] = SSD if cfg.ssm == "ssd" else Mamba1
        self.norm = nn.RMSNorm(cfg.width, eps=1e-5, device=generator.device)
        self.coarse = mixer(cfg, generator)
        self.has_fine = cfg.fine
        if cfg.fine:
            self.group = linear(3 * cfg.width, cfg.width, cfg, generator)
            self.fine = mixer(cfg, generator)
            self.fine_norm = nn.LayerNorm(cfg.width, device=generator.device)

    def forward(self, x: Tensor, dropout: Dropout) -> Tensor:
        """(B, 3K, width) -> the same."""
        normed = self.norm(x)
        out = self.coarse(normed)
        if self.has_fine:
            groups = F.pad(normed, (0, 0, 1, -1)).unflatten(1, (-1, 3)).flatten(2)  # (B, K, 3 width)
            fine = self.fine_norm(self.fine(self.group(groups)))
            out = (out.unflatten(1, (-1, 3)) + fine[:, :, None]).flatten(1, 2)
        return x + dropout(out)

    def observe(self, to_go: Tensor, obs: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """The tokens R_t and s_t of one step, (n, width) each."""
        a, b = self.norm(to_go), self.norm(obs)
        step: Tensor | float = 0.0
        if self.has_fine:
            group = torch.cat([state.get("last_action", torch.zeros_like(a)), a, b], dim=-1)
            step = self.fine_norm(self.fine(self.group(group), state.setdefault("fine", {})))
        state["step"] = step
        coarse = state.setdefault("coarse", {})
        first = self.coarse(a, coarse)
        return to_go + first + step, obs + self.coarse(b, coarse) + step

    def record(self, action: Tensor, state: State) -> Tensor:
        """The token a_t that closes the step."""
        state["last_action"] = self.norm(action)
        return action + self.coarse(state["last_action"], state["coarse"]) + state["step"]


class TransformerBlock(nn.Module):
    """Pre-norm causal attention and a GELU MLP, as in GPT-2."""

    def __init__(self, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = cfg.heads
        self.norm1 = nn.LayerNorm(cfg.width, device=generator.device)
        self.norm2 = nn.LayerNorm(cfg.width, device=generator.device)
        self.qkv = linear(cfg.width, 3 * cfg.width, cfg, generator)
        self.out = linear(cfg.width, cfg.width, cfg, generator)
        self.up = linear(cfg.width, 4 * cfg.width, cfg, generator)
        self.down = linear(4 * cfg.width, cfg.width, cfg, generator)

    def forward(self, x: Tensor, dropout: Dropout) -> Tensor:
        """(B, L, width) -> the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        # Written out, since torch's fused attention draws its dropout from the global generator.
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        weights = dropout(torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1))
        x = x + dropout(self.out(torch.matmul(weights, v).transpose(1, 2).flatten(2)))
        return x + dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class Embedding(nn.Module):
    """h = W1 x + b1, then h + W2 GELU(h) + b2; or h alone."""

    def __init__(self, inputs: int, cfg: Config, generator: torch.Generator) -> None:
        super().__init__()
        self.first = linear(inputs, cfg.width, cfg, generator)
        self.second = linear(cfg.width, cfg.width, cfg, generator) if cfg.embedding == "mlp" else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return h if self.second is None else h + self.second(F.gelu(h))


# --- policy ---


class Policy(nn.Module):
    """Windows (B, K) of (R, s, a) -> for each step the action read at s_t, next state and return read at a_t.

    Takes observations as they are, actions in [-1, 1] and returns-to-go divided by their scale. Windows are padded on
    the right, which a causal model never looks at, so it needs no mask.
    """

    shift: Tensor
    scale: Tensor
    center: Tensor
    half_range: Tensor
    blocks: Any  # a ModuleList, whose items type checkers take for plain modules

    def __init__(self, dataset: Dataset, cfg: Config, device: torch.device, generator: torch.Generator) -> None:
        super().__init__()
        obs_dim, action_dim, width = dataset.obs_dim, dataset.action_dim, cfg.width
        self.transformer, self.dropout = cfg.model == "transformer", cfg.dropout
        self.embed_return, self.embed_obs, self.embed_action = (
            Embedding(size, cfg, generator) for size in (1, obs_dim, action_dim)
        )
        self.embed_norm = nn.LayerNorm(width, device=device)
        time = torch.empty(cfg.time_rows, width, device=device)
        self.time = nn.Parameter(time.normal_(std=0.02 if self.transformer else 1.0, generator=generator))
        block = TransformerBlock if self.transformer else MambaBlock
        self.blocks = nn.ModuleList(block(cfg, generator) for _ in range(cfg.blocks))
        norm = nn.LayerNorm if self.transformer else nn.RMSNorm
        self.norm = norm(width, eps=1e-5, device=device)
        hidden = [linear(width, width, cfg, generator), nn.GELU()] if cfg.embedding == "mlp" else []
        self.action_head = nn.Sequential(*hidden, linear(width, action_dim, cfg, generator), nn.Tanh())
        if cfg.auxiliary:
            self.obs_head = linear(width, obs_dim, cfg, generator)
            self.return_head = linear(width, 1, cfg, generator)

        obs = torch.as_tensor(dataset.obs, device=device)
        self.register_buffer("shift", obs.mean(dim=0))
        self.register_buffer("scale", obs.std(dim=0, unbiased=False) + 1e-6)
        low, high = (torch.as_tensor(b, device=device) for b in (dataset.action_space.low, dataset.action_space.high))
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def standardise(self, obs: Tensor) -> Tensor:
        return (obs - self.shift) / self.scale

    def embed(self, obs: Tensor, action: Tensor, to_go: Tensor, timestep: Tensor) -> Tensor:
        """(B, K, obs_dim), (B, K, action_dim), (B, K), (B, K) -> tokens (B, K, 3, width) in the order R, s, a."""
        parts = self.embed_return(to_go[..., None]), self.embed_obs(self.standardise(obs)), self.embed_action(action)
        x = torch.stack(parts, dim=2)
        time = self.time[timestep.clamp(max=len(self.time) - 1)][:, :, None]
        return self.embed_norm(x + time) if self.transformer else self.embed_norm(x) + time

    def tokens(self, window: dict[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Tokens after the last block, (B, K, 3, width); dropout only with a generator."""

        def dropout(x: Tensor) -> Tensor:
            if generator is None or not self.dropout:
                return x
            kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
            return x * kept / (1 - self.dropout)

        x = self.embed(window["obs"], window["action"], window["to_go"], window["timestep"])
        x = dropout(x.flatten(1, 2))
        for block in self.blocks:
            x = block(x, dropout)
        return self.norm(x).unflatten(1, (-1, 3))

    def forward(self, window: dict[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Actions in [-1, 1], (B, K, action_dim)."""
        return self.action_head(self.tokens(window, generator)[:, :, 1])

    # --- one step at a time ---

    def observe(self, obs: Tensor, to_go: Tensor, timestep: int, states: list[State]) -> Tensor:
        """Feed R_t (n,) and s_t (n, obs_dim) into the states, one per block -> action (n, action_dim)."""
        dummy = obs.new_zeros(len(obs), 1, len(self.center))
        x = self.embed(obs[:, None], dummy, to_go[:, None], torch.full_like(to_go, timestep).long()[:, None])[:, 0]
        a, b = x[:, 0], x[:, 1]
        for block, state in zip(self.blocks, states):
            a, b = block.observe(a, b, state)
        return self.action_head(self.norm(b))

    def record(self, action: Tensor, timestep: int, states: list[State]) -> None:
        """Feed a_t, (n, action_dim) in [-1, 1]: the action that was taken after `observe`."""
        obs = action.new_zeros(len(action), 1, len(self.shift))
        x = self.embed(obs, action[:, None], obs[..., 0], torch.full_like(obs[..., 0], timestep).long())[:, 0, 2]
        for block, state in zip(self.blocks, states):
            x = block.record(x, state)


def act_on_window(policy: Policy, context: int, target: float, scale: float) -> Callable[[Tensor, History], Tensor]:
    """A policy for evaluation: the last `context` steps, computed anew each time, ask for what is left of `target`."""

    def act(obs: Tensor, history: History) -> Tensor:
        t = history.t
        first = max(0, t + 1 - context)
        steps = torch.arange(first, t + 1, device=obs.device)
        collected = history.reward[:, : t + 1].cumsum(dim=1) - history.reward[:, : t + 1]
        done = (history.action[:, first:t] - policy.center) / policy.half_range
        window = {
            "obs": history.obs[:, first : t + 1],
            "action": F.pad(done, (0, 0, 0, 1)),  # a_t is not known yet, and not looked at
            "to_go": (target - collected[:, first:]) / scale,
            "timestep": steps.expand(len(obs), -1),
        }
        return policy.center + policy.half_range * policy(window)[:, -1]

    return act


def act_recurrently(policy: Policy, target: float, scale: float) -> Callable[[Tensor, History], Tensor]:
    """A policy for evaluation that keeps states since the reset; the same as the window while t < K."""
    states: list[State] = []

    def act(obs: Tensor, history: History) -> Tensor:
        t = history.t
        if t == 0:
            states[:] = [{} for _ in policy.blocks]
        else:
            policy.record((history.action[:, t - 1] - policy.center) / policy.half_range, t - 1, states)
        return policy.center + policy.half_range * policy.observe(
            obs, (target - history.return_so_far) / scale, t, states
        )

    return act


# --- losses: a scalar and detached metrics ---


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x (B, K, n) over the steps where mask (B, K) is 1; 0 if there are none."""
    return (x.mean(dim=-1) * mask).sum() / mask.sum().clamp(min=1)


def policy_loss(
    policy: Policy,
    batch: dict[str, Tensor],
    cfg: Config,
    beta: float = 0.0,
    teacher_action: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error towards (1 - beta) a + beta teacher_action, and SmoothL1 of next state and return-to-go.

    The action counts on every real step, the other two where the next step is real as well.
    """
    x, mask = policy.tokens(batch, generator), batch["mask"]
    action, label = policy.action_head(x[:, :, 1]), batch["action"]
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
        wanted = policy.standardise(batch["obs"][:, 1:])
        next_obs = masked_mean(F.smooth_l1_loss(policy.obs_head(last), wanted, reduction="none"), pair)
        wanted = batch["to_go"][:, 1:, None]
        next_return = masked_mean(F.smooth_l1_loss(policy.return_head(last), wanted, reduction="none"), pair)
        loss = loss + cfg.state_weight * next_obs + cfg.return_weight * next_return
        metrics |= {"losses/next_obs": next_obs.detach(), "losses/next_return": next_return.detach()}
    return loss, metrics | {"losses/policy": loss.detach()}


def teacher_share(update: int, cfg: Config) -> float:
    """beta_k = min(beta_max, beta k / blocks) in the k-th block of updates; 0 in the first, which has no teacher."""
    k = (update - 1) // cfg.teacher_every + 1
    if not cfg.self_evolution or k == 1:
        return 0.0
    return min(cfg.beta_max, cfg.beta * k / math.ceil(cfg.updates / cfg.teacher_every))


# --- targets and parameter groups ---


def target_of(dataset: Dataset, cfg: Config, fraction: float) -> float:
    """The return asked for at the start of an episode (see the file's notes). Raises ValueError without references."""
    if cfg.target_rule == "max_return":
        return float(fraction * dataset.returns.max())
    if cfg.target_rule == "dataset_range":
        low, high = dataset.returns.min(), dataset.returns.max()
        return float(low + fraction * (high - low))
    if dataset.ref_min is None or dataset.ref_max is None:
        raise ValueError(f"target_rule reference_range: {dataset.id} has no reference returns; use dataset_range")
    return dataset.ref_min + fraction * (dataset.ref_max - dataset.ref_min)


def parameter_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decayed: weight matrices, convolutions, time table. Not decayed: norms, biases, A_log and D."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in policy.named_parameters():
        (decayed if parameter.ndim > 1 and not name.endswith("A_log") else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def check(cfg: Config) -> None:
    """Raise ValueError for options that contradict each other or would silently do nothing."""
    split = cfg.width if cfg.model == "transformer" else cfg.expand * cfg.width
    if (cfg.model == "transformer" or cfg.ssm == "ssd") and split % cfg.heads:
        raise ValueError(f"heads {cfg.heads}: must divide {split}, the channels of a layer")
    if cfg.model == "transformer" and cfg.recurrent_eval:
        raise ValueError("recurrent_eval: a transformer has no recurrent form; use model mamba")
    if cfg.scan != "auto" and (cfg.model == "transformer" or cfg.ssm != "mamba1"):
        raise ValueError(f"scan {cfg.scan}: only ssm mamba1 has a choice of scans; use auto")
    if cfg.self_evolution and cfg.teacher_every >= cfg.updates:
        raise ValueError(
            f"teacher_every {cfg.teacher_every}: in {cfg.updates} updates there would never be a teacher; "
            "make it smaller or set self_evolution false"
        )


# --- training ---


def update_policy(
    policy: Policy,
    teacher: Policy,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Tensor],
    cfg: Config,
    beta: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """One gradient step; the teacher is asked only where it has a share (beta > 0)."""
    teacher_action = None
    if beta:
        with torch.no_grad():
            teacher_action = teacher(batch)
    loss, metrics = policy_loss(policy, batch, cfg, beta, teacher_action, generator)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    metrics["policy/grad_norm"] = nn.utils.clip_grad_norm_(policy.parameters(), cfg.clip_norm)
    optimizer.step()
    return metrics | {"evolution/beta": torch.full_like(loss.detach(), beta)}


def train(cfg: Config, run: Run) -> None:
    check(cfg)
    dataset, device, generator = run.dataset, run.device, run.generator
    to_go = dataset.returns_to_go()
    scale = cfg.return_scale or float(to_go.max() - to_go.min()) or 1.0
    buffer = ReplayBuffer(dataset, device, extra={"to_go": to_go / scale})

    policy = Policy(dataset, cfg, device, generator)
    teacher = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(parameter_groups(policy, cfg.weight_decay), lr=cfg.lr, eps=1e-6)
    buffer.action = (buffer.action - policy.center) / policy.half_range

    def towards(fraction: float) -> Callable[[Tensor, History], Tensor]:
        target = target_of(dataset, cfg, fraction)
        if cfg.recurrent_eval:
            return act_recurrently(policy, target, scale)
        return act_on_window(policy, cfg.context, target, scale)

    run.register(policy=policy, adamw=optimizer, **({"teacher": teacher} if cfg.self_evolution else {}))
    for number in run.loop(cfg.updates):
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * min(1.0, number / max(1, cfg.warmup))
        beta = teacher_share(number, cfg)
        if beta and (number - 1) % cfg.teacher_every == 0:
            teacher.load_state_dict(policy.state_dict())
        batch = buffer.sample_sequences(cfg.batch_size, cfg.context, generator)
        metrics = update_policy(policy, teacher, optimizer, batch, cfg, beta, generator)
        run.log(metrics)
        if run.evaluation_due:
            run.evaluate(towards(cfg.target_fraction))
            if number == cfg.updates:
                for fraction in cfg.extra_targets:
                    run.evaluate(towards(fraction), variant=f"target={fraction:g}")


if __name__ == "__main__":
    main(Config, train, PRESETS)
