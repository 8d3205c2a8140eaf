"""Many runs: a suite's cells, each its own process, N at a time; what is finished is skipped.

The sweep knows an algorithm by its file and its command line; what it must ask the file, it asks in a process of its
own (`plan`). Killed at any moment, the same command goes on: finished cells are found by their address, interrupted
ones resume from their checkpoints. One sweep at a time works in a suite's folder (a lock that the kernel releases with
the process), and one process at a time in a run's folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from hoard import datasets
from hoard.records.errors import BUSY, FAILED, OK, STOPPED, BadInput, Busy
from hoard.records.files import writable
from hoard.records.folder import STATUS, status_of
from hoard.records.locks import is_locked, lock_folder
from hoard.runners.progress import generation_bar
from hoard.runners.sweep import prepare, view
from hoard.runners.sweep.job import Job, Launcher, how_it_ended, tail
from hoard.runners.sweep.local import LocalProcess, oom_kills
from hoard.runners.sweep.record import Record
from hoard.runners.sweep.suite import Suite

_FULL = 1 << 20  # bytes: a disk with less room is full
_GRACE = 30.0  # seconds a run gets to write its checkpoint after Ctrl-C


class Sweep:
    """Runs a suite into `results`. Raises BadInput before anything starts if the request is wrong."""

    def __init__(self, suite: Suite, results: Path, jobs: int, command: str, launcher: Launcher | None = None) -> None:
        if jobs < 1:
            raise BadInput(f"--jobs {jobs}: must be at least 1")
        self.suite, self.results, self.jobs = suite, results, jobs
        self.folder = results / suite.name
        self.launch = launcher or LocalProcess
        self.console = Console()
        self.work = prepare.jobs_of(suite, self.folder)
        writable(self.folder)
        writable(self.folder / "logs")
        try:
            self._lock = lock_folder(self.folder, f"process {os.getpid()}")
        except Busy as error:
            raise BadInput(f"{error}: another sweep; wait for it or stop it") from None
        self.record = Record(self.folder, results, suite, command)

    # --- before the first run ---

    def prepare(self) -> None:
        """Get the datasets and learn every cell's address. A dataset that cannot be had fails its own cells.

        Raises BadInput, before anything is made or fetched, if an algorithm file does not take a cell's options, and
        if two cells would be one run.
        """
        configs = prepare.ask_the_files(self.suite, self.work)
        self._get_data()
        prepare.find_runs(self.work, configs, self.results)

    def _get_data(self) -> None:
        for dataset_id in self.suite.datasets:
            jobs = [job for job in self.work if job.cell.dataset == dataset_id and job.status == "pending"]
            if not jobs:
                continue
            try:
                with generation_bar(self.console, dataset_id) as progress:
                    data = datasets.load(dataset_id, progress)
            except datasets.DatasetError as error:
                for job in jobs:
                    job.fail("refused", str(error))
                self.console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
                continue
            for job in jobs:
                job.data_hash = data.content_hash

    # --- the runs ---

    def run(self) -> int:
        """Run what is not finished. Returns 0 if now all is, 130 if stopped, 1 otherwise."""
        try:
            with _interruptible():
                return self._run()
        except KeyboardInterrupt:
            self.console.print("stopped; the same command goes on from here", highlight=False, soft_wrap=True)
            return STOPPED
        except OSError as error:  # a full disk, a folder that went away
            self.console.print(
                f"the sweep cannot go on: {error}; its cells were stopped and resume with the same command",
                style="bold red", markup=False, soft_wrap=True,
            )  # fmt: skip
            return FAILED
        finally:
            self._lock.close()

    def _run(self) -> int:
        self.prepare()
        skipped = sum(job.status == "finished" for job in self.work)
        todo = deque(job for job in self.work if job.status == "pending")
        self.console.print(
            f"suite {self.suite.name}: {len(self.work)} cells, {skipped} finished before, {len(todo)} to run, "
            f"{self.jobs} at a time; results in {self.results}",
            highlight=False,
            soft_wrap=True,
        )
        self.record.write(self.work)
        if note := self.record.other_code(self.work):
            self.console.print(note, style="yellow", markup=False, soft_wrap=True)
        try:
            self._work_off(todo)
        finally:
            self.record.write(self.work)
        for job in (unfinished := [job for job in self.work if job.status != "finished"]):
            log = f"  (log: {job.log})" if job.process else ""
            how = f" ({job.failure})" if job.failure else ""
            self.console.print(
                f"\n{job.status.upper()}{how} {job.cell.label}{log}", style="bold red", markup=False, soft_wrap=True
            )
            text = job.log_text() if job.process else job.error or ""
            self.console.print(tail(text), markup=False, highlight=False, soft_wrap=True)
        return FAILED if unfinished else OK

    def _work_off(self, todo: deque[Job]) -> None:
        running: list[Job] = []
        live = Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        try:
            if live:
                live.start()
            while todo or running:
                while len(running) < self.jobs and (job := self._next(todo)):
                    job.log_start = job.log.stat().st_size if job.log.exists() else 0
                    job.started, job.oom_kills = time.time(), oom_kills()
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
                    text = view.line(job, self.work, self._status(job))
                    self.console.print(text, markup=False, highlight=False, soft_wrap=True)
                    self.record.write(self.work)
                if live:
                    live.update(view.live(self.suite.name, self.work, [(job, self._status(job)) for job in running]))
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
            if not is_locked(self.results / job.run):
                todo.remove(job)
                return job
        return None

    def _command(self, job: Job) -> list[str]:
        place = ["--results", str(self.results), "--planned", str(job.run)]
        return [sys.executable, str(job.algo_file), *job.cell.args, *place]

    def _status(self, job: Job) -> dict[str, Any]:
        return status_of(self.results / job.run) if job.run else {"status": "pending"}

    def _settle(self, job: Job, code: int) -> None:
        status = self._status(job)
        if code == OK and status["status"] == "finished":
            job.status = "finished"
            return
        if code == STOPPED:
            job.status = "interrupted"
            return
        failure, how = how_it_ended(code, job.oom_kills, oom_kills())
        recorded = self.results / str(job.run) / STATUS
        of_this_start = recorded.exists() and recorded.stat().st_mtime >= job.started
        error = status.get("error") if of_this_start else None
        if error and error.startswith("FloatingPointError"):
            failure = "diverged"
        printed = job.log_text()
        job.fail(failure, error or f"{how}; {tail(printed, 3)}")
        if os.strerror(errno.ENOSPC) in printed or shutil.disk_usage(self.results).free < _FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.results))  # the next cells would fail alike

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


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let a request to end, or the loss of the terminal (but not under nohup), stop the sweep as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
