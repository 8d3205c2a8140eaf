"""Small tools that every algorithm file needs and that belong to no algorithm.

Networks, losses and updates stand in the algorithm files. Whatever is drawn here comes from the generator handed in.
"""

from __future__ import annotations

import copy
import inspect
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from hoard.runners import pack
from hoard.runners.adam import optimizer_step
from hoard.runners.graphs import Replayed

P = ParamSpec("P")
R = TypeVar("R")


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
        return (obs - self.mean).div_(self.std)


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, as many and of the same type as `x`'s."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def dropout(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Dropout from an explicit generator; without one, as when acting, nothing is dropped."""
    return x if generator is None or not share else drop(x, share, uniform(x.shape, generator))


def drop(x: Tensor, share: float, draw: Tensor | None) -> Tensor:
    """Dropout by numbers `draw` that were drawn uniformly from [0, 1) before; without them nothing is dropped."""
    return x if draw is None else x * (draw >= share) / (1 - share)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Numbers uniform in [0, 1) from an explicit generator, on its device."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device)


def gaussian_noise(x: Tensor, std: float, generator: torch.Generator | None) -> Tensor:
    """`x` with Gaussian noise of this standard deviation added; without a generator, as when acting, `x` itself."""
    if generator is None or not std:
        return x
    return x + std * torch.randn(x.shape, generator=generator, device=x.device)


def gradient_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Step the optimiser's parameters down their gradients of `loss`; no other parameter gets a gradient."""
    if torch.compiler.is_compiling():
        _traced_step(optimizer, _traced_gradients(optimizer, loss))
    elif stack := _stack():
        stack.step(optimizer, stack.gradients(optimizer, loss))
    else:
        _gradients(optimizer, loss)
        optimizer_step(optimizer)


def clipped_gradient_step(optimizer: torch.optim.Optimizer, loss: Tensor, clip_norm: float) -> Tensor:
    """The same with the gradient's global norm clipped; returns the norm before that."""
    if torch.compiler.is_compiling():
        gradients, norm = _clipped(_traced_gradients(optimizer, loss), clip_norm)
        _traced_step(optimizer, gradients)
        return norm
    if stack := _stack():
        gradients, norm = _clipped(stack.gradients(optimizer, loss), clip_norm)
        stack.step(optimizer, gradients)
        return norm
    norm = nn.utils.clip_grad_norm_(_gradients(optimizer, loss), clip_norm, foreach=True)
    optimizer_step(optimizer)
    return norm


def _clipped(gradients: Sequence[Tensor | None], clip_norm: float) -> tuple[list[Tensor | None], Tensor]:
    """The gradients, their global norm at most `clip_norm`, and the norm before that."""
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    share = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    return [g if g is None else g * share for g in gradients], norm


def leaf(x: Tensor) -> Tensor:
    """A copy of `x` by which `gradient` can be taken."""
    if stack := _stack():
        return stack.leaf(x)
    return x.detach().clone().requires_grad_()


def gradient(loss: Tensor, tensors: Sequence[Tensor], create_graph: bool = False) -> list[Tensor]:
    """torch.autograd.grad of a scalar by parameters or leaves, in a pack for each seed. The graph is kept."""
    if stack := _stack():
        return stack.gradient(loss, tensors, create_graph)
    return list(torch.autograd.grad(loss, tensors, create_graph=create_graph, retain_graph=True))


def _stack() -> pack.Stack | None:
    """The stacked update of a pack that calls, if one does."""
    return None if torch.compiler.is_compiling() else pack.at_work()


def step_along(optimizer: torch.optim.Optimizer, gradients: Iterable[Tensor]) -> None:
    """Step the optimiser's parameters down these gradients, one for each in their order."""
    if torch.compiler.is_compiling():
        _traced_step(optimizer, gradients)
        return
    if stack := _stack():
        stack.step(optimizer, list(gradients))
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer_step(optimizer)


@torch.no_grad()
def forget_steps(optimizer: torch.optim.Optimizer) -> None:
    """Make Adam's state that of an optimiser which has not stepped yet."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()


def _gradients(optimizer: torch.optim.Optimizer, loss: Tensor) -> list[Tensor]:
    """Leave the gradients of `loss` at the optimiser's parameters, which are returned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = None
    # Not torch.autograd.grad, whose gradients may have another layout than the parameters: a fused step needs the same.
    loss.backward(inputs=parameters)
    return parameters


# --- the same under torch.compile ---


def compiled(update: Callable[P, R], optimizers: Iterable[torch.optim.Optimizer], on: bool) -> Callable[P, R]:
    """`update` as one graph of torch.compile, with its backward passes and the steps of `optimizers`; if not `on`, as
    it is.

    Nothing random may be drawn in it: explicit generators cannot be traced. The optimisers must be Adam or AdamW. Their
    states are made before the first call, their step sizes become tensors, which `set_lr` fills. On CUDA the graph is
    replayed from a recording (`hoard.runners.graphs`): what changes between calls must be tensors among the arguments,
    and no tensor that the update reads may be replaced by another.

    In a pack, `update` is made for all seeds at once instead (`hoard.runners.pack`).
    """
    if seed := pack.member():
        return seed.stacked(update, list(optimizers))
    if not on:
        return update
    torch._dynamo.config.trace_autograd_ops = True
    # Graphs belong to code objects: with one of its own, no graph of another run in this process is taken for this one.
    own = FunctionType(
        update.__code__.replace(), update.__globals__, update.__name__, update.__defaults__, update.__closure__
    )
    whole = torch.compile(own, fullgraph=True, options={"guard_filter_fn": _checks_to_keep(update)})
    waiting = list(optimizers)
    fresh: list[tempfile.TemporaryDirectory[str]] = []  # removed with the process

    def step(*args: P.args, **kwargs: P.kwargs) -> R:
        while waiting:  # not before: a resumed run has its states by now
            _make_traceable(waiting.pop())
        try:
            return whole(*args, **kwargs)
        except torch._dynamo.exc.BackendCompilerFailed:
            # A process killed while it compiled may have left half a file in the cache: once more, in an empty one.
            # Nothing of the update has run yet.
            fresh.append(tempfile.TemporaryDirectory(prefix="hoard-compiled-"))
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = fresh[-1].name
            torch._inductor.utils.clear_caches()  # it remembers where it found a file
            torch._dynamo.reset()
            return whole(*args, **kwargs)

    devices = {p.device for optimizer in waiting for group in optimizer.param_groups for p in group["params"]}
    return Replayed(step, devices.pop()) if {device.type for device in devices} == {"cuda"} else step


def _checks_to_keep(update: Callable[..., Any]) -> Callable[[Sequence[Any]], list[bool]]:
    """What torch.compile looks at before each call: the arguments, and numbers and texts wherever they stand.

    Networks and optimisers last as long as the run. To look at all their tensors takes as long as the step of a small
    network.
    """
    arguments = set(inspect.signature(update).parameters)

    def kept(check: Any) -> bool:
        root = re.split(r"\W", check.name)[0]
        return not root or root in arguments or check.guard_type in ("CONSTANT_MATCH", "EQUALS_MATCH")

    return lambda checks: [kept(check) for check in checks]


def _make_traceable(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float64, device=device).clone()
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), device=device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def _traced_gradients(optimizer: torch.optim.Optimizer, loss: Tensor) -> list[Tensor | None]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


@torch.no_grad()
def _traced_step(optimizer: torch.optim.Optimizer, gradients: Iterable[Tensor | None]) -> None:
    """Adam and AdamW in operations that the compiler fuses."""
    rest = iter(gradients)
    for group in optimizer.param_groups:
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        moved = [(p, g) for p, g in zip(group["params"], rest) if g is not None]
        states = [optimizer.state[parameter] for parameter, _ in moved]
        # Of all parameters at once, and with exp for powers: so the compiler keeps these numbers, as it would not with
        # pow, which it would compute anew for every few elements. In double: 1 - 0.999^1 has four digits in single.
        steps = torch.stack([state["step"].add_(1) for state in states]).double()
        rates = lr / (1 - torch.exp(math.log(beta1) * steps))
        roots = (1 - torch.exp(math.log(beta2) * steps)).sqrt()
        for (parameter, gradient), state, rate, root in zip(moved, states, rates, roots):
            if decay and group["decoupled_weight_decay"]:
                parameter.mul_(1 - lr * decay)
            elif decay:
                gradient = gradient + decay * parameter
            mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
            square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            parameter.sub_(rate * mean / (square.sqrt() / root + group["eps"]))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the step size of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)  # the compiled step looks at this tensor
        else:
            group["lr"] = lr


def cosine_lr(optimizer: torch.optim.Optimizer, lr: float, update: int, updates: int) -> None:
    """Set the step size of update 1..updates: from `lr` down to 0 along half a cosine."""
    set_lr(optimizer, 0.5 * lr * (1 + math.cos(math.pi * (update - 1) / updates)))


@torch.no_grad()
def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """Move each parameter of `target` the share `tau` of the way to `source`'s; 1 copies it exactly."""
    targets: list[Tensor] = list(target.parameters())
    sources: list[Tensor] = list(source.parameters())
    if stack := _stack():
        stack.lerp(targets, sources, tau)
    else:
        torch._foreach_lerp_(targets, sources, tau)


def frozen_copy(net: Any) -> Any:
    """A copy of a module that takes no gradients: a target network, say."""
    return copy.deepcopy(net).requires_grad_(False)
