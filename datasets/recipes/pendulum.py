"""``hoard/pendulum/mixed-v0``: Pendulum-v1 from four skill levels, small enough to learn from in minutes on a laptop.

500 episodes of 200 steps. All levels but the last share one controller: below, it pushes the energy towards a target
with full torque; near the top it balances with a PD law. In every ten episodes, in fixed order:

======= ===== ========================================================================================
level   share what it does
======= ===== ========================================================================================
expert  1     targets the energy of the upright rest, normal action noise 0.1
medium  4     the same, but each action is replaced by a uniform random one with probability 0.6
poor    2     targets the energy of hanging still, so it brakes the swing it should drive; noise 0.5
random  3     uniform random actions
======= ===== ========================================================================================

Cloning averages drivers and brakes, choosing among them solves the task: networks of 2 x 128 reached a score of 26
by cloning and 99 by IQL after 10,000 updates (measured once, one seed, outside the suite's protocol).

Episode k resets with seed k; noise and random actions come from one ``RandomState(0)``. ``infos`` hold the level (an
index into `SKILLS`) and the simulator's float64 ``state``, from which any row can be replayed to the bit.
"""

import math
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer

from hoard.datasets.recipes._common import (
    REFERENCE_EPISODES,
    Meter,
    Progress,
    Recording,
    describe,
    reference_scores,
)

ENV_ID = "Pendulum-v1"
SEED = 0
EPISODES = 500
MAX_TORQUE = 2.0

UPRIGHT, HANGING = 0.0, -30.0  # mechanical energy at rest, in the units of `controller`
BALANCE_ANGLE = 0.5  # rad from the top, where balancing takes over
BALANCE_GAINS = (10.0, 2.3)  # LQR for costs 1, 0.1, 0.1 on angle^2, speed^2, torque^2; twice as much does as well


@dataclass(frozen=True)
class Skill:
    name: str
    energy: float  # target of the swing
    noise: float  # standard deviation of the normal action noise
    random: float  # probability that an action is uniform random instead


SKILLS = (
    Skill("expert", UPRIGHT, 0.1, 0.0),
    Skill("medium", UPRIGHT, 0.1, 0.6),
    Skill("poor", HANGING, 0.5, 0.0),
    Skill("random", UPRIGHT, 0.0, 1.0),
)
SCHEDULE = (0, 1, 2, 1, 3, 1, 2, 3, 1, 3)  # indices into SKILLS, repeated


def controller(obs: np.ndarray, energy: float = UPRIGHT) -> float:
    """Torque (unclipped) that brings the pendulum to an energy, and balances it if it comes near the top.

    Pendulum-v1 obeys w' = 15 sin(angle) + 3 torque, angle 0 being upright: the energy w^2/2 + 15 (cos(angle) - 1) is
    0 when resting upright and changes by 3 w torque, so torque of the sign of w drives, and of the other one brakes.
    """
    cos, sin, speed = obs.tolist()
    angle = math.atan2(sin, cos)
    if abs(angle) < BALANCE_ANGLE:
        return -BALANCE_GAINS[0] * angle - BALANCE_GAINS[1] * speed
    return (energy - (0.5 * speed**2 + 15.0 * (cos - 1.0))) * math.copysign(1.0, speed)


def act(skill: Skill, obs: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """One action of a skill level."""
    if rng.random_sample() < skill.random:
        torque = rng.uniform(-MAX_TORQUE, MAX_TORQUE)
    else:
        torque = np.clip(controller(obs, skill.energy), -MAX_TORQUE, MAX_TORQUE) + skill.noise * rng.standard_normal()
    return np.array([np.clip(torque, -MAX_TORQUE, MAX_TORQUE)], np.float32)


def record(
    progress: Progress | None = None, episodes: int = EPISODES, reference_episodes: int = REFERENCE_EPISODES
) -> Recording:
    """Generate ``hoard/pendulum/mixed-v0``."""
    env: Any = gym.make(ENV_ID)
    horizon = env.spec.max_episode_steps
    meter = Meter(progress, (episodes + 2 * reference_episodes) * horizon)
    rng = np.random.RandomState(SEED)

    buffers = []
    returns: list[list[float]] = [[] for _ in SKILLS]
    for k in range(episodes):
        level = SCHEDULE[k % len(SCHEDULE)]
        observations = np.empty((horizon + 1, 3), np.float32)
        states = np.empty((horizon + 1, 2))
        actions, rewards = np.empty((horizon, 1), np.float32), np.empty(horizon)
        terminations, truncations = np.empty(horizon, bool), np.empty(horizon, bool)
        observations[0], _ = env.reset(seed=k)
        states[0] = env.unwrapped.state
        for t in range(horizon):
            actions[t] = act(SKILLS[level], observations[t], rng)
            observations[t + 1], rewards[t], terminations[t], truncations[t], _ = env.step(actions[t])
            states[t + 1] = env.unwrapped.state
            meter.step()
        returns[level].append(float(rewards.sum()))
        infos = {"state": states, "level": np.full(horizon + 1, level, np.int8)}
        buffers.append(EpisodeBuffer(k, k, None, observations, actions, rewards, terminations, truncations, infos))

    ref_min, ref_max = reference_scores(env, lambda: _expert, reference_episodes, meter)
    levels = ", ".join(
        f"{skill.name} ({100 * len(values) / episodes:.0f} %, mean return {np.mean(values):.1f})"
        for skill, values in zip(SKILLS, returns)
        if values
    )
    recording = Recording(
        buffers,
        env.observation_space,
        env.action_space,
        env.spec,
        env.spec,
        ref_min,
        ref_max,
        algorithm_name="energy swing-up and PD balance at four skill levels",
        description=describe(
            f"""Pendulum-v1, {episodes} episodes of {horizon} steps from four interleaved skill levels: {levels}.
            Expert and medium drive the swing up and balance (medium with 60 % random actions), poor brakes the swing,
            random is uniform. Levels are in infos/level, the simulator's state in infos/state. Episode k has reset
            seed k; noise from RandomState({SEED}). hoard's own recipe, no published counterpart.""",
            expert="the expert controller without noise",
            episodes=reference_episodes,
        ),
        reference_episodes=reference_episodes,
    )
    env.close()
    return recording


def _expert(obs: np.ndarray) -> np.ndarray:
    return np.array([np.clip(controller(obs), -MAX_TORQUE, MAX_TORQUE)], np.float32)
