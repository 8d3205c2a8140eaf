"""Updates replayed from a recording. In place of a CUDA graph, without a GPU: a trace of tensor operations.

Such a trace keeps what a CUDA graph keeps: the operations, the very tensors that they read and wrote, and every number
that Python had at hand. An update that reads a number which changes, or a tensor that is replaced, differs.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from short_runs import ALGORITHMS, assert_equal_runs, trained
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from hoard.runners import graphs, nn
from hoard.runners.graphs import Replayed

CPU = torch.device("cpu")


def record_trace(call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Stands in for `record_cuda`: the outputs of one call, and what makes it again into the same outputs."""
    made = []

    def traced() -> list[Any]:
        made.append(call())
        return pytree.tree_leaves(made[0])

    again_of = make_fx(traced)()
    leaves, layout = pytree.tree_flatten(made[0])
    outputs = [x.detach().clone() for x in leaves]

    @torch.no_grad()
    def again() -> None:
        for kept, new in zip(outputs, again_of()):
            kept.copy_(new)

    return pytree.tree_unflatten(outputs, layout), again


def recorded(monkeypatch: pytest.MonkeyPatch, name: str, on: bool) -> tuple[Any, list[Replayed[Any, Any]]]:
    """A short run with the lines that are compiled, replayed from recordings if `on`, and what was replayed."""
    made = []

    def compiled(update: Any, optimizers: Any, _: bool) -> Any:
        waiting = list(optimizers)

        def step(*args: Any) -> Any:
            while waiting:
                nn._make_traceable(waiting.pop())
            return update(*args)

        if not on:
            return step
        made.append(Replayed(step, CPU, record_trace))
        return made[-1]

    monkeypatch.setattr(importlib.import_module(f"hoard.algos.{name}"), "compiled", compiled)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return trained(name), made


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow) if x.startswith("decision") else x for x in ALGORITHMS]
)
def test_replayed_updates_have_the_bits_of_the_same_updates_made_one_by_one(name, monkeypatch):
    plain, _ = recorded(monkeypatch, name, on=False)
    replayed, updates = recorded(monkeypatch, name, on=True)
    assert updates
    assert all(update.recordings for update in updates)
    assert_equal_runs(plain, replayed)
    for key, thing in plain.objects.items():
        if isinstance(thing, torch.nn.Module):
            other = replayed.objects[key].state_dict()
            assert all(torch.equal(value, other[part]) for part, value in thing.state_dict().items()), key
    assert all(torch.equal(a[key], b[key]) for a, b in zip(plain.logged, replayed.logged) for key in a)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_hundred_updates_from_cuda_graphs_equal_eager_ones(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that there is no graph is a warning
        assert_equal_runs(trained(name, on=False, device="cuda"), trained(name, on=True, device="cuda"))


def counting(**options: Any) -> tuple[Replayed[Any, Any], Tensor, list[None]]:
    """An update that adds `batch["x"]`, twice if so asked, to a total; a list that grows when Python calls it."""
    total, calls = torch.zeros(()), []

    def update(batch: dict[str, Tensor], twice: bool = False) -> dict[str, Tensor]:
        calls.append(None)
        total.add_(batch["x"].sum() * (2 if twice else 1))
        return {"total": total, "size": batch["x"].square().sum()}

    return Replayed(update, CPU, **({"record": record_trace} | options)), total, calls


def test_from_the_fourth_call_on_python_is_not_met_and_outputs_are_the_callers_own():
    update, total, calls = counting()
    told = [update({"x": torch.full((2,), float(k))}) for k in range(1, 8)]
    assert len(calls) == 4
    assert [out["total"].item() for out in told[3:]] == [20, 30, 42, 56]
    assert [out["size"].item() for out in told[3:]] == [32, 50, 72, 98]
    assert total.item() == 56


def test_other_shapes_and_other_values_have_recordings_of_their_own():
    update, total, _ = counting(warm_ups=0)
    for _ in range(3):
        update({"x": torch.ones(2)})
        update({"x": torch.ones(3)})
        update({"x": torch.ones(2)}, True)
        update({"x": torch.ones(2)}, twice=False)
    assert len(update.recordings) == 4
    assert total.item() == 3 * (2 + 3 + 4 + 2)


def test_the_stand_in_shows_what_a_recording_cannot_follow():
    """A number that changes in Python is recorded as it was."""
    scale, total = {"by": 1.0}, torch.zeros(())
    update = Replayed(lambda x: total.add_(scale["by"] * x), CPU, record_trace, warm_ups=0)
    update(torch.ones(()))
    scale["by"] = 10.0
    update(torch.ones(()))
    assert total.item() == 2


@pytest.mark.filterwarnings("error::UserWarning")
def test_too_many_kinds_of_calls_go_on_without_a_recording(monkeypatch):
    monkeypatch.setattr(graphs, "KINDS", 2)
    update, total, calls = counting(warm_ups=0)
    for size in (1, 2):
        update({"x": torch.ones(size)})
    with pytest.warns(UserWarning, match="no CUDA graph.*more than 2 ways; give what changes as a tensor"):
        update({"x": torch.ones(3)})
    for size in (4, 3, 1):  # a second warning would be an error
        update({"x": torch.ones(size)})
    assert (total.item(), len(calls)) == (14, 5)


@pytest.mark.filterwarnings("error::UserWarning")
def test_an_update_that_cannot_be_recorded_goes_on_without_a_recording():
    def fails(call: Callable[[], Any]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    update, total, calls = counting(record=fails)
    for _ in range(3):
        update({"x": torch.ones(2)})
    with pytest.warns(UserWarning, match="no CUDA graph.*not permitted when stream"):
        update({"x": torch.ones(2)})
    for _ in range(2):
        update({"x": torch.ones(2)})
    assert (total.item(), len(calls)) == (12, 6)
