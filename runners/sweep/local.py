"""Cells as processes on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


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
    return quiet | os.environ


class LocalProcess:
    """A cell as a process, its output appended to `log`."""

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
