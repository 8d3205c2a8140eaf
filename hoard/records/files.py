"""Files appear whole or not at all: write beside, fsync, rename."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hoard.records.errors import BadInput


def write_atomic(path: Path, write: Callable[[Path], Any], suffix: str = "") -> None:
    """Let `write` fill a scratch file in the same folder, then move it over `path`.

    `suffix` ends the scratch file's name, for writers that go by it.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp{suffix}")
    try:
        write(scratch)
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
        folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must survive a power cut
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        scratch.unlink(missing_ok=True)


def clear_scratch(folder: Path) -> None:
    """Remove what writers that were killed left behind; only for the holder of the folder's lock."""
    for stale in folder.glob(".*.tmp*"):
        stale.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, lambda scratch: scratch.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n"))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def writable(folder: Path) -> None:
    """Raise BadInput unless files can be made in `folder` (which is made if absent)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"results folder {folder} is not writable: {error.strerror}") from error
