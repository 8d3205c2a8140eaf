"""The folder of Minari datasets: what is in it, who may work on a dataset, how one gets there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hoard.datasets.dataset import DatasetError
from hoard.records.locks import hold_file
from hoard.records.names import dataset_slug

ROOT = "MINARI_DATASETS_PATH"
_NAMESPACE = "namespace_metadata.json"  # as Minari calls it


def path_of(dataset_id: str) -> Path:
    """Folder of a Minari dataset under MINARI_DATASETS_PATH (default ~/.minari/datasets); "" gives that root.

    Raises DatasetError if the root is no folder and cannot be made.
    """
    try:
        root = Path(os.environ.get(ROOT) or Path.home() / ".minari" / "datasets")
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{dataset_id}: no folder for Minari datasets ({error}); set {ROOT}") from error
    return root / dataset_id


def is_stored(dataset_id: str) -> bool:
    """Whether the dataset is on this disk. Raises DatasetError where the file system cannot say."""
    try:
        return (path_of(dataset_id) / "data" / "metadata.json").is_file()
    except OSError as error:  # not allowed to look, or a name too long
        raise DatasetError(f"{dataset_id}: {error}") from error


def stored_ids() -> list[str]:
    """Ids of the datasets on this disk, sorted; none if the root cannot be read. Hidden folders are unfinished work."""
    try:
        root = path_of("")
    except DatasetError:
        return []
    found = []
    for folder, inner, _ in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        if (Path(folder) / "data" / "metadata.json").is_file():
            found.append(Path(folder).relative_to(root).as_posix())
            inner.clear()  # the arrow format has a folder for each episode in there
    return sorted(found)


@contextmanager
def making(dataset_id: str) -> Iterator[None]:
    """Hold the right to generate or fetch `dataset_id`; a second process waits here and then finds it stored.

    Raises DatasetError, before the work, where its result could not be put in place.
    """
    root, target = path_of(""), path_of(dataset_id)
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock_file = root / f".{dataset_slug(dataset_id)}.lock"
            lock_file.touch()
        except OSError as error:
            raise DatasetError(f"{dataset_id}: cannot write to {root} ({error}); set {ROOT}") from error
        with hold_file(lock_file):
            if target.exists() and not is_stored(dataset_id):
                raise DatasetError(f"{dataset_id}: {target} is there without data/metadata.json; move it away")
            yield
    finally:
        for parent in target.parents:  # leave no empty namespaces behind a failure
            if parent == root:
                break
            with suppress(OSError):  # not empty, not there, not ours
                parent.rmdir()


@contextmanager
def scratch(dataset_id: str) -> Iterator[Path]:
    """A hidden folder under the root, gone afterwards. The caller holds the dataset's lock, so any other is stale."""
    root, prefix = path_of(""), f".{dataset_slug(dataset_id)}.tmp-"
    for stale in root.glob(prefix + "*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, dataset_id: str) -> None:
    """Rename a complete folder into its place. Its bytes reach the disk first: after a power cut, whole or absent."""
    if not (folder / "data" / "metadata.json").is_file():
        raise FileNotFoundError(f"no data/metadata.json came for {dataset_id}")
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    target = path_of(dataset_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    _declare_namespaces(dataset_id)
    folder.chmod(0o755)
    os.rename(folder, target)


def _declare_namespaces(dataset_id: str) -> None:
    """Minari lists a dataset only if every folder above it declares itself a namespace."""
    folder = path_of(dataset_id).parent
    while folder != path_of(""):
        marker = folder / _NAMESPACE
        if not marker.exists():
            marker.write_text(json.dumps({}))
        folder = folder.parent
