"""The environment of an online stage: what it hands to a learner at the end of an episode."""

from __future__ import annotations

import types

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import one_number_in

from hoard.algos import hnpg
from hoard.datasets import ReplayBuffer
from hoard.runners.task import task_of
from hoard.runners.training_env import TrainingEnv


class Ends(gym.Env):
    """Terminates at its third step in every other episode; the others last until a time limit. Counts its steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self) -> None:
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._obs(), {}

    def _obs(self) -> np.ndarray:
        return np.array([10.0 * self.episode + self.t], np.float32)

    def step(self, action):
        self.t += 1
        return self._obs(), float(self.t), self.episode % 2 == 0 and self.t == 3, False, {}


@pytest.fixture
def ends(tiny):
    """A dataset whose evaluation environment is `Ends`, cut after five steps."""
    return one_number_in(tiny, Ends, 5)


def environment_of(data, **more) -> TrainingEnv:
    return TrainingEnv(task_of(data), 0, torch.device("cpu"), lambda _: None, **more)


def test_a_terminal_step_is_stored_as_such_and_a_time_limit_is_not(ends):
    env = environment_of(ends)
    buffer = ReplayBuffer(ends, torch.device("cpu"), 16)
    episodes = []
    for _ in range(13):
        buffer.add(*env.step(torch.zeros(1, 1)))
        episodes.append(env.episode)
    stored = buffer.gather(torch.arange(len(ends), len(ends) + 13))
    assert stored["terminated"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert stored["obs"][:, 0].tolist() == [0, 1, 2, 10, 11, 12, 13, 14, 20, 21, 22, 30, 31]
    assert stored["next_obs"][:, 0].tolist() == [1, 2, 3, 11, 12, 13, 14, 15, 21, 22, 23, 31, 32]
    assert stored["reward"].tolist() == [1, 2, 3, 1, 2, 3, 4, 5, 1, 2, 3, 1, 2]
    assert episodes == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_hnpg_sees_which_of_its_episodes_were_cut(ends):
    cfg = hnpg.Config()
    generator = torch.Generator().manual_seed(0)
    actor = hnpg.Actor(cfg, 1, 1, generator, 1)
    run = types.SimpleNamespace(device=torch.device("cpu"), generator=generator)
    rollout = hnpg.rollout_single(environment_of(ends, scale_actions=False), actor, run, 13)
    assert rollout["terminated"].tolist() == [1, 0, 1, 0]
    assert rollout["last_obs"][:, 0].tolist() == [3, 15, 23, 35]
    assert rollout["alive"].sum(0).tolist() == [3, 5, 3, 5]
