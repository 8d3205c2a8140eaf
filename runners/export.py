"""A trained policy as one file that needs no hoard: TorchScript, or ONNX with the extra `onnx`.

The exported function maps `obs` (n, obs_dim) float32, as the environment gives them, to actions (n, action_dim) in the
environment's units, clipped. A policy that asks for a return also takes `return_so_far` (n,), the undiscounted return
since the reset. The file is kept only if it gives every action of whole episodes as the policy does.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hoard.records.errors import BadInput
from hoard.records.files import write_atomic
from hoard.runners.evaluate import Evaluator, History, act_of, fresh_seed
from hoard.runners.policy import Policy

TOLERANCE = 1e-5  # of an action, relative to the range of its dimension


class _Exported(nn.Module):
    """The policy as a function of tensors alone."""

    low: Tensor
    high: Tensor
    center: Tensor
    half_range: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.actor = policy.actor
        self._act, self._scaled = act_of(policy.actor)  # type: ignore[arg-type]
        low, high = (torch.as_tensor(bound) for bound in (policy.task.low, policy.task.high))
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)
        self._action_dim = policy.task.action_dim

    def forward(self, obs: Tensor, return_so_far: Tensor | None = None) -> Tensor:
        # A history in which one step has paid the whole return: all that a policy can be told of the past here.
        n, action_dim = obs.shape[0], self._action_dim
        paid = obs.new_zeros(n) if return_so_far is None else return_so_far
        seen, reward = torch.stack([obs, obs, obs], dim=1), torch.stack([paid, torch.zeros_like(paid)], dim=1)
        history = History(1, seen, obs.new_zeros(n, 2, action_dim), reward, torch.Generator())
        action = self._act(obs, history)
        if self._scaled:
            action = self.center + self.half_range * action
        return torch.minimum(torch.maximum(action.to(torch.float32), self.low), self.high)


def export(policy: Policy, path: Path, kind: Literal["torchscript", "onnx"], episodes: int = 2, seed: int = 0) -> float:
    """Write the policy to `path` and return how far its actions are from the policy's, relative to their range.

    Raises BadInput if the policy cannot be told what it needs by these inputs (a sequence model, a policy with networks
    for each step, one that draws its actions), or if the packages for `kind` are missing.
    """
    if kind == "onnx" and (missing := [n for n in ("onnx", "onnxscript", "onnxruntime") if not _installed(n)]):
        raise BadInput(f"ONNX needs {', '.join(missing)}: pip install 'hoard[onnx]'")
    inputs = _asked(policy, episodes, seed)
    module = _Exported(policy).eval()
    example = tuple(inputs[name][:4] for name in _names(policy))
    gap = float("inf")

    refusal = (
        f"this policy cannot be exported: {' and '.join(_names(policy))} do not tell it all that it needs; "
        "it looks further back, counts steps, or draws its actions"
    )

    def write(scratch: Path) -> None:
        nonlocal gap
        try:
            make = _torchscript if kind == "torchscript" else partial(_onnx, policy)
            answer = make(module, example, scratch)(tuple(inputs[name] for name in _names(policy)))
        except Exception as error:  # a policy that does not fit these inputs fails in ways of its own
            raise BadInput(f"{refusal} ({type(error).__name__})") from error
        reach = np.maximum(policy.task.high - policy.task.low, 1e-6)
        gap = float(np.abs((answer - inputs["action"].numpy()) / reach).max())
        if not gap <= TOLERANCE:
            raise BadInput(f"{refusal} (its actions would differ by up to {gap:.2g} of their range)")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's notes on tracing: what they fear is what is tested above
        write_atomic(path, write, suffix=path.suffix)
    return gap


def _names(policy: Policy) -> tuple[str, ...]:
    return ("obs", "return_so_far") if policy.uses_history else ("obs",)


def _asked(policy: Policy, episodes: int, seed: int) -> dict[str, Tensor]:
    """Everything that the policy is asked in whole episodes, and what it answers: rows over steps and episodes."""
    act, scaled = act_of(policy.actor)  # type: ignore[arg-type]
    kept: dict[str, list[Tensor]] = {"obs": [], "return_so_far": [], "action": []}
    low, high = (torch.as_tensor(bound) for bound in (policy.task.low, policy.task.high))

    def spy(obs: Tensor, history: History) -> Tensor:
        action = act(obs, history)
        in_units = policy.scaler.to_env(action) if scaled else action
        kept["obs"].append(obs.clone())
        kept["return_so_far"].append(history.return_so_far)
        kept["action"].append(torch.minimum(torch.maximum(in_units.to(torch.float32), low), high))
        return action

    spy.scale_actions = scaled  # type: ignore[attr-defined]
    evaluator = Evaluator(policy.task, policy.device)
    try:
        generator = torch.Generator(policy.device).manual_seed(seed)
        evaluator(spy, [fresh_seed(seed, k) for k in range(episodes)], generator)
    finally:
        evaluator.close()
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _torchscript(
    module: nn.Module, example: tuple[Tensor, ...], path: Path
) -> Callable[[tuple[Tensor, ...]], np.ndarray]:
    torch.jit.save(torch.jit.trace(module, example, check_trace=False), path)
    loaded = torch.jit.load(path)
    return lambda inputs: loaded(*inputs).detach().numpy()


def _onnx(
    policy: Policy, module: nn.Module, example: tuple[Tensor, ...], path: Path
) -> Callable[[tuple[Tensor, ...]], np.ndarray]:
    import onnxruntime

    names = _names(policy)
    batch = {name: {0: torch.export.Dim("n", min=1, max=65536)} for name in names}
    torch.onnx.export(
        module, example, path, input_names=list(names), output_names=["action"],
        dynamic_shapes=batch, dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {n: x.numpy() for n, x in zip(names, inputs)})[0]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
