"""From OGBench's compact files to a `Dataset`, with the reward of one task.

A trajectory of L rows holds L states and L - 1 transitions: the action of its last row leads nowhere. Reward and end
belong to the state before the action (OGBench's convention since 1.2.0, in data and environment alike), -1 or the
number of unfinished parts while the task is not done, 0 once it is. Where it is done the value function must not look
further, so an episode ends there, terminated; the walk goes on as the next episode, which shares the border state.
"""

from __future__ import annotations

import zipfile
from typing import Any

import gymnasium as gym
import numpy as np

from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.ogbench.ids import Request, parse
from hoard.envs import ogbench as envs


def read(dataset_id: str) -> Dataset:
    """Load a file that is at hand, and label it with the id's task by the package's own `relabel_dataset`.

    Raises DatasetError for a missing package and for a file that is damaged, naming the field.
    """
    request = parse(dataset_id)
    arrays = load_arrays(dataset_id, request)
    try:
        spec = envs.spec_of(request.env_id)
    except envs.Missing as error:
        raise DatasetError(f"{dataset_id}: {error}") from error
    keep = ~arrays.pop("terminals")
    rows = np.flatnonzero(keep)
    label_task(request, arrays)
    terminated = arrays["masks"][rows] == 0
    ends = terminated | ~keep[rows + 1]
    action = arrays["actions"][rows]
    return Dataset(
        id=dataset_id,
        observations=arrays["observations"],
        rows=rows,
        action=action,
        reward=arrays["rewards"][rows],
        terminated=terminated,
        truncated=ends & ~terminated,
        starts=np.concatenate([[0], np.flatnonzero(ends) + 1]),
        action_space=gym.spaces.Box(-1.0, 1.0, (action.shape[1],), np.float32),
        env_spec=spec,
        source=str(request.path),
        notes=("reward and end belong to the state before the action; an episode ends where its task is done",),
    )


def load_arrays(dataset_id: str, request: Request) -> dict[str, Any]:
    """The file's arrays, checked: observations, actions, qpos, button_states where it has them, terminals (R,) bool."""
    try:
        with np.load(request.path, allow_pickle=False) as file:
            names = ("observations", "actions", "terminals", "qpos", "button_states")
            arrays = {name: file[name] for name in names if name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{dataset_id}: {request.path} cannot be read: {error}") from error
    for name in ("observations", "actions", "terminals", "qpos"):
        if name not in arrays:
            raise DatasetError(f"{dataset_id}: {request.path} has no '{name}'")
    count = len(arrays["terminals"])
    for name, array in arrays.items():
        ndim = 1 if name == "terminals" else 2
        if array.ndim != ndim or len(array) != count:
            raise DatasetError(f"{dataset_id}: {name} in {request.path} has shape {array.shape} for {count} rows")
        if name in ("observations", "actions"):
            arrays[name] = array.astype(np.float32, copy=False)
    terminals = arrays["terminals"] = arrays["terminals"].astype(bool)
    if not count or not terminals[-1]:
        raise DatasetError(f"{dataset_id}: {request.path} ends inside a trajectory: its last row is no terminal one")
    if terminals.all():
        raise DatasetError(f"{dataset_id}: {request.path} has no transitions: every row ends a trajectory")
    return arrays


def label_task(request: Request, arrays: dict[str, Any]) -> None:
    """Add `rewards` and `masks` (0 where the task is done), (R,), of the state of every row."""
    from ogbench.relabel_utils import relabel_dataset

    env = gym.make(envs.spec_of(request.env_id))
    # The package resets the environment to learn the task's goal; the seed is for the noise on the start, which is
    # not looked at.
    with envs.GlobalStream(0):
        relabel_dataset(request.env_id, env, arrays)
    env.close()
