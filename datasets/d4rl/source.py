"""D4RL's files as a source of datasets, see `hoard.datasets.source.Source`."""

from __future__ import annotations

import os

from hoard.datasets.d4rl.ids import NAMES, PREFIX, folder, parse
from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.source import Progress

ID_FORM = "d4rl:NAME"


def owns(dataset_id: str) -> bool:
    return dataset_id.startswith(PREFIX)


def known_ids() -> list[str]:
    """The published names; files of the user's are known by their paths alone."""
    return [PREFIX + name for name in NAMES]


def check_id(dataset_id: str) -> None:
    """Raise DatasetError unless `dataset_id` names a published set or a file that is there. Fetches nothing."""
    request = parse(dataset_id)
    if request.env_id is not None:
        from hoard.datasets.d4rl.evaluation import spec_of

        spec_of(dataset_id, request.env_id)
    if not request.named and not os.path.isfile(request.path):  # unlike Path.is_file, false for too long a name, too
        raise DatasetError(f"{dataset_id}: there is no file {request.path}")


def is_at_hand(dataset_id: str) -> bool:
    """Whether the file is on this disk. Raises DatasetError for an id that is none."""
    return os.path.isfile(parse(dataset_id).path)


def progress_unit(dataset_id: str) -> str:
    return "bytes"


def ensure(dataset_id: str, progress: Progress | None = None) -> bool:
    """Download the file of a D4RL name unless it is there; `progress(done, total)` counts bytes. True if fetched.

    Raises DatasetError, which says where to put the file by hand when there is no network.
    """
    request = parse(dataset_id)
    if request.entry is None or not request.named or os.path.isfile(request.path):
        return False
    from hoard.datasets.d4rl.download import download

    download(dataset_id, request.entry, folder(), progress)
    return True


def read(dataset_id: str, progress: Progress | None = None) -> Dataset:
    from hoard.datasets.d4rl import reader

    return reader.read(dataset_id)


def metadata(dataset_id: str) -> None:
    """Nothing: a D4RL file holds arrays alone."""
