"""What a stored Minari dataset says of itself: metadata.json, and the environment it names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_storage import MinariStorage

import hoard.envs  # noqa: F401  registers the environments that a dataset may name
from hoard.datasets.dataset import DatasetError
from hoard.datasets.minari import store

# A specification names code that is run to make its environment. It comes with the data, so only these may be named,
# and what the user has registered.
_KNOWN_PACKAGES = {"gymnasium", "gymnasium_robotics", "hoard", "minigrid", "ale_py", "metaworld"}


def metadata_of(dataset_id: str) -> dict[str, Any]:
    """What metadata.json says, with both spaces as spaces and ``recording_env``, the specification of the environment
    that the data was recorded in (None: unknown). Raises DatasetError as `read` does."""
    metadata = open_stored(dataset_id, store.path_of(dataset_id) / "data")[1]
    return metadata | {"recording_env": env_spec_of(dataset_id, metadata.get("env_spec"))}


def infos_of(dataset_id: str, episode: int) -> dict[str, Any]:
    """The infos of one episode as Minari gives them: T+1 rows in every array. Empty where none were recorded."""
    folder = store.path_of(dataset_id) / "data"
    storage, _ = open_stored(dataset_id, folder)
    try:
        return next(iter(storage.get_episodes([episode]))).get("infos") or {}
    except Exception as error:  # h5py and pyarrow raise many kinds on damaged bytes
        raise DatasetError(
            f"{dataset_id}: the infos of episode {episode} in {folder} cannot be read: {error}"
        ) from error


def open_stored(dataset_id: str, folder: Path) -> tuple[MinariStorage, dict[str, Any]]:
    """The storage and its metadata, with the fields that `read` relies on checked and reference scores as floats."""
    try:
        raw = MinariStorage.read_raw_metadata(folder)
        is_hdf5 = raw["data_format"] == "hdf5"
        for name in ("observation_space", "action_space"):
            if not isinstance(raw[name], str):  # Minari would run whatever env_spec names to find out
                raise ValueError(f"{name} is {raw[name]!r}, expected a space as text")
        if is_hdf5 and not (folder / "main_data.hdf5").is_file():
            raise DatasetError(
                f"{dataset_id}: {folder}/main_data.hdf5 is missing; move {folder.parent} away to start anew"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            storage = MinariStorage.read(folder)
        metadata = storage.metadata
        for name in ("total_steps", "total_episodes"):
            if type(metadata[name]) is not int or metadata[name] < 1:
                raise ValueError(f"{name} is {metadata[name]!r}, expected a positive integer")
        for name in ("ref_min_score", "ref_max_score"):
            value = metadata.get(name)
            metadata[name] = None if value is None else float(value)
    except DatasetError:
        raise
    except Exception as error:  # Minari and Gymnasium parse this file with assertions, key look-ups and conversions
        what = f"no field {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise DatasetError(f"{dataset_id}: cannot use {folder}/metadata.json ({what})") from error
    return storage, metadata


def env_spec_of(dataset_id: str, text: Any) -> EnvSpec | None:
    if text is None or not isinstance(text, str):
        return text
    try:
        known = EnvSpec.__dataclass_fields__  # files written for older gymnasium carry fields that are gone since
        kept = {key: value for key, value in json.loads(text).items() if key in known}
        spec = EnvSpec.from_json(json.dumps(kept))
        named = [(wrapper.name, str(wrapper.entry_point)) for wrapper in spec.additional_wrappers]
        if spec.id not in gym.registry or gym.registry[spec.id].entry_point != spec.entry_point:
            named.append((spec.id, str(spec.entry_point)))
    except Exception as error:
        raise DatasetError(f"{dataset_id}: env_spec in metadata.json cannot be read: {error}") from error
    for name, code in named:
        if code.partition(":")[0].split(".")[0] not in _KNOWN_PACKAGES:
            warnings.warn(
                f"{dataset_id}: environment {spec.id} is set aside, because its {name} would run {code}, code that is "
                "neither registered with Gymnasium here nor part of a known package",
                stacklevel=2,
            )
            return None
    return spec
