"""Small tools that every algorithm file needs and that belong to no algorithm.

Networks, losses and updates stand in the algorithm files. Whatever is drawn here comes from the generator handed in.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn


def linear(
    inputs: int,
    outputs: int,
    generator: torch.Generator,
    init: Literal["torch", "orthogonal", "xavier", "normal"] = "torch",
    gain: float | None = None,
    bias: bool = True,
) -> nn.Linear:
    """A linear layer on the generator's device, its weights drawn from it.

    `torch`: weight and bias uniform in +-1/sqrt(inputs), torch's default. The others start with zero biases:
    `orthogonal` with gain sqrt(2), `xavier` uniform with gain 1, `normal` with standard deviation 0.02; `gain` replaces
    these numbers.
    """
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, device=generator.device)
    if init == "torch":
        bound = 1 / math.sqrt(inputs)
        nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        if bias:
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        return layer
    if init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain=math.sqrt(2) if gain is None else gain, generator=generator)
    elif init == "xavier":
        nn.init.xavier_uniform_(layer.weight, gain=1.0 if gain is None else gain, generator=generator)
    else:
        nn.init.normal_(layer.weight, std=0.02 if gain is None else gain, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class ObsNormalizer(nn.Module):
    """(obs - mean) / std with fixed numbers, (..., obs_dim). The identity until `fit` is called."""

    mean: Tensor
    std: Tensor

    def __init__(self, obs_dim: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(obs_dim, device=device))
        self.register_buffer("std", torch.ones(obs_dim, device=device))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take these statistics, each (obs_dim,)."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / self.std


def dropout(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Dropout from an explicit generator; without one, as when acting, nothing is dropped."""
    if generator is None or not share:
        return x
    return x * (torch.rand(x.shape, generator=generator, device=x.device) >= share) / (1 - share)


def gaussian_noise(x: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    """`x` with Gaussian noise of this standard deviation added; without a generator, as when acting, `x` itself."""
    if generator is None or not std:
        return x
    return x + std * torch.randn(x.shape, generator=generator, device=x.device)


def gradient_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Step down the gradient of `loss`."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def cosine_lr(optimizer: torch.optim.Optimizer, lr: float, update: int, updates: int) -> None:
    """Set the step size of update 1..updates: from `lr` down to 0 along half a cosine."""
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * lr * (1 + math.cos(math.pi * (update - 1) / updates))


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move each parameter of `target` the share `tau` of the way to `source`'s; 1 copies it exactly."""
    for slow, fast in zip(target.parameters(), source.parameters()):
        slow.lerp_(fast, tau)


def frozen_copy(net: Any) -> Any:
    """A copy of a module that takes no gradients: a target network, say."""
    return copy.deepcopy(net).requires_grad_(False)
