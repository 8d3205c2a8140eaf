"""What a sweep costs beside its cells: keeping the books of many, and starting each.

    OMP_NUM_THREADS=1 python benchmarks/sweep_cost.py books [--cells 100 1000 10000]
    OMP_NUM_THREADS=1 python benchmarks/sweep_cost.py start [--cells 5] [--seconds 60]

`books` plans, records, resumes and lists cells whose processes are none: each is "finished" at once by the file that a
run would leave. It exits 1 if 10,000 take more than 30 s in all, or if a cell costs over twice as much among ten times
as many. `start` runs real cells of about so many seconds on one worker, cold and warm, and the same command lines as
bare scripts. It prints the wall time of `hoard bench` over the sum of the scripts', and what a cell after the first
takes beside its training; it exits 1 if warm these are more than 1.05 and 2 s. The clock tells only on a quiet machine;
how much of it others took is printed too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import psutil

LIMIT = 30.0  # seconds for 10,000 cells
RATIO, START = 1.05, 2.0  # wall time over the bare scripts'; seconds of a cell after the first beside its training
DATASET = "test/pendulum-v0"
SUITE = """
description = "a benchmark"
seeds = {seeds}
datasets = ["{dataset}"]
[options]
updates = {updates}
hidden = [64, 64]
log_every = 1000
eval_every = {updates}
eval_episodes = 2
final_eval_episodes = 2
checkpoint_every = {updates}
"""


class Finished:
    """A process that has ended well."""

    pid = None

    def poll(self) -> int:
        return 0

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


def make_dataset(folder: Path) -> None:
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    from hoard.datasets.minari import writer
    from hoard.datasets.recipes import pendulum

    writer.write(DATASET, pendulum.record(episodes=10, reference_episodes=2))


def books(counts: list[int], folder: Path) -> int:
    """Seconds of each step by number of cells, as a Markdown table."""
    from hoard.runners import provenance
    from hoard.runners.sweep import status
    from hoard.runners.sweep.job import Start
    from hoard.runners.sweep.schedule import Sweep
    from hoard.runners.sweep.suite import read

    made = {"revisions": [provenance.code_revision()], "versions": provenance.library_versions(), "device": "none"}

    def finish(start: Start) -> Finished:
        run = Path(*(start.command[start.command.index(name) + 1] for name in ("--results", "--planned")))
        run.mkdir(parents=True)
        told = {"status": "finished", "update": 10, "wall_time": 1.0, "error": None}
        (run / "status.json").write_text(json.dumps(told))
        (run / "provenance.json").write_text(json.dumps(made))
        return Finished()

    print("| cells | planned (s) | recorded (s) | resumed (s) | listed (s) | in all (s) | ms a cell |")
    print("|---|---|---|---|---|---|---|")
    each: list[float] = []
    failed = 0
    for count in counts:
        methods = 10
        suite_file = folder / f"cells{count}.toml"
        text = SUITE.format(seeds=count // methods, dataset=DATASET, updates=10)
        text += "".join(f"[method.m{k}]\nalgo = 'bc'\noptions = {{ lr = {k + 1}e-4 }}\n" for k in range(methods))
        suite_file.write_text(text)
        results, times = folder / f"results{count}", []
        with contextlib.redirect_stdout(io.StringIO()):
            clock = time.perf_counter()
            suite = read(str(suite_file))
            sweep = Sweep(suite, results, 2, "benchmark", finish)
            prepare, planned = sweep.prepare, []
            sweep.prepare = lambda p=prepare, t=planned: (p(), t.append(time.perf_counter()))[0]  # type: ignore[method-assign]
            assert sweep.run() == 0
            times += [planned[0] - clock, time.perf_counter() - planned[0]]
            clock = time.perf_counter()
            assert Sweep(suite, results, 2, "benchmark", finish).run() == 0
            times.append(time.perf_counter() - clock)
            clock = time.perf_counter()
            told = status.read(results / suite.name)
            assert status.as_text(told, full=True).count("finished") >= count
            times.append(time.perf_counter() - clock)
        total = sum(times)
        each.append(1000 * total / count)
        shown = " | ".join(f"{seconds:.2f}" for seconds in [*times, total, each[-1]])
        print(f"| {count:,} | {shown} |", flush=True)
        failed |= total > LIMIT * max(count / 10_000, 1)
    return int(failed or any(later > 2 * before for before, later in pairwise(each)))


def start(cells: int, seconds: float, folder: Path) -> int:
    """Start-up of a cell and the sweep against the bare scripts, cold and warm."""
    from hoard.runners.sweep.local import environment
    from hoard.runners.sweep.suite import read

    suite_file, root = folder / "start.toml", Path(__file__).resolve().parents[1]
    env = environment() | {"OMP_NUM_THREADS": "1"}
    began, used_before = time.perf_counter(), _busy()

    def bare_script(args: list[str], results: str) -> float:
        clock = time.perf_counter()
        command = [sys.executable, str(root / "algos" / "bc.py"), *args, "--results", str(folder / results)]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - clock

    def cells_of(count: int, updates: int) -> list[list[str]]:
        suite_file.write_text(SUITE.format(seeds=count, dataset=DATASET, updates=updates) + "[method.bc]\n")
        return [cell.args for cell in read(str(suite_file)).cells()]

    bare_script(cells_of(1, 1000)[0], "first")  # reads the packages from the disk
    short, long = (bare_script(cells_of(1, updates)[0], "trial") for updates in (1000, 11_000))
    updates = max(round(seconds * 10_000 / max(long - short, 0.1)), 1000)
    before = _cpu()
    bare = [bare_script(args, "bare") for args in cells_of(cells, updates)]
    bare_cpu = _cpu() - before
    print(f"{cells} bare scripts: {sum(bare):.1f} s, {statistics.median(bare):.2f} s each (median)", flush=True)
    met = False
    for name, more in (("cold", ["--cold"]), ("warm", [])):
        results = folder / name
        clock, before = time.time(), _cpu()
        command = [sys.executable, "-m", "hoard.cli", "bench", str(suite_file), "--results", str(results)]
        subprocess.run([*command, "--jobs", "1", *more], env=env, check=True, stdout=subprocess.DEVNULL)
        lines = (results / "start" / "journal.jsonl").read_text().splitlines()
        changes = [change for change in map(json.loads, lines) if "method" in change]
        first, last = (_seconds(changes[k]["time"]) for k in (0, -1))
        starts = []
        for run in sorted(results.glob("runs/*/*/*")):
            seed = int(run.name.split("-")[0])
            begun = next(_seconds(c["time"]) for c in changes if c["seed"] == seed and c["event"] == "started")
            ended = next(_seconds(c["time"]) for c in changes if c["seed"] == seed and c["event"] == "finished")
            if begun > first:
                starts.append(ended - begun - json.loads((run / "status.json").read_text())["wall_time"])
        wall = time.time() - clock
        met = wall <= RATIO * sum(bare) and statistics.median(starts) <= START
        print(
            f"{name}: {wall:.1f} s, {wall / sum(bare):.3f} of the scripts, {wall - (last - first):.1f} s of it for "
            f"planning and report; beside its training a cell after the first takes {statistics.median(starts):.2f} s; "
            f"{_cpu() - before:.1f} s of CPU time against {bare_cpu:.1f} s",
            flush=True,
        )
    others = _busy() - used_before - _cpu()
    print(f"other processes took {others / (time.perf_counter() - began):.2f} of a core meanwhile")
    return int(not met)


def _busy() -> float:
    """CPU seconds of all processes of this machine so far."""
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "nice", 0.0)


def _cpu() -> float:
    """CPU seconds of all processes that have ended so far beneath this one: on a busy machine wall time says little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("books").add_argument("--cells", type=int, nargs="+", default=[100, 1000, 10_000])
    real = parts.add_parser("start")
    real.add_argument("--cells", type=int, default=5)
    real.add_argument("--seconds", type=float, default=60.0, help="about how long a cell is to take")
    args = parser.parse_args()
    if args.part == "start" and args.cells < 2:
        parser.error("--cells must be at least 2: the first one's start is not counted")
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder))
        if args.part == "books":
            return books(args.cells, Path(folder))
        return start(args.cells, args.seconds, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
