"""Many runs: a suite's cells, each its own process, N at a time, what is finished is skipped.

The sweep knows an algorithm by its file and its command line; what it must ask the file, it asks in a process of its
own (`hoard.runners.plan`). Killed at any moment, the same command goes on:
finished cells are found by their address, interrupted ones resume from their checkpoints. One sweep at a time works in
a suite's folder (a lock the kernel releases with the process), and one process at a time in a run's folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hoard import datasets
from hoard.records.files import read_json, write_json
from hoard.runners.main import BUSY, STOPPED, BadInput, writable
from hoard.runners.progress import generation_bar
from hoard.runners.run import SCHEMA_VERSION, code_revision, is_busy, library_versions, machine, status_of
from hoard.runners.suite import ALGOS_FOLDER, Cell, Suite, algo_file

_GRACE = 30.0  # seconds a run gets to write its checkpoint after Ctrl-C


@dataclass
class Job:
    """A cell and what became of it. `status`: pending, running, finished, failed, interrupted."""

    cell: Cell
    log: Path
    run: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    data_hash: str | None = None
    status: str = "pending"
    error: str | None = None
    process: Process | None = None
    started: float = 0.0  # time.time() of its launch
    log_start: int = 0  # where this launch's output begins in the log
    provenance: dict[str, Any] | None = None  # of the finished run, read once


class Process(Protocol):
    """A started cell, here or elsewhere."""

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


Launcher = Callable[[list[str], Path], Process]


class Sweep:
    """Runs a suite into `results`. Raises BadInput or SuiteError before anything starts if the request is wrong."""

    def __init__(self, suite: Suite, results: Path, jobs: int, command: str, launcher: Launcher | None = None) -> None:
        if jobs < 1:
            raise BadInput(f"--jobs {jobs}: must be at least 1")
        self.suite, self.results, self.jobs, self.command = suite, results, jobs, command
        self.folder = results / suite.name
        self.launch = launcher or launch_local
        self.console = Console()
        writable(self.folder)
        writable(self.folder / "logs")
        self._lock = _lock(self.folder)
        for dataset_id in suite.datasets:
            try:
                datasets.check_id(dataset_id)
            except datasets.DatasetError as error:
                raise BadInput(str(error)) from error
        self._made_by = {"revision": code_revision(ALGOS_FOLDER), "versions": library_versions()}
        cells = suite.cells()
        for algo in {cell.algo for cell in cells}:
            algo_file(algo)
        self.work = [Job(cell, self._log_file(cell)) for cell in cells]

    def _log_file(self, cell: Cell) -> Path:
        slug = cell.dataset.replace("/", "-").replace(":", "-")
        return self.folder / "logs" / f"{cell.method}--{slug}--{cell.seed}.log"

    # --- before the first run ---

    def prepare(self) -> None:
        """Get the datasets and learn every cell's address. A dataset that cannot be had fails its own cells."""
        for dataset_id in self.suite.datasets:
            jobs = [job for job in self.work if job.cell.dataset == dataset_id]
            try:
                with generation_bar(self.console, dataset_id) as progress:
                    data = datasets.load(dataset_id, progress)
            except datasets.DatasetError as error:
                for job in jobs:
                    job.status, job.error = "failed", str(error)
                self.console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
                continue
            for job in jobs:
                job.data_hash = data.content_hash
        planners = {}
        for algo in {job.cell.algo for job in self.work}:
            jobs = [job for job in self.work if job.cell.algo == algo and job.status == "pending"]
            question = json.dumps([{"args": job.cell.args, "data_hash": job.data_hash} for job in jobs])
            command = [sys.executable, "-m", "hoard.runners.plan", str(algo_file(algo))]
            pipe = subprocess.PIPE
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment())
            planners[algo] = (jobs, process, question)
        refused: dict[str, str] = {}
        for algo, (jobs, process, question) in planners.items():
            out, complaint = process.communicate(question)
            if process.returncode != 0:
                for job in jobs:
                    job.status, job.error = "failed", f"{algo}.py cannot be used:\n{_tail(complaint)}"
                    job.log.write_text(complaint)
                continue
            for job, answer in zip(jobs, json.loads(out)):
                if "error" in answer:
                    refused[f"{job.cell.method} ({algo}.py)"] = answer["error"]
                else:
                    job.run, job.overrides = answer["run"], answer["overrides"]
                    if status_of(self.results / answer["run"])["status"] == "finished":
                        job.status = "finished"
        if refused:
            raise BadInput("\n".join(f"{who}:\n{text}" for who, text in refused.items()))

    # --- the runs ---

    def run(self) -> int:
        """Run what is not finished. Returns 0 if now all is, 130 if stopped, 1 otherwise."""
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            self.prepare()
            skipped = sum(job.status == "finished" for job in self.work)
            todo = deque(job for job in self.work if job.status == "pending")
            self.console.print(
                f"suite {self.suite.name}: {len(self.work)} cells, {skipped} finished before, {len(todo)} to run, "
                f"{self.jobs} at a time; results in {self.results}",
                highlight=False,
                soft_wrap=True,
            )
            self._record()
            self._warn_of_other_code()
            try:
                self._work_off(todo)
            finally:
                self._record()
        except KeyboardInterrupt:
            self.console.print("stopped; the same command goes on from here", highlight=False, soft_wrap=True)
            return STOPPED
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._lock.close()
        for job in (unfinished := [job for job in self.work if job.status != "finished"]):
            log = f"  (log: {job.log})" if job.process else ""
            self.console.print(
                f"\n{job.status.upper()} {job.cell.label}{log}", style="bold red", markup=False, soft_wrap=True
            )
            text = self._log_text(job) if job.process else job.error or ""
            self.console.print(_tail(text), markup=False, highlight=False, soft_wrap=True)
        return 1 if unfinished else 0

    def _work_off(self, todo: deque[Job]) -> None:
        running: list[Job] = []
        live = Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        try:
            if live:
                live.start()
            while todo or running:
                while len(running) < self.jobs and (job := self._next(todo)):
                    job.log_start = job.log.stat().st_size if job.log.exists() else 0
                    job.started = time.time()
                    job.process = self.launch(self._command(job), job.log)
                    job.status = "running"
                    running.append(job)
                for job in list(running):
                    assert job.process
                    if (code := job.process.poll()) is None:
                        continue
                    running.remove(job)
                    if code == BUSY:  # another suite was quicker: come back later
                        job.status = "pending"
                        todo.append(job)
                        continue
                    self._settle(job, code)
                    self.console.print(self._line(job), markup=False, highlight=False, soft_wrap=True)
                    self._record()
                if live:
                    live.update(self._view(running))
                time.sleep(0.1)
        except BaseException:  # Ctrl-C, or a full disk: no cell is left running without its sweep
            self._stop(running)
            raise
        finally:
            if live:
                live.stop()

    def _next(self, todo: deque[Job]) -> Job | None:
        """Take the first job that no other process is at work on (a cell that outlived its sweep, another suite)."""
        for job in todo:
            assert job.run is not None
            if not is_busy(self.results / job.run):
                todo.remove(job)
                return job
        return None

    def _command(self, job: Job) -> list[str]:
        file, place = str(algo_file(job.cell.algo)), ["--results", str(self.results), "--planned", str(job.run)]
        return [sys.executable, file, *job.cell.args, *place]

    def _settle(self, job: Job, code: int) -> None:
        status = self._status(job)
        if code == 0 and status["status"] == "finished":
            job.status = "finished"
            return
        job.status = "interrupted" if code == STOPPED else "failed"
        if job.status == "failed":
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            recorded = self.results / str(job.run) / "status.json"
            of_this_start = recorded.exists() and recorded.stat().st_mtime >= job.started
            error = status.get("error") if of_this_start else None
            job.error = error or f"{how}; {_tail(self._log_text(job), 3)}"

    @staticmethod
    def _log_text(job: Job) -> str:
        """What this launch of the cell printed."""
        with open(job.log, "rb") as file:
            file.seek(job.log_start)
            return file.read().decode(errors="replace")

    def _stop(self, running: list[Job]) -> None:
        for job in running:
            assert job.process
            job.process.terminate()
        deadline = time.monotonic() + _GRACE
        while any(job.process and job.process.poll() is None for job in running) and time.monotonic() < deadline:
            time.sleep(0.05)
        for job in running:
            assert job.process
            if job.process.poll() is None:
                job.process.kill()
            job.status = "interrupted"

    # --- showing and recording ---

    def _status(self, job: Job) -> dict[str, Any]:
        return status_of(self.results / job.run) if job.run else {"status": "pending"}

    def _line(self, job: Job) -> str:
        done = sum(j.status in ("finished", "failed", "interrupted") for j in self.work)
        seconds = self._status(job).get("wall_time") or 0
        return f"[{done}/{len(self.work)}] {job.status:9} {job.cell.label}  ({seconds:.0f} s)"

    def _view(self, running: list[Job]) -> Group:
        counts = {s: sum(j.status == s for j in self.work) for s in ("finished", "running", "pending", "failed")}
        table = Table(box=None, padding=(0, 2))
        for name in ("method", "dataset", "seed", "progress", "done", "speed"):
            table.add_column(name)
        for job in running:
            status = self._status(job)
            update, unit = status.get("update", 0), ""
            done, total = update, status.get("updates", 0)
            if status.get("phase") == "online":
                done, total, unit = status["env_step"], status["env_steps"], " steps"
            elif phase := status.get("phase"):
                done, total, unit = status["phase_update"], 0, f" {phase}"
            share = done / total if total else 0.0
            bar = "━" * round(12 * share)
            speed = f"{update / status['wall_time']:.0f}/s" if status.get("wall_time") and update else ""
            table.add_row(
                job.cell.method, job.cell.dataset, str(job.cell.seed), Text(bar.ljust(12, "─"), "cyan"),
                f"{done:,}{f'/{total:,}' if total else ''}{unit}", speed,
            )  # fmt: skip
        head = "  ".join(f"{count} {name}" for name, count in counts.items())
        return Group(Text(f"{self.suite.name}: {head}", "bold"), table)

    def _record(self) -> None:
        """Write cells.json: what `hoard.analysis` reads, whole at any moment."""
        cells = []
        for job in self.work:
            status = self._status(job)
            wall, update = status.get("wall_time"), status.get("update")
            cells.append(
                {
                    "method": job.cell.method,
                    "algo": job.cell.algo,
                    "dataset": job.cell.dataset,
                    "seed": job.cell.seed,
                    "run": job.run,
                    "status": job.status,
                    "error": job.error,
                    "overrides": job.overrides,
                    "wall_time": wall,
                    "updates_per_second": round(update / wall, 2) if wall and update else None,
                    "data_hash": job.data_hash,
                }
            )
        write_json(
            self.folder / "cells.json",
            {
                "schema_version": SCHEMA_VERSION,
                "suite": self.suite.name,
                "description": self.suite.description,
                "metric": self.suite.metric,
                "command": self.command,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "provenance": self._provenance(),
                "cells": cells,
            },
        )

    def _provenance(self) -> dict[str, Any]:
        """Of the runs, not of this call: every code revision and library version that made a finished cell."""
        made = []
        for job in self.work:
            if job.status == "finished":
                job.provenance = job.provenance or read_json(self.results / str(job.run) / "provenance.json")
                made.append(job.provenance)
        revisions = [revision for one in made for revision in one["revisions"]] or [self._made_by["revision"]]
        versions = [one["versions"] for one in made] or [self._made_by["versions"]]
        names = dict.fromkeys(name for one in versions for name in one)
        return {
            "revision": ", ".join(dict.fromkeys(revisions)),
            "versions": {name: ", ".join(dict.fromkeys(one.get(name, "absent") for one in versions)) for name in names},
            "machine": ", ".join(dict.fromkeys(one["device"] for one in made)) or machine(),
            "cpu_count": os.cpu_count(),
        }

    def _warn_of_other_code(self) -> None:
        """A run's address covers its algorithm file, not the shared layer: say when that was another one."""
        provenance, now = self._provenance(), self._made_by
        others = [name for name in ("revision", "versions") if provenance[name] != now[name]]
        if others and any(job.status == "finished" for job in self.work):
            self.console.print(
                f"note: some finished cells were made by another {' and other '.join(others)} of the code "
                f"({provenance['revision'] if 'revision' in others else 'see provenance.json'}); "
                f"delete their folders in {self.results / 'runs'} to run them again",
                style="yellow", markup=False, soft_wrap=True,
            )  # fmt: skip


class launch_local:
    """A cell as a process on this machine, its output appended to `log`."""

    def __init__(self, command: list[str], log: Path) -> None:
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment()
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def environment() -> dict[str, str]:
    # glibc gives big blocks back to the kernel after every update unless told otherwise; the page faults cost about a
    # tenth of a small update.
    quiet = {"PYTHONUNBUFFERED": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    return quiet | os.environ


def _lock(folder: Path) -> IO[str]:
    lock = open(folder / ".lock", "a+")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise BadInput(f"another sweep (process {holder}) is working in {folder}; wait for it or stop it") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])
