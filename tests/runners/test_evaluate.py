"""Evaluation against a plain loop, and its seeds."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import one_number_in

from hoard import datasets
from hoard.datasets.discrete import OneHot
from hoard.envs import make_env
from hoard.runners.evaluate import Evaluator, evaluation_seed, fresh_seed, training_seed, uses_history
from hoard.runners.task import task_of


def policy(obs, history):
    return torch.sin(7 * obs[:, :1]) * 1.5  # beyond [-1, 1] at times


def draws():
    return torch.Generator().manual_seed(0)


def evaluator_of(data):
    return Evaluator(task_of(data))


def plain_loop(spec, seed):
    env = make_env(spec)
    obs, _ = env.reset(seed=seed)
    total, steps, rewards = 0.0, 0, []
    while True:
        torque = 2 * policy(torch.as_tensor(obs)[None], None)[0].numpy()
        action = np.clip(torque, env.action_space.low, env.action_space.high)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, steps = total + reward, steps + 1
        rewards.append(reward)
        if terminated or truncated:
            return total, steps


def test_lockstep_equals_one_by_one(tiny):
    data = datasets.load(tiny)
    evaluator = evaluator_of(data)
    seeds = [evaluation_seed(0, 5, k) for k in range(13)]  # more than one group
    rows = evaluator(policy, seeds, draws())
    assert [row["eval_seed"] for row in rows] == seeds
    for row in rows[::4]:
        total, steps = plain_loop(data.env_spec, row["eval_seed"])
        assert row["return"] == pytest.approx(total, rel=1e-6)
        assert row["length"] == steps
    assert rows == evaluator(policy, seeds, draws())  # used again, nothing is left over


def test_history_shows_what_happened(tiny):
    data = datasets.load(tiny)
    seen = []

    def watch(obs, history):
        t = history.t
        assert torch.equal(history.obs[:, t], obs)
        if t:
            seen.append((history.reward[:, t - 1].clone(), history.action[:, t - 1].clone()))
            assert torch.allclose(history.return_so_far, torch.stack([r for r, _ in seen]).sum(0), rtol=1e-4)
        assert not history.reward[:, t:].any()
        return torch.full((len(obs), 1), 5.0)

    rows = evaluator_of(data)(watch, [2**31 + 1, 2**31 + 2], draws())
    assert all((action == 1.0).all() for _, action in seen)  # the executed action is the one on record
    last = rows[0]["return"] - sum(r[0].item() for r, _ in seen)
    assert -17 < last <= 0


class EarlyEnd(gym.Env):
    """Terminates after as many steps as the reset seed's last digit says; success on the last of them."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = seed % 10 + 1
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.left > 0, "a finished environment was stepped"
        self.left -= 1
        return np.zeros(1, np.float32), 1.0, self.left == 0, False, {"success": self.left == 0}


def test_episodes_end_at_their_own_time(tiny):
    data = one_number_in(tiny, EarlyEnd, 6)
    rows = evaluator_of(data)(lambda obs, history: torch.zeros(len(obs), 1), [20, 23, 29], draws())
    assert [(r["length"], r["return"], r["success"]) for r in rows] == [(1, 1, True), (4, 4, True), (6, 6, False)]


class OnTheWay(EarlyEnd):
    """Successful at the second step alone."""

    def step(self, action):
        *rest, _ = super().step(action)
        self.steps = getattr(self, "steps", 0) + 1
        return *rest, {"success": self.steps == 2}


def test_success_at_any_time_counts(tiny):
    data = one_number_in(tiny, OnTheWay, 6)
    rows = evaluator_of(data)(lambda obs, history: torch.zeros(len(obs), 1), [24], draws())
    assert [(row["length"], row["success"]) for row in rows] == [(5, True)]


def test_a_witness_is_told_of_every_episode_by_its_number(tiny):
    """More of them than go in lockstep."""
    data = datasets.load(tiny)
    seen: dict[int, list[np.ndarray]] = {}

    def witness(number, env, action, obs):
        assert (action is None) == (number not in seen)
        seen.setdefault(number, []).append(obs)

    seeds = [evaluation_seed(0, 5, k) for k in range(13)]
    rows = evaluator_of(data)(policy, seeds, draws(), witness)
    assert list(seen) == list(range(13))
    env = make_env(data.env_spec)
    for k, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
        assert len(seen[k]) == row["length"] + 1
        assert np.array_equal(seen[k][0], env.reset(seed=seed)[0])


def test_a_policy_gone_wrong_is_noticed(tiny):
    with pytest.raises(FloatingPointError, match="non-finite action at step 0"):
        evaluator_of(datasets.load(tiny))(
            lambda obs, history: torch.full((len(obs), 1), float("nan")), [2**31], draws()
        )


def test_seeds_of_evaluation_and_training_never_meet():
    evaluation = {evaluation_seed(s, u, e) for s in range(5) for u in (10, 20) for e in range(50)}
    training = {training_seed(s, k) for s in range(5) for k in range(100)}
    assert len(evaluation) == len(training) == 500
    assert min(evaluation) >= 2**31 > max(training)
    online = {evaluation_seed(s, 10, e, env_step=t) for s in range(5) for t in (10, 20) for e in range(50)}
    fresh = {fresh_seed(s, e) for s in range(5) for e in range(100)}
    assert len(online) == len(fresh) == 500
    assert min(online | fresh) >= 2**31
    assert not evaluation & online | evaluation & fresh | online & fresh


def test_discrete_actions_are_refused_with_the_dataset_named(tiny):
    space = OneHot(gym.spaces.Discrete(1))  # as wide as the torque it replaces
    data = dataclasses.replace(datasets.load(tiny), action_space=space)
    with pytest.raises(datasets.DatasetError, match=r"pendulum-v0: its action space is Discrete\(1\).* need a Box"):
        evaluator_of(data)


def test_an_environment_that_cannot_be_made_is_named(tiny):
    spec = gym.envs.registration.EnvSpec("NoSuch-v3", entry_point="no.such.module:Env", max_episode_steps=5)
    data = dataclasses.replace(datasets.load(tiny), env_spec=spec)
    with pytest.raises(datasets.DatasetError, match=r"test/pendulum-v0: environment NoSuch-v3 cannot be made"):
        evaluator_of(data)


class Torques(torch.nn.Module):
    scale_actions = False

    def act(self, obs):
        return 3 * torch.sin(7 * obs[:, :1])


def test_a_policy_in_environment_units_says_so(tiny):
    data, seeds = datasets.load(tiny), [2**31 + k for k in range(3)]
    scaled = lambda obs, history: 1.5 * torch.sin(7 * obs[:, :1])  # noqa: E731
    rows = [evaluator_of(data)(policy, seeds, draws()) for policy in (Torques(), scaled)]
    assert rows[0] == rows[1]


def test_what_a_policy_looks_at_is_read_off_its_signature():
    assert not uses_history(Torques())
    assert uses_history(policy)
