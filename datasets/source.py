"""What a source of datasets offers. Each is a module with these functions; `hoard.datasets.SOURCES` lists them.

The module that has the functions is light: it needs none of h5py, minari, gymnasium or torch, so that ids can be listed
and checked at once. What reads, makes or fetches data lives beside it and is imported when it is first called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from hoard.datasets.dataset import Dataset, DatasetError

Progress = Callable[[int, int], None]  # (done, total), in the `progress_unit` of its source


class Unavailable(DatasetError):
    """The data is not on this disk and could not be fetched."""


class Source(Protocol):
    """One kind of dataset ids. All functions but `owns` and `known_ids` expect an id that the source owns."""

    @property
    def ID_FORM(self) -> str:
        """How its ids look, for error messages: ``d4rl:NAME``."""
        ...

    def owns(self, dataset_id: str) -> bool:
        """Whether an id is of this source's kind, by its form alone."""
        ...

    def known_ids(self) -> list[str]:
        """Ids that can be had now."""
        ...

    def check_id(self, dataset_id: str) -> None:
        """Raise DatasetError, naming the nearest ids, unless the id can be resolved. Fetches nothing."""
        ...

    def is_at_hand(self, dataset_id: str) -> bool:
        """Whether `read` needs nothing made or fetched first."""
        ...

    def progress_unit(self, dataset_id: str) -> str:
        """What the progress of `ensure` counts: environment steps, bytes."""
        ...

    def ensure(self, dataset_id: str, progress: Progress | None) -> bool:
        """Make or fetch the data unless it is at hand; True if it had to. Raises DatasetError."""
        ...

    def read(self, dataset_id: str, progress: Progress | None) -> Dataset:
        """Load the data, which is at hand. Raises DatasetError."""
        ...

    def metadata(self, dataset_id: str) -> dict[str, Any] | None:
        """What is stored beside the arrays; None if nothing is."""
        ...
