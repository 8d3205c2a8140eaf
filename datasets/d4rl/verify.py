"""Whether a file is the one D4RL published, as far as its size and hash are known."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import h5py

from hoard.datasets.d4rl.table import Entry
from hoard.datasets.dataset import DatasetError


def why_wrong(entry: Entry, path: Path) -> str:
    """Why the file at `path` is not the published one, or ''. An uncertain hash is only warned of."""
    size = path.stat().st_size
    if entry.size and size != entry.size and entry.hash_is_certain:
        return f"has {size:,} bytes instead of {entry.size:,}"
    if not h5py.is_hdf5(path):
        return "is no HDF5 file"
    if entry.sha256 and (found := sha256_of(path)) != entry.sha256:
        if entry.hash_is_certain:
            return f"has SHA-256 {found} instead of {entry.sha256}"
        warnings.warn(f"{entry.file_name} has SHA-256 {found}, a secondary source says {entry.sha256}", stacklevel=4)
    return ""


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(dataset_id: str, entry: Entry, path: Path, stamped: bool) -> None:
    """Raise DatasetError unless `path` is the published file, as far as its size and hash are known.

    With `stamped` the hash is computed once; a small file beside it remembers size, time and result.
    """
    if not entry.sha256 or (stamped and _stamp(path).is_file() and _read(_stamp(path)) == _stamp_text(path, entry)):
        return
    if why := why_wrong(entry, path):
        if why == "is no HDF5 file" and not entry.hash_is_certain:
            return  # the reader says it better
        raise DatasetError(
            f"{dataset_id}: {path} {why}: it is not D4RL's {entry.file_name} (damaged, or still being copied?). Move "
            f"it away to fetch it again; a file of your own is read as d4rl:PATH.hdf5+as={entry.name}"
        )
    if stamped and entry.hash_is_certain:
        remember(path, entry, path)


def remember(checked: Path, entry: Entry, path: Path) -> None:
    """Note beside `path` that the file, now at `checked`, has been hashed. A folder that is read-only is left alone."""
    stamp = _stamp(path)
    try:
        scratch = stamp.with_name(f"{stamp.name}.{os.getpid()}")
        scratch.write_text(_stamp_text(checked, entry))
        os.replace(scratch, stamp)
    except OSError:
        return


def _stamp(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _stamp_text(path: Path, entry: Entry) -> str:
    status = path.stat()
    return f"{entry.sha256} {status.st_size} {status.st_mtime_ns}\n"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
