"""A sweep of every algorithm file under fire ends with the rows of an undisturbed one, to the bit.

Cells, the sweep, and both are killed at random moments; one cell segfaults, one hangs, one leaks; files may not grow
any more, a disk is full. Nothing is lost and nothing is doubled; what cannot finish is named.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from helpers import ROOT

from hoard.analysis.results import load
from hoard.records import cells
from hoard.runners import algorithms
from hoard.runners.sweep import local

pytestmark = pytest.mark.slow

HEAD = """
description = "every algorithm file, small"
metric = "return"
seeds = 2
datasets = ["test/pendulum-v0", "hoard/doublechain/expert-v0"]
[options]
log_every = 50
eval_every = 200
eval_episodes = 1
final_eval_episodes = 2
checkpoint_every = 50
"""
NETS = {"hidden": [16], "batch_size": 32}
OFFLINE = NETS | {"updates": 800}
ONLINE = NETS | {"updates": 0, "online_steps": 800, "checkpoint_every": 200}
SEQUENCE = {"updates": 200, "width": 16, "blocks": 1, "heads": 2, "context": 5, "batch_size": 16}
OPTIONS: dict[str, dict[str, object]] = {
    **dict.fromkeys(algorithms.available(), OFFLINE),  # and, where a file needs others:
    "decision_mamba": SEQUENCE | {"state": 4, "teacher_every": 20},
    "decision_transformer": SEQUENCE,
    "drbc": ONLINE | {"updates": 100, "warmup_steps": 100, "eval_every": 400},
    "drbc_tabular": {"updates": 1, "online_steps": 400, "checkpoint_every": 100},
    "hnpg": {"updates": 0, "online_steps": 2000, "batch_steps": 200, "eval_every": 1000, "checkpoint_every": 400},
    "mbrcsl": OFFLINE | {
        "dynamics_members": 2, "dynamics_elites": 1, "dynamics_hidden": [8, 8, 8, 8], "dynamics_epochs": 2,
        "diffusion_widths": [8], "diffusion_embedding": 8, "diffusion_steps": 2, "diffusion_updates": 100,
        "rollout_batch": 10, "rollout_batches": 3, "num_need_traj": 5, "keep_above": -1e9,
    },
    "moorl": ONLINE | {"start_steps": 100},
    "rlpd": ONLINE | {"start_steps": 100, "critics": 2, "updates_per_step": 2},
    "sac": ONLINE | {"start_steps": 100},
}  # fmt: skip
DATASETS = {"drbc_tabular": "hoard/doublechain/expert-v0"}
TWICE = ("bc", "decision_transformer", "drbc", "iql", "mbrcsl", "sac")  # with two seeds
SABOTEURS = {
    "segfaults": ("killed", "        import ctypes\n        ctypes.string_at(0)\n"),
    "hangs": ("time limit", "        import time\n        time.sleep(600)\n"),
    "leaks": ("memory limit", "        run.leak = [*getattr(run, 'leak', ()), torch.ones(1 << 24)]\n"),
}
HOOK = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"


def section(name: str, dataset: str, options: dict[str, object], algo: str = "") -> str:
    values = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    return f'[method.{name}]\nalgo = "{algo or name}"\ndatasets = ["{dataset}"]\noptions = {{ {values} }}\n'


def write_suite(path: Path, sabotage: bool) -> Path:
    text = HEAD
    for name, options in OPTIONS.items():
        text += section(name, DATASETS.get(name, "test/pendulum-v0"), options)
        text += "" if name in TWICE else "seeds = 1\n"
    if sabotage:
        source = (ROOT / "algos" / "bc.py").read_text()
        assert HOOK in source
        for name, (_, line) in SABOTEURS.items():
            (path.parent / f"{name}.py").write_text(source.replace(HOOK, line + HOOK))
            text += section(name, "test/pendulum-v0", OFFLINE, f"{name}.py") + "seeds = 1\n"
    path.write_text(text)
    return path


def bench(suite: Path, results: Path, *more: str, **how) -> subprocess.Popen:
    args = [sys.executable, "-m", "hoard.cli", "bench", str(suite), "--results", str(results), "--jobs", "2", *more]
    return subprocess.Popen(args, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True, **how)


def rows_of(results: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(results)): p.read_bytes() for p in results.glob("runs/*/*/*/episodes.parquet")}
    return {name: rows for name, rows in found.items() if name.split("/")[1] not in SABOTEURS}


def at_work(folder: Path) -> list[psutil.Process]:
    """The processes of a sweep's cells, by its record."""
    try:
        entries = cells.read(folder)["cells"]
    except FileNotFoundError:
        return []
    known = [local.adopt(entry.get("process")) for entry in entries if entry["status"] == "running"]
    return [psutil.Process(process.pid) for process in known if process]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny):
    """The rows of a sweep that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    suite = write_suite(folder / "chaos.toml", sabotage=False)
    sweep = bench(suite, folder / "results", stdout=subprocess.PIPE, text=True)
    printed, _ = sweep.communicate(timeout=900)
    assert sweep.returncode == 0, printed
    rows = rows_of(folder / "results")
    assert len(rows) == len(OPTIONS) + len(TWICE) >= 24
    return rows


def disturb(what: str, rng: np.random.Generator, sweep: subprocess.Popen, folder: Path) -> bool:
    """Kill a cell, the sweep, or all of it, adopted cells too; whether it was there. Mostly while cells are at work."""
    found = at_work(folder)
    if not found and (what == "cell" or rng.random() > 0.03):
        return False
    if what != "sweep":
        chosen = (
            [found[int(rng.integers(len(found)))]] if what == "cell" else found
        )  # some may be of an earlier session
        try:
            for process in chosen:
                process.kill()
        except psutil.Error:
            return False
    if what == "both":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
    if what == "sweep":
        sweep.kill()
    if what != "cell":
        sweep.wait()
    return True


@pytest.mark.timeout(1800)
def test_a_sweep_under_fire_ends_with_the_rows_of_an_undisturbed_one(undisturbed, tmp_path, tiny):
    rng = np.random.default_rng(13)
    suite = write_suite(tmp_path / "chaos.toml", sabotage=True)
    results = tmp_path / "results"
    folder = results / "chaos"
    limits = ["--retries", "5", "--time-limit", "40s", "--memory-limit", "1500M"]
    kills = [str(what) for what in rng.permutation(["cell"] * 14 + ["sweep"] * 5 + ["both"] * 5)]
    left = list(kills)
    log = open(tmp_path / "log.txt", "w")  # noqa: SIM115

    sweep = bench(suite, results, *limits, stdout=log)
    while left:
        time.sleep(rng.uniform(0.1, 1.0))
        if sweep.poll() is not None:
            assert sweep.returncode == -signal.SIGKILL, "it ended before it was disturbed enough"
            sweep = bench(suite, results, *limits, stdout=log)
        elif disturb(left[-1], rng, sweep, folder):
            left.pop()

    # No file may grow over 2 kB any more: the sweep ends in a line, as on a full disk.
    if sweep.poll() is None:
        sweep.send_signal(signal.SIGTERM)
        assert sweep.wait(timeout=120) in (1, 130)
    small = bench(
        suite, results, *limits, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)),
    )  # fmt: skip
    printed, _ = small.communicate(timeout=300)
    assert small.returncode in (1, 2), printed
    assert "File too large" in printed
    assert "Traceback" not in printed

    for _ in range(4):  # a cell that was over its time on a busy machine goes on in the next
        done = bench(suite, results, *limits, stdout=log)
        assert done.wait(timeout=900) == 1
        states = load(folder).cells.set_index(["method", "seed"])["status"]
        if (states.drop(index=list(SABOTEURS), level="method") == "finished").all():
            break
    log.close()

    assert rows_of(results) == undisturbed
    entries = cells.read(folder)["cells"]
    assert len(entries) == len(undisturbed) + len(SABOTEURS)
    named = {entry["method"]: entry["failure"] for entry in entries if entry["status"] != "finished"}
    assert named == {name: kind for name, (kind, _) in SABOTEURS.items()}
    (segfault,) = [entry for entry in entries if entry["method"] == "segfaults"]
    assert "SIGSEGV" in segfault["error"]
    assert segfault["attempts"] == 6
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    finished = Counter((c["method"], c["seed"]) for c in journal if c["event"] == "finished")
    assert max(finished.values()) == 1
    assert {c["now"]["process"]["pid"] for c in journal if c["event"] == "started"}
    assert at_work(folder) == []
    pids = {json.loads(p.read_text())["pid"] for p in results.glob("runs/*/*/*/status.json")}
    left = [p for p in psutil.process_iter(["pid", "cmdline"]) if p.pid in pids and "hoard" in str(p.info["cmdline"])]
    assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []
    print(dict(Counter(kills)), f"{sum(c['event'] == 'retry' for c in journal)} retries")


FULL_DISK = """
set -e
mount -t tmpfs -o size=6m none "$1"
dd if=/dev/zero of="$1/filler" bs=1k count=5900 status=none
status=0
"$2" -m hoard.cli bench "$3" --results "$1/results" --jobs 2 > "$4/first.txt" 2>&1 || status=$?
echo "$status" > "$4/status"
rm "$1/filler"
"$2" -m hoard.cli bench "$3" --results "$1/results" --jobs 2 > "$4/second.txt" 2>&1
cp -r "$1/results" "$4/results"
"""


def can_mount() -> bool:
    """Whether this user may mount a file system of its own."""
    if not shutil.which("unshare"):
        return False
    test = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(test, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
def test_a_full_disk_ends_the_sweep_and_a_freed_one_lets_it_go_on(tmp_path, tiny):
    text = HEAD.replace(', "hoard/doublechain/expert-v0"', "")
    for name in ("bc", "iql"):
        text += section(name, "test/pendulum-v0", OFFLINE | {"hidden": [64, 64]})
    suite = tmp_path / "small.toml"
    suite.write_text(text)
    straight, disk = tmp_path / "straight", tmp_path / "disk"
    assert bench(suite, straight, stdout=subprocess.DEVNULL).wait(timeout=300) == 0
    disk.mkdir()
    script = ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", str(disk), sys.executable, str(suite), str(tmp_path)]
    done = subprocess.run(
        script, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "second.txt").read_text()
    first = " ".join((tmp_path / "first.txt").read_text().split())
    assert (tmp_path / "status").read_text() == "1\n"
    assert "the sweep cannot go on: [Errno 28] No space left on device" in first
    assert "hoard/runners/sweep" not in first  # no traceback of its own
    assert rows_of(tmp_path / "results") == rows_of(straight)
    assert len(rows_of(straight)) == 4
