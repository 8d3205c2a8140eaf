"""`hoard plan`, `hoard status`, `hoard logs` at the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from hoard import datasets
from hoard.cli import main
from hoard.records.locks import lock_folder
from hoard.runners.sweep import forecast, status

SUITE = """
description = "a test"
seeds = 2
datasets = ["test/pendulum-v0"]
[options]
updates = 40
hidden = [16]
batch_size = 32
log_every = 10
eval_every = 20
eval_episodes = 2
final_eval_episodes = 3
checkpoint_every = 20
[method.bc]
[method.mine]
algo = "my_bc.py"
"""


@pytest.fixture
def suite_file(tmp_path, tiny, monkeypatch):
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    shutil.copy(ROOT / "algos" / "bc.py", tmp_path / "my_bc.py")
    monkeypatch.chdir(tmp_path)
    return path


def hoard(capsys, *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main([*map(str, args)])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def files_in(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- plan ---


def test_a_plan_starts_fetches_and_writes_nothing(suite_file, tmp_path, capsys, monkeypatch):
    suite_file.write_text(SUITE.replace('["test/pendulum-v0"]', '["test/pendulum-v0", "hoard/pendulum/mixed-v0"]'))
    monkeypatch.setattr(datasets, "is_at_hand", lambda dataset_id: dataset_id == "test/pendulum-v0")
    load = datasets.load
    monkeypatch.setattr(datasets, "load", lambda name: load(name) if name.startswith("test/") else pytest.fail("made"))
    before = files_in(tmp_path)
    code, out, _ = hoard(capsys, "plan", suite_file, "--jobs", "2")
    assert code == 0
    assert "8 cells, 0 finished, 8 to run, 2 at a time" in out
    assert "not on this disk, to be made or fetched first: hoard/pendulum/mixed-v0" in out
    assert "no time is known for 8 cells" in out
    assert files_in(tmp_path) == before
    assert hoard(capsys, "bench", suite_file, "--jobs", "2", "--dry-run")[1] == out
    assert files_in(tmp_path) == before


def test_a_plan_counts_what_is_finished_and_measures_the_rest_by_it(suite_file, tmp_path, capsys):
    assert hoard(capsys, "bench", suite_file, "--algos", "bc", "--seeds", "1")[0] == 0
    (file,) = (tmp_path / "results").glob("runs/bc/*/*/status.json")
    told = json.loads(file.read_text()) | {"wall_time": 600.0}
    file.write_text(json.dumps(told))

    def planned(*args):
        return json.loads(hoard(capsys, "plan", suite_file, "--jobs", "2", "--json", *args)[1])

    plan = planned("--seeds", "3", "--algos", "bc")
    assert [cell["status"] for cell in plan["cells"]] == ["finished", "pending", "pending"]
    assert [cell["basis"] for cell in plan["cells"]] == [None, "same settings", "same settings"]
    assert (plan["work_seconds"], plan["wall_seconds"], plan["unknown"]) == (1200, 600, 0)
    longer = planned("--seeds", "1", "--algos", "bc", "--set", "updates=400")
    assert [(cell["basis"], cell["seconds"]) for cell in longer["cells"]] == [("scaled", 6000)]
    wider = planned("--seeds", "1", "--algos", "bc", "--set", "hidden=32")
    assert [(cell["basis"], cell["seconds"]) for cell in wider["cells"]] == [("other settings", 600)]
    other = planned("--seeds", "1", "--algos", "mine")
    assert [(cell["basis"], cell["seconds"]) for cell in other["cells"]] == [("unknown", None)]

    file.write_text(json.dumps(told | {"status": "interrupted", "update": 30}))  # its own end is not known
    assert planned("--seeds", "1", "--algos", "bc")["unknown"] == 1
    text = hoard(capsys, "plan", suite_file, "--algos", "bc", "--seeds", "1")[1]
    assert "no time is known for 1 cells" in text


def test_runs_of_another_machine_tell_no_hours(suite_file, tmp_path, capsys):
    assert hoard(capsys, "bench", suite_file, "--algos", "bc", "--seeds", "1")[0] == 0
    (file,) = (tmp_path / "results").glob("runs/bc/*/*/provenance.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "Plan9 mips, 7 CPU cores"}))
    plan = json.loads(hoard(capsys, "plan", suite_file, "--algos", "bc", "--json")[1])
    assert [cell["basis"] for cell in plan["cells"]] == [None, "unknown"]


def test_what_is_done_of_an_interrupted_run_is_not_planned_again(suite_file, tmp_path, capsys):
    assert hoard(capsys, "bench", suite_file, "--algos", "bc")[0] == 0
    files = sorted((tmp_path / "results").glob("runs/bc/*/*/status.json"))
    told = [json.loads(file.read_text()) | {"wall_time": 100.0} for file in files]
    files[0].write_text(json.dumps(told[0]))
    files[1].write_text(json.dumps(told[1] | {"status": "interrupted", "update": 30}))
    plan = json.loads(hoard(capsys, "plan", suite_file, "--algos", "bc", "--json")[1])
    assert [cell["seconds"] for cell in plan["cells"]] == [None, 25.0]


def test_a_plan_refuses_what_the_sweep_would(suite_file, capsys):
    for args, message in ((["--set", "updatez=5"], "--updates"), (["--jobs", "0"], "--jobs 0"), (["nothing"], "quick")):
        code, _, err = hoard(capsys, "plan", *([] if args == ["nothing"] else [suite_file]), *args)
        assert code == 2
        assert message in err
    assert hoard(capsys, "bench", suite_file, "--json")[0] == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (0.4, "0 s"), (99, "99 s"), (720, "12 min"), (12_600, "3.5 h")]
)
def test_durations_are_for_people(seconds, text):
    assert forecast.duration(seconds) == text


# --- status ---


def test_status_while_a_sweep_works_and_after(suite_file, tmp_path, capsys):
    """Step, speed, score and time left of what runs; then what was interrupted."""
    assert hoard(capsys, "bench", suite_file, "--algos", "bc", "--seeds", "1")[0] == 0
    results = tmp_path / "results"
    options = ["updates=200000", "checkpoint_every=100000", "eval_every=500"]
    args = ["bench", str(suite_file), "--results", str(results), "--algos", "bc", "--seeds", "1", "--set", *options]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "hoard.cli", *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            told = json.loads(hoard(capsys, "status", "small", "--json")[1])
            (cell,) = told["cells"]
            if cell["status"] == "running" and cell["score"] is not None and cell["per_second"]:
                break
            assert sweep.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert told["sweep_at_work"]
        assert (cell["total"], cell["stage"], cell["failure"]) == (200_000, "updates", None)
        assert 0 < cell["done"] < 200_000
        assert cell["eta"] == pytest.approx((200_000 - cell["done"]) / cell["per_second"])
        _, text, _ = hoard(capsys, "status", "small")
        assert "1 running; a sweep at work" in text
        assert "/200,000" in text
        assert "left, 1 at a time" in text
        code, out, _ = hoard(capsys, "logs", "bc--test-pendulum", "--lines", "1")
        assert code == 0
        assert out.startswith("update ")
    finally:
        sweep.send_signal(signal.SIGTERM)
        sweep.wait(timeout=120)
    _, text, _ = hoard(capsys, "status", "small")
    assert "1 cells: 1 interrupted; no sweep at work" in text


def test_status_names_failures_and_their_kind(suite_file, tmp_path, capsys):
    start = "def train(cfg: Config, run: Run) -> None:\n"
    source = (tmp_path / "my_bc.py").read_text()
    (tmp_path / "my_bc.py").write_text(source.replace(start, f"{start}    raise FloatingPointError('loss is nan')\n"))
    assert hoard(capsys, "bench", suite_file, "--seeds", "1")[0] == 1
    _, text, _ = hoard(capsys, "status", "small")
    assert "2 cells: 1 finished, 1 failed; no sweep at work" in text
    assert "FAILED (diverged) mine · test/pendulum-v0 · seed 0: FloatingPointError: loss is nan" in text
    assert "log: results/small/logs/mine--test-pendulum-v0--0.log" in text
    assert "stale" not in text


def test_a_killed_cell_is_not_shown_as_running(suite_file, tmp_path, capsys):
    assert hoard(capsys, "bench", suite_file, "--algos", "bc", "--seeds", "1")[0] == 0
    (file,) = (tmp_path / "results").glob("runs/bc/*/*/status.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "running", "pid": os.getpid()}))
    record = tmp_path / "results" / "small" / "cells.json"
    record.write_text(record.read_text().replace('"finished"', '"running"'))
    assert "1 cells: 1 interrupted" in hoard(capsys, "status", "small")[1]
    with lock_folder(file.parent):  # that is what tells
        assert "1 cells: 1 running; no sweep at work" in hoard(capsys, "status", "small")[1]


def test_what_other_code_made_is_stale(suite_file, tmp_path, capsys):
    assert hoard(capsys, "bench", suite_file, "--seeds", "1")[0] == 0
    full = hoard(capsys, "status", "small", "--full")[1]
    assert "stale" not in full
    assert full.count("test/pendulum-v0") == 2
    comment = (tmp_path / "my_bc.py").read_text() + "# no other meaning\n"
    (tmp_path / "my_bc.py").write_text(comment)
    assert "stale" not in hoard(capsys, "status", "small")[1]
    (tmp_path / "my_bc.py").write_text(comment + "OTHER = 1\n")
    assert (
        "1 finished by other code than would run now (1 by another algorithm file)"
        in hoard(capsys, "status", "small")[1]
    )
    (file,) = (tmp_path / "results").glob("runs/bc/*/*/provenance.json")
    made = json.loads(file.read_text())
    file.write_text(json.dumps(made | {"revisions": ["0" * 40], "versions": made["versions"] | {"torch": "1.0"}}))
    told = json.loads(hoard(capsys, "status", "small", "--json")[1])
    assert {cell["method"]: cell["stale"] for cell in told["cells"]} == {
        "bc": ["revision", "libraries"],
        "mine": ["algorithm file"],
    }


def test_status_of_nothing_is_an_error(suite_file, capsys):
    code, _, err = hoard(capsys, "status", "small")
    assert code == 2
    assert "nothing on record in results/small" in err


@pytest.mark.parametrize(
    ("walls", "state", "eta"),
    [
        ([100.0, 300.0], {"wall_time": 50, "more": False, "per_second": 1, "total": 10, "done": 0}, 150),
        ([10.0], {"wall_time": 50, "more": False, "per_second": 2, "total": 100, "done": 20}, 40),
        (None, {"wall_time": 50, "more": True, "per_second": 2, "total": 100, "done": 20}, None),
        (None, {"wall_time": 0, "more": False, "per_second": None, "total": 0, "done": 0}, None),
    ],
)
def test_time_left_is_that_of_its_like_or_of_its_own_speed(walls, state, eta):
    assert status._eta(state, walls) == eta


# --- logs ---


def test_logs_by_a_part_of_the_name(suite_file, tmp_path, capsys):
    for suite, names in (("small", ["bc--test-a--0", "bc--test-a--10", "mine--test-a--0"]), ("other", ["iql--x--0"])):
        folder = tmp_path / "results" / suite / "logs"
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.log").write_text(f"one\nlog of {name}\n")
    assert hoard(capsys, "logs", "bc--test-a--10")[1] == "one\nlog of bc--test-a--10\n"
    for wanted, name in (
        ("bc--test-a--0", "bc--test-a--0"),
        ("mine", "mine--test-a--0"),
        ("mine--test/a", "mine--test-a--0"),
        ("other/--0", "iql--x--0"),
        ("small/mine", "mine--test-a--0"),
    ):
        assert hoard(capsys, "logs", wanted, "--lines", "1")[1] == f"log of {name}\n", wanted
    code, _, err = hoard(capsys, "logs", "bc")
    assert code == 2
    assert "'bc' could be small/bc--test-a--0, small/bc--test-a--10; give more of its name" in err
    code, _, err = hoard(capsys, "logs", "bc--test-a--1x")
    assert code == 2
    assert "nearest: bc--test-a--1" in err
    assert hoard(capsys, "logs", "mine", "--lines", "0")[0] == 2
    assert hoard(capsys, "logs", "mine", "--follow")[1].endswith("log of mine--test-a--0\n")  # no sweep: it ends
