"""The replay buffers behind ``hoard/<robot>/medium-replay-v1``: every step of a training, made again from its actions.

A training takes actions that are whole numbers of 1 / 127, so that one byte keeps each. With the reset seeds of its
episodes they repeat it. Small differences between machines grow in a simulation with contacts, so the state of the
simulator is kept too, every `EVERY` steps, and an episode goes on from there: where the training ran this changes no
bit, elsewhere it keeps the episode on its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from hoard.datasets.dataset import DatasetError
from hoard.datasets.recipes.locomotion_policies import TASKS, Ladder, Stage, Trajectory, stem

GRID = np.float32(127)  # actions are whole numbers of 1 / 127
EVERY = 25  # steps between two states that are kept: in 50, rounding grew to a hundredth on HalfCheetah
_STATE = int(mujoco.mjtState.mjSTATE_FULLPHYSICS | mujoco.mjtState.mjSTATE_WARMSTART)
_OFF = 1e-3  # relative difference of positions and velocities from which on it is another path


def action_of(whole: np.ndarray) -> np.ndarray:
    """The actions, float32 in [-1, 1], that are kept as int8."""
    return whole.astype(np.float32) / GRID


@dataclass(frozen=True)
class Replay:
    """Whole episodes of a training, in its order.

    `actions` (steps, action_dim) int8; `ends` (episodes,) the number of steps up to the end of each; `seeds` of their
    resets; `states` (number, size) float64, MuJoCo's full physics and warm start, before step 25, 50, ... of each
    episode.
    """

    task: str
    actions: np.ndarray
    ends: np.ndarray
    seeds: np.ndarray
    states: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.ends, prepend=0)

    def last(self, steps: int | None) -> range:
        """The last episodes with this many steps together, as a buffer of that size would hold; None: all.

        Raises DatasetError if there are not that many.
        """
        total = int(self.ends[-1])
        if steps is not None and steps > total:
            raise DatasetError(
                f"the replay of {self.task} has {total:,} steps; its length may be at most {total // 1000}k"
            )
        before = 0 if steps is None else total - steps
        return range(int(np.searchsorted(self.ends, before, side="right")), len(self))

    def episode(self, stage: Stage, k: int) -> Trajectory:
        """Episode k, made again. Raises DatasetError if the simulator of this machine takes another path."""
        first = int(kept_states(self.lengths[:k]).sum())
        kept = self.states[first : first + int(kept_states(self.lengths[k]))]
        start = int(self.ends[k] - self.lengths[k])
        trajectory, _ = play(stage, int(self.seeds[k]), self.actions[start : int(self.ends[k])], kept, f"episode {k}")
        return trajectory


def kept_states(length: Any) -> Any:
    """How many states are kept of an episode of this length: one before each 25th step that it has."""
    return (length - 1) // EVERY


def make_replay(stage: Stage, task: str, actions: np.ndarray, ends: Sequence[int], seeds: Sequence[int]) -> Replay:
    """Play a training's episodes, keeping states on the way. Raises DatasetError where one does not end as said."""
    states = []
    for k, end in enumerate(ends):
        start = ends[k - 1] if k else 0
        states.append(play(stage, seeds[k], actions[start:end], None, f"episode {k}")[1])
    return Replay(task, actions, np.array(ends, np.int64), np.array(seeds, np.int64), np.concatenate(states))


def play(
    stage: Stage, seed: int, whole: np.ndarray, kept: np.ndarray | None, name: str
) -> tuple[Trajectory, np.ndarray]:
    """Reset with a seed and take these actions, going on from the `kept` states; also the states, as they were met.

    Raises DatasetError, with the episode's `name`, where the path leaves these states, or it ends early or not at all.
    """
    env, actions = stage.env, action_of(whole)
    size = mujoco.mj_stateSize(env.model, _STATE)
    observations = [np.asarray(env.reset(seed=seed)[0], np.float32)]
    met = np.empty((int(kept_states(len(actions))), size))
    rewards, terminated = [], False
    for t, action in enumerate(actions):
        if terminated:
            raise _another_path(stage, f"{name} ends after {t} steps of {len(actions)}")
        if t and t % EVERY == 0:
            number = t // EVERY - 1
            mujoco.mj_getState(env.model, env.data, met[number], _STATE)
            if kept is not None:
                _compare(stage, met[number], kept[number], f"{name}, step {t}")
                mujoco.mj_setState(env.model, env.data, kept[number], _STATE)
        raw, reward, terminated, _, _ = env.step(action)
        observations.append(np.asarray(raw, np.float32))
        rewards.append(reward)
    if not terminated and len(actions) < stage.limit:
        raise _another_path(stage, f"{name} goes on after its {len(actions)} steps")
    trajectory = Trajectory(
        np.stack(observations),
        actions,
        np.array(rewards, np.float32),
        bool(terminated),
        len(actions) == stage.limit,
    )
    return trajectory, met


def _compare(stage: Stage, met: np.ndarray, kept: np.ndarray, where: str) -> None:
    model = stage.env.model
    moving = slice(1, 1 + model.nq + model.nv)  # after the time
    if (np.abs(met[moving] - kept[moving]) > _OFF * (1 + np.abs(kept[moving]))).any():
        raise _another_path(stage, f"{where} is in another state")


def _another_path(stage: Stage, what: str) -> DatasetError:
    return DatasetError(
        f"the replay of {stage.spec.id} cannot be made again with MuJoCo {version('mujoco')} on this machine: {what}. "
        "The other sets do not depend on this"
    )


# --- file ---


def file_of(task: str, folder: Path) -> Path:
    return folder / f"{stem(task, 1)}.replay.safetensors"


def save_replay(replay: Replay, folder: Path) -> str:
    """Write a replay beside its task's policies; returns the file's SHA-256."""
    arrays = {name: getattr(replay, name) for name in ("actions", "ends", "seeds", "states")}
    data = safetensors.save(arrays)
    file_of(replay.task, folder).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def load_replay(ladder: Ladder, folder: Path) -> Replay:
    """The replay that belongs to a ladder. Raises DatasetError naming a file that is missing, damaged or unfit."""
    file = file_of(ladder.task, folder)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DatasetError(f"the replay of {ladder.task} cannot be read ({error}); reinstall hoard") from error
    if (found := hashlib.sha256(data).hexdigest()) != ladder.about["replay"]["sha256"]:
        raise DatasetError(
            f"the replay of {ladder.task} is damaged: {file} has SHA-256 {found[:16]}..., the record of its policies "
            f"says {ladder.about['replay']['sha256'][:16]}...; reinstall hoard"
        )
    try:
        replay = Replay(ladder.task, **safetensors.load(data))
        _check(replay)
    except (ValueError, TypeError, SafetensorError) as error:
        raise DatasetError(f"the replay of {ladder.task} in {file} does not fit: {error}") from error
    return replay


def _check(replay: Replay) -> None:
    wanted = (int(replay.ends[-1]), TASKS[replay.task].action_dim)
    if replay.actions.shape != wanted:
        raise ValueError(f"actions of shape {replay.actions.shape}, expected {wanted}")
    if len(replay.seeds) != len(replay) or (replay.lengths < 1).any():
        raise ValueError(f"{len(replay)} episodes with {len(replay.seeds)} seeds, lengths from {replay.lengths.min()}")
    if len(replay.states) != kept_states(replay.lengths).sum():
        raise ValueError(f"{len(replay.states)} states, expected {kept_states(replay.lengths).sum()}")
