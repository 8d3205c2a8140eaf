"""Cells that share a process: seeds of one method on one dataset, started together (`hoard.runners.together`)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hoard.records.files import write_json
from hoard.runners.sweep import local
from hoard.runners.sweep.job import Job, Launcher, Process, Start
from hoard.runners.sweep.limits import Limits


class PackedProcess:
    """A cell's part in the process that it shares. To end it ends the others too; they resume with it."""

    def __init__(self, process: Process, code: Path) -> None:
        self._process, self._code = process, code
        self.pid = process.pid
        self._ended: int | None = None

    def poll(self) -> int | None:
        if self._ended is None:
            self._ended = self._poll()
        return self._ended

    def _poll(self) -> int | None:
        code = self._process.poll()  # asked first: the file is written before the process ends
        with contextlib.suppress(FileNotFoundError):
            told = int(self._code.read_text())
            self._code.unlink()
            return told
        if code is None:
            return None
        return code if code < 0 else local.UNKNOWN

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def start(
    launch: Launcher, jobs: Sequence[Job], results: Path, env: Mapping[str, str], limits: Limits
) -> list[PackedProcess]:
    """Start these jobs in one process; returns each one's part in it."""
    first = jobs[0]
    spec = first.log.with_suffix(".pack.json")
    codes = [job.log.with_suffix(".code") for job in jobs]
    for code in codes:
        code.unlink(missing_ok=True)
    runs = [
        {"args": job.args(results), "log": str(job.log.resolve()), "code": str(code.resolve())}
        for job, code in zip(jobs, codes)
    ]
    write_json(spec, {"size": first.packed, "runs": runs})
    command = [sys.executable, str(first.algo_file), "--pack", str(spec.resolve())]
    process = launch(Start(command, first.log, env, first.cell.resources, limits))
    return [PackedProcess(process, code) for code in codes]
