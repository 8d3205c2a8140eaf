"""Where walls, starts and goals of a maze are, in the coordinates of its observations: for drawing paths.

Known are the mazes of this package, Gymnasium-Robotics' PointMaze and AntMaze, and OGBench's. The position is in the
first two numbers of every one's flattened observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard.envs.d4rl import _ANT_CELL, ANTMAZE_GOALS, MAPS, MAZE2D_GOALS, MAZE2D_RADIUS, AntMaze, Maze2d
from hoard.envs.make import make_env
from hoard.envs.mazes import HiddenGoalMaze

_ROBOTICS_RADIUS = 0.45  # of a goal in Gymnasium-Robotics' mazes
_ANTMAZE_RADIUS = 0.5
_BALL_START = 0.2  # how far a D4RL ball's origin lies from the centre of its cell


@dataclass(frozen=True)
class MazeLayout:
    """A maze from above.

    `walls` (K, 2) are the centres of wall cells and `cell` is their side. `goals` (G, 2) are the centres of the cells
    that can hold the goal, `radius` is how near is near enough. `observed_goal` says whether columns 2 and 3 of an
    observation are the goal.
    """

    walls: np.ndarray
    cell: float
    goals: np.ndarray
    radius: float
    observed_goal: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top edge."""
        (left, bottom), (right, top) = self.walls.min(axis=0), self.walls.max(axis=0)
        half = self.cell / 2
        return float(left - half), float(right + half), float(bottom - half), float(top + half)


def layout_of(spec: EnvSpec | str) -> MazeLayout | None:
    """The layout of an environment; None if it is no maze that is known here."""
    env = make_env(spec)
    try:
        return _layout(env.unwrapped)
    finally:
        env.close()


def goal_of(env: gym.Env) -> np.ndarray:
    """Where the goal of a maze is now, (2,)."""
    maze: Any = env.unwrapped
    goal = maze.cur_goal_xy if hasattr(maze, "cur_goal_xy") else maze.goal
    return np.array(goal, np.float64)


def _layout(env: Any) -> MazeLayout | None:
    maze: Any
    if isinstance(env, Maze2d):
        maze, goal = MAPS[env.maze], MAZE2D_GOALS[env.maze]
        return MazeLayout(_walls(maze) - _BALL_START, 1.0, np.array([goal], np.float64), MAZE2D_RADIUS)
    if isinstance(env, AntMaze):
        walls = (_walls(MAPS[env.maze])[:, ::-1] - 1) * _ANT_CELL
        goals = (np.array([ANTMAZE_GOALS[env.maze]])[:, ::-1] - 1.0) * _ANT_CELL
        return MazeLayout(walls, _ANT_CELL, goals, _ANTMAZE_RADIUS)
    if isinstance(env, HiddenGoalMaze) or hasattr(getattr(env, "maze", None), "cell_rowcol_to_xy"):
        maze = env.maze
        walls = np.array([maze.cell_rowcol_to_xy(cell) for cell in _walls(maze.maze_map)])
        goals = np.array(maze.unique_goal_locations, np.float64)
        seen = not isinstance(env, HiddenGoalMaze)
        return MazeLayout(walls, float(maze.maze_size_scaling), goals, _ROBOTICS_RADIUS, seen)
    if hasattr(env, "maze_map") and hasattr(env, "ij_to_xy"):
        walls = np.array([env.ij_to_xy(cell) for cell in _walls(env.maze_map)], np.float64)
        tasks = [env.task_infos[env._reward_task_id - 1]] if env._reward_task_id is not None else env.task_infos
        goals = np.array([task["goal_xy"] for task in tasks], np.float64)
        return MazeLayout(walls, float(env._maze_unit), goals, float(env._goal_tol))
    return None


def _walls(maze_map: Any) -> np.ndarray:
    """Row and column of each wall cell (K, 2)."""
    return np.array(
        [(i, j) for i, row in enumerate(maze_map) for j, cell in enumerate(row) if str(cell) == "1"], np.float64
    )
