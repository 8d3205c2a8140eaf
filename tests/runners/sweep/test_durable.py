"""Sweeps that survive: the journal, retries, limits of time and memory, cells that outlived their sweep."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, SMALL_SUITE

from hoard.analysis.results import load
from hoard.cli import main
from hoard.records import cells
from hoard.records.errors import BadInput
from hoard.runners.sweep import local, record, schedule
from hoard.runners.sweep.limits import Limits, Resources, as_size, parse_duration, parse_size
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import read, select

START = "def train(cfg: Config, run: Run) -> None:\n"
HOOK = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
QUICK = Limits(retries=2, backoff=0.05)


@pytest.fixture
def forks(tmp_path, suite_file):
    """Make the suite's methods forks of bc: name -> (where a line goes in, the line)."""

    def make(**changes: str) -> None:
        source = (ROOT / "algos" / "bc.py").read_text()
        assert START in source
        assert HOOK in source
        sections = ""
        for name, line in changes.items():
            at_start = line.startswith("    ") and not line.startswith("        ")
            text = source.replace(START, START + line) if at_start else source.replace(HOOK, line + HOOK)
            (tmp_path / f"{name}.py").write_text(text)
            sections += f"[method.{name}]\nalgo = '{name}.py'\n"
        suite_file.write_text(SMALL_SUITE.replace("[method.bc]", sections))

    return make


def entries(results: Path) -> dict[str, dict]:
    return {cell["method"]: cell for cell in cells.read(results / "small")["cells"]}


def events(results: Path) -> list[str]:
    lines = (results / "small" / "journal.jsonl").read_text().splitlines()
    return [json.loads(line)["event"] for line in lines]


# --- the record ---


def test_a_change_costs_a_line_and_readers_see_it(suite_file, tmp_path, monkeypatch):
    """cells.json is written at the start and the end; in between the journal tells, to analysis too."""
    written, write = [], record.write_json
    monkeypatch.setattr(record, "write_json", lambda path, value: written.append(path) or write(path, value))
    monkeypatch.setattr(record, "_EVERY", 1e6)
    results = tmp_path / "results"
    sweep = Sweep(select(read(str(suite_file)), seeds="3"), results, 2, "test")
    seen = []
    change = sweep.record.change

    def spy(event, job, work):
        change(event, job, work)
        record_now = cells.read(results / "small")
        seen.append((event, {cell["seed"]: cell["status"] for cell in record_now["cells"]}[job.cell.seed]))
        if event == "finished":
            assert len(load(results / "small").finished) > 0

    monkeypatch.setattr(sweep.record, "change", spy)
    assert sweep.run() == 0
    assert len(written) == 2
    assert sorted(seen) == sorted([("started", "running"), ("finished", "finished")] * 3)
    assert events(results)[0] == "sweep"
    assert sorted(events(results)[1:]) == ["finished"] * 3 + ["started"] * 3
    assert len(cells.tail(json.loads((results / "small" / "cells.json").read_text()), results / "small")) == 0


def test_a_long_sweep_writes_its_record_now_and_then(suite_file, tmp_path, monkeypatch):
    written, write = [], record.write_json
    monkeypatch.setattr(record, "write_json", lambda path, value: written.append(path) or write(path, value))
    monkeypatch.setattr(record, "_EVERY", 0.0)
    monkeypatch.setattr(record, "_SHARE", 0.0)
    assert Sweep(read(str(suite_file)), tmp_path / "results", 1, "test").run() == 0
    assert len(written) == 2 + 4  # begin and end, and each change of two cells


def journal_of(folder: Path, *lines: bytes, covered: int = 0) -> None:
    content = {"cells": [{"method": "bc", "dataset": "d", "seed": 0, "status": "pending"}], "journal": covered}
    (folder / "cells.json").write_text(json.dumps(content))
    (folder / "journal.jsonl").write_bytes(b"".join(lines))


LINE = b'{"event": "x", "method": "bc", "dataset": "d", "seed": 0, "now": {"status": "finished"}}\n'
SWEEP = b'{"event": "sweep", "command": "hoard bench"}\n'


def test_the_journal_is_read_from_where_the_record_ends(tmp_path):
    def status() -> str:
        return cells.read(tmp_path)["cells"][0]["status"]

    journal_of(tmp_path, SWEEP, LINE)
    assert status() == "finished"
    journal_of(tmp_path, SWEEP, LINE, covered=len(SWEEP + LINE))
    assert status() == "pending"
    journal_of(tmp_path, SWEEP, LINE[:-1])  # being written
    assert status() == "pending"
    (tmp_path / "journal.jsonl").unlink()
    assert status() == "pending"
    for damaged in (b"{\n", b"[]\n", LINE.replace(b'"bc"', b'"no such method"'), LINE.replace(b"now", b"then")):
        journal_of(tmp_path, SWEEP, damaged)
        with pytest.raises(BadInput, match=r"journal.jsonl: line 2 after byte 0 is damaged"):
            cells.read(tmp_path)


def test_a_torn_line_is_cut_before_the_next_is_added(tmp_path):
    journal_of(tmp_path, SWEEP, LINE[:20])
    journal = cells.Journal(tmp_path)
    journal.add("x", method="bc", dataset="d", seed=0, now={"status": "failed"})
    journal.close()
    assert journal.size == (tmp_path / "journal.jsonl").stat().st_size
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert (len(lines), lines[0]) == (2, SWEEP)
    assert cells.read(tmp_path)["cells"][0]["status"] == "failed"


# --- retries ---


class Ended:
    """A process that has ended, as a launcher would give it."""

    pid = None

    def __init__(self, code: int) -> None:
        self.code = code

    def poll(self) -> int:
        return self.code

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@pytest.mark.parametrize(
    ("codes", "attempts", "status", "failure"),
    [
        ([-9, -11, -6], 3, "failed", "killed"),
        ([-9, 1], 2, "failed", "error"),
        ([1], 1, "failed", "error"),
        ([2], 1, "failed", "refused"),
        ([130], 1, "interrupted", None),
        ([local.UNKNOWN, 75, 130], 2, "interrupted", None),
    ],
)
def test_crashes_of_the_machine_are_retried_and_nothing_else(
    suite_file, tmp_path, codes, attempts, status, failure, monkeypatch
):
    monkeypatch.setattr(schedule, "_BUSY_WAIT", 0.01)
    left = list(codes)
    sweep = Sweep(
        select(read(str(suite_file)), seeds="1"), tmp_path / "results", 1, "t", lambda *_: Ended(left.pop(0)), QUICK
    )
    assert sweep.run() == 1
    (job,) = sweep.work
    assert (left, job.attempts, job.status, job.failure) == ([], attempts, status, failure)
    entry = entries(tmp_path / "results")["bc"]
    assert (entry["attempts"], entry["status"], entry["failure"]) == (attempts, status, failure)


def test_a_cell_that_ends_well_while_the_sweep_stops_is_finished(suite_file, tmp_path):
    """Asked to stop during its last evaluation, a run goes to its end."""

    class LastEvaluation(Ended):
        def __init__(self, start) -> None:
            self.code, self.start = None, start

        def poll(self):
            if self.code is None and not self.start:
                return None
            if self.code is None:
                self.start = None
                raise KeyboardInterrupt
            return self.code

        def terminate(self) -> None:
            folder = tmp_path / "results" / sweep.work[0].run
            folder.mkdir(parents=True)
            (folder / "status.json").write_text(json.dumps({"status": "finished"}))
            made = {"revisions": ["0"], "versions": {}, "device": "x"}
            (folder / "provenance.json").write_text(json.dumps(made))
            self.code = 0

    sweep = Sweep(select(read(str(suite_file)), seeds="1"), tmp_path / "results", 1, "t", LastEvaluation, QUICK)
    assert sweep.run() == 130
    assert sweep.work[0].status == "finished"
    assert entries(tmp_path / "results")["bc"]["status"] == "finished"


def test_retries_wait_longer_each_time():
    limits = Limits(backoff=1.0, longest_backoff=60.0)
    assert [limits.wait(attempts) for attempts in (1, 2, 3, 7, 50)] == [1, 2, 4, 60, 60]


def test_a_cell_that_is_killed_once_goes_on_from_its_checkpoint(forks, suite_file, tmp_path, capsys):
    once = """        import os
        if run.update == 30 and not os.path.exists(mark := str(run.folder / "mark")):
            open(mark, "w").close()
            os.kill(os.getpid(), 9)
"""
    forks(once=once, never="        pass\n")
    results = tmp_path / "results"
    assert Sweep(select(read(str(suite_file)), seeds="1"), results, 2, "t", None, QUICK).run() == 0
    assert "again in 0 s: once" in capsys.readouterr().out
    assert {name: cell["attempts"] for name, cell in entries(results).items()} == {"once": 2, "never": 1}
    assert "resuming after update 20" in (results / "small" / "logs" / "once--test-pendulum-v0--0.log").read_text()
    one, two = (path.read_bytes() for path in results.glob("runs/*/*/*/episodes.parquet"))
    assert one == two
    assert events(results).count("retry") == 1


# --- limits ---


@pytest.mark.slow
def test_cells_over_a_limit_are_ended_and_named(forks, suite_file, tmp_path, monkeypatch):
    """One that hangs and hears nothing, one that is slow and leaves a checkpoint, one that leaks; one finishes."""
    monkeypatch.setattr(schedule, "GRACE", 2.0)
    monkeypatch.setattr(schedule, "_LOOK", 0.05)
    forks(
        hangs="    import time\n    time.sleep(600)\n",
        slow="        import time\n        time.sleep(1)\n",
        leaks="        run.leak = [*getattr(run, 'leak', ()), torch.ones(1 << 24)]\n",
        fine="        pass\n",
    )
    suite = select(read(str(suite_file)), seeds="1", overrides={"updates": "60"})
    results = tmp_path / "results"
    sweep = Sweep(suite, results, 4, "test", None, Limits(seconds=30, memory=1 << 30))
    assert sweep.run() == 1
    found = entries(results)
    assert {name: cell["failure"] for name, cell in found.items()} == {
        "hangs": "time limit",
        "slow": "time limit",
        "leaks": "memory limit",
        "fine": None,
    }
    assert found["fine"]["status"] == "finished"
    assert "still at work after the time limit of 30 s" in found["slow"]["error"]
    assert "over the memory limit of 1.0 GiB" in found["leaks"]["error"]
    assert {name: cell["attempts"] for name, cell in found.items()} == dict.fromkeys(found, 1)
    (slow,) = results.glob("runs/slow/*/*")
    assert json.loads((slow / "status.json").read_text())["status"] == "interrupted"
    assert (slow / "checkpoint.pt").exists()
    assert "leaks" not in str([process.cmdline() for process in psutil.Process().children()])


def test_a_cell_takes_as_many_places_as_cpus_and_no_smaller_one_overtakes(suite_file, tmp_path):
    suite_file.write_text(
        SMALL_SUITE.replace("seeds = 2", "seeds = 3") + "[method.wide]\nalgo = 'bc'\noptions = { lr = 0.1 }\n"
        "resources = { cpus = 2 }\n"
    )
    starts, most = [], []

    class Process(Ended):
        def __init__(self, start) -> None:
            super().__init__(2)
            self.left = 2
            starts.append(start.resources.cpus or 1)

        def poll(self) -> int | None:
            most.append(sum(sweep._places(job) for job in sweep._running))
            self.left -= 1
            return self.code if self.left < 0 else None

    sweep = Sweep(read(str(suite_file)), tmp_path / "results", 3, "test", Process)
    assert sweep.run() == 1
    assert starts == [1, 2, 1, 2, 1, 2]
    assert max(most) == 3


def test_memory_of_the_suite_is_a_limit_where_the_sweep_sets_none():
    asked = Resources(memory=1 << 30)
    assert Limits(seconds=3).of(asked) == Limits(seconds=3, memory=1 << 30)
    assert Limits(memory=5).of(asked) == Limits(memory=5)
    assert Limits().of(Resources()) == Limits()


def test_limits_are_written_as_people_write_them():
    times = {"90": 90, "90s": 90, "30m": 1800, "30 min": 1800, "2.5h": 9000, "1d": 86400}
    assert {text: parse_duration("--t", text) for text in times} == times
    sizes = {"1000": 1000, "2k": 2048, "800M": 800 << 20, "4G": 4 << 30, "4 GiB": 4 << 30, "1.5gb": 3 << 29}
    assert {text: parse_size("--m", text) for text in sizes} == sizes
    for wrong in ("", "0", "-1", "5 weeks", "h"):
        with pytest.raises(BadInput, match=r"--time-limit .*: write a time like"):
            parse_duration("--time-limit", wrong)
        with pytest.raises(BadInput, match=r"--memory-limit .*: write a size like"):
            parse_size("--memory-limit", wrong)
    assert (as_size(3 << 29), as_size(5 << 20)) == ("1.5 GiB", "5 MiB")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--retries", "-1"], "--retries -1: must be 0 or more"),
        (["--time-limit", "soon"], "--time-limit soon"),
        (["--memory-limit", "much"], "--memory-limit much"),
    ],
)
def test_wrong_limits_are_refused(suite_file, tmp_path, args, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", str(suite_file), "--results", str(tmp_path / "results"), *args])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_memory_is_that_of_the_process_and_its_children():
    hog = "import time; block = bytearray(200 << 20); print(1, flush=True); time.sleep(600)"
    both = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hog!r}])"
    process = subprocess.Popen([sys.executable, "-c", both], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        assert local.resident(process.pid) > 200 << 20
    finally:
        local.kill_tree(process.pid)
        process.wait(timeout=20)
    assert local.resident(process.pid) == 0


# --- cells that outlived their sweep ---

SLOW = "        import time\n        time.sleep(0.02)\n"
WAITS = (
    "        import time\n        while not (run.folder.parents[3] / 'go').exists():\n            time.sleep(0.02)\n"
)
ORPHANS: list[int] = []


def orphan(suite_file: Path, results: Path, *more: str) -> list[int]:
    """Start a sweep, kill it alone, and return the processes of its cells, which are at work."""
    args = [sys.executable, "-m", "hoard.cli", "bench", str(suite_file), "--results", str(results), *more]
    sweep = subprocess.Popen(args, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(found := [json.loads(p.read_text()) for p in results.glob("runs/*/*/*/status.json")]) < 2:
        assert sweep.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ORPHANS.extend(status["pid"] for status in found)
    os.kill(sweep.pid, signal.SIGKILL)
    sweep.wait()
    return list(ORPHANS)


@pytest.fixture(autouse=True)
def none_is_left():
    """A test that fails leaves no cell behind."""
    yield
    for pid in ORPHANS:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    ORPHANS.clear()


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_orphans_are_adopted(forks, suite_file, tmp_path, capsys):
    """They take the places of cells, are waited for, and their results recorded; none is started again."""
    forks(slow=WAITS)
    results = tmp_path / "results"
    pids = orphan(suite_file, results, "--jobs", "2", "--set", "updates=200")
    assert not any(ended(pid) for pid in pids)
    suite = select(read(str(suite_file)), seeds="3", overrides={"updates": "200"})
    sweep = Sweep(suite, results, 2, "test")
    most = []
    start = sweep._start
    sweep._start = lambda job: (start(job), most.append(len(sweep._running)))
    take_over = sweep._take_over
    sweep._take_over = lambda: (take_over(), (results / "go").touch())
    assert sweep.run() == 0
    assert "2 cells of an earlier sweep still run: adopted" in capsys.readouterr().out
    assert all(ended(pid) for pid in pids)
    assert max(most) <= 2
    for seed in (0, 1, 2):
        text = (results / "small" / "logs" / f"slow--test-pendulum-v0--{seed}.log").read_text()
        assert text.count("slow on test/pendulum-v0") == 1
    assert {cell["status"] for cell in cells.read(results / "small")["cells"]} == {"finished"}


@pytest.mark.slow
def test_orphans_that_nobody_wants_any_more_are_ended(forks, suite_file, tmp_path, capsys):
    forks(slow=SLOW)
    results = tmp_path / "results"
    pids = orphan(suite_file, results, "--jobs", "2", "--set", "updates=100000")
    assert Sweep(select(read(str(suite_file)), seeds="7,"), results, 2, "test").run() == 0
    assert "2 cells of an earlier sweep are not wanted now: ended" in capsys.readouterr().out
    assert all(ended(pid) for pid in pids)
    states = [json.loads(p.read_text())["status"] for p in results.glob("runs/*/*/*/status.json")]
    assert sorted(states) == ["finished", "interrupted", "interrupted"]
    assert sorted(cell["status"] for cell in cells.read(results / "small")["cells"]) == sorted(states)


@pytest.mark.slow
def test_an_adopted_cell_that_is_killed_is_started_again(forks, suite_file, tmp_path, monkeypatch):
    forks(slow=SLOW)
    results = tmp_path / "results"
    pids = orphan(suite_file, results, "--jobs", "2", "--set", "updates=300")
    sweep = Sweep(select(read(str(suite_file)), overrides={"updates": "300"}), results, 2, "test", None, QUICK)
    work_off = sweep._work_off

    def killed():
        os.kill(pids[0], signal.SIGKILL)
        work_off()

    monkeypatch.setattr(sweep, "_work_off", killed)
    assert sweep.run() == 0
    assert sorted(job.attempts for job in sweep.work) == [1, 2]
    assert events(results).count("retry") == 1


def test_a_number_given_to_another_process_is_not_taken_for_the_cell():
    known = local.identity(os.getpid())
    assert known is not None
    assert local.adopt(known) is not None
    assert local.adopt(known | {"created": known["created"] - 100}) is None
    assert local.adopt(known | {"host": "elsewhere"}) is None
    assert local.adopt(None) is None
    done = subprocess.Popen([sys.executable, "-c", "pass"])
    gone = local.identity(done.pid)
    done.wait()
    assert local.adopt(gone) is None
    assert local.identity(done.pid) is None


# --- folders that go away ---


@pytest.mark.parametrize("which", ["results", "results/small"])
def test_a_folder_that_went_away_ends_the_sweep_in_a_line(suite_file, tmp_path, which, monkeypatch, capsys):
    """No traceback, no cell left running."""
    monkeypatch.setattr(record, "_EVERY", 0.0)
    suite = select(read(str(suite_file)), overrides={"updates": "400"})
    sweep = Sweep(suite, tmp_path / "results", 1, "test", None, QUICK)
    change = sweep.record.change

    def lost(event, job, work):
        change(event, job, work)
        if event == "finished":
            shutil.rmtree(tmp_path / which)

    monkeypatch.setattr(sweep.record, "change", lost)
    assert sweep.run() == 1
    assert "the sweep cannot go on: " in " ".join(capsys.readouterr().out.split())
    assert [child for child in psutil.Process().children() if "bc.py" in str(child.cmdline())] == []
