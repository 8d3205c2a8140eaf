"""The clock of a run: training apart from evaluation, over all its starts."""

from __future__ import annotations

import copy
import time

import pyarrow.parquet as pq
import pytest
import torch

from hoard.runners import recorder
from hoard.runners.recorder import Recorder

HEAD = {"schema_version": 1, "variant": "", "env_step": 0, "final": False}


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: clock(seconds)."""
    now = [100.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def evaluate(one: Recorder, update: int, seconds: float, wait) -> None:
    trained = one.training_time
    with one.evaluation():
        wait(seconds)
    one.add_evaluation(HEAD | {"update": update, "training_time": trained}, [])


def test_training_time_leaves_evaluations_out_and_goes_on_after_a_kill(tmp_path, clock):
    first = Recorder(tmp_path)
    clock(10.0)
    evaluate(first, 1, 100.0, clock)
    clock(5.0)
    state = copy.deepcopy(first.state_dict())  # as a checkpoint holds it
    clock(7.0)
    evaluate(first, 2, 100.0, clock)  # no checkpoint holds this one
    clock(1000.0)  # killed, and started much later
    second = Recorder(tmp_path)
    second.load_state_dict(state, torch.device("cpu"))
    clock(2.0)
    evaluate(second, 2, 50.0, clock)
    assert second.wall_time == pytest.approx(115.0 + 52.0)
    table = pq.ParquetFile(tmp_path / "evaluations.parquet").read().to_pydict()
    assert table["update"] == [1, 2]
    assert table["training_time"] == pytest.approx([10.0, 17.0])


def test_a_checkpoint_from_before_there_was_such_a_clock_can_be_resumed(tmp_path):
    state = Recorder(tmp_path).state_dict()
    del state["evaluating"], state["evaluations"]
    resumed = Recorder(tmp_path)
    resumed.load_state_dict(state, torch.device("cpu"))
    assert 0 <= resumed.training_time <= time.monotonic()
