"""Legacy D4RL HDF5 files, read by h5py alone: no d4rl package, no gym, no mujoco-py.

One file holds all episodes end to end; `terminals` marks true termination, `timeouts` the time limit. Reading follows
`d4rl.qlearning_dataset` exactly, as every published score does: s_{t+1} is the next row, a time-out row is dropped
(its next row belongs to another episode) even where it also terminates, and the last row of the file is lost. On a
terminal row the stored next observation is the next episode's first one; `terminated` masks it.
"""

from __future__ import annotations

import os
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np

from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.suggest import nearest

PREFIX = "d4rl:"

# Reference returns and evaluation environments (D4RL infos.py; the environment version is the closest that Gymnasium
# still runs: Walker2d-v5 has other dynamics, Hopper-v5 pays the failing step differently).
_LOCOMOTION = {
    "halfcheetah": ("HalfCheetah-v4", -280.178953, 12135.0),
    "hopper": ("Hopper-v4", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v4", 1.629008, 4592.3),
}
_LEVELS = ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
NAMES = tuple(f"{env}-{level}-v2" for env in _LOCOMOTION for level in _LEVELS)


def folder() -> Path:
    """Where D4RL keeps its files: D4RL_DATASET_DIR, else ~/.d4rl/datasets."""
    return Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")


def file_of(dataset_id: str) -> Path:
    """The HDF5 file of `d4rl:NAME` (in `folder()`) or `d4rl:some/file.hdf5`. Raises DatasetError if it is not there."""
    name = dataset_id.removeprefix(PREFIX)
    if name.endswith((".hdf5", ".h5")):
        path = Path(os.path.expanduser(name))
        if not os.path.isfile(path):  # unlike Path.is_file, false for a name that is too long, too
            raise DatasetError(f"{dataset_id}: there is no file {path}")
        return path
    if name not in NAMES:
        raise DatasetError(f"{dataset_id}: unknown name; nearest: {nearest(name, NAMES, PREFIX)}; or d4rl:PATH.hdf5")
    path = folder() / _file_name(name)
    if not path.is_file():
        raise DatasetError(f"{dataset_id}: put D4RL's file {path.name} into {folder()} (or set D4RL_DATASET_DIR)")
    return path


def _file_name(name: str) -> str:
    """Ids have hyphens where the file names have underscores."""
    stem, version = name.rsplit("-", 1)
    return f"{stem.replace('-', '_')}-{version}.hdf5"


def read(dataset_id: str) -> Dataset:
    """Load a D4RL file as transitions (see the module's notes on which rows are kept).

    Raises DatasetError naming file and key for a missing, truncated or ill-shaped file. A file without `timeouts`
    (v0 sets) is refused: its episode ends cannot be known from the file.
    """
    path = file_of(dataset_id)
    arrays = _read_arrays(dataset_id, path)
    obs, terminal, timeout = arrays["observations"], arrays["terminals"], arrays["timeouts"]
    keep = ~timeout
    keep[-1] = False
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise DatasetError(f"{dataset_id}: {path} holds no complete transition")
    terminated = terminal[rows]
    # An episode ends where it terminates or where the row that follows was dropped; the last one is cut by the file.
    last = terminated | np.append(np.diff(rows) != 1, True)
    starts = np.concatenate([[0], np.flatnonzero(last) + 1])
    # By file name, so that D4RL's own file is known wherever it lies, and a file of another name is not taken for it.
    name = next((name for name in NAMES if _file_name(name) == path.name), "")
    env_id, ref_min, ref_max = _LOCOMOTION.get(name.split("-")[0], (None, None, None))
    return Dataset(
        id=dataset_id,
        observations=obs,
        rows=rows,
        action=arrays["actions"][rows],
        reward=arrays["rewards"][rows],
        terminated=terminated,
        truncated=last & ~terminated,
        starts=starts,
        action_space=gym.spaces.Box(-1.0, 1.0, (arrays["actions"].shape[1],), np.float32),
        env_spec=gym.spec(env_id) if env_id else None,
        ref_min=ref_min,
        ref_max=ref_max,
        source=str(path),
    )


def _read_arrays(dataset_id: str, path: Path) -> dict[str, np.ndarray]:
    dims = {"observations": 2, "actions": 2, "rewards": 1, "terminals": 1, "timeouts": 1}
    out: dict[str, np.ndarray] = {}
    try:
        with h5py.File(path, "r") as h5:
            for key, ndim in dims.items():
                if key not in h5:
                    why = (
                        "; without it episode ends are unknown (v0 files are not supported)"
                        if key == "timeouts"
                        else ""
                    )
                    raise DatasetError(f"{dataset_id}: {path} has no '{key}'{why}")
                node = h5[key]
                if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "biuf":
                    raise DatasetError(f"{dataset_id}: '{key}' in {path} is not an array of numbers")
                array = node[()].astype(bool if key in ("terminals", "timeouts") else np.float32, copy=False)
                if ndim == 1 and array.ndim == 2 and array.shape[1] == 1:
                    array = array[:, 0]
                if array.ndim != ndim:
                    raise DatasetError(f"{dataset_id}: '{key}' in {path} has shape {array.shape}, expected {ndim}-d")
                out[key] = array
    except DatasetError:
        raise
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:  # what h5py raises on damaged bytes
        raise DatasetError(f"{dataset_id}: {path} is not a readable HDF5 file (truncated?): {error}") from error
    lengths = {key: len(array) for key, array in out.items()}
    if len(set(lengths.values())) != 1 or lengths["rewards"] < 2:
        raise DatasetError(f"{dataset_id}: arrays in {path} must have one common length of at least 2: {lengths}")
    return out
