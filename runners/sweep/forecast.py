"""What a suite would do: its cells, what of them is finished, and how long the rest may take. Nothing is started.

Hours come from the finished runs in the results folder that were made on a machine of this kind. A cell is expected to
take as long as the median of the runs with

- the same settings, whatever the seed ("same settings");
- the same settings but for dataset, length and evaluation, in proportion to updates plus environment steps ("scaled");
- the same algorithm file, again in proportion ("other settings": rough, as network and batch may differ).

Where there is none, it is unknown and said to be.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hoard import datasets
from hoard.records.files import read_json
from hoard.records.folder import CONFIG, PACKED, PROVENANCE, status_of
from hoard.runners import provenance
from hoard.runners.address import NEUTRAL
from hoard.runners.sweep import prepare
from hoard.runners.sweep.job import Job
from hoard.runners.sweep.suite import Suite

BASES = ("same settings", "scaled", "other settings")
_LENGTHS = ("dataset", "updates", "online_steps", "eval_every", "eval_episodes", "final_eval_episodes")


def work_of(config: dict[str, Any]) -> int:
    """Updates and environment steps of a run with these options."""
    return config["updates"] + config.get("online_steps", 0)


def _key(algo: str, config: dict[str, Any], basis: str) -> str:
    if basis == "other settings":
        config = {name: config[name] for name in (PACKED,) if name in config}
    without = ("seed", *NEUTRAL, *(_LENGTHS if basis == "scaled" else ()))
    relevant = {name: value for name, value in config.items() if name not in without}
    return json.dumps([basis, algo, relevant], sort_keys=True)


class Rates:
    """Wall times of the finished runs of some algorithms in a results folder."""

    def __init__(self, results: Path, algos: Iterable[str]) -> None:
        self._times: dict[str, list[float]] = defaultdict(list)
        here = provenance.machine()
        for algo in algos:
            for file in (results / "runs" / algo).glob(f"*/*/{CONFIG}"):
                try:
                    status, config = status_of(file.parent), read_json(file)["config"]
                    device = read_json(file.parent / PROVENANCE)["device"]
                    work, seconds = work_of(config), float(status["wall_time"])
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # half written just now, or foreign: it tells nothing of time
                # Which accelerator this machine has, only torch could say.
                if status["status"] != "finished" or (config["device"] == "cpu" and device != here) or not work:
                    continue
                for basis in BASES:
                    self._times[_key(algo, config, basis)].append(seconds if basis == BASES[0] else seconds / work)

    def estimate(self, algo: str, config: dict[str, Any]) -> tuple[float | None, str]:
        """Expected wall seconds of a run, and what they come from ("unknown" for None)."""
        for basis in BASES:
            if times := self._times.get(_key(algo, config, basis)):
                median = statistics.median(times)
                return (median if basis == BASES[0] else median * work_of(config)), basis
        return None, "unknown"


@dataclass
class Forecast:
    """`work` with a status each; `seconds` and `basis` of those not finished; datasets that are not on this disk."""

    suite: Suite
    results: Path
    jobs: int
    work: list[Job]
    estimates: dict[int, tuple[float | None, str]]  # by place in `work`
    absent: list[str]

    @property
    def todo(self) -> list[int]:
        return [number for number, job in enumerate(self.work) if job.status != "finished"]

    @property
    def seconds(self) -> float:
        """Of work, over all cells whose time is known."""
        return sum(seconds for seconds, _ in self.estimates.values() if seconds is not None)

    @property
    def wall(self) -> float:
        """Seconds with `jobs` at a time, where a cell counts as its CPUs; never less than the longest cell."""
        known = {number: seconds for number, (seconds, _) in self.estimates.items() if seconds is not None}
        taken = sum(seconds * (self.work[number].cell.resources.cpus or 1) for number, seconds in known.items())
        return max([taken / self.jobs, *known.values()], default=0.0)

    @property
    def unknown(self) -> int:
        return sum(seconds is None for seconds, _ in self.estimates.values())

    def as_json(self) -> dict[str, Any]:
        cells = []
        for number, job in enumerate(self.work):
            seconds, basis = self.estimates.get(number, (None, None))
            cell = {"method": job.cell.method, "dataset": job.cell.dataset, "seed": job.cell.seed, "run": job.run}
            cells.append(cell | {"status": job.status, "error": job.error, "seconds": seconds, "basis": basis})
        return {
            "suite": self.suite.name,
            "cells": cells,
            "absent_datasets": self.absent,
            "work_seconds": self.seconds,
            "wall_seconds": self.wall,
            "unknown": self.unknown,
        }

    def as_text(self) -> str:
        rows: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, job in enumerate(self.work):
            rows[job.cell.method, job.cell.dataset].append(number)
        table = [("method", "dataset", "cells", "finished", "each", "from")]
        for (method, dataset_id), numbers in rows.items():
            jobs = [self.work[number] for number in numbers]
            finished = sum(job.status == "finished" for job in jobs)
            left = [self.estimates[number] for number in numbers if number in self.estimates]
            each, basis = left[0] if left else (None, "")
            done = "?" if dataset_id in self.absent else str(finished)
            if failed := [job for job in jobs if job.status == "failed"]:
                each, basis = None, f"cannot run: {(failed[0].error or '').splitlines()[0]}"
            table.append((method, dataset_id, str(len(jobs)), done, duration(each) if left else "", basis))
        finished = len(self.work) - len(self.todo)
        lines = [
            f"suite {self.suite.name}: {len(self.work)} cells, {finished} finished, {len(self.todo)} to run, "
            f"{self.jobs} at a time; results in {self.results}",
            "",
            *aligned(table),
            "",
        ]
        if self.absent:
            lines.append(f"not on this disk, to be made or fetched first: {', '.join(self.absent)}")
            lines.append("(whether their cells are finished shows once the data are here)")
        if self.unknown < len(self.estimates):
            lines.append(f"about {duration(self.seconds)} of work, {duration(self.wall)} with {self.jobs} at a time")
        if self.unknown:
            lines.append(
                f"no time is known for {self.unknown} cells: no earlier run of their algorithm on this machine"
            )
        return "\n".join(lines)


def forecast(suite: Suite, results: Path, jobs: int, pack: int = 1) -> Forecast:
    """Look ahead without making, fetching or starting anything, and without writing a file. Raises BadInput."""
    work = prepare.jobs_of(suite, results / suite.name)
    configs = prepare.ask_the_files(suite, work, pack)
    absent = []
    for dataset_id in suite.datasets:
        wanted = [job for job in work if job.cell.dataset == dataset_id and job.status == "pending"]
        if not wanted:
            continue
        if not datasets.is_at_hand(dataset_id):
            absent.append(dataset_id)
            continue
        try:
            data_hash = datasets.load(dataset_id).content_hash
        except datasets.DatasetError as error:
            for job in wanted:
                job.fail("refused", str(error))
            continue
        for job in wanted:
            job.data_hash = data_hash
    prepare.find_runs(work, configs, results)
    rates = Rates(results, dict.fromkeys(job.algo_file.stem for job in work))
    estimates: dict[int, tuple[float | None, str]] = {}
    known: dict[tuple[str, str], tuple[float | None, str]] = {}
    for number, job in enumerate(work):
        if job.status != "pending":
            continue
        place = (job.cell.method, job.cell.dataset)
        if place not in known:
            known[place] = rates.estimate(job.algo_file.stem, configs[place])
        seconds, basis = known[place]
        if seconds is not None and job.run:  # what an interrupted run has done is not done again
            status = status_of(results / job.run)
            done = status.get("update", 0) + status.get("env_step", 0)
            seconds *= 1 - min(done / max(work_of(configs[place]), 1), 1)
        if seconds is not None and job.packed:  # a run's time is that of its company, here supposed to be as large
            seconds /= pack
        estimates[number] = (seconds, basis)
    return Forecast(suite, results, jobs, work, estimates, absent)


def duration(seconds: float | None) -> str:
    """For people: `40 s`, `12 min`, `3.5 h`; `?` if unknown."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table with columns two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]
