"""Ways a sweep ends before its time, and what it keeps of earlier calls."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from helpers import ROOT, SMALL_SUITE, command

from hoard.records.errors import BadInput
from hoard.runners.sweep import local, schedule
from hoard.runners.sweep.job import how_it_ended
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import read, select

LONG = ["--updates", "100000", "--hidden", "16", "--log-every", "50", "--eval-every", "100000", "--threads", "1"]


def statuses(results: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in results.glob("runs/*/*/*/status.json")]


def hang_up(args: list[str], results: Path, ignored: bool) -> subprocess.Popen:
    """Start a command, with SIGHUP ignored as under nohup or not, and send it one once a run is under way."""
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    process = subprocess.Popen(
        args,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
    )
    deadline = time.monotonic() + 120
    while not any(status["update"] > 0 for status in statuses(results)):
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    return process


def commands(kind: str, suite_file: Path, results: Path) -> list[str]:
    if kind == "run":
        return command("bc", "--dataset", "test/pendulum-v0", *LONG, results=results)
    options = [f"{name.lstrip('-')}={value}" for name, value in zip(LONG[::2], LONG[1::2])]
    bench = ["bench", str(suite_file), "--results", str(results), "--seeds", "1", "--set", *options]
    return [sys.executable, "-m", "hoard.cli", *bench]


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_lost_terminal_ends_a_run_and_a_sweep_as_ctrl_c_does(suite_file, tmp_path, kind):
    results = tmp_path / "results"
    process = hang_up(commands(kind, suite_file, results), results, ignored=False)
    assert process.wait(timeout=120) == 130
    (status,) = statuses(results)
    assert status["status"] == "interrupted"
    assert list(results.glob("runs/*/*/*/checkpoint.pt"))


@pytest.mark.parametrize("kind", ["run", pytest.param("sweep", marks=pytest.mark.slow)])
def test_under_nohup_a_lost_terminal_is_nothing(suite_file, tmp_path, kind):
    results = tmp_path / "results"
    process = hang_up(commands(kind, suite_file, results), results, ignored=True)
    (before,) = statuses(results)
    deadline = time.monotonic() + 120
    while statuses(results)[0]["update"] < before["update"] + 200 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    assert statuses(results)[0]["status"] == "running"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 130


def test_a_kill_is_laid_on_the_kernel_where_it_ran_out_of_memory():
    assert how_it_ended(-9, 3, 4) == ("out of memory", "killed by SIGKILL; the kernel was out of memory")
    for before, after in ((3, 3), (None, None), (None, 3)):
        assert how_it_ended(-9, before, after)[1] == "killed by SIGKILL; perhaps by the kernel, for lack of memory"
    assert how_it_ended(-11, 3, 4) == ("killed", "killed by SIGSEGV")
    assert how_it_ended(1) == ("error", "exit status 1")
    assert how_it_ended(2) == ("refused", "exit status 2")


def test_the_kernels_count_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "read_text", lambda _: "nr_free_pages 7\noom_kill 12\noom_kill_x 3\n")
    assert local.oom_kills() == 12
    monkeypatch.setattr(Path, "read_text", lambda _: "nr_free_pages 7\n")
    assert local.oom_kills() is None


@pytest.fixture
def failing(suite_file, tmp_path):
    """A suite of two cells whose algorithm fails, with the error that the test writes."""

    def make(error: str) -> Sweep:
        source = (ROOT / "algos" / "bc.py").read_text()
        start = "def train(cfg: Config, run: Run) -> None:\n"
        assert start in source
        (tmp_path / "fails.py").write_text(source.replace(start, f"{start}    raise {error}\n"))
        suite_file.write_text(SMALL_SUITE.replace("[method.bc]", "[method.fails]\nalgo = 'fails.py'"))
        return Sweep(read(str(suite_file)), tmp_path / "results", 1, "test")

    return make


def test_a_cell_on_a_full_disk_ends_the_sweep(failing, capsys):
    """The next ones would fail alike."""
    sweep = failing("OSError(28, 'No space left on device')")
    assert sweep.run() == 1
    assert [job.status for job in sweep.work] == ["failed", "pending"]
    assert "the sweep cannot go on: [Errno 28] No space left on device" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_failure_beside_a_full_disk_ends_the_sweep(failing, monkeypatch):
    usage = namedtuple("usage", "total used free")
    for free, expected in ((1000, ["failed", "pending"]), (1 << 30, ["failed", "failed"])):
        sweep = failing("RuntimeError('unexpected pos 64')")
        monkeypatch.setattr(schedule.shutil, "disk_usage", lambda _: usage(1 << 40, 0, free))  # noqa: B023
        assert sweep.run() == 1
        assert [job.status for job in sweep.work] == expected


def test_a_damaged_record_is_named(suite_file, tmp_path):
    folder = tmp_path / "results" / "small"
    folder.mkdir(parents=True)
    for content in ('{"cells": [', "[]", '{"cells": [{"method": "bc"}]}', "{}"):
        (folder / "cells.json").write_text(content)
        with pytest.raises(BadInput, match=r"cells.json is damaged .* finished runs are found without it"):
            Sweep(read(str(suite_file)), tmp_path / "results", 1, "test")


def test_a_project_may_move_and_no_machine_path_is_recorded(suite_file, tmp_path):
    """Another suite of the same name is another file that exists; one that is gone was this one, before it moved."""
    one = tmp_path / "one"
    one.mkdir()
    shutil.move(suite_file, one / "small.toml")
    sweep = Sweep(select(read(str(one / "small.toml")), seeds="1"), one / "results", 1, "test")
    assert sweep.run() == 0
    record = (one / "results" / "small" / "cells.json").read_text()
    assert json.loads(record)["source"] == os.path.join("..", "..", "small.toml")
    assert str(tmp_path) not in record

    shutil.move(one, tmp_path / "two")
    moved = tmp_path / "two"
    again = Sweep(select(read(str(moved / "small.toml")), seeds="1"), moved / "results", 1, "test")
    assert again.run() == 0
    shutil.copy(moved / "small.toml", tmp_path / "small.toml")
    with pytest.raises(BadInput, match=f"another suite called 'small' .{moved / 'small.toml'}"):
        Sweep(read(str(tmp_path / "small.toml")), moved / "results", 1, "test")
    (moved / "small.toml").unlink()
    Sweep(read(str(tmp_path / "small.toml")), moved / "results", 1, "test")
