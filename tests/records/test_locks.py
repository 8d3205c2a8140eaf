"""Locks that wait: one holder at a time, on a handle that network file systems take."""

import fcntl
import os
import threading

from hoard.records import locks


def test_a_second_holder_waits(tmp_path):
    order = []
    entered, may_leave = threading.Event(), threading.Event()

    def first():
        with locks.hold_file(tmp_path / "x.lock"):
            order.append("first in")
            entered.set()
            may_leave.wait(10)
            order.append("first out")

    def second():
        with locks.hold_file(tmp_path / "x.lock"):
            order.append("second in")

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert entered.wait(10)
    two.start()
    two.join(0.2)
    assert two.is_alive()
    may_leave.set()
    one.join(10)
    two.join(10)
    assert order == ["first in", "first out", "second in"]
    assert (tmp_path / "x.lock").is_file()


def test_a_folder_of_somebody_else_can_be_looked_at(tmp_path, monkeypatch):
    """Whose lock may be read, not written; a shared lock on it tells whether it is held."""
    held = locks.lock_folder(tmp_path)
    real = open

    def refuse(file, mode="r", *more):
        if mode != "r":
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, mode, *more)

    monkeypatch.setattr("builtins.open", refuse)
    assert locks.is_locked(tmp_path)
    held.close()
    assert not locks.is_locked(tmp_path)


def test_an_exclusive_lock_is_taken_on_a_handle_open_for_writing(tmp_path, monkeypatch):
    """Linux' NFS turns flock into a byte-range lock, which an exclusive one on a read-only handle is refused."""
    modes = []
    real = fcntl.flock

    def flock(file, operation):
        modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)
        fcntl.lockf(file, operation)  # what NFS does: fails with EBADF on a read-only handle
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.hold_file(tmp_path / "x.lock"):
        pass
    locks.lock_folder(tmp_path).close()
    assert locks.is_locked(tmp_path) is False
    assert modes == [os.O_RDWR] * 3
