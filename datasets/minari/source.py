"""Minari datasets, on disk or on the hub, as a source of datasets, see `hoard.datasets.source.Source`."""

from __future__ import annotations

import re
from typing import Any

from hoard.datasets.dataset import Dataset
from hoard.datasets.minari import store
from hoard.datasets.source import Progress

ID_FORM = "a Minari id like D4RL/door/human-v2"

# Minari's grammar, minus anything that could climb out of its folder.
_ID = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*-v\d+", re.ASCII)


def owns(dataset_id: str) -> bool:
    return _ID.fullmatch(dataset_id) is not None


def known_ids() -> list[str]:
    """The datasets on this disk, our recipes among them."""
    return [name for name in store.stored_ids() if owns(name)]


def check_id(dataset_id: str) -> None:
    """Nothing: whether the hub has a dataset shows when it is fetched."""


def is_at_hand(dataset_id: str) -> bool:
    return store.is_stored(dataset_id)


def progress_unit(dataset_id: str) -> str:
    return "environment steps"


def ensure(dataset_id: str, progress: Progress | None = None) -> bool:
    """Fetch a dataset that is not on this disk; Minari's client tells no progress."""
    if store.is_stored(dataset_id):
        return False
    with store.making(dataset_id):
        if store.is_stored(dataset_id):  # by another process, meanwhile
            return False
        from hoard.datasets.minari import hub

        hub.download(dataset_id)
    return True


def read(dataset_id: str, progress: Progress | None = None) -> Dataset:
    from hoard.datasets.minari import reader

    return reader.read(dataset_id)


def metadata(dataset_id: str) -> dict[str, Any]:
    from hoard.datasets.minari.metadata import metadata_of

    return metadata_of(dataset_id)
