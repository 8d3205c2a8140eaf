"""Dataset id -> arrays. Four kinds of id, one function.

- `hoard/...`: our recipes, generated on first use and kept in Minari's format, or generated at each load where that is
  faster (`hoard.datasets.recipes`).
- `d4rl:NAME` or `d4rl:PATH.hdf5`: a legacy D4RL file, fetched if it has a name (`hoard.datasets.d4rl`).
- `ogbench:NAME`: an OGBench set with the reward of one task, fetched, or made here (`hoard.datasets.ogbench`).
- anything else: a Minari id, read from disk or fetched from the hub (`hoard.datasets.minari`).

Another kind is a module with the functions of `hoard.datasets.source.Source`, added to `SOURCES`.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from hoard.datasets.d4rl import source as d4rl_source
from hoard.datasets.dataset import Dataset, DatasetError, Episode
from hoard.datasets.minari import source as minari_source
from hoard.datasets.ogbench import source as ogbench_source
from hoard.datasets.recipes import source as recipe_source
from hoard.datasets.source import Progress, Source, Unavailable
from hoard.records.suggest import nearest

if TYPE_CHECKING:
    from hoard.datasets.replay import ReplayBuffer

__all__ = [
    "SOURCES",
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

SOURCES: tuple[Source, ...] = (recipe_source, d4rl_source, ogbench_source, minari_source)


def __getattr__(name: str) -> Any:
    """`ReplayBuffer` on first use: it needs torch, which listing and loading data do not."""
    if name == "ReplayBuffer":
        from hoard.datasets.replay import ReplayBuffer

        return ReplayBuffer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def known_ids() -> list[str]:
    """Ids that can be had now: our recipes, D4RL's names, and the Minari datasets on this disk."""
    return list(dict.fromkeys(dataset_id for source in SOURCES for dataset_id in source.known_ids()))


def check_id(dataset_id: str) -> None:
    """Raise DatasetError, naming the nearest ids, unless `dataset_id` is of a kind that can be resolved."""
    _source_of(dataset_id).check_id(dataset_id)


def ensure(dataset_id: str, progress: Progress | None = None) -> bool:
    """Make sure the data is on this disk: generate a recipe, fetch from the hub. True if it had to be made.

    `progress(done, total)` counts in `progress_unit(dataset_id)`. Raises DatasetError.
    """
    source = _source_of(dataset_id)
    source.check_id(dataset_id)
    try:
        return source.ensure(dataset_id, progress)
    except Unavailable as error:
        raise DatasetError(f"{error} Nearest ids at hand: {nearest(dataset_id, known_ids())}.") from error


def is_at_hand(dataset_id: str) -> bool:
    """Whether loading needs nothing made or fetched first: it is on this disk, or generated at each load."""
    return _source_of(dataset_id).is_at_hand(dataset_id)


def metadata_of(dataset_id: str) -> dict[str, Any] | None:
    """What is stored beside the arrays of a Minari set; None for sets that have no such file. Raises DatasetError."""
    return _source_of(dataset_id).metadata(dataset_id)


def progress_unit(dataset_id: str) -> str:
    """What the progress of `ensure` counts: environment steps of a generation, bytes of a download."""
    return _source_of(dataset_id).progress_unit(dataset_id)


def load(dataset_id: str, progress: Progress | None = None) -> Dataset:
    """Load a dataset by id, generating or fetching it first where that is possible.

    Warns of actions outside their bounds. Raises DatasetError: unknown id (the nearest are named), missing or damaged
    file, inconsistent or non-finite data.
    """
    ensure(dataset_id, progress)
    data = _source_of(dataset_id).read(dataset_id, progress)
    _warn_of_actions_out_of_bounds(data)
    return data


def _source_of(dataset_id: str) -> Source:
    for source in SOURCES:
        if source.owns(dataset_id):
            return source
    *forms, last = (source.ID_FORM for source in SOURCES)
    raise DatasetError(
        f"unknown dataset {dataset_id!r}: not {', '.join(forms)} or {last}; nearest: {nearest(dataset_id, known_ids())}"
    )


def _warn_of_actions_out_of_bounds(data: Dataset) -> None:
    outside = data.actions_out_of_bounds()
    if steps := int(outside.any(axis=1).sum()):
        warnings.warn(
            f"{data.id}: {100 * np.mean(outside):.3g} % of the action values, in {steps:,} of {len(data):,} steps, lie "
            f"outside the bounds of {data.action_space}. The environment clips such actions, so a policy trained on "
            f"them imitates what cannot be executed. See `hoard data check {data.id}`",
            stacklevel=3,
        )
