"""From a D4RL file to a `Dataset`. Which rows are kept, and why: the package's docstring."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard.datasets.d4rl import ids
from hoard.datasets.d4rl.evaluation import evaluation, maze2d_of, spec_of, why_not
from hoard.datasets.d4rl.file import BLOCK, File
from hoard.datasets.d4rl.table import Entry, defects
from hoard.datasets.d4rl.verify import verify
from hoard.datasets.dataset import Dataset, DatasetError
from hoard.envs import d4rl as environments
from hoard.envs import make_env

# No ant crosses 2 m in the 0.1 s of a step; only a transition into another episode does.
_ANT_JUMP = 2.0


def read(dataset_id: str) -> Dataset:
    """Load a D4RL file as transitions (see the package's docstring for which rows are kept).

    Raises DatasetError naming file and key for a missing, damaged or ill-shaped file, for one that is not the published
    file whose name it has, and for `+full` where it cannot be had. Warns of what is wrong with the published data.
    """
    request = ids.parse(dataset_id)
    path, entry = request.path, request.entry
    if not os.path.isfile(path):
        raise DatasetError(f"{dataset_id}: there is no file {path}")
    own_spec = spec_of(dataset_id, request.env_id) if request.env_id is not None else None
    limit = entry.limit if entry else own_spec.max_episode_steps if own_spec else None
    try:
        if entry and not request.own:
            verify(dataset_id, entry, path, stamped=request.named)
        with File(dataset_id, path) as file:
            layout = _read_full(file, entry) if request.full else _read_as_published(file, entry, limit)
    except OSError as error:  # what h5py raises is told by File; this is the disk
        raise DatasetError(f"{dataset_id}: cannot read {path}: {error}") from error
    if own_spec:
        action_space = _fitting_actions(dataset_id, own_spec, layout)
    else:
        action_space = _action_space(entry, layout.action.shape[1])
    ref_min, ref_max = (entry.ref_min, entry.ref_max) if entry else request.references or (None, None)
    data = Dataset(
        id=dataset_id,
        observations=layout.observations,
        rows=layout.rows,
        action=layout.action,
        reward=layout.reward,
        terminated=layout.terminated,
        truncated=layout.last & ~layout.terminated,
        starts=np.concatenate([[0], np.flatnonzero(layout.last) + 1]),
        action_space=action_space,
        env_spec=evaluation(entry, layout.observations) if entry else own_spec,
        ref_min=ref_min,
        ref_max=ref_max,
        source=str(path),
        notes=layout.notes,
    )
    if entry:
        _tell(dataset_id, entry, data)
    if request.own or not entry:
        for note in layout.notes:
            warnings.warn(f"{dataset_id}: {note}", stacklevel=4)
    return data


def _fitting_actions(dataset_id: str, spec: EnvSpec, layout: _Layout) -> gym.spaces.Box:
    """The action space of an environment. Raises DatasetError unless the file has its numbers of columns."""
    try:
        env = make_env(spec)
    except Exception as error:  # the environment is anybody's
        raise DatasetError(f"{dataset_id}: {spec.id} cannot be made: {type(error).__name__}: {error}") from error
    env.close()
    actions: Any = env.action_space
    theirs = {"observations": env.observation_space.shape, "actions": actions.shape}
    ours = {"observations": layout.observations.shape[1:], "actions": layout.action.shape[1:]}
    for name, shape in theirs.items():
        if shape != ours[name]:
            raise DatasetError(
                f"{dataset_id}: '{name}' has shape {('N', *ours[name])}, {spec.id} needs {('N', *shape)}"
            )
    return actions


@dataclass
class _Layout:
    """`Dataset`'s arrays, and `last` (N,): the transition ends its episode."""

    observations: np.ndarray
    rows: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    last: np.ndarray
    notes: tuple[str, ...] = ()


def _read_as_published(file: File, entry: Entry | None, limit: int | None) -> _Layout:
    """What `d4rl.qlearning_dataset` makes of the file, row for row."""
    terminal, timeout = file.flags()
    if timeout is None:
        if limit is None:
            raise file.error(
                "has no 'timeouts'; without it episode ends are unknown (v0 files: +as=NAME names the set whose limit "
                "holds; your own: +as=ENVIRONMENT names the Gymnasium environment, as Hopper-v5)"
            )
        timeout = _over_the_limit(terminal, limit)
        warnings.warn(
            f"{file.dataset_id}: {file.path.name} has no 'timeouts'; episodes are cut at {limit} steps as the "
            "d4rl package does it, which misses the true end after a terminal row by one step",
            stacklevel=4,
        )
    keep = ~timeout
    keep[-1] = False
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise file.error("holds no complete transition: 'timeouts' is set in every row but the last")
    observations = file.observations(len(keep), entry)
    # An episode ends where it terminates or where the row that follows was dropped.
    last = (terminal[:-1] | timeout[1:])[keep[:-1]]
    last[-1] = True
    note = (
        f"{len(keep) - len(rows):,} of the file's {len(keep):,} rows are left out by D4RL's rule: every time-out row "
        "and the last row"
    )
    if "next_observations" in file:
        note += "; +full keeps them"
    return _Layout(observations, rows, _compact(file.actions(entry), rows), _compact(file.rewards(), rows),
                   terminal[rows], last, (note,))  # fmt: skip


def _read_full(file: File, entry: Entry | None) -> _Layout:
    terminal, timeout = file.flags()
    if entry and entry.family == "maze2d" and timeout is not None and "next_observations" not in file:
        return _read_endless_walk(file, entry, terminal, timeout)
    for key in ("timeouts", "next_observations"):
        if key not in file:
            raise file.error(f"has no '{key}', so +full cannot be had: what followed a time-out is not in the file")
    assert timeout is not None
    last = terminal | timeout
    last[-1] = True
    ends = np.flatnonzero(last)
    n = len(last)
    # Every episode of T rows becomes T+1 rows of the table: behind its last row stands its own next observation.
    table = file.observations(n, entry, room=len(ends))
    before = np.cumsum(last) - last  # episodes finished before each row
    rows = np.arange(n) + before
    for high in range(n, 0, -BLOCK):
        low = max(0, high - BLOCK)
        table[rows[low:high]] = table[low:high].copy()
    step = file.block_of("next_observations")
    for low in range(0, n, step):
        here = ends[(ends >= low) & (ends < low + step)]
        block = file.next_observations(low, min(low + step, n), table.shape[1])
        if (bad := np.flatnonzero(~np.isfinite(block).all(axis=1))).size:
            raise file.error(f"holds NaN or infinity in 'next_observations', first at row {low + bad[0]}")
        table[rows[here] + 1] = block[here - low]
        # Inside an episode the two accounts of s' must agree, else the episode ends are not where the flags say.
        inside = np.flatnonzero(~last[low : low + len(block)])
        apart = np.abs(table[rows[low + inside] + 1] - block[inside]).max(axis=1)
        if (bad := np.flatnonzero(apart > 1e-3 * (1 + np.abs(block[inside]).max(axis=1)))).size:
            row = low + inside[bad[0]]
            raise file.error(f"'next_observations' differs from the next row inside an episode, first at row {row}")
    return _Layout(table, rows, file.actions(entry), file.rewards(), terminal, last)


def _read_endless_walk(file: File, entry: Entry, terminal: np.ndarray, timeout: np.ndarray) -> _Layout:
    """maze2d: every row but the file's last is a transition to the next row; rewards paid for s_{t+1}."""
    n = len(terminal)
    observations = file.observations(n, entry)
    maze, reward_type = maze2d_of(entry)
    goal = environments.MAZE2D_GOALS[maze]
    due = environments.maze2d_reward(observations[:, :2].astype(np.float64), goal, reward_type)
    published = file.rewards()
    # A few positions lie so near the edge that float32 decides.
    differing = np.abs(due - published) > 1e-3
    if differing.mean() > 1e-3:
        raise file.error(
            f"'rewards' are not those of {entry.name}'s goal at {goal}, first at row {np.flatnonzero(differing)[0]}, "
            "so +full cannot set them right"
        )
    last = (terminal | timeout)[:-1]
    last[-1] = True
    reward = due[1:].astype(np.float32)
    return _Layout(observations, np.arange(n - 1), file.actions(entry)[:-1], reward, terminal[:-1], last)


def _over_the_limit(terminal: np.ndarray, limit: int) -> np.ndarray:
    """(N,) bool: rows where the package's count of steps reaches the limit, for files without `timeouts`.

    The count is 0 at the start and behind such a row, and 1 behind a terminal row (the package's own slip).
    """
    over = np.zeros(len(terminal), bool)
    ends = np.append(np.flatnonzero(terminal), len(terminal))
    row, count, k = 0, 0, 0
    while row < len(terminal):
        while ends[k] < row:
            k += 1
        cut = row + limit - 1 - count
        if row <= cut <= ends[k] and cut < len(terminal):
            over[cut] = True
            row, count = cut + 1, 0
        else:
            row, count = int(ends[k]) + 1, 1
    return over


def _compact(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """array[rows] for rising rows, moved inside its own memory."""
    for low in range(0, len(rows), BLOCK):
        block = rows[low : low + BLOCK]
        if block[-1] != low + len(block) - 1:  # else everything up to here stands where it should
            array[low : low + len(block)] = array[block]
    return array[: len(rows)]


def _action_space(entry: Entry | None, dim: int) -> gym.spaces.Box:
    if entry and entry.family == "minigrid":
        return gym.spaces.Box(0.0, 1.0, (dim,), np.float32)
    if entry and entry.family in ("carla", "flow"):  # not known without their simulators
        return gym.spaces.Box(-np.inf, np.inf, (dim,), np.float32)
    return gym.spaces.Box(-1.0, 1.0, (dim,), np.float32)


def _tell(dataset_id: str, entry: Entry, data: Dataset) -> None:
    """Warn of what is wrong with a published set; refuse the one that can be known to be another."""
    if entry.name in ("hopper-medium-v1", "hopper-expert-v1"):
        per_step = float(data.reward.mean(dtype=np.float64))
        if (per_step > 2.5) != (entry.name == "hopper-expert-v1"):
            raise DatasetError(
                f"{dataset_id}: {data.source} pays {per_step:.2f} a step: it is from before January 2021, when D4RL's "
                "server had hopper-medium-v1 and hopper-expert-v1 interchanged (issue #76). Move it away to get it anew"
            )
    for defect in defects(entry.name):
        if defect.told:
            warnings.warn(f"{dataset_id}: {defect}", stacklevel=4)
    if entry.family == "antmaze" and data.obs_dim > 2:
        step = np.abs(data.next_obs[:, :2] - data.obs[:, :2]).max(axis=1)
        if jumps := int(((step > _ANT_JUMP) & ~data.terminated).sum()):
            warnings.warn(f"{dataset_id}: {jumps:,} transitions jump by more than {_ANT_JUMP:g} m", stacklevel=4)
    if why := why_not(entry.name):
        warnings.warn(f"{dataset_id} can be loaded but not trained on, for it cannot be evaluated: {why}", stacklevel=4)
