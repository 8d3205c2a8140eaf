"""Cells that need not import torch: forked from a process that has imported what every cell imports.

`python -m hoard.runners.sweep.warm` is that process, the template. It runs no line of any algorithm, starts no thread
and touches no accelerator. For each request it forks; the child takes the cell's command line, log, folder and
environment and runs the algorithm file as `__main__`, as a fresh interpreter would. So each cell is still a process of
its own, with a number that can be killed, and its result has the same bits. The template ends when its sweep does; the
cells go on.

multiprocessing's fork server would import the main module of the sweep into every cell and hand work over by pickle.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hoard.runners.sweep import local
from hoard.runners.sweep.job import Process, Start, start_here
from hoard.runners.sweep.local import AdoptedProcess

# What cells import, the slow part of it: torch with what its optimisers load at first use, data, environments, options.
PRELOAD = (
    "torch",
    "torch._dynamo",
    "hoard.runners.entry",
    "hoard.runners.nn",
    "hoard.runners.training_env",
    "hoard.datasets.replay",
    "hoard.datasets.minari.reader",
    "hoard.envs",
    "gymnasium.envs.mujoco",
    "pyarrow.parquet",
    "safetensors.torch",
)


# --- in the sweep ---


class WarmLauncher:
    """Starts cells from a template, or as fresh processes where that cannot be had; `note` says why then.

    Close it when the sweep has ended.
    """

    def __init__(self) -> None:
        self.note: str | None = None
        self._template: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._codes: dict[int, int] = {}

    def __call__(self, start: Start) -> Process:
        open(start.log, "ab").close()  # here, where a folder that went away or a full disk is told
        for _ in range(2):  # the second time with a new template, if the first was killed
            if self.note is not None or not self._ready():
                break
            ignored = [int(n) for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
            request: dict[str, Any] = {"argv": start.command[1:], "log": str(start.log.resolve()), "ignored": ignored}
            request |= {"cwd": os.getcwd(), "env": local.environment() | dict(start.env)}
            assert self._template
            assert self._template.stdin
            with contextlib.suppress(BrokenPipeError):
                self._template.stdin.write(json.dumps(request).encode() + b"\n")
                self._template.stdin.flush()
            if started := self._answer("started"):
                self._codes.pop(started["started"], None)  # of an earlier process with this number
                return WarmProcess(self, self._template, started["started"])
        return start_here(start)

    def _ready(self) -> bool:
        if self._template is not None and self._template.poll() is None:
            return True
        self.close()
        self._unread = b""
        # Arrow's allocator would start a thread when it is imported.
        env = {"JE_ARROW_MALLOC_CONF": "background_thread:false"} | local.environment()
        with tempfile.TemporaryFile() as complaints:
            self._template = subprocess.Popen(
                [sys.executable, "-m", "hoard.runners.sweep.warm"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, env=env,
            )  # fmt: skip
            told = self._answer("ready")
            if told is None:
                complaints.seek(0)
                lines = complaints.read().decode(errors="replace").strip().splitlines()
                self.note = lines[-1] if lines else f"it ended with status {self._template.wait()}"
            elif told["ready"] is not True:
                self.note = str(told["ready"])
        return self.note is None

    def _answer(self, name: str) -> dict[str, Any] | None:
        """The next answer that has `name`; others are taken in on the way. None if the template has ended."""
        while True:
            for told in self._answers(wait=True):
                if name in told:
                    return told
                if "closed" in told:
                    return None

    def _answers(self, wait: bool = False) -> list[dict[str, Any]]:
        assert self._template
        assert self._template.stdout
        answers: list[dict[str, Any]] = []
        while select.select([self._template.stdout], [], [], None if wait and not answers else 0)[0]:
            data = os.read(self._template.stdout.fileno(), 1 << 16)
            if not data:
                return [*answers, {"closed": True}]
            *lines, self._unread = (self._unread + data).split(b"\n")
            for told in map(json.loads, lines):
                if "ended" in told:
                    self._codes[told["ended"]] = told["code"]
                answers.append(told)
        return answers

    def code_of(self, template: subprocess.Popen[bytes], pid: int) -> int | None:
        """Exit status of a cell that `template` started, if it has ended and was told; negative for a signal."""
        if template is self._template:
            self._answers()
        return self._codes.get(pid)

    def close(self) -> None:
        """Let the template end. Cells go on."""
        if self._template is None:
            return
        with contextlib.suppress(BrokenPipeError):
            for stream in (self._template.stdin, self._template.stdout):
                if stream:
                    stream.close()
        self._template.kill()
        self._template.wait()
        self._template = None


class WarmProcess:
    """A cell that a template started."""

    def __init__(self, launcher: WarmLauncher, template: subprocess.Popen[bytes], pid: int) -> None:
        self._launcher, self._template = launcher, template
        self.pid: int | None = pid
        self._pid = pid
        self._code: int | None = None
        self._alone: AdoptedProcess | None = None  # its template has ended and can tell no status

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._launcher.code_of(self._template, self._pid)
        if self._code is None and self._template.poll() is not None:
            self._alone = self._alone or local.process_of(self._pid)
            self._code = self._alone.poll() if self._alone else local.UNKNOWN
        return self._code

    def terminate(self) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            local.kill_tree(self._pid)


# --- in the template, and in its cells ---


def unfit() -> str | None:
    """Why this process cannot be forked safely, if so."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():  # macOS, whose own libraries do not bear a fork once they have threads
        return "this system does not say which threads a process has"
    threads = len(list(tasks.iterdir()))
    return f"what cells import has started {threads - 1} threads" if threads > 1 else None


def serve() -> dict[str, Any] | None:
    """Fork for each request; returns the request in a child, None in the template when its sweep has ended."""
    requests, answers = os.dup(0), os.dup(1)
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    woken.setblocking(False)
    for number in (signal.SIGINT, signal.SIGHUP):  # they are the sweep's and the cells'
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def tell(**answer: Any) -> None:
        os.write(answers, json.dumps(answer).encode() + b"\n")

    why = unfit()
    tell(ready=why or True)
    if why:
        return None
    unread = b""
    while True:
        ready, _, _ = select.select([requests, woken.fileno()], [], [])
        if woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                tell(ended=ended[0], code=os.waitstatus_to_exitcode(ended[1]))
        if requests not in ready:
            continue
        if not (data := os.read(requests, 1 << 16)):
            return None
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            if pid := os.fork():
                tell(started=pid)
                continue
            signal.set_wakeup_fd(-1)
            woken.close()
            waker.close()
            os.close(requests)
            os.close(answers)
            return json.loads(line)


def become(request: dict[str, Any]) -> None:
    """Turn this process into the cell that was asked for, and run it."""
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else usual)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    # In a fresh process the stream that belongs to nobody begins anywhere; here it would begin alike in all cells.
    importlib.import_module("numpy.random").seed()
    file = request["argv"][0]
    sys.argv = list(request["argv"])
    sys.path[0] = str(Path(file).parent)
    runpy.run_path(file, run_name="__main__")


def main() -> None:
    for name in PRELOAD:
        importlib.import_module(name)
    request = serve()
    if request is not None:
        become(request)


if __name__ == "__main__":
    main()
