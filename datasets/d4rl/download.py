"""Fetch one of D4RL's files: resumed where a broken download stopped, checked, and in its place whole or not at all.

While it is coming the file is called NAME.hdf5.part; another process that wants it waits at NAME.hdf5.lock.
"""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from hoard.datasets.d4rl import table
from hoard.datasets.d4rl.table import Entry
from hoard.datasets.d4rl.verify import remember, why_wrong
from hoard.datasets.dataset import DatasetError
from hoard.datasets.source import Progress
from hoard.records.locks import hold_file

_BLOCK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_ATTEMPTS = 4  # of which each must bring the download forward


class _Broken(Exception):
    """A transfer that stopped; what has come is kept."""


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
                _fetch(entry, part, progress or (lambda done, total: None))
            except _Broken as error:
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


def _fetch(entry: Entry, part: Path, progress: Progress) -> None:
    """Fill `part`. Raises _Broken when no attempt brings it forward any more."""
    for attempt in range(_ATTEMPTS):
        before = part.stat().st_size if part.is_file() else 0
        try:
            return _transfer(url_of(entry), part, entry.size, progress)
        except urllib.error.HTTPError as error:
            raise _Broken(f"{url_of(entry)} answered {error.code} {error.reason}") from error
        # OSError: URLError, time-out, reset; ValueError: an answer that is no HTTP
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.filename:  # of the disk, not of the network
                raise
            after = part.stat().st_size if part.is_file() else 0
            if attempt == _ATTEMPTS - 1 or after <= before:
                reason = getattr(error, "reason", None) or error
                raise _Broken(f"{url_of(entry)}: {reason or type(error).__name__}") from error


def _transfer(url: str, part: Path, size: int, progress: Progress) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if size and have == size:  # only the check and the renaming were missed
        return
    if size and have > size:
        have = 0
    headers = {"User-Agent": "hoard", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # what we have does not fit this file
            part.unlink()
            return _transfer(url, part, size, progress)
        raise
    with answer:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range") or "")
        resumed = answer.status == 206 and span is not None and int(span[1]) == have
        if answer.status == 206 and not resumed:
            raise http.client.HTTPException(f"the server answered a request for bytes {have}- with {span and span[0]}")
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else size
        with open(part, "ab" if resumed else "wb") as file:
            progress(have, total)
            while block := answer.read(_BLOCK):
                file.write(block)
                have += len(block)
                progress(have, max(total, have))
            file.flush()
            os.fsync(file.fileno())
        if total and have < total:
            raise http.client.IncompleteRead(b"", total - have)
