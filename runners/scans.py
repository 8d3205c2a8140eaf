"""The selective scan of Mamba-1 in two forms: h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t, y_t = C_t h_t.

u, dt (B, L, channels), A (channels, N), B, C (B, L, N) -> y (B, L, channels), without the D term. Which form is faster
depends on the device: benchmarks/scan_cost.py measures it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def scan_loop(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Step by step: small tensors, which stay in a CPU's cache."""
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
