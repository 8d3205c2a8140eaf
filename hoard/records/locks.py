"""Locks on folders. The kernel releases them with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hoard.records.errors import Busy

_NAME = ".lock"


def lock_folder(folder: Path, note: str = "") -> IO[str]:
    """Hold `folder` until the returned file is closed; `note` is what others read about the holder.

    Raises Busy, with the holder's note, if another process has it.
    """
    lock = open(folder / _NAME, "a+")  # noqa: SIM115
    for last in (False, False, True):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not last:  # perhaps somebody merely looks (`is_locked`)
                time.sleep(0.02)
                continue
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise Busy(f"another process{f' ({holder})' if holder else ''} is working in {folder}") from None
    lock.truncate(0)
    lock.write(note)
    lock.flush()
    return lock


def is_locked(folder: Path) -> bool:
    """Whether a process holds `folder`. It may be somebody else's, to whose files nothing can be written."""
    try:
        try:
            lock, kind = open(folder / _NAME, "r+"), fcntl.LOCK_EX  # noqa: SIM115
        except PermissionError:
            lock, kind = open(folder / _NAME), fcntl.LOCK_SH  # noqa: SIM115
        with lock:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)  # NFS: an exclusive lock for writers, a shared one for readers
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def hold_file(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which is made where needed and stays. Waits while another process holds it."""
    with open(path, "a+") as lock:  # readable and writable: NFS gives an exclusive lock to no read-only handle
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
