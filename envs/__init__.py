"""Environments: those that nobody else packages (``hoard.envs.mazes``) and `make_env`, the one door to all others.

Importing this package registers Gymnasium-Robotics and the ``hoard/*`` ids with Gymnasium.
"""

from hoard.envs import _mujoco, _robotics, d4rl  # noqa: F401  registrations; the first two keep others quiet
from hoard.envs.batch import Batch, make_batch
from hoard.envs.comblock import CombLock
from hoard.envs.flatten import FlattenFloat32, flatten_obs, flatten_space
from hoard.envs.make import make_env
from hoard.envs.mazes import HiddenGoalMaze
from hoard.envs.tabular import FiniteMDP, TabularEnv

__all__ = [
    "Batch",
    "CombLock",
    "FiniteMDP",
    "FlattenFloat32",
    "HiddenGoalMaze",
    "TabularEnv",
    "flatten_obs",
    "flatten_space",
    "make_batch",
    "make_env",
]
