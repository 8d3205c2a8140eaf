"""The runs of a pack: a thread each in one process, their updates made as one (`hoard.runners.pack`).

A sweep starts it by the algorithm file's own command line, with `--pack FILE`. The file names each run's options, log
and a place for the exit status that the run would have had as a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from hoard.records.errors import FAILED, OK
from hoard.records.files import write_atomic
from hoard.runners.pack import Member, Pack
from hoard.runners.run import Run


class Company:
    """Joins runs to a pack, each from its own thread, and stops them when they are asked to."""

    def __init__(self, count: int, size: int) -> None:
        pack = Pack(size)
        self._runs: dict[Member, Run] = {}
        self.members = [pack.join(self._position_of) for _ in range(count)]
        self.stop_requested = False

    def begin(self, member: Member, run: Run) -> None:
        """Say which run a member makes."""
        self._runs[member] = run
        run.stop_requested |= self.stop_requested

    def stop(self, *_: object) -> None:
        """Ask all runs to stop, those too that are yet to begin."""
        self.stop_requested = True
        for run in list(self._runs.values()):
            run.stop_requested = True

    def _position_of(self, member: Member) -> tuple[int, int]:
        return self._runs[member].position


def run_together(spec: Path, run_one: Callable[[Sequence[str], Callable[[Run], None]], int]) -> int:
    """Make the runs that the file `spec` lists; returns 0 if all finished.

    `run_one` makes one from its command line, calls back once it has begun, and returns its exit status.
    """
    given = json.loads(spec.read_text())
    listed: list[dict[str, Any]] = given["runs"]
    company, codes = Company(len(listed), given["size"]), [FAILED] * len(listed)
    outputs = _Outputs(sys.stdout)
    starting = threading.Lock()  # one after the other: what reads command lines is not made for threads

    def work(k: int) -> None:
        member, own = company.members[k], listed[k]
        with open(own["log"], "a") as log, member, contextlib.ExitStack() as held:
            outputs.follow(log)
            held.enter_context(starting)

            def begun(run: Run) -> None:
                company.begin(member, run)
                held.close()

            try:
                codes[k] = run_one(own["args"], begun)
            except BaseException:  # as a process of its own it would end with this
                traceback.print_exc()
        write_atomic(Path(own["code"]), lambda scratch: scratch.write_text(str(codes[k])))

    usual = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = outputs
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored: nohup wants the runs to go on
            signal.signal(number, company.stop)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(listed))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.stdout, sys.stderr = usual
    return max(codes, default=OK)


class _Outputs(io.TextIOBase):
    """Standard output that goes to each thread's own log, where it has one."""

    def __init__(self, otherwise: TextIO) -> None:
        self._otherwise, self._own = otherwise, threading.local()

    def follow(self, log: TextIO) -> None:
        """Send what this thread writes to `log`."""
        self._own.log = log

    def write(self, text: str) -> int:
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()

    @property
    def _file(self) -> TextIO:
        log = getattr(self._own, "log", self._otherwise)
        return self._otherwise if log.closed else log
