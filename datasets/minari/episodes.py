"""Episodes as Minari stores them, from HDF5, arrow and parquet files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from h5py import h5d, h5g, h5s
from minari.dataset.minari_storage import MinariStorage

from hoard.datasets.dataset import DatasetError
from hoard.datasets.hdf5 import why_not_to_read

FIELDS = ("rewards", "terminations", "truncations", "actions")
_BLOCK = 32_768  # rows that pyarrow hands to the writer at a time


def raw_episodes(dataset_id: str, folder: Path, storage: MinariStorage, count: int) -> Iterator[dict[str, Any]]:
    """Episodes as Minari stores them, in the order of their ids (h5py lists groups alphabetically: 0, 1, 10, ...)."""
    is_hdf5 = storage.metadata["data_format"] == "hdf5"
    episodes = _hdf5_episodes if is_hdf5 else _arrow_episodes
    reader = episodes(folder / "main_data.hdf5" if is_hdf5 else folder, storage, count)
    k = 0
    try:
        for k, episode in enumerate(reader, start=1):  # noqa: B007
            yield episode
    except Exception as error:  # h5py and pyarrow raise many kinds on damaged bytes
        source = folder / "main_data.hdf5" if is_hdf5 else folder
        raise DatasetError(f"{dataset_id}: {source} is damaged or incomplete at episode {k}: {error}") from error


def _arrow_episodes(folder: Path, storage: MinariStorage, count: int) -> Iterator[dict[str, Any]]:
    # Minari pairs episodes with record batches one to one, which fails beyond a batch, and decodes infos and text.
    found = sum(path.is_dir() and path.name[0] not in "._" for path in folder.iterdir())
    if found != count:
        raise ValueError(f"it has {found} episodes, metadata.json says {count} total_episodes")
    for k in range(count):
        parts = pads.dataset(folder / str(k), format=storage.FORMAT, ignore_prefixes=["_", ".", "metadata.json"])
        if not parts.files:
            continue  # the number of steps will not be what metadata.json says
        table = parts.to_table(columns=[*FIELDS, "observations"])
        column = {name: _one_array(table[name]) for name in table.column_names}
        if len(table) > _BLOCK:
            warnings.warn(
                f"{folder}: episode {k} has {len(table)} rows; Minari's writer does not keep the order of blocks of "
                f"{_BLOCK} rows in arrow and parquet files (measured with 0.5.4): its steps may be shuffled",
                stacklevel=2,
            )
        # T+1 rows in every column: beside the last observation stands padding.
        episode: dict[str, Any] = {name: column[name].to_numpy(zero_copy_only=False)[:-1] for name in FIELDS[:3]}
        episode["actions"] = _arrow_space(column["actions"][:-1], storage.action_space)
        episode["observations"] = _arrow_space(column["observations"], storage.observation_space)
        yield episode


def _one_array(chunks: pa.ChunkedArray) -> pa.Array:
    return chunks.chunk(0) if chunks.num_chunks == 1 else pa.concat_arrays(chunks.chunks)


def _arrow_space(column: pa.Array, space: gym.Space) -> Any:
    """An array, a dict or a tuple of them, as the space says; None in the place of text."""
    if isinstance(space, gym.spaces.Text):
        return None
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        if len(space.spaces) == 0:
            return {}
        named = isinstance(space, gym.spaces.Dict)
        items = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
        parts = {key: _arrow_space(column.field(str(key)), part) for key, part in items}
        return parts if named else tuple(parts.values())
    if column.null_count:
        raise ValueError(f"a column for {space} has {column.null_count} empty entries")
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), *(space.shape or ()))
    return column.to_numpy(zero_copy_only=False)


def _hdf5_episodes(file: Path, storage: MinariStorage, count: int) -> Iterator[dict[str, Any]]:
    # h5py's low-level calls: its objects cost more than the data when there are thousands of short episodes.
    with h5py.File(file, "r") as h5:
        if len(h5) != count:
            raise ValueError(f"it has {len(h5)} episodes, metadata.json says {count} total_episodes")
        for k in range(count):
            group = h5g.open(h5.id, f"episode_{k}".encode())
            episode: dict[str, Any] = {name: _read_array(group, name) for name in FIELDS}
            episode["observations"] = _read_space(group, "observations", storage.observation_space)
            yield episode


def _read_space(group: h5g.GroupID, name: str, space: gym.Space) -> Any:
    """An array, a dict or a tuple of them, as the space says; None in the place of text."""
    if isinstance(space, gym.spaces.Text):
        return None
    if isinstance(space, gym.spaces.Dict):
        inner = h5g.open(group, name.encode())
        return {key: _read_space(inner, key, part) for key, part in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        inner = h5g.open(group, name.encode())
        return tuple(_read_space(inner, f"_index_{i}", part) for i, part in enumerate(space.spaces))
    return _read_array(group, name)


def _read_array(group: h5g.GroupID, name: str) -> np.ndarray:
    node = h5d.open(group, name.encode())
    if why := why_not_to_read(node):
        raise ValueError(f"'{name}' {why}")
    array = np.empty(node.shape, node.dtype)
    node.read(h5s.ALL, h5s.ALL, array)
    return array
