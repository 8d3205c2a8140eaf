"""Cells as processes on this machine."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: what a container or a batch system left us
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def oom_kills() -> int | None:
    """How many processes the kernel has ended for lack of memory since it started; None where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return counts[0] if counts else None


def environment() -> dict[str, str]:
    """The environment of a cell."""
    # glibc gives big blocks back to the kernel after every update unless told otherwise; the page faults cost about a
    # tenth of a small update.
    quiet = {"PYTHONUNBUFFERED": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 28), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    # How many threads torch takes is an option of the cell; NumPy would take all cores in each of them.
    return quiet | {"OPENBLAS_NUM_THREADS": "1"} | os.environ


class LocalProcess:
    """A cell as a process, its output appended to `log`."""

    def __init__(self, command: list[str], log: Path, more: Mapping[str, str] | None = None) -> None:
        env = environment() | dict(more or {})
        with open(log, "ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env
            )
        self.pid: int | None = self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        kill_tree(self._process.pid)
        self._process.kill()


# --- processes that others started ---

UNKNOWN = 1 << 20  # in place of an exit status that nobody could collect


def identity(pid: int) -> dict[str, Any] | None:
    """What tells a process from any other that may have its number later; None if it is gone."""
    try:
        return {"host": platform.node(), "pid": pid, "created": psutil.Process(pid).create_time()}
    except psutil.Error:
        return None


class AdoptedProcess:
    """A process whose parent, an earlier sweep, is gone, and its exit status with it."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.pid: int | None = process.pid

    def poll(self) -> int | None:
        with contextlib.suppress(psutil.Error):
            if self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE:
                return None
        return UNKNOWN

    def terminate(self) -> None:
        with contextlib.suppress(psutil.Error):
            self._process.terminate()

    def kill(self) -> None:
        kill_tree(self._process.pid)


def adopt(known: dict[str, Any] | None) -> AdoptedProcess | None:
    """The process behind an `identity`, if it is still at work on this machine."""
    if not known or known.get("host") != platform.node():
        return None
    try:
        process = psutil.Process(known["pid"])
        # The clock may have been set a little since; a number is not given again that soon.
        if abs(process.create_time() - known["created"]) > 1.0 or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.Error:
        return None
    return AdoptedProcess(process)


def process_of(pid: int) -> AdoptedProcess | None:
    """The process of this number, if there is one."""
    try:
        return AdoptedProcess(psutil.Process(pid))
    except psutil.Error:
        return None


def resident(pid: int) -> int:
    """Resident bytes of a process and its children, counted together; 0 if it is gone."""
    return sum(map(_resident, tree(pid)))


def tree(pid: int) -> list[psutil.Process]:
    """A process and all its children; nothing if it is gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and its children."""
    for process in reversed(tree(pid)):
        with contextlib.suppress(psutil.Error):
            process.kill()
