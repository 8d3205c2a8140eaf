"""A cell of a cluster is watched where it runs."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from hoard.records.errors import STOPPED
from hoard.runners.sweep import remote
from hoard.runners.sweep.job import Start
from hoard.runners.sweep.limits import Limits
from hoard.runners.sweep.local import UNKNOWN
from hoard.runners.sweep.remote import RemoteProcess, Watch, order_of

HEEDS = (
    "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(130))\nprint('up', flush=True)\ntime.sleep(600)\n"
)
DEAF = HEEDS.replace("lambda *_: sys.exit(130)", "signal.SIG_IGN")
LEAKS = "import time\nblock = bytearray(300 << 20)\ntime.sleep(600)\n"


def watched(tmp_path, program: str, limits: Limits | None = None) -> Watch:
    command = [sys.executable, "-c", program]
    return Watch(order_of(Start(command, tmp_path / "log", {"HOARD_TEST": "yes"}, limits=limits or Limits())))


def when_up(tmp_path, then) -> None:
    """Call `then` in a thread once the cell has printed."""

    def wait() -> None:
        while "up" not in (tmp_path / "log").read_text():
            time.sleep(0.02)
        then()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(
    ("program", "code", "ending"),
    [
        ("print('fine')", 0, None),
        ("raise SystemExit(3)", 3, None),
        ("import os\nassert os.environ['HOARD_TEST'] == 'yes'", 0, None),
        ("import os\nos.kill(os.getpid(), 11)", -11, ("killed", "killed by SIGSEGV")),
    ],
)
def test_how_a_cell_ended_is_told(tmp_path, program, code, ending):
    assert watched(tmp_path, program).wait() == {"code": code, "ending": ending}


def test_a_cancel_while_limits_are_looked_at_ends_the_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_LOOK", 0.05)
    watch = watched(tmp_path, HEEDS)
    look = watch._look

    def cancelled() -> None:
        if watch._kill_at is None and "up" in (tmp_path / "log").read_text():
            raise KeyboardInterrupt
        look()

    monkeypatch.setattr(watch, "_look", cancelled)
    assert watch.wait() == {"code": STOPPED, "ending": None}


def test_limits_are_held_where_the_cell_is(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_LOOK", 0.05)
    told = watched(tmp_path, LEAKS, Limits(memory=200 << 20)).wait()
    assert (told["code"], told["ending"][0]) == (-9, "memory limit")
    assert "over the memory limit of 200 MiB" in told["ending"][1]
    told = watched(tmp_path, HEEDS, Limits(seconds=1)).wait()
    assert told["ending"][0] == "time limit"


def test_a_cell_that_is_asked_to_end_may_write_its_checkpoint(tmp_path):
    watch = watched(tmp_path, HEEDS)
    when_up(tmp_path, watch.end)
    assert watch.wait() == {"code": STOPPED, "ending": None}


def test_a_cell_that_does_not_hear_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_LOOK", 0.05)
    watch = watched(tmp_path, DEAF)
    when_up(tmp_path, lambda: watch.end(("lost", "its node goes"), grace=0.2))
    assert watch.wait() == {"code": -9, "ending": ("lost", "its node goes")}


def test_what_was_told_is_not_asked_for_again():
    answers = [None, remote.lost("gone")]

    class Process(RemoteProcess):
        def look(self):
            return answers.pop(0)

        def terminate(self) -> None: ...

        def kill(self) -> None: ...

    process = Process()
    assert [process.poll() for _ in range(4)] == [None, UNKNOWN, UNKNOWN, UNKNOWN]
    assert process.ending == ("lost", "gone")
