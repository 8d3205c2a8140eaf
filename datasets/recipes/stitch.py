"""``hoard/pointmaze/stitch-v0``: the point-maze data of MBRCSL (Zhou et al., ICLR 2024).

The recipe is that of the authors' public code (zhaoyizhou1123/mbrcsl, commit 8986317). All 1,000 trajectories start in
S and last 200 steps; none takes the short way S -> M -> G:

====== ============= ===============================================================================
group  sub-goals     afterwards
====== ============= ===============================================================================
1, 2   M             stays there: the first half of the short way, with a low return
3      A, B, G       stays there: the detour
4      A, B, G       uniform random actions: the detour, spoilt
====== ============= ===============================================================================

A sub-goal is its cell's centre + U(-0.25, 0.25) per coordinate, drawn for every trajectory. It is reached within
0.5 m at |vx|, |vy| <= 0.5; the last one of group 4 at any speed. No action noise. Rewards, exp(-distance), are for the
true, hidden goal of the trajectory, whatever its sub-goals are.

Differences from the original. It plans by Q-iteration; here the search is breadth-first, and on this map each of the
planned paths is the only shortest one. It leaves the random actions of group 4 unseeded and the other seeds to the
caller; here the action space is seeded with 0 and ``RandomState(0)`` draws, per trajectory, the reset seed (below
1000, as there), the sub-goals and the waypoints' jitter. Its flags are those before the step; here the last row is
truncated. Groups 1 to 3 have the original's mean returns to all digits we measured (26.81, 26.63, 57.36), group 4
differs by its random tail (52.75 against 52.53). The best return in the data is 69.2.

The expert of the reference scores takes the short way to the true goal, about 136. It is told where that is; aiming
at the centre of the goal's cell, all that can be learnt from the data, gives about 118, or 84 on the normalised scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium_robotics.envs.maze.maze_v4 import Maze
from minari.data_collector import EpisodeBuffer

from hoard.datasets.recipes._common import (
    REFERENCE_EPISODES,
    REFERENCE_SEED,
    Meter,
    Policy,
    Progress,
    Recording,
    describe,
    reference_scores,
)
from hoard.datasets.recipes._waypoints import WaypointController

ENV_ID = "hoard/StitchMaze-v0"
SEED = 0
CELLS = {"S": (1, 2), "M": (2, 2), "A": (1, 1), "B": (2, 1), "G": (2, 4)}  # (row, column)
SUBGOAL_NOISE = 0.25
REACHED_DISTANCE, REACHED_SPEED = 0.5, 0.5


@dataclass(frozen=True)
class Group:
    subgoals: str  # names of cells
    random_tail: bool = False


GROUPS = (Group("M"), Group("M"), Group("ABG"), Group("ABG", random_tail=True))
TRAJECTORIES = 250  # per group


class Tour:
    """Visits sub-goals in order and stays at the last; ``finished`` once all have been reached, and for good."""

    def __init__(self, maze: Maze, subgoals: Sequence[np.ndarray], rng: np.random.RandomState, last_at_any_speed: bool):
        self.controller = WaypointController(maze, depth_first=False, rng=rng)
        self.subgoals = subgoals
        self.last_at_any_speed = last_at_any_speed
        self.current = 0
        self.finished = False

    def __call__(self, state: np.ndarray) -> np.ndarray:
        is_last = self.current == len(self.subgoals) - 1
        x, y, vx, vy = state.tolist()
        near = math.dist((x, y), self.subgoals[self.current]) <= REACHED_DISTANCE
        slow = max(abs(vx), abs(vy)) <= REACHED_SPEED or (is_last and self.last_at_any_speed)
        if near and slow:
            self.finished = self.finished or is_last
            self.current = min(self.current + 1, len(self.subgoals) - 1)
        return np.clip(self.controller(state, self.subgoals[self.current]), -1.0, 1.0).astype(np.float32)


def draw_subgoals(maze: Maze, names: str, rng: np.random.RandomState) -> list[np.ndarray]:
    """Noisy positions for the named cells."""
    return [maze.cell_rowcol_to_xy(CELLS[name]) + rng.uniform(-SUBGOAL_NOISE, SUBGOAL_NOISE, size=2) for name in names]


def record(
    progress: Progress | None = None, trajectories: int = TRAJECTORIES, reference_episodes: int = REFERENCE_EPISODES
) -> Recording:
    """Generate ``hoard/pointmaze/stitch-v0``, with ``trajectories`` in each of the four groups."""
    env: Any = gym.make(ENV_ID)
    maze, horizon = env.unwrapped.maze, env.spec.max_episode_steps
    meter = Meter(progress, (len(GROUPS) * trajectories + 2 * reference_episodes) * horizon)
    rng = np.random.RandomState(SEED)
    env.action_space.seed(SEED)

    episodes: list[EpisodeBuffer] = []
    for group in GROUPS:
        for _ in range(trajectories):
            seed = int(rng.randint(0, 1000))
            obs, info = env.reset(seed=seed)
            tour = Tour(maze, draw_subgoals(maze, group.subgoals, rng), rng, last_at_any_speed=group.random_tail)
            states, successes = [obs], [info["success"]]
            actions, rewards, terminations = [], [], []
            truncations: list[bool] = []
            while not (truncations and truncations[-1]):
                action = tour(obs)
                if tour.finished and group.random_tail:
                    action = env.action_space.sample()
                obs, reward, terminated, truncated, info = env.step(action)
                states.append(obs)
                successes.append(info["success"])
                actions.append(action)
                rewards.append(reward)
                terminations.append(terminated)
                truncations.append(truncated)
                meter.step()
            episodes.append(
                EpisodeBuffer(
                    id=len(episodes),
                    seed=seed,
                    observations=np.array(states),
                    actions=np.array(actions),
                    rewards=np.array(rewards),
                    terminations=np.array(terminations),
                    truncations=np.array(truncations),
                    infos={
                        "success": np.array(successes),
                        "goal": np.tile(env.unwrapped.goal, (horizon + 1, 1)),
                    },
                )
            )

    expert_rng = np.random.RandomState(REFERENCE_SEED)

    def expert() -> Policy:
        return Tour(maze, [env.unwrapped.goal], expert_rng, last_at_any_speed=False)

    ref_min, ref_max = reference_scores(env, expert, reference_episodes, meter)
    recording = Recording(
        episodes,
        env.observation_space,
        env.action_space,
        env.spec,
        env.spec,
        ref_min,
        ref_max,
        algorithm_name="waypoint controller through sub-goals",
        description=describe(
            f"""The point-maze data of MBRCSL (Zhou et al., ICLR 2024), regenerated from its published recipe:
            4 x {trajectories} trajectories of {horizon} steps from S, in the order of the groups: 1 and 2 go to M and
            stay; 3 takes the detour A, B, G and stays; 4 takes the detour, then acts at random. The short way
            S, M, G is in no trajectory. Observation (x, y, vx, vy); reward exp(-distance to the hidden goal), which
            moves by up to 0.25 m per coordinate with every reset (infos/goal). No termination. RandomState({SEED}),
            action space seeded with {SEED}. Deviations: breadth-first instead of Q-iteration paths (the same cells on
            this map); the random actions, unseeded in the original, are seeded; flags are those after the step.""",
            expert="the same controller on the short path to the true goal, which it is told",
            episodes=reference_episodes,
        ),
        reference_episodes=reference_episodes,
    )
    env.close()
    return recording
