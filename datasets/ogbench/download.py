"""Fetch one of OGBench's published files: resumed where it broke off, in its place whole or not at all."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from hoard.datasets.dataset import DatasetError
from hoard.datasets.ogbench.ids import Request
from hoard.datasets.source import Progress
from hoard.datasets.transfer import Broken, fetch
from hoard.records.locks import hold_file


def download(dataset_id: str, request: Request, progress: Progress | None = None) -> None:
    """Bring the file to `request.path`. `progress(done, total)` counts bytes.

    OGBench publishes no hashes, so what came is checked by the checksums inside the archive. Raises DatasetError: no
    network, the server refuses, a damaged archive, no room; it says where to put the file by hand.
    """
    path = request.path
    part = path.with_name(f"{path.name}.part")

    def fail(why: str) -> DatasetError:
        return DatasetError(
            f"{dataset_id}: {why}; fetch {request.url} by hand and put it into {path.parent} as {path.name} "
            "(OGBENCH_DATASET_DIR sets the folder), or add a length to make such data here, as in "
            "ogbench:cube-single-noisy-100k-singletask-v0"
        )

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold_file(path.with_name(f"{path.name}.lock")):
            if path.is_file():  # by another process, meanwhile
                return
            try:
                fetch(request.url, part, 0, progress or (lambda done, total: None))
            except Broken as error:
                kept = f"; {part.stat().st_size:,} bytes are kept and will be resumed" if part.is_file() else ""
                raise fail(f"cannot download it ({error}){kept}") from error
            if why := why_damaged(part):
                os.replace(part, part.with_suffix(".rejected"))
                raise fail(f"what the server gave {why}; it was put aside as {part.with_suffix('.rejected').name}")
            os.replace(part, path)
    except OSError as error:  # not allowed, no room, a file in place of the folder
        raise fail(f"cannot write to {path.parent}: {error.strerror or error}") from error


def why_damaged(path: Path) -> str:
    """What is wrong with an archive, or nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        return f"is no npz archive ({error})"
    return f"is damaged at {bad}" if bad else ""
