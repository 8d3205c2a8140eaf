"""``hoard/pointmaze/{umaze,medium}[-<N>k]-v0``: Minari's PointMaze recipe, regenerated locally.

The recipe is that of the public script behind ``D4RL/pointmaze/{umaze,medium}-v2``:

- ``PointMaze_*-v3`` as a continuing task whose goal is drawn anew on arrival, reset once with seed 123, never again;
- the waypoint controller of `_waypoints` on depth-first paths, normal noise of 0.5 added, clipped to [-1, 1]; jitter
  and noise come from one ``RandomState(123)``, in that order, as from numpy's global generator in the script;
- an episode ends, truncated, on the step that reaches the goal. That step's observation still shows the old goal; it
  is row 0 of the next episode too, where ``infos["success"]`` is therefore True. The tail is closed as truncated.

The number of steps is part of the id; published sets have 1000k. 1,000,000 steps give 13,287 (umaze) and 4,756
(medium) episodes with mujoco 4.0.0, published are 13,210 and 4,752; the trajectories are not those of the published
files, which older packages made. Forces drive the simulator in float64, as in the script, and are recorded in the
action space's float32: replaying a recorded row moves the next observation by about 1e-8.

Evaluation is Minari's: the goal in one cell, where a step pays 1 for as long as the ball stays. So is the expert, the
same controller without noise or jitter; in medium its depth-first paths are not the shortest, and a policy that takes
those scores about 117.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium_robotics.envs.maze.maps import MEDIUM_MAZE, U_MAZE
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
from hoard.envs.mazes import EVALUATION_GOAL, with_goal

SEED = 123
NOISE = 0.5

MAPS = {"umaze": U_MAZE, "medium": MEDIUM_MAZE}
ENV_IDS = {"umaze": "PointMaze_UMaze-v3", "medium": "PointMaze_Medium-v3"}


@dataclass(frozen=True)
class Walk:
    """One uninterrupted walk of N steps: what was seen N + 1 times, what was done N times."""

    states: np.ndarray  # (N + 1, 4) x, y, vx, vy
    goals: np.ndarray  # (N + 1, 2) as observed
    success: np.ndarray  # (N + 1,) within the goal's radius
    actions: np.ndarray  # (N, 2) float32
    rewards: np.ndarray  # (N,)

    def episodes(self) -> list[slice]:
        """The steps of each episode: cut after a step that succeeds, and at the end of the walk."""
        ends = np.flatnonzero(self.success[1:]) + 1
        if not len(ends) or ends[-1] < len(self.actions):
            ends = np.append(ends, len(self.actions))
        return [slice(start, end) for start, end in zip(np.append(0, ends[:-1]).tolist(), ends.tolist())]


def walk(maze: str, steps: int, meter: Meter) -> tuple[Walk, Any]:
    """The noisy walk from goal to goal that both the pointmaze and the maze2d sets are made of, and its environment."""
    env: Any = gym.make(ENV_IDS[maze], continuing_task=True, reset_target=True, max_episode_steps=max(steps, 1_000_000))
    rng = np.random.RandomState(SEED)
    controller = WaypointController(env.unwrapped.maze, depth_first=True, rng=rng)
    record = Walk(
        np.empty((steps + 1, 4)),
        np.empty((steps + 1, 2)),
        np.empty(steps + 1, bool),
        np.empty((steps, 2), np.float32),
        np.empty(steps),
    )
    obs, info = env.reset(seed=SEED)
    base = env.unwrapped  # nothing is left for the wrappers to do, and they cost a quarter of the time
    for t in range(steps):
        state, goal = obs["observation"], obs["desired_goal"]
        record.states[t], record.goals[t], record.success[t] = state, goal, info["success"]
        action = np.clip(controller(state, goal) + rng.standard_normal(2) * NOISE, -1.0, 1.0)
        obs, record.rewards[t], _, _, info = base.step(action)
        record.actions[t] = action
        meter.step()
    record.states[steps], record.goals[steps], record.success[steps] = (
        obs["observation"],
        obs["desired_goal"],
        info["success"],
    )
    return record, env


def truncated_at_end(steps: int) -> dict[str, np.ndarray]:
    """The flags of an episode that the recording cut, not the task."""
    truncations = np.zeros(steps, bool)
    truncations[-1] = True
    return {"terminations": np.zeros(steps, bool), "truncations": truncations}


def record(
    maze: str, steps: int, progress: Progress | None = None, reference_episodes: int = REFERENCE_EPISODES
) -> Recording:
    """Generate ``steps`` steps of ``hoard/pointmaze/<maze>``."""
    eval_env: Any = gym.make(
        ENV_IDS[maze],
        maze_map=with_goal(MAPS[maze], EVALUATION_GOAL[maze]),
        continuing_task=True,
        reset_target=False,
    )
    meter = Meter(progress, steps + 2 * reference_episodes * eval_env.spec.max_episode_steps)
    data, env = walk(maze, steps, meter)

    episodes = []
    for k, rows in enumerate(data.episodes()):
        seen = slice(rows.start, rows.stop + 1)
        states, goals = data.states[seen], data.goals[seen]
        episodes.append(
            EpisodeBuffer(
                id=k,
                seed=SEED if k == 0 else None,
                observations={"observation": states, "achieved_goal": states[:, :2], "desired_goal": goals},
                actions=data.actions[rows],
                rewards=data.rewards[rows],
                infos={"success": data.success[seen], "qpos": states[:, :2], "qvel": states[:, 2:], "goal": goals},
                **truncated_at_end(rows.stop - rows.start),
            )
        )

    def expert() -> Policy:
        controller = WaypointController(eval_env.unwrapped.maze, depth_first=True)
        return lambda obs: np.clip(controller(obs["observation"], obs["desired_goal"]), -1.0, 1.0)

    ref_min, ref_max = reference_scores(eval_env, expert, reference_episodes, meter)
    recording = Recording(
        episodes,
        env.observation_space,
        env.action_space,
        env.spec,
        eval_env.spec,
        ref_min,
        ref_max,
        algorithm_name="waypoint controller on depth-first paths, noise 0.5",
        description=describe(
            f"""Minari's PointMaze recipe (D4RL/pointmaze/{maze}-v2), {steps} steps: a ball walks to one random goal
            after another without a reset; every arrival ends an episode (truncation), so that row 0 of an episode is
            the last row of the one before. PD waypoint controller on depth-first cell paths, normal noise 0.5,
            sparse reward 1 within 0.45 m of the current goal, which is observed. All random numbers from seed 123.
            Deviations: packages newer than those of the published set, hence other trajectories; the length.""",
            expert="the same controller without noise",
            episodes=reference_episodes,
        ),
        reference_episodes=reference_episodes,
    )
    env.close()
    eval_env.close()
    return recording
