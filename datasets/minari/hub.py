"""Fetch a dataset from Minari's hub."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import minari
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from minari.storage.remotes import DEFAULT_REMOTE

from hoard.datasets.minari import store
from hoard.datasets.minari.episodes import raw_episodes
from hoard.datasets.minari.metadata import open_stored
from hoard.datasets.source import Unavailable

_PATIENCE = 10.0  # seconds for the first answer


def download(dataset_id: str) -> None:
    """Fetch from Minari's hub, whole or not at all. Raises Unavailable, with what to do by hand, when that fails."""
    try:
        ask_hub(dataset_id)
        with store.scratch(dataset_id) as scratch:
            with _root_at(scratch):
                minari.download_dataset(dataset_id)
            _check_arrival(dataset_id, scratch / dataset_id / "data")
            store.publish(scratch / dataset_id, dataset_id)
    except Exception as error:  # the hub clients raise many kinds
        raise Unavailable(
            f"{dataset_id}: not in {store.path_of('')} and the Minari hub did not give it ({type(error).__name__}: "
            f"{error}). On a machine with a network run `minari download {dataset_id}` and copy the folder there."
        ) from error


def ask_hub(dataset_id: str) -> None:
    """Ask once whether the hub has the repository of a dataset. Raises LookupError if not, or what the network raises.

    The calls that Minari makes are tried again and again, for half a minute, where there is no network.
    """
    kind, _, owner = os.environ.get("MINARI_REMOTE", DEFAULT_REMOTE).partition("://")
    if kind != "hf":
        return
    repository = f"{owner}/{dataset_id.split('/')[0]}"
    try:
        HfApi().dataset_info(repository, timeout=_PATIENCE)
    except RepositoryNotFoundError:
        raise LookupError(f"there is no {repository} on the hub") from None


def _check_arrival(dataset_id: str, folder: Path) -> None:
    """Raise unless a fetched folder opens, holds as many episodes as it says, and gives the first of them."""
    if (folder / "metadata.json").is_file():
        storage, metadata = open_stored(dataset_id, folder)
        next(raw_episodes(dataset_id, folder, storage, metadata["total_episodes"]))


@contextmanager
def _root_at(folder: Path) -> Iterator[None]:
    """Let Minari take `folder` for its root: only the environment can tell it."""
    before = os.environ.get(store.ROOT)
    os.environ[store.ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[store.ROOT]
        else:
            os.environ[store.ROOT] = before
