"""Minari datasets on disk: read into `Dataset`, write a recipe's episodes atomically, fetch from the hub.

Minari stores T+1 observations beside T actions for each episode. That layout is kept as it is: the observation tables
of all episodes are laid end to end, so row `starts[k] + k + t` is s_t of episode k, and no shift can creep in.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from gymnasium.envs.registration import EnvSpec
from h5py import h5d, h5g, h5s
from minari.dataset.minari_storage import MinariStorage, is_image_space
from minari.namespace import NAMESPACE_METADATA_FILENAME
from minari.storage import get_dataset_path

from hoard.datasets import discrete, references
from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.recipes import Recording
from hoard.envs import flatten_obs, flatten_space

_ROOT = "MINARI_DATASETS_PATH"
_BLOCK = 32_768  # rows that pyarrow hands to the writer at a time
_FIELDS = ("rewards", "terminations", "truncations", "actions")
# A specification names code that is run to make its environment. It comes with the data, so only these may be named,
# and what the user has registered.
_KNOWN_PACKAGES = {"gymnasium", "gymnasium_robotics", "hoard", "minigrid", "ale_py", "metaworld"}


def path_of(dataset_id: str) -> Path:
    """Folder of a Minari dataset under MINARI_DATASETS_PATH (default ~/.minari/datasets); "" gives that root.

    Raises DatasetError if the root is no folder and cannot be made.
    """
    try:
        return Path(get_dataset_path(dataset_id))
    except OSError as error:
        raise DatasetError(f"{dataset_id}: no folder for Minari datasets ({error}); set {_ROOT}") from error


def is_stored(dataset_id: str) -> bool:
    """Whether the dataset is on this disk. Raises DatasetError where the file system cannot say."""
    try:
        return (path_of(dataset_id) / "data" / "metadata.json").is_file()
    except OSError as error:  # not allowed to look, or a name too long
        raise DatasetError(f"{dataset_id}: {error}") from error


def stored_ids() -> list[str]:
    """Ids of the datasets on this disk, sorted; none if the root cannot be read. Hidden folders are unfinished work."""
    try:
        root = path_of("")
    except DatasetError:
        return []
    found = []
    for folder, inner, _ in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        if (Path(folder) / "data" / "metadata.json").is_file():
            found.append(Path(folder).relative_to(root).as_posix())
            inner.clear()  # the arrow format has a folder for each episode in there
    return sorted(found)


# --- reading ---


def read(dataset_id: str) -> Dataset:
    """Load a stored Minari dataset, in any of Minari's storages (hdf5, arrow, parquet).

    Observations: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of them; flattened by
    `hoard.envs.flatten_obs` (Dict keys in alphabetical order) and cast to float32 once. Discrete parts become one-hot
    columns and Text parts are left out, see `hoard.datasets.discrete`. Actions: a flat Box, in environment units, or
    Discrete, MultiDiscrete, MultiBinary as one-hot columns with `discrete.OneHot` for the action space.
    A ``mujoco/*`` set, which has no reference returns, takes those of `hoard.datasets.references` where they exist.
    Raises DatasetError naming the file and the field when the folder, a file or an episode is damaged.
    """
    folder = path_of(dataset_id) / "data"
    storage, metadata = _open(dataset_id, folder)
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
        for k, episode in enumerate(_raw_episodes(dataset_id, folder, storage, episodes)):
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
    spec = _env_spec(dataset_id, metadata.get("eval_env_spec") or metadata.get("env_spec"))
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


def metadata_of(dataset_id: str) -> dict[str, Any]:
    """What metadata.json says, with both spaces as spaces and ``recording_env``, the specification of the environment
    that the data was recorded in (None: unknown). Raises DatasetError as `read` does."""
    metadata = _open(dataset_id, path_of(dataset_id) / "data")[1]
    return metadata | {"recording_env": _env_spec(dataset_id, metadata.get("env_spec"))}


def infos_of(dataset_id: str, episode: int) -> dict[str, Any]:
    """The infos of one episode as Minari gives them: T+1 rows in every array. Empty where none were recorded."""
    folder = path_of(dataset_id) / "data"
    storage, _ = _open(dataset_id, folder)
    try:
        return next(iter(storage.get_episodes([episode]))).get("infos") or {}
    except Exception as error:  # h5py and pyarrow raise many kinds on damaged bytes
        raise DatasetError(
            f"{dataset_id}: the infos of episode {episode} in {folder} cannot be read: {error}"
        ) from error


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


def _open(dataset_id: str, folder: Path) -> tuple[MinariStorage, dict[str, Any]]:
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


def _env_spec(dataset_id: str, text: Any) -> EnvSpec | None:
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


def _raw_episodes(dataset_id: str, folder: Path, storage: MinariStorage, count: int) -> Iterator[dict[str, Any]]:
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
        table = parts.to_table(columns=[*_FIELDS, "observations"])
        column = {name: _one_array(table[name]) for name in table.column_names}
        if len(table) > _BLOCK:
            warnings.warn(
                f"{folder}: episode {k} has {len(table)} rows; Minari's writer does not keep the order of blocks of "
                f"{_BLOCK} rows in arrow and parquet files (measured with 0.5.4): its steps may be shuffled",
                stacklevel=2,
            )
        # T+1 rows in every column: beside the last observation stands padding.
        episode: dict[str, Any] = {name: column[name].to_numpy(zero_copy_only=False)[:-1] for name in _FIELDS[:3]}
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
            episode: dict[str, Any] = {name: _read_array(group, name) for name in _FIELDS}
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
    array = np.empty(node.shape, node.dtype)
    node.read(h5s.ALL, h5s.ALL, array)
    return array


# --- writing and fetching ---


@contextmanager
def making(dataset_id: str) -> Iterator[None]:
    """Hold the right to generate or fetch `dataset_id`; a second process waits here and then finds it stored.

    Raises DatasetError, before the work, where its result could not be put in place.
    """
    root, target = path_of(""), path_of(dataset_id)
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = open(root / f".{_slug(dataset_id)}.lock", "w")  # noqa: SIM115
        except OSError as error:
            raise DatasetError(f"{dataset_id}: cannot write to {root} ({error}); set {_ROOT}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.exists() and not is_stored(dataset_id):
                raise DatasetError(f"{dataset_id}: {target} is there without data/metadata.json; move it away")
            yield
    finally:
        for parent in target.parents:  # leave no empty namespaces behind a failure
            if parent == root:
                break
            with suppress(OSError):  # not empty, not there, not ours
                parent.rmdir()


def write(dataset_id: str, recording: Recording) -> None:
    """Store a recording in Minari's HDF5 format: written beside its place, then renamed, so whole or absent."""
    target = path_of(dataset_id)
    if target.exists():
        raise DatasetError(f"{dataset_id}: {target} exists already")
    try:
        with _scratch(dataset_id) as scratch:
            storage = MinariStorage.new(
                scratch / "data",
                observation_space=recording.observation_space,
                action_space=recording.action_space,
                env_spec=recording.env_spec,
                data_format="hdf5",
            )
            storage.update_episodes(recording.episodes)
            measured = recording.reference_episodes
            storage.update_metadata(
                ({} if measured is None else {"num_episodes_average_score": measured})
                | {
                    "dataset_id": dataset_id,
                    "eval_env_spec": recording.eval_env_spec.to_json(),
                    "ref_min_score": recording.ref_min_score,
                    "ref_max_score": recording.ref_max_score,
                    "algorithm_name": recording.algorithm_name,
                    "description": recording.description,
                    "author": {"hoard"},
                    "minari_version": minari.__version__,
                }
            )
            _publish(scratch, dataset_id)
    except OSError as error:
        raise DatasetError(f"{dataset_id}: cannot write {target} ({error})") from error


def download(dataset_id: str) -> None:
    """Fetch from Minari's hub, whole or not at all. Raises DatasetError, with what to do by hand, when that fails."""
    try:
        with _scratch(dataset_id) as scratch:
            with _root_at(scratch):
                minari.download_dataset(dataset_id)
            _check_arrival(dataset_id, scratch / dataset_id / "data")
            _publish(scratch / dataset_id, dataset_id)
    except Exception as error:  # the hub clients raise many kinds
        raise DatasetError(
            f"{dataset_id}: not in {path_of('')} and the Minari hub did not give it ({type(error).__name__}: {error}). "
            f"On a machine with a network run `minari download {dataset_id}` and copy the folder there."
        ) from error


def _check_arrival(dataset_id: str, folder: Path) -> None:
    """Raise unless a fetched folder opens, holds as many episodes as it says, and gives the first of them."""
    if (folder / "metadata.json").is_file():
        storage, metadata = _open(dataset_id, folder)
        next(_raw_episodes(dataset_id, folder, storage, metadata["total_episodes"]))


def _slug(dataset_id: str) -> str:
    return dataset_id.replace("/", "-")


@contextmanager
def _scratch(dataset_id: str) -> Iterator[Path]:
    """A hidden folder under the root, gone afterwards. The caller holds the dataset's lock, so any other is stale."""
    root, prefix = path_of(""), f".{_slug(dataset_id)}.tmp-"
    for stale in root.glob(prefix + "*"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _root_at(folder: Path) -> Iterator[None]:
    """Let Minari take `folder` for its root: only the environment can tell it."""
    before = os.environ.get(_ROOT)
    os.environ[_ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ROOT]
        else:
            os.environ[_ROOT] = before


def _publish(folder: Path, dataset_id: str) -> None:
    """Rename a complete folder into its place. Its bytes reach the disk first: after a power cut, whole or absent."""
    if not (folder / "data" / "metadata.json").is_file():
        raise FileNotFoundError(f"no data/metadata.json came for {dataset_id}")
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    target = path_of(dataset_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    _declare_namespaces(dataset_id)
    folder.chmod(0o755)
    os.rename(folder, target)


def _declare_namespaces(dataset_id: str) -> None:
    """Minari lists a dataset only if every folder above it declares itself a namespace."""
    folder = path_of(dataset_id).parent
    while folder != path_of(""):
        marker = folder / NAMESPACE_METADATA_FILENAME
        if not marker.exists():
            marker.write_text(json.dumps({}))
        folder = folder.parent
