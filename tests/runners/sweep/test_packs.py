"""`hoard bench --pack K`: seeds that share a process are runs like any other, rows, kills, failures and all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers import ROOT, SMALL_SUITE
from safetensors.torch import load_file

from hoard.cli import main
from hoard.records.files import read_json
from hoard.runners.sweep.local import resident

SUITE = SMALL_SUITE.replace(
    "[method.bc]", '[method.td3_bc]\n[method.noisy]\nalgo = "bc"\noptions = { dropout = 0.1 }\n'
)


@pytest.fixture
def suite_file(tmp_path, tiny):
    path = tmp_path / "small.toml"
    path.write_text(SUITE.replace("seeds = 2", "seeds = 3"))
    return path


def hoard(argv: list[str]) -> int:
    """The exit status of `hoard` with these arguments."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    return end.value.code


def runs_of(results: Path, algo: str = "td3_bc") -> dict[int, Path]:
    """The folders that have their config: others have just been made."""
    files = results.glob(f"runs/{algo}/*/*/config.json")
    return {read_json(file)["config"]["seed"]: file.parent for file in files}


def states_of(results: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in results.glob("runs/*/*/*/status.json")]


def test_packed_seeds_are_the_same_runs_within_rounding(suite_file, tmp_path, capsys):
    alone, packed = tmp_path / "alone", tmp_path / "packed"
    assert hoard(["bench", str(suite_file), "--results", str(alone)]) == 0
    capsys.readouterr()
    assert hoard(["bench", str(suite_file), "--results", str(packed), "--pack", "3"]) == 0
    assert "6 cells, 0 finished before" in capsys.readouterr().out
    ours, theirs = runs_of(packed), runs_of(alone)
    assert set(ours) == set(theirs) == {0, 1, 2}
    processes = {read_json(folder / "status.json")["pid"] for folder in ours.values()}
    assert len(processes) == 1
    for seed, folder in ours.items():
        assert read_json(folder / "config.json")["overrides"]["packed"] == 3
        assert folder.name != theirs[seed].name  # rounded otherwise: another run
        rows, before = (pq.read_table(place / "episodes.parquet") for place in (folder, theirs[seed]))
        assert rows.num_rows == before.num_rows
        assert rows["return"].to_pylist() == pytest.approx(before["return"].to_pylist(), rel=1e-3, abs=1e-2)
        weights, same = (load_file(place / "policy.safetensors") for place in (folder, theirs[seed]))
        for name in same:
            torch.testing.assert_close(weights[name], same[name], rtol=1e-3, atol=1e-4)
        log = (packed / "small" / "logs").glob(f"td3_bc*{seed}.log")
        assert f"seed {seed} -> " in next(log).read_text()
    # what draws within its update is not packed
    noisy = runs_of(packed, "bc")
    assert len({read_json(folder / "status.json")["pid"] for folder in noisy.values()}) == 3
    assert not any("packed" in read_json(folder / "config.json")["config"] for folder in noisy.values())
    assert [folder.name for folder in noisy.values()] == [runs_of(alone, "bc")[seed].name for seed in noisy]
    left = {file.name for file in (packed / "small" / "logs").iterdir()}
    assert not any(name.endswith(".code") for name in left)
    assert hoard(["bench", str(suite_file), "--results", str(packed), "--pack", "3"]) == 0
    assert "6 finished before, 0 to run" in capsys.readouterr().out
    assert hoard(["bench", str(suite_file), "--results", str(packed), "--pack", "2", "--dry-run"]) == 0
    assert "3 finished" in capsys.readouterr().out  # those that are not packed; two at a time round otherwise again
    assert hoard(["evaluate", str(ours[0]), "--episodes", "1"]) == 0  # its options are read without `packed`


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_ends_with_the_same_bits(number, suite_file, tmp_path):
    """Also where the checkpoints of the seeds were not of the same update."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    options = ["--algos", "td3_bc", "--pack", "3", "--retries", "0", "--set", "updates=1500", "eval_every=500"]
    options += ["checkpoint_every=50"]
    assert hoard(["bench", str(suite_file), "--results", str(straight), *options]) == 0
    command = [sys.executable, "-m", "hoard.cli", "bench", str(suite_file), "--results", str(broken), *options]
    sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline, states = time.monotonic() + 120, []
    while time.monotonic() < deadline and not any(state.get("update", 0) >= 100 for state in states):
        states = states_of(broken)
        time.sleep(0.01)
    os.kill(states[0]["pid"] if number == signal.SIGKILL else sweep.pid, number)
    assert sweep.wait(timeout=60) in ((1,) if number == signal.SIGKILL else (130, 143))
    kept = {seed: folder / "checkpoint.pt" for seed, folder in runs_of(broken).items()}
    for file in kept.values():  # each holds its own seed's weights, not the pack's
        actor = torch.load(file, weights_only=True)["objects"]["networks.actor"]
        assert all(
            weight.untyped_storage().nbytes() == weight.numel() * weight.element_size() for weight in actor.values()
        )
    if number == signal.SIGTERM:
        assert {read_json(file.parent / "status.json")["status"] for file in kept.values()} == {"interrupted"}
    else:
        kept[1].unlink()  # as if it had been killed before its first one
    assert hoard(["bench", str(suite_file), "--results", str(broken), *options]) == 0
    for seed, folder in runs_of(straight).items():
        again = runs_of(broken)[seed]
        assert again.name == folder.name
        rows = [pq.read_table(place / "episodes.parquet") for place in (folder, again)]
        assert rows[0].equals(rows[1])
        weights = [load_file(place / "policy.safetensors") for place in (folder, again)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_pack_that_outlives_its_sweep_is_adopted_whole(suite_file, tmp_path, capsys):
    """And its memory limit is still that of each seed."""
    results = tmp_path / "results"
    options = ["bench", str(suite_file), "--results", str(results), "--algos", "td3_bc", "--pack", "3"]
    options += ["--set", "updates=4000", "eval_every=2000"]
    sweep = subprocess.Popen([sys.executable, "-m", "hoard.cli", *options], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(runs_of(results)) < 3:
        time.sleep(0.05)
    while time.monotonic() < deadline and not any("update" in state for state in states_of(results)):
        time.sleep(0.05)
    sweep.kill()
    sweep.wait()
    (pid,) = {state["pid"] for state in states_of(results)}
    limit = resident(pid) * 2 // 3  # of each of three: twice what they take, which one alone would pass
    assert hoard([*options, "--memory-limit", f"{limit >> 20}M"]) == 0
    assert "3 cells of an earlier sweep still run: adopted" in capsys.readouterr().out
    assert {state["pid"] for state in states_of(results)} == {pid}


def test_a_seed_that_fails_costs_no_other(suite_file, tmp_path, capsys):
    source = (ROOT / "algos" / "td3_bc.py").read_text()
    start = "    for number in run.loop(cfg.updates):\n"
    assert source.count(start) == 1
    (tmp_path / "fragile.py").write_text(
        source.replace(start, start + "        assert cfg.seed != 1 or number < 30, 'seed 1 is unlucky'\n")
    )
    suite_file.write_text(suite_file.read_text().replace("[method.td3_bc]", '[method.fragile]\nalgo = "fragile.py"'))
    results = tmp_path / "results"
    assert hoard(["bench", str(suite_file), "--results", str(results), "--algos", "fragile", "--pack", "2"]) == 1
    cells = {cell["seed"]: cell for cell in read_json(results / "small" / "cells.json")["cells"]}
    assert {seed: cell["status"] for seed, cell in cells.items()} == {0: "finished", 1: "failed", 2: "finished"}
    assert cells[1]["failure"] == "error"
    assert "seed 1 is unlucky" in cells[1]["error"]
    assert "FAILED (error) fragile · test/pendulum-v0 · seed 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--pack", "0"], "--pack 0: must be at least 1"),
        (["--pack", "2", "--engine", "ray"], "--pack is for this machine"),
    ],
)
def test_what_makes_no_sense_is_refused(given, why, suite_file, tmp_path, capsys):
    assert hoard(["bench", str(suite_file), "--results", str(tmp_path / "r"), *given]) == 2
    assert why in capsys.readouterr().err


def test_alone_it_is_refused(run_file, tiny):
    done = run_file("bc", "--dataset", tiny, "--packed", "2")
    assert done.returncode == 2
    assert "hoard bench --pack" in done.stderr


def test_without_its_file_it_is_refused(run_file):
    assert run_file("bc", "--pack").returncode == 2


def test_the_plan_counts_a_packs_time_once(suite_file, tmp_path, capsys):
    results = tmp_path / "results"
    options = ["bench", str(suite_file), "--results", str(results), "--algos", "td3_bc", "--pack", "2", "--jobs", "1"]
    assert hoard([*options, "--seeds", "2"]) == 0
    capsys.readouterr()
    assert hoard([*options, "--seeds", "0,1,2,3", "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    took = [read_json(folder / "status.json")["wall_time"] for folder in runs_of(results).values()]
    waiting = [cell for cell in told["cells"] if cell["status"] == "pending"]
    assert len(waiting) == 2
    assert sum(cell["seconds"] for cell in waiting) == pytest.approx(sum(took) / 2, rel=0.1)
