"""Random steps of Hopper, HalfCheetah, Walker2d and Ant, recorded with the simulator's states.

This file needs gymnasium, mujoco and numpy alone, so it also runs where older versions of them are installed:

    python envs/mujoco_recording.py Hopper-v4 hopper.hdf5 --steps 10000 --seed 0

writes random steps in D4RL's layout (with h5py), to be read as ``d4rl:hopper.hdf5+as=hopper-random-v2+full``.
`hoard data versions` compares such recordings with what other versions make of them.
"""

from __future__ import annotations

import argparse
import re
import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np


@dataclass(frozen=True)
class Robot:
    """`hidden` leading positions are not observed, observed velocities may be `clipped` to +-10.

    `lags`: the reward is computed from positions of bodies, which MuJoCo leaves one substep behind the joints, so the
    step before must be replayed as well. `total_mass` is what the model file scales its bodies to (None: it does not).
    """

    hidden: int
    obs_dims: tuple[int, ...]
    clipped: bool = False
    lags: bool = False
    total_mass: float | None = None


ROBOTS = {
    "Hopper": Robot(1, (11,), clipped=True),
    "HalfCheetah": Robot(1, (17,), total_mass=14.0),
    "Walker2d": Robot(1, (17,), clipped=True),
    "Ant": Robot(2, (27, 105, 111), lags=True),
}
ENV_IDS = tuple(f"{robot}-{version}" for robot in ROBOTS for version in ("v4", "v5"))


def robot_of(env_id: str) -> str:
    """Hopper, HalfCheetah, Walker2d or Ant of an environment's id. Raises ValueError, with the ids, for any other."""
    match = re.fullmatch(r"(?:hoard/D4RL-)?(\w+)-v\d+", env_id)
    if match is None or match[1] not in ROBOTS:
        raise ValueError(f"{env_id} cannot be replayed in other versions, only steps of {', '.join(ROBOTS)} can")
    return match[1]


@dataclass(frozen=True)
class Steps:
    """N recorded steps in their order: `observation`, `next_observation` (N, obs), `action` (N, act), `reward` (N,).

    `first` (N,) marks the first step of each episode, `terminated` (N,) true ends. A next observation that was not
    recorded is NaN. `qpos` (N, nq) and `qvel` (N, nv) are the simulator's state before the step, NaN in rows where it
    was not recorded, None where it never was.
    """

    robot: str
    observation: np.ndarray
    action: np.ndarray
    next_observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    first: np.ndarray
    qpos: np.ndarray | None = None
    qvel: np.ndarray | None = None

    def __post_init__(self) -> None:
        dims = ROBOTS[self.robot].obs_dims
        if self.observation.shape[1] not in dims:
            wanted, found = " or ".join(map(str, dims)), self.observation.shape[1]
            raise ValueError(f"{self.robot} is observed by {wanted} numbers, these steps have {found}")

    def __len__(self) -> int:
        return len(self.reward)


def record(env_id: str, steps: int, seed: int = 0) -> Steps:
    """`steps` steps of uniform random actions in one of `ENV_IDS`, in float64, with the states of the simulator.

    Episode k is reset with seed + k; the last episode may be unfinished.
    """
    if env_id not in ENV_IDS:
        raise ValueError(f"environment {env_id!r}: must be one of {', '.join(ENV_IDS)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
        env: Any = gym.make(env_id, disable_env_checker=True)
    bare = env.unwrapped
    env.action_space.seed(seed)
    rows: list[tuple] = []
    episode, done = 0, True
    obs = None
    while len(rows) < steps:
        first = done
        if first:
            obs, _ = env.reset(seed=seed + episode)
            episode += 1
        qpos, qvel, action = bare.data.qpos.copy(), bare.data.qvel.copy(), env.action_space.sample()
        then, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, then, reward, terminated, first, qpos, qvel))
        obs, done = then, terminated or truncated
    env.close()
    columns = [np.array(column) for column in zip(*rows)]
    return Steps(robot_of(env_id), *columns)


def write(steps: Steps, file: str, single: bool = False) -> None:
    """Write steps to a new HDF5 file in D4RL's layout, with the versions they were recorded in.

    `single`: in float32, as D4RL's own files are. Raises FileExistsError.
    """
    import h5py

    last = np.append(steps.first[1:], True)
    last[-1] = False  # where the recording stopped
    with h5py.File(file, "x") as h5:
        h5.attrs["recorded_with"] = f"gymnasium {gym.__version__}, mujoco {mujoco.__version__}"
        for name, array in (
            ("observations", steps.observation),
            ("actions", steps.action),
            ("next_observations", steps.next_observation),
            ("rewards", steps.reward),
            ("terminals", steps.terminated),
            ("timeouts", last & ~steps.terminated),
            ("infos/qpos", steps.qpos),
            ("infos/qvel", steps.qvel),
        ):
            assert array is not None
            h5[name] = array.astype(np.float32) if single and array.dtype == np.float64 else array


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Record random steps of a MuJoCo robot, in D4RL's layout.")
    parser.add_argument("env_id", choices=ENV_IDS)
    parser.add_argument("file", help="a new .hdf5 file")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="store numbers as D4RL's files do (default: float64)")
    args = parser.parse_args(argv)
    write(record(args.env_id, args.steps, args.seed), args.file, args.float32)


if __name__ == "__main__":
    main()
