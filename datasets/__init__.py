"""Dataset id -> arrays. Three kinds of id, one function.

- `hoard/...`: our recipes, generated on first use and kept in Minari's format, or generated at each load where that is
  sooner done (`hoard.datasets.recipes`).
- `d4rl:NAME` or `d4rl:PATH.hdf5`: a legacy D4RL file, fetched if it has a name (`hoard.datasets.d4rl`).
- anything else: a Minari id, read from disk or fetched from the hub (`hoard.datasets.minari_store`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hoard.datasets import d4rl, in_memory, minari_store, recipes
from hoard.datasets.dataset import Dataset, DatasetError, Episode
from hoard.datasets.replay import ReplayBuffer
from hoard.records.suggest import nearest

__all__ = [
    "Dataset",
    "DatasetError",
    "Episode",
    "ReplayBuffer",
    "check_id",
    "ensure",
    "is_at_hand",
    "known_ids",
    "load",
    "metadata_of",
    "progress_unit",
]

Progress = Callable[[int, int], None]
# Minari's grammar, minus anything that could climb out of its folder.
_MINARI_ID = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*-v\d+", re.ASCII)


def known_ids() -> list[str]:
    """Ids that can be had now: our recipes, D4RL's names, and the Minari datasets on this disk."""
    stored = [name for name in minari_store.stored_ids() if _MINARI_ID.fullmatch(name)]
    return list(dict.fromkeys([*recipes.known_ids(), *(d4rl.PREFIX + name for name in d4rl.NAMES), *stored]))


def check_id(dataset_id: str) -> None:
    """Raise DatasetError, naming the nearest ids, unless `dataset_id` is of a kind that can be resolved."""
    if dataset_id.startswith(d4rl.PREFIX):
        d4rl.check_id(dataset_id)
    elif dataset_id.startswith("hoard/"):
        if not recipes.is_known(dataset_id):
            raise DatasetError(f"unknown dataset {dataset_id!r}; nearest: {nearest(dataset_id, recipes.known_ids())}")
    elif not _MINARI_ID.fullmatch(dataset_id):
        raise DatasetError(
            f"unknown dataset {dataset_id!r}: not hoard/..., d4rl:NAME or a Minari id like D4RL/door/human-v2; "
            f"nearest: {nearest(dataset_id, known_ids())}"
        )


def ensure(dataset_id: str, progress: Progress | None = None) -> bool:
    """Make sure the data is on this disk: generate a recipe, fetch from the hub. True if it had to be made.

    `progress(done, total)` counts in `progress_unit(dataset_id)`. Raises DatasetError.
    """
    check_id(dataset_id)
    if dataset_id.startswith(d4rl.PREFIX):
        return d4rl.ensure(dataset_id, progress)
    if is_at_hand(dataset_id):
        return False
    with minari_store.making(dataset_id):
        if minari_store.is_stored(dataset_id):  # by another process, meanwhile
            return False
        if dataset_id.startswith("hoard/"):
            minari_store.write(dataset_id, recipes.generate(dataset_id, progress))
        else:
            try:
                minari_store.download(dataset_id)
            except DatasetError as error:
                raise DatasetError(f"{error} Nearest ids at hand: {nearest(dataset_id, known_ids())}.") from error
    return True


def is_at_hand(dataset_id: str) -> bool:
    """Whether loading needs nothing made or fetched first: it is on this disk, or generated at each load."""
    if dataset_id.startswith(d4rl.PREFIX):
        return d4rl.is_stored(dataset_id)
    return recipes.is_in_memory(dataset_id) or minari_store.is_stored(dataset_id)


def metadata_of(dataset_id: str) -> dict[str, Any] | None:
    """What is stored beside the arrays of a Minari set; None for sets that have no such file. Raises DatasetError."""
    if dataset_id.startswith(d4rl.PREFIX) or recipes.is_in_memory(dataset_id):
        return None
    return minari_store.metadata_of(dataset_id)


def progress_unit(dataset_id: str) -> str:
    """What the progress of `ensure` counts: environment steps of a generation, bytes of a D4RL file."""
    return "bytes" if dataset_id.startswith(d4rl.PREFIX) else "environment steps"


def load(dataset_id: str, progress: Progress | None = None) -> Dataset:
    """Load a dataset by id, generating or fetching it first where that is possible.

    Raises DatasetError: unknown id (the nearest are named), missing or damaged file, inconsistent or non-finite data.
    """
    ensure(dataset_id, progress)
    if recipes.is_in_memory(dataset_id):
        return in_memory.dataset_of(dataset_id, recipes.generate(dataset_id, progress))
    return d4rl.read(dataset_id) if dataset_id.startswith(d4rl.PREFIX) else minari_store.read(dataset_id)
