"""The environment in which scores of a D4RL file are measured: that of its name, or one the user names."""

from __future__ import annotations

import difflib
import importlib

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard.datasets.d4rl.ids import unknown_target
from hoard.datasets.d4rl.table import ENTRIES, Entry
from hoard.datasets.dataset import DatasetError
from hoard.envs import d4rl as environments


def maze2d_of(entry: Entry) -> tuple[str, str]:
    """(maze, reward type) of a maze2d set, as `hoard.envs.d4rl` calls them."""
    size = entry.task.removesuffix("-dense")
    names = {name.lower(): name for name in environments.MAPS}
    return names[size.replace("-", "")], "dense" if entry.task.endswith("-dense") else "sparse"


def evaluation(entry: Entry, observations: np.ndarray) -> EnvSpec | None:
    """The environment that scores of a set are measured in, None if there is none (`why_not`)."""
    if entry.family == "locomotion":
        if entry.task == "ant":
            return environments.spec("hoard/D4RL-Ant-v2", contact_forces=bool(observations[:, 27:].any()))
        return gym.spec({"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}[entry.task])
    if entry.family == "adroit":
        return environments.spec(f"hoard/D4RL-{entry.task.capitalize()}-v1")
    if entry.family == "maze2d":
        maze, reward_type = maze2d_of(entry)
        return environments.spec(f"hoard/D4RL-Maze2d-{maze}-v1", reward_type=reward_type)
    if entry.family == "antmaze":
        maze = {name.lower(): name for name in environments.ANTMAZE_GOALS}[entry.task]
        return environments.spec(f"hoard/D4RL-AntMaze-{maze}-v2")
    return None


_WHY_NOT = {
    "kitchen": "the 59 numbers of Gymnasium-Robotics' FrankaKitchen-v1 are not D4RL's 60 (30 of the state, 30 of the "
    "goal); Minari's D4RL/kitchen sets can be trained on",
    "minigrid": "its actions are discrete and D4RL's own FourRooms, which is not that of the minigrid package, is gone",
    "bullet": "it needs PyBullet's environments, which know only the old Gym",
    "carla": "it needs the CARLA simulator",
    "flow": "it needs the SUMO simulator and Flow",
}


def why_not(name: str) -> str:
    """Why a set of D4RL's can be loaded but not evaluated, or ''."""
    return _WHY_NOT.get(ENTRIES[name].family, "")


def spec_of(dataset_id: str, env_id: str) -> EnvSpec:
    """The Gymnasium environment that +as=ENVIRONMENT names; of ``module:Name-v0`` the module is imported first.

    Raises DatasetError unless there is one, with a time limit, that a file can describe.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise DatasetError(f"{dataset_id}: +as={env_id}: cannot import {module}: {error}") from error
    try:
        spec = gym.spec(name)
    except gym.error.Error as error:
        near = ", ".join(difflib.get_close_matches(name, gym.registry, n=3, cutoff=0.6))
        raise unknown_target(dataset_id, env_id, near) from error
    if not spec.max_episode_steps or spec.max_episode_steps < 0:
        raise DatasetError(f"{dataset_id}: {env_id} has no time limit, on which scores depend: register it with one")
    try:
        spec.to_json()
    except Exception as error:
        raise DatasetError(
            f"{dataset_id}: {env_id} cannot be written down: register it with its entry point as text, 'module:Class' "
            f"({error})"
        ) from error
    return spec
