"""OGBench's sets as a source of datasets, see `hoard.datasets.source.Source`."""

from __future__ import annotations

import os

from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.ogbench import ids
from hoard.datasets.source import Progress
from hoard.records.locks import hold_file

ID_FORM = "ogbench:NAME"


def owns(dataset_id: str) -> bool:
    return dataset_id.startswith(ids.PREFIX)


def known_ids() -> list[str]:
    return ids.known_ids()


def check_id(dataset_id: str) -> None:
    ids.parse(dataset_id)


def is_at_hand(dataset_id: str) -> bool:
    return os.path.isfile(ids.parse(dataset_id).path)


def progress_unit(dataset_id: str) -> str:
    return "bytes" if ids.parse(dataset_id).thousands is None else "environment steps"


def ensure(dataset_id: str, progress: Progress | None = None) -> bool:
    """Fetch the published file, or make it; True if it was not there. Raises DatasetError."""
    request = ids.parse(dataset_id)
    if os.path.isfile(request.path):
        return False
    if request.thousands is None:
        from hoard.datasets.ogbench.download import download

        download(dataset_id, request, progress)
        return True
    from hoard.datasets.ogbench.generate import generate

    try:
        request.path.parent.mkdir(parents=True, exist_ok=True)
        with hold_file(request.path.with_name(f".{request.path.name}.lock")):
            if os.path.isfile(request.path):  # by another process, meanwhile
                return False
            generate(dataset_id, request, progress)
    except OSError as error:
        raise DatasetError(f"{dataset_id}: {request.path} cannot be written: {error}") from error
    return True


def read(dataset_id: str, progress: Progress | None = None) -> Dataset:
    from hoard.datasets.ogbench import reader

    return reader.read(dataset_id)


def metadata(dataset_id: str) -> None:
    """Nothing: a file holds arrays alone."""
