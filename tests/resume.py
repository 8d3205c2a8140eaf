"""Killing a run and comparing what two runs left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import command

from hoard.runners import Run


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


def only_run(results: Path) -> Path:
    """The folder of the one run in a results folder."""
    (folder,) = results.glob("runs/*/*/*")
    return folder


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def kill(algo: str, args: list[str], results: Path, **reached: int) -> None:
    """Start a run and SIGKILL it once its status shows, say, `env_step=500`; fails if it ends before."""
    ((field, value),) = reached.items()
    process = subprocess.Popen(command(algo, *args, results=results), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        states = list(results.glob("runs/*/*/*/status.json"))
        if states and json.loads(states[0].read_text())[field] >= value:
            break
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


@contextmanager
def dying_at(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> Iterator[None]:
    """What runs inside dies, with `Killed`, at the `call`-th call of `Run.<method>`; fails if it lives on."""
    original, seen = getattr(Run, method), 0

    def mortal(self: Run, *args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == call:
            raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Run, method, mortal)
        with pytest.raises(Killed):
            yield


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the bit, through dicts, lists and tensors; wall-clock numbers aside."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert set(a) == set(b), where
        for key in a:
            if key not in ("wall_time", "updates_per_second", "evaluating", "training_time"):
                assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{where}[{k}]")
    elif isinstance(a, torch.Tensor):
        dense = [x.to_dense() if x.is_sparse else x for x in (a, b)]
        assert torch.equal(*dense), where
    else:
        assert a == b or (a != a and b != b), where


def assert_same_run(one: Path, two: Path, *files: str) -> None:
    """The one run in each of two results folders ended alike: address, evaluations, `files`, everything saved."""
    first, second = only_run(one), only_run(two)
    assert first.name == second.name
    for file in ("episodes.parquet", *files):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    assert_same(checkpoint(first), checkpoint(second))
