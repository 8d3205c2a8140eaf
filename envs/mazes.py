"""Point mazes whose goal is not observed.

A 4.2 kg ball is pushed through a maze of 1 m cells by a 2-d force; the simulator is Gymnasium-Robotics' PointMaze.
The observation is (x, y, vx, vy) only: where the goal is must be learnt from the rewards in the data.

``hoard/StitchMaze-v0``
    The point maze of MBRCSL (Zhou et al., ICLR 2024; constants from the authors' public code, zhaoyizhou1123/mbrcsl).
    One start cell and one goal cell; every reset moves both by U(-0.25, 0.25) per coordinate, so the reward
    exp(-distance to the goal), paid at every step, depends on an offset that is never seen. 200 steps.
``hoard/Maze2d-UMaze-v0``, ``hoard/Maze2d-Medium-v0``
    D4RL's maze2d task (Fu et al., 2020) on PointMaze's maps and physics. The goal is exactly the centre of one cell;
    the start is any other free cell, moved by U(-0.25, 0.25) per coordinate. Reward 1 at every step that ends within
    0.45 m of the goal, else 0. 300 and 600 steps. Not D4RL's own environment: that one has a goal radius of 0.5, a
    start noise of 0.1 and another map frame, so scores are not comparable with published maze2d scores.

Episodes end at the time limit only. ``info["success"]`` says whether the ball has been within 0.45 m of the goal at
any time since the reset, so its value on the last step is the success of the episode.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle
from gymnasium_robotics.envs.maze.maps import GOAL, MEDIUM_MAZE, RESET, U_MAZE
from gymnasium_robotics.envs.maze.maze_v4 import Maze
from gymnasium_robotics.envs.maze.point import PointEnv
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

from hoard.envs.make import make_env

# Rows from north to south, 1 = wall. Cell (row, column) has its centre at x = column - 2.5, y = 1.5 - row.
STITCH_MAZE = [
    [1, 1, 1, 1, 1, 1],
    [1, 0, RESET, 1, 1, 1],
    [1, 0, 0, 0, GOAL, 1],
    [1, 1, 1, 1, 1, 1],
]
# The cells that hold the goal when Minari's pointmaze sets are evaluated.
EVALUATION_GOAL = {"umaze": (1, 1), "medium": (6, 6)}


def with_goal(maze_map: list[list], cell: tuple[int, int]) -> list[list]:
    """A copy of a map with its only goal in ``cell`` (row, column)."""
    return [[GOAL if (i, j) == cell else value for j, value in enumerate(row)] for i, row in enumerate(maze_map)]


class HiddenGoalMaze(gym.Env, EzPickle):
    """PointMaze with the goal hidden from the observation and no termination (see the module's docstring).

    ``goal_noise`` moves the goal by U(-0.25, 0.25) per coordinate at every reset; without it the goal is exactly the
    centre of the map's goal cell.
    """

    metadata = PointMazeEnv.metadata

    def __init__(
        self, maze_map: list[list], reward_type: str = "sparse", goal_noise: bool = True, render_mode: str | None = None
    ):
        EzPickle.__init__(self, maze_map, reward_type, goal_noise, render_mode)
        # A continuing task with a lasting target neither terminates nor moves the goal during an episode.
        self.point_maze = PointMazeEnv(
            maze_map, render_mode, reward_type=reward_type, continuing_task=True, reset_target=False
        )
        self.goal_noise = goal_noise
        self.render_mode = render_mode
        self.observation_space = self.point_maze.observation_space["observation"]
        self.action_space = self.point_maze.action_space
        self._reached = False

    @property
    def maze(self) -> Maze:
        return self.point_maze.maze

    @property
    def point_env(self) -> PointEnv:
        """The ball's own MuJoCo environment, for ``set_state``."""
        return self.point_maze.point_env

    @property
    def goal(self) -> np.ndarray:
        """The hidden goal (x, y)."""
        return self.point_maze.goal

    @goal.setter
    def goal(self, xy: np.ndarray) -> None:
        self.point_maze.goal = np.array(xy, np.float64)
        self.point_maze.update_target_site_pos()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.point_maze.np_random = self.np_random  # one generator: saving env.np_random saves all the randomness
        obs, info = self.point_maze.reset(options=options)
        if not self.goal_noise:
            # PointMaze draws a noisy goal, then a start at least 0.5 m from it: never in the goal's own cell, always
            # possible in any other. So replacing the goal afterwards leaves the distribution of starts as it was.
            self.goal = self.maze.unique_goal_locations[0]
            info["success"] = bool(np.linalg.norm(obs["achieved_goal"] - self.goal) <= 0.45)
        self._reached = info["success"]
        return obs["observation"], {"success": self._reached}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self.point_maze.step(action)
        self._reached = self._reached or info["success"]
        return obs["observation"], float(reward), terminated, truncated, {"success": self._reached}

    def render(self):
        return self.point_maze.render()

    def close(self) -> None:
        self.point_maze.close()


def replay_open_loop(spec: EnvSpec | str, starts: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Real returns (K,) of action sequences (K, T, action_dim), each played open-loop from its start (K, obs_dim).

    Actions are in environment units and clipped to the action space. A goal that moves with every reset is put at the
    centre of its cell. Raises ValueError for an environment that is no `HiddenGoalMaze`: elsewhere an observation does
    not say what state the simulator was in.
    """
    env = make_env(spec)
    try:
        maze: Any = env.unwrapped
        if not isinstance(maze, HiddenGoalMaze):
            raise ValueError(f"{env.spec.id if env.spec else maze}: only the mazes of hoard.envs can be replayed")
        space: Any = maze.action_space
        returns = np.zeros(len(starts))
        for k, (start, sequence) in enumerate(zip(starts, actions, strict=True)):
            env.reset(seed=0)
            maze.point_env.set_state(start[:2].astype(np.float64), start[2:4].astype(np.float64))
            maze.goal = maze.maze.unique_goal_locations[0]
            for action in sequence:
                _, reward, terminated, truncated, _ = env.step(np.clip(action, space.low, space.high))
                returns[k] += float(reward)
                if terminated or truncated:
                    break
        return returns
    finally:
        env.close()


def _register(env_id: str, max_episode_steps: int, **kwargs) -> None:
    gym.register(
        env_id, entry_point="hoard.envs.mazes:HiddenGoalMaze", max_episode_steps=max_episode_steps, kwargs=kwargs
    )


_register("hoard/StitchMaze-v0", 200, maze_map=STITCH_MAZE, reward_type="dense", goal_noise=True)
for _name, _map, _limit in (("UMaze", U_MAZE, 300), ("Medium", MEDIUM_MAZE, 600)):
    _register(
        f"hoard/Maze2d-{_name}-v0",
        _limit,
        maze_map=with_goal(_map, EVALUATION_GOAL[_name.lower()]),
        reward_type="sparse",
        goal_noise=False,
    )
