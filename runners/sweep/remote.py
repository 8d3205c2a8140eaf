"""Cells on other machines, which share this file system and this environment: what all clusters have in common.

On its machine a cell is watched (`Watch`): there it gets its limits, and its time begins when it starts, not when it
was put into a queue. The cluster itself starts nothing again; the sweep does, from the checkpoint.
"""

from __future__ import annotations

import abc
import contextlib
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from hoard.records.errors import STOPPED
from hoard.runners.sweep.job import Job, Process, Start, how_it_ended
from hoard.runners.sweep.limits import GRACE, Limits
from hoard.runners.sweep.local import UNKNOWN, environment, kill_tree, oom_kills

_LOOK = 0.5  # seconds between two looks at what a cell takes


def order_of(start: Start) -> dict[str, Any]:
    """What the machine of a cell is told of it: plain values, the folder of this process among them."""
    return {
        "command": start.command,
        "log": str(start.log.resolve()),
        "env": dict(start.env),
        "folder": str(Path.cwd()),
        "seconds": start.limits.seconds,
        "memory": start.limits.memory,
    }


class Watch:
    """A cell, and what ends it, on the machine where it runs."""

    def __init__(self, order: dict[str, Any], deaf_to: int | None = None) -> None:
        """`deaf_to`: a signal that the cell itself is not to hear."""
        self._limits = Limits(seconds=order["seconds"], memory=order["memory"])
        self._oom_kills, self._started = oom_kills(), time.time()
        self._ending: tuple[str, str] | None = None
        self._kill_at: float | None = None
        with open(order["log"], "ab") as log:
            self._process = subprocess.Popen(
                order["command"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment() | order["env"],
                cwd=order["folder"],
                preexec_fn=None if deaf_to is None else lambda: signal.signal(deaf_to, signal.SIG_IGN),
            )

    def end(self, ending: tuple[str, str] | None = None, grace: float = GRACE) -> None:
        """Ask the cell to end with a checkpoint, and kill it later if need be. `ending`: kind of failure, and words."""
        if self._kill_at is None:
            self._ending, self._kill_at = ending, time.time() + grace
            self._process.terminate()

    def wait(self) -> dict[str, Any]:
        """How the cell ended: its exit status as `code`, and the `ending` if more is known than it says."""
        code = None
        while code is None:
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = self._process.wait(timeout=_LOOK)
                if code is None:
                    self._look()
            except KeyboardInterrupt:  # how Ray tells a task that it is cancelled
                self.end()
        if self._ending is None and code < 0:
            self._ending = how_it_ended(code, self._oom_kills, oom_kills())
        if self._ending is None and self._kill_at is not None and code != 0:
            code = STOPPED
        return {"code": code, "ending": self._ending}

    def _look(self) -> None:
        if self._kill_at is not None:
            if time.time() >= self._kill_at:
                kill_tree(self._process.pid)
        elif passed := self._limits.passed(self._started, self._process.pid):
            if passed[0] == "time limit":
                self.end(passed)
            else:
                self._ending, self._kill_at = passed, time.time()
                kill_tree(self._process.pid)


class RemoteProcess(abc.ABC):
    """A cell that a cluster has."""

    pid: int | None = None
    ending: tuple[str, str] | None = None  # kind of failure and words, if more is known than the exit status says
    pause = 0.0  # seconds from one look to the next

    def __init__(self) -> None:
        self._code: int | None = None
        self._next_look = 0.0

    @property
    def identity(self) -> dict[str, Any] | None:
        """What a later sweep finds it by; None where it cannot."""
        return None

    @abc.abstractmethod
    def look(self) -> dict[str, Any] | None:
        """What `Watch.wait` returned there, or `lost`; None while it runs or is queued."""

    @abc.abstractmethod
    def terminate(self) -> None: ...

    @abc.abstractmethod
    def kill(self) -> None: ...

    def poll(self) -> int | None:
        if self._code is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self.pause
            if told := self.look():
                self._code = told["code"]
                self.ending = tuple(told["ending"]) if told["ending"] else None
        return self._code


def lost(how: str) -> dict[str, Any]:
    """The end of a cell whose machine went away with it; its checkpoint did not."""
    return {"code": UNKNOWN, "ending": ("lost", how)}


class Cluster(abc.ABC):
    """A launcher of cells on other machines."""

    counts_cells = False  # whether `jobs` is a number of cells, however many CPUs each asks for
    keeps_cells = False  # whether cells stay there when the sweep is interrupted, and are adopted by the next

    @abc.abstractmethod
    def __call__(self, start: Start) -> RemoteProcess: ...

    @abc.abstractmethod
    def cannot_have(self, job: Job) -> str | None:
        """Why a cell can never get what its suite says it needs, if so."""

    def adopt(self, known: dict[str, Any] | None) -> Process | None:
        """The cell behind the `identity` of an earlier sweep's, if it is still there."""
        return None

    def farewell(self, count: int) -> str:
        """What an interrupted sweep says of the cells that it leaves."""
        return ""
