"""Fetch one of D4RL's files: resumed where a broken download stopped, checked, and in its place whole or not at all.

While it is coming the file is called NAME.hdf5.part; another process that wants it waits at NAME.hdf5.lock.
"""

from __future__ import annotations

import os
from pathlib import Path

from hoard.datasets.d4rl import table
from hoard.datasets.d4rl.table import Entry
from hoard.datasets.d4rl.verify import remember, why_wrong
from hoard.datasets.dataset import DatasetError
from hoard.datasets.source import Progress
from hoard.datasets.transfer import Broken, fetch
from hoard.records.locks import hold_file


def url_of(entry: Entry) -> str:
    return table.BASE_URL + entry.path


def download(dataset_id: str, entry: Entry, folder: Path, progress: Progress | None = None) -> Path:
    """Bring `entry`'s file into `folder` and return its path. `progress(done, total)` counts bytes.

    Raises DatasetError: no network, the server refuses, the file is not the published one (size, SHA-256 where known,
    HDF5 signature), no room. The message says where to put the file by hand. Nothing that lies in `folder` is deleted.
    """
    path, part = folder / entry.file_name, folder / f"{entry.file_name}.part"

    def fail(why: str, kept: str = "") -> DatasetError:
        by_hand = f"fetch {url_of(entry)} by hand and put it into {folder} as {entry.file_name}"
        return DatasetError(f"{dataset_id}: {why}; {kept}{by_hand} (D4RL_DATASET_DIR sets the folder)")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold_file(folder / f"{entry.file_name}.lock"):
            if path.is_file():  # by another process, meanwhile
                return path
            try:
                fetch(url_of(entry), part, entry.size, progress or (lambda done, total: None))
            except Broken as error:
                kept = f"{part.stat().st_size:,} bytes are kept and will be resumed, or " if part.is_file() else ""
                raise fail(f"cannot download it ({error})", kept) from error
            if why := why_wrong(entry, part):
                rejected = part.with_suffix(".rejected")
                os.replace(part, rejected)
                raise fail(f"what {url_of(entry)} gave {why}; it was put aside as {rejected.name}")
            if entry.sha256 and entry.hash_is_certain:
                remember(part, entry, path)
            os.replace(part, path)
            return path
    except OSError as error:  # not allowed, no room, a file in place of the folder
        raise fail(f"cannot write to {folder}: {error.strerror or error}") from error
