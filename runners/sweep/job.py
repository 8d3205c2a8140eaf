"""A cell of a sweep and what became of it."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hoard.records.errors import BAD_INPUT
from hoard.records.folder import STATUS, status_of
from hoard.runners.sweep.limits import Limits, Resources
from hoard.runners.sweep.local import LocalProcess, oom_kills
from hoard.runners.sweep.suite import Cell


class Process(Protocol):
    """A started cell, here (`pid`) or elsewhere (None)."""

    pid: int | None

    def poll(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True)
class Start:
    """A cell that is to be started: its command line, where its output goes, and what it is given."""

    command: list[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)  # beside that of every cell
    resources: Resources = field(default_factory=Resources)
    limits: Limits = field(default_factory=Limits)


Launcher = Callable[[Start], Process]


def start_here(start: Start) -> Process:
    """The cell as a fresh process on this machine."""
    return LocalProcess(start.command, start.log, start.env)


def end_all(processes: Sequence[Process], grace: float) -> None:
    """Ask all to end and wait `grace` seconds; after that, or at a further Ctrl-C, kill those that are still there."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace
    with contextlib.suppress(KeyboardInterrupt):
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)
    for process in processes:
        if process.poll() is None:
            process.kill()


@dataclass
class Job:
    """`status`: pending, running, finished, failed, interrupted.

    `failure` says of what kind a failure is: `diverged` (a loss was not finite), `refused` (the data, the file or an
    option cannot be used), `error`, `killed` (by a signal), `out of memory` (by the kernel), `lost` (its machine or its
    exit status went away), `time limit` or `memory limit` (the sweep's).
    """

    cell: Cell
    algo_file: Path
    log: Path
    run: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    data_hash: str | None = None
    status: str = "pending"
    failure: str | None = None
    error: str | None = None
    process: Process | None = None
    identity: dict[str, Any] | None = None  # of the process, for a later sweep to find it
    packed: int = 0  # seeds whose updates are made as one, in one process; 0 if it has its own
    company: int = 1  # runs that share its process now
    gpu: str | None = None  # those it may see, where the sweep deals them out: "0", "2,3" or ""
    attempts: int = 0  # starts in this sweep
    started: float = 0.0  # time.time() of its launch
    oom_kills: int | None = None  # the kernel's count then
    log_start: int = 0  # where this launch's output begins in the log
    over: tuple[str, str] | None = None  # kind and words of a limit that it passed
    kill_at: float | None = None  # time.time() when it will have had its time to end by itself
    entry: dict[str, Any] | None = None  # on record, once it has ended

    def fail(self, failure: str, error: str) -> None:
        self.status, self.failure, self.error = "failed", failure, error

    def command(self, results: Path) -> list[str]:
        """The command line of the run that the cell is, in this results folder."""
        return [sys.executable, str(self.algo_file), *self.args(results)]

    def args(self, results: Path) -> list[str]:
        """The options of that command."""
        more = ["--packed", str(self.packed)] if self.packed else []
        cpus = self.cell.resources.cpus or 1
        if cpus > 1 and not self.packed:  # each run of a pack would start its own
            more += ["--eval-processes", str(cpus)]
        return [*self.cell.args, "--results", str(results), "--planned", str(self.run), *more]

    def note_launch(self) -> None:
        """Remember what is so just before a launch: the time, the end of the log, how much the kernel has ended."""
        self.log_start = self.log.stat().st_size if self.log.exists() else 0
        self.started, self.oom_kills = time.time(), oom_kills()

    def own_status(self, results: Path) -> dict[str, Any]:
        """What this launch left in its run's folder about how it is; nothing if that is of an earlier launch."""
        folder = results / str(self.run)
        file = folder / STATUS
        return status_of(folder) if file.exists() and file.stat().st_mtime >= self.started else {}

    def log_text(self) -> str:
        """What this launch of the cell printed."""
        if not self.log.exists():
            return ""
        with open(self.log, "rb") as file:
            file.seek(self.log_start)
            return file.read().decode(errors="replace")


def how_it_ended(code: int, oom_before: int | None = None, oom_after: int | None = None) -> tuple[str, str]:
    """Kind of failure and words for an exit status that is no success.

    `oom_before`, `oom_after` are how many processes the kernel had ended for lack of memory, where that is known.
    """
    if code >= 0:
        return "refused" if code == BAD_INPUT else "error", f"exit status {code}"
    how = f"killed by {signal.Signals(-code).name}"
    if -code != signal.SIGKILL:
        return "killed", how
    if oom_before is not None and oom_after is not None and oom_after > oom_before:
        return "out of memory", f"{how}; the kernel was out of memory"
    return "killed", f"{how}; perhaps by the kernel, for lack of memory"


def tail(text: str, lines: int = 15) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])
