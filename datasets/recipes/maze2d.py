"""``hoard/maze2d/{umaze,medium}[-<N>k]-v0``: D4RL's maze2d idea on the pointmaze walks.

The walks are those of `pointmaze`, step for step, but seen as (x, y, vx, vy): the goals that the ball walked to are
hidden, and the rewards are those of ``hoard/Maze2d-*-v0``, whose one goal is fixed. What looks like aimless
wandering must be turned into a direct path.

Reward timing is the environment's: row t pays for the state that its action leads to, 1[|xy(t+1) - goal| <= 0.45],
so a row replayed in the environment earns what it says. D4RL relabels from the state before the action, and with a
radius of 0.5. Nothing terminates; episodes are cut, truncated, where the hidden goals were reached, as in D4RL. The
goals are kept in ``infos["goal"]``.

The expert takes the shortest path to the fixed goal, without noise, and stays there.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer

from hoard.datasets.recipes._common import (
    REFERENCE_EPISODES,
    Meter,
    Policy,
    Progress,
    Recording,
    describe,
    reference_scores,
)
from hoard.datasets.recipes._waypoints import WaypointController
from hoard.datasets.recipes.pointmaze import truncated_at_end, walk

ENV_IDS = {"umaze": "hoard/Maze2d-UMaze-v0", "medium": "hoard/Maze2d-Medium-v0"}


def record(
    maze: str, steps: int, progress: Progress | None = None, reference_episodes: int = REFERENCE_EPISODES
) -> Recording:
    """Generate ``steps`` steps of ``hoard/maze2d/<maze>``."""
    env: Any = gym.make(ENV_IDS[maze])
    env.reset(seed=0)  # the goal is the same after every reset
    goal = env.unwrapped.goal
    meter = Meter(progress, steps + 2 * reference_episodes * env.spec.max_episode_steps)
    data, walk_env = walk(maze, steps, meter)
    walk_env.close()

    rewards = (np.linalg.norm(data.states[1:, :2] - goal, axis=1) <= 0.45).astype(np.float64)
    episodes = [
        EpisodeBuffer(
            id=k,
            observations=data.states[rows.start : rows.stop + 1],
            actions=data.actions[rows],
            rewards=rewards[rows],
            infos={"goal": data.goals[rows.start : rows.stop + 1]},
            **truncated_at_end(rows.stop - rows.start),
        )
        for k, rows in enumerate(data.episodes())
    ]

    def expert() -> Policy:
        controller = WaypointController(env.unwrapped.maze, depth_first=False)
        return lambda obs: np.clip(controller(obs, goal), -1.0, 1.0)

    ref_min, ref_max = reference_scores(env, expert, reference_episodes, meter)
    recording = Recording(
        episodes,
        env.observation_space,
        env.action_space,
        env.spec,
        env.spec,
        ref_min,
        ref_max,
        algorithm_name="waypoint controller on depth-first paths, noise 0.5",
        description=describe(
            f"""The walks of hoard/pointmaze/{maze} ({steps} steps, Minari's PointMaze recipe, seed 123) with the
            goals hidden: observation (x, y, vx, vy), goals kept in infos. Sparse reward 1 at every step that ends
            within 0.45 m of the one fixed goal of {ENV_IDS[maze]}, relabelled with the environment's timing (D4RL
            relabels from the state before the action). No termination; episodes are truncated where the walk reached
            a hidden goal. Not comparable with D4RL maze2d scores: other maze frame, radius, noise and references.""",
            expert="the noise-free controller on shortest paths to the fixed goal",
            episodes=reference_episodes,
        ),
        reference_episodes=reference_episodes,
    )
    env.close()
    return recording
