"""Our recipes as a source of datasets, see `hoard.datasets.source.Source`. They are stored in Minari's folder."""

from __future__ import annotations

from typing import Any

from hoard.datasets import recipes
from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.minari import source as minari_source
from hoard.datasets.minari import store
from hoard.datasets.source import Progress
from hoard.records.suggest import nearest

ID_FORM = "hoard/..."


def owns(dataset_id: str) -> bool:
    return dataset_id.startswith("hoard/")


def known_ids() -> list[str]:
    """The recipes at their default lengths; other lengths can be had as well."""
    return recipes.known_ids()


def check_id(dataset_id: str) -> None:
    if not recipes.is_known(dataset_id):
        raise DatasetError(f"unknown dataset {dataset_id!r}; nearest: {nearest(dataset_id, recipes.known_ids())}")


def is_at_hand(dataset_id: str) -> bool:
    """Whether the set is on this disk, or generated at each load."""
    return recipes.is_in_memory(dataset_id) or store.is_stored(dataset_id)


def progress_unit(dataset_id: str) -> str:
    return "environment steps"


def ensure(dataset_id: str, progress: Progress | None = None) -> bool:
    """Generate a set that is not on this disk, and store it."""
    if is_at_hand(dataset_id):
        return False
    with store.making(dataset_id):
        if store.is_stored(dataset_id):  # by another process, meanwhile
            return False
        from hoard.datasets.minari.writer import write

        write(dataset_id, recipes.generate(dataset_id, progress))
    return True


def read(dataset_id: str, progress: Progress | None = None) -> Dataset:
    if recipes.is_in_memory(dataset_id):
        from hoard.datasets.recipes.in_memory import dataset_of

        return dataset_of(dataset_id, recipes.generate(dataset_id, progress))
    return minari_source.read(dataset_id)


def metadata(dataset_id: str) -> dict[str, Any] | None:
    return None if recipes.is_in_memory(dataset_id) else minari_source.metadata(dataset_id)
