"""From a stored Minari dataset to a `Dataset`.

Minari stores T+1 observations beside T actions for each episode. That layout is kept as it is: the observation tables
of all episodes are laid end to end, so row `starts[k] + k + t` is s_t of episode k, and no shift can creep in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from minari.dataset.minari_storage import is_image_space

from hoard.datasets import discrete
from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.minari import references, store
from hoard.datasets.minari.episodes import raw_episodes
from hoard.datasets.minari.metadata import env_spec_of, open_stored
from hoard.envs import flatten_obs, flatten_space


def read(dataset_id: str) -> Dataset:
    """Load a stored Minari dataset, in any of Minari's storages (hdf5, arrow, parquet).

    Observations: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of them; flattened by
    `hoard.envs.flatten_obs` (Dict keys in alphabetical order) and cast to float32 once. Discrete parts become one-hot
    columns and Text parts are left out, see `hoard.datasets.discrete`. Actions: a flat Box, in environment units, or
    Discrete, MultiDiscrete, MultiBinary as one-hot columns with `discrete.OneHot` for the action space.
    A ``mujoco/*`` set, which has no reference returns, takes those of `references` where they exist.
    Raises DatasetError naming the file and the field when the folder, a file or an episode is damaged.
    """
    folder = store.path_of(dataset_id) / "data"
    storage, metadata = open_stored(dataset_id, folder)
    space, action_space = storage.observation_space, _action_space(dataset_id, folder, storage.action_space)
    try:
        obs_dim = flatten_space(discrete.boxed_space(space)).shape[0]
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{dataset_id}: observation space {space} in {folder} is not supported: {error}") from error
    if storage.jpeg_encoding and _has_image(space):
        raise DatasetError(f"{dataset_id}: observation space {space} in {folder} is not supported: JPEG-encoded images")

    steps, episodes = metadata["total_steps"], metadata["total_episodes"]
    try:
        observations = np.empty((steps + episodes, obs_dim), np.float32)
        action = np.empty((steps, action_space.shape[0]), np.float32)
        reward = np.empty(steps, np.float32)
        terminated, truncated = np.empty(steps, bool), np.empty(steps, bool)
        starts = np.zeros(episodes + 1, np.int64)
    except (MemoryError, ValueError) as error:
        raise DatasetError(
            f"{dataset_id}: no memory for what {folder}/metadata.json says: {steps} total_steps"
        ) from error
    targets = (("actions", action), ("rewards", reward), ("terminations", terminated), ("truncations", truncated))
    a = 0
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite; Dataset refuses it by name
        for k, episode in enumerate(raw_episodes(dataset_id, folder, storage, episodes)):
            where = f"{dataset_id}: episode {k} in {folder}"
            length = len(np.atleast_1d(episode["rewards"]))
            b = a + length
            if length == 0 or b > steps:
                raise DatasetError(f"{where}: rewards has {length} entries; metadata.json leaves 1 to {steps - a}")
            if isinstance(action_space, discrete.OneHot):
                episode["actions"] = _one_hot(where, action_space, episode["actions"])
            for name, target in targets:
                target[a:b] = _fitting(where, name, episode[name], (length, *target.shape[1:]))
            observations[a + k : b + k + 1] = _flattened(where, space, episode["observations"], length)
            a = starts[k + 1] = b
    if a != steps:
        raise DatasetError(f"{dataset_id}: {folder} has {a} steps, metadata.json says {steps} total_steps")
    spec = env_spec_of(dataset_id, metadata.get("eval_env_spec") or metadata.get("env_spec"))
    ref_min, ref_max = metadata["ref_min_score"], metadata["ref_max_score"]
    ours = references.reference(dataset_id, spec)
    if ref_min is None and ref_max is None and ours and ours.expert is not None:
        ref_min, ref_max = ours.random, ours.expert
    return Dataset(
        id=dataset_id,
        observations=observations,
        rows=np.arange(steps) + np.repeat(np.arange(episodes), np.diff(starts)),
        action=action,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        starts=starts,
        action_space=action_space,
        env_spec=spec,
        ref_min=ref_min,
        ref_max=ref_max,
        source=str(folder),
    )


def _action_space(dataset_id: str, folder: Path, space: gym.Space) -> gym.spaces.Box:
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return space
    try:
        return discrete.OneHot(space)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"{dataset_id}: action space {space} in {folder} is not supported, only a flat Box, Discrete, "
            f"MultiDiscrete or MultiBinary is ({error})"
        ) from error


def _one_hot(where: str, space: discrete.OneHot, values: Any) -> np.ndarray:
    try:
        return discrete.boxed(space.original, values)
    except (ValueError, TypeError, IndexError) as error:
        raise DatasetError(f"{where}: actions do not fit their space: {error}") from error


def _has_image(space: gym.Space) -> bool:
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        parts = space.values() if isinstance(space, gym.spaces.Dict) else space
        return any(_has_image(part) for part in parts)
    return is_image_space(space)


def _fitting(where: str, name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """`values` in exactly this shape: NumPy would stretch one number, or one column, over a whole row."""
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{where}: {name} holds {array.dtype}, not numbers")
    if array.shape == shape:
        return array
    if array.shape == (*shape, 1):  # some sets keep rewards as a column
        return array[..., 0]
    raise DatasetError(f"{where}: {name} has shape {array.shape}, expected {shape}")


def _flattened(where: str, space: gym.Space, raw: Any, length: int) -> np.ndarray:
    try:
        obs = flatten_obs(discrete.boxed_space(space), discrete.boxed(space, raw), batch=True)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise DatasetError(f"{where}: observations do not fit their space {space}: {error}") from error
    if len(obs) != length + 1:
        raise DatasetError(f"{where}: observations has {len(obs)} rows for {length} rewards, expected {length + 1}")
    return obs
