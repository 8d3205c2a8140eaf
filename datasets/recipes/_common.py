"""What the recipes share: progress, and the measurement of reference scores."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import gymnasium as gym

import hoard.envs  # noqa: F401  registers the environments that the recipes make
from hoard.datasets.recording import REFERENCE_EPISODES, Recording
from hoard.datasets.source import Progress

__all__ = [
    "REFERENCE_EPISODES",
    "REFERENCE_SEED",
    "Meter",
    "Policy",
    "Progress",
    "Recording",
    "describe",
    "mean_return",
    "reference_scores",
]

Policy = Callable[[Any], Any]  # observation -> action; one is made for every episode, so it may keep state

REFERENCE_SEED = 123


class Meter:
    """Counts environment steps and reports every ``interval`` of them, and the last."""

    def __init__(self, progress: Progress | None, total: int, interval: int = 2000):
        self.progress, self.total, self.interval = progress, total, interval
        self.done = 0

    def step(self) -> None:
        self.done += 1
        if self.progress and (self.done % self.interval == 0 or self.done == self.total):
            self.progress(self.done, self.total)


def mean_return(env: gym.Env, new_policy: Callable[[], Policy], episodes: int, meter: Meter) -> float:
    """Mean undiscounted return, Minari's protocol: one seeded reset, then unseeded ones."""
    total = 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=REFERENCE_SEED if episode == 0 else None)
        policy, done = new_policy(), False
        while not done:
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            total += float(reward)
            done = terminated or truncated
            meter.step()
    return total / episodes


def reference_scores(
    env: gym.Env, new_expert: Callable[[], Policy], episodes: int, meter: Meter
) -> tuple[float, float]:
    """(ref_min, ref_max): mean returns of the uniform random policy and of the expert."""
    env.action_space.seed(REFERENCE_SEED)
    random = mean_return(env, lambda: lambda _: env.action_space.sample(), episodes, meter)
    return random, mean_return(env, new_expert, episodes, meter)


def describe(text: str, *, expert: str, episodes: int) -> str:
    """A recipe's description on one line, with the protocol of the reference scores and the versions in use."""
    packages = ("gymnasium", "gymnasium-robotics", "mujoco", "numpy")
    return (
        f"{' '.join(text.split())} Reference scores: mean undiscounted return of the uniform random policy (min) and "
        f"of {expert} (max) over {episodes} episodes of the evaluation environment, reset(seed={REFERENCE_SEED}) once. "
        f"Generated with {', '.join(f'{name} {version(name)}' for name in packages)}."
    )
