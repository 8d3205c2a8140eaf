"""A run that goes on although the tuner that started it is gone."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import psutil

from hoard.records.errors import FAILED, OK, STOPPED
from hoard.records.folder import status_of
from hoard.records.locks import is_locked
from hoard.runners.sweep.local import AdoptedProcess


class Orphan:
    """The process that works in a run's folder, as if it were ours: waited for, and stopped with its trial.

    It may be that of another machine: then it can only be waited for.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.pid: int | None = None

    def poll(self) -> int | None:
        """The status it would have ended with, by what it left in its folder; None while it works."""
        if is_locked(self._folder):
            return None
        status = status_of(self._folder)["status"]
        return {"finished": OK, "interrupted": STOPPED, "failed": FAILED}.get(status, -signal.SIGKILL)

    def terminate(self) -> None:
        if process := self._process():
            process.terminate()

    def kill(self) -> None:
        if process := self._process():
            process.kill()

    def _process(self) -> AdoptedProcess | None:
        """The one that the folder names, if it is here and that run's indeed."""
        run = "/".join(self._folder.parts[-4:])
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(status_of(self._folder).get("pid") or 0)
            return AdoptedProcess(process) if run in process.cmdline() else None
        return None
