"""Small datasets with known answers, and a run without a folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import gymnasium as gym
import numpy as np
import torch

from hoard.datasets import Dataset
from hoard.runners.evaluate import History, act_of


def make_dataset(obs, action, reward, terminated, lengths, high: float = 1.0, **kwargs) -> Dataset:
    """From per-episode observation tables laid end to end (T+1 rows each)."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    n = int(starts[-1])
    terminated = np.asarray(terminated, bool)
    last = np.zeros(n, bool)
    last[starts[1:] - 1] = True
    return Dataset(
        id="test/toy-v0",
        observations=np.asarray(obs, np.float32),
        rows=np.arange(n) + np.repeat(np.arange(len(lengths)), lengths),
        action=np.asarray(action, np.float32),
        reward=np.asarray(reward, np.float32),
        terminated=terminated,
        truncated=last & ~terminated,
        starts=starts,
        action_space=gym.spaces.Box(-high, high, (np.shape(action)[1],), np.float32),
        **kwargs,
    )


def flat_dataset(n: int = 50, seed: int = 0, rewards=None, lengths=None, high: float = 1.0) -> Dataset:
    """Random observations (3) and actions (2); the last episode terminates."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=n) if rewards is None else np.asarray(rewards)
    n = len(rewards)
    lengths = [n // 2, n - n // 2] if lengths is None else lengths
    terminated = np.zeros(n, bool)
    terminated[-1] = True
    return make_dataset(
        rng.normal(size=(n + len(lengths), 3)) + 2.0,
        rng.uniform(-high, high, size=(n, 2)),
        rewards,
        terminated,
        lengths,
        high,
    )


def chain_dataset() -> Dataset:
    """Five one-hot states in a row, actions -1 / +1 taken unevenly; reward 1 at the right end, which terminates.

    The behaviour mixes both actions in every state, so expectiles differ from means and from maxima.
    """
    rng = np.random.default_rng(0)
    states, obs, action, reward, terminated, lengths = 5, [], [], [], [], []
    for k in range(60):
        s, t = k % 4, 0
        obs.append(np.eye(states)[s])
        while True:
            move = 1 if rng.random() < 0.65 else -1
            s = min(max(s + move, 0), states - 1)
            obs.append(np.eye(states)[s])
            action.append([move])
            reward.append(1.0 if s == states - 1 else -0.05)
            terminated.append(s == states - 1)
            t += 1
            if s == states - 1 or t == 12:
                lengths.append(t)
                break
    return make_dataset(obs, action, reward, terminated, lengths)


class FakeRun:
    """What `train` needs of a run, with nothing written: it keeps what was registered and, if asked, how it began."""

    def __init__(self, dataset: Dataset, seed: int, remember_start: bool = False, device: str = "cpu") -> None:
        self.dataset, self.device = dataset, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.remember_start = remember_start
        self.evaluation_due = False
        self.episode_limit = 10
        self.on_update: Callable[[], object] = lambda: None
        self.logged: list[dict[str, torch.Tensor]] = []

    def register(self, **objects) -> None:
        """Dictionaries are taken apart, as `Run.register` does: `optimizers.actor`."""
        self.objects = {}
        for name, thing in objects.items():
            self.objects |= {f"{name}.{k}": v for k, v in thing.items()} if isinstance(thing, dict) else {name: thing}
        if self.remember_start:
            self.start = {k: copy.deepcopy(v) for k, v in self.objects.items() if isinstance(v, torch.nn.Module)}
            self.start_generator = torch.Generator()
            self.start_generator.set_state(self.generator.get_state())

    def loop(self, updates: int) -> Iterator[int]:
        for number in range(1, updates + 1):
            yield number
            self.on_update()

    def log(self, metrics, updates: int = 1) -> None:
        self.logged.append(metrics)


class Listening(FakeRun):
    """Keeps the policies it is asked to evaluate after the last update, as functions (obs, history) -> action."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.evaluation_final = True
        self.policies: dict[str, Callable[..., torch.Tensor]] = {}

    def loop(self, updates: int) -> Iterator[int]:
        for number in super().loop(updates):
            self.evaluation_due = number == updates
            yield number

    def evaluate(self, policy, variant: str = "") -> None:
        self.policies[variant] = act_of(policy)[0]


def history_of(obs, action=None, reward=None, t: int = 0) -> History:
    """What was seen until step t, from tables (n, T+1, obs_dim), (n, T, action_dim) and (n, T)."""
    n, steps = len(obs), len(obs[0]) - 1
    action = torch.zeros(n, steps, 1) if action is None else action
    reward = torch.zeros(n, steps) if reward is None else reward
    return History(t, obs, action, reward, torch.Generator().manual_seed(0))
