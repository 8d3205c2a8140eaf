"""The step of a fused Adam or AdamW, without what `Optimizer.step` looks at before each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def optimizer_step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`, to the bit; a fused Adam that has stepped before is spared the checks of every step.

    They take longer than the step of a small network.
    """
    for group in optimizer.param_groups:
        if not is_plain_fused_adam(optimizer, group, (p for p in group["params"] if p.grad is not None)):
            optimizer.step()
            return
    for group in optimizer.param_groups:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [optimizer.state[parameter] for parameter in parameters]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        fused_adam(
            group,
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            steps,
        )


def is_plain_fused_adam(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameters: Iterable[Tensor]) -> bool:
    """Whether the step of these parameters is one call: no hooks, no variants, and a state from a step before."""
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if hooked or not group.get("fused") or group["amsgrad"] or group["maximize"]:
        return False
    return all(parameter in optimizer.state for parameter in parameters)


def fused_adam(
    group: dict[str, Any],
    parameters: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
) -> None:
    """One step with a group's settings, in place; `steps` counts it already."""
    (torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_)(
        parameters,
        gradients,
        averages,
        squares,
        [],
        steps,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
