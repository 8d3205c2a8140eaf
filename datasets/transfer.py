"""Fetch a file over HTTP, resumed where a broken transfer stopped."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from hoard.datasets.source import Progress

_BLOCK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_ATTEMPTS = 4  # of which each must bring the download forward


class Broken(Exception):
    """A transfer that stopped; what has come is kept."""


def fetch(url: str, part: Path, size: int, progress: Progress) -> None:
    """Fill `part`, which may hold a beginning, with what `url` gives: `size` bytes, 0 if that is not known.

    `progress(done, total)` counts bytes. Raises Broken when no attempt brings the file forward any more, OSError of the
    disk.
    """
    for attempt in range(_ATTEMPTS):
        before = part.stat().st_size if part.is_file() else 0
        try:
            return _transfer(url, part, size, progress)
        except urllib.error.HTTPError as error:
            raise Broken(f"{url} answered {error.code} {error.reason}") from error
        # OSError: URLError, time-out, reset; ValueError: an answer that is no HTTP
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError) and error.filename:  # of the disk, not of the network
                raise
            after = part.stat().st_size if part.is_file() else 0
            if attempt == _ATTEMPTS - 1 or after <= before:
                reason = getattr(error, "reason", None) or error
                raise Broken(f"{url}: {reason or type(error).__name__}") from error


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
