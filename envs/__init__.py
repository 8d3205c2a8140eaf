"""Environments: those that nobody else packages (``hoard.envs.mazes``) and `make_env`, the one door to all others.

Importing this package registers Gymnasium-Robotics and the ``hoard/*`` ids with Gymnasium.
"""

from hoard.envs.flatten import FlattenFloat32, flatten_obs, flatten_space
from hoard.envs.make import make_env
from hoard.envs.mazes import HiddenGoalMaze

__all__ = ["FlattenFloat32", "HiddenGoalMaze", "flatten_obs", "flatten_space", "make_env"]
