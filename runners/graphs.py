"""Updates replayed from CUDA graphs: one launch in place of hundreds.

A small update on a GPU takes as long as the launches of its kernels. A CUDA graph is a recording of them, which the
device plays back by itself on the memory they were recorded with. So what an update reads and writes (weights, states
of optimisers, step sizes) must stay where it is, and what changes from call to call must be tensors among the
arguments: they are copied into the recording's own inputs before each replay.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

P = ParamSpec("P")
R = TypeVar("R")
Record = Callable[[Callable[[], R]], tuple[R, Callable[[], Any]]]

WARM_UPS = 3  # calls of a kind that are made as they are: they compile, and libraries take their workspaces
KINDS = 16  # recordings of one update; each holds its own memory


def record_cuda(call: Callable[[], R]) -> tuple[R, Callable[[], Any]]:
    """Record `call`, make it once, and return its outputs and what makes it again into the same outputs."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # nothing is computed in here
        outputs = call()
    graph.replay()
    return outputs, graph.replay


class Replayed(Generic[P, R]):
    """`update`, from its fourth call on replayed from a recording on `device`.

    Arguments may be nested lists, tuples and dicts. There is one recording for each layout and shape of the tensors in
    them and each value of everything else, as for an update with or without a step of the policy. The outputs are the
    caller's own. Where a recording cannot be made, the update goes on without, with a warning; nothing of it has
    happened twice.
    """

    def __init__(
        self, update: Callable[P, R], device: torch.device, record: Record[Any] = record_cuda, warm_ups: int = WARM_UPS
    ) -> None:
        self.update, self.device, self.record, self.warm_ups = update, device, record, warm_ups
        self.recordings: dict[Hashable, _Recording] = {}
        self._calls: Counter[Hashable] = Counter()
        self._given_up = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        leaves, layout = pytree.tree_flatten((args, kwargs))
        leaves = [leaf.to(self.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        kind = layout, tuple((x.shape, x.dtype) if isinstance(x, Tensor) else (type(x), x) for x in leaves)
        if recording := self.recordings.get(kind):
            return recording.replay(leaves)
        self._calls[kind] += 1
        if self._given_up or self._calls[kind] <= self.warm_ups:
            return self._plain(leaves, layout)
        if len(self.recordings) == KINDS:
            return self._without(
                f"it is called in more than {KINDS} ways; give what changes as a tensor", leaves, layout
            )
        inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        try:
            outputs, again = self.record(lambda: self._plain(inputs, layout))
        except RuntimeError as error:
            return self._without(str(error), leaves, layout)
        self.recordings[kind] = _Recording(inputs, outputs, again)
        return self.recordings[kind].outputs()

    def _plain(self, leaves: list[Any], layout: pytree.TreeSpec) -> R:
        args, kwargs = pytree.tree_unflatten(leaves, layout)
        return self.update(*args, **kwargs)

    def _without(self, reason: str, leaves: list[Any], layout: pytree.TreeSpec) -> R:
        self._given_up = True
        warnings.warn(f"no CUDA graph of an update, which is slower: {reason}", stacklevel=3)
        return self._plain(leaves, layout)


class _Recording:
    def __init__(self, inputs: list[Any], outputs: Any, again: Callable[[], Any]) -> None:
        self._inputs = [x for x in inputs if isinstance(x, Tensor)]
        self._outputs, self._layout = pytree.tree_flatten(outputs)
        self._again = again

    def replay(self, leaves: list[Any]) -> Any:
        if self._inputs:
            torch._foreach_copy_(self._inputs, [x for x in leaves if isinstance(x, Tensor)])
        self._again()
        return self.outputs()

    def outputs(self) -> Any:
        """Copies: the next replay writes into the same memory."""
        found = self._outputs
        if found and all(isinstance(x, Tensor) and not x.ndim and x.dtype == found[0].dtype for x in found):
            return pytree.tree_unflatten(list(torch.stack(found).unbind()), self._layout)  # metrics: one launch for all
        return pytree.tree_unflatten([x.clone() if isinstance(x, Tensor) else x for x in found], self._layout)
