"""A run with an online stage and nothing written, for tests that look inside an algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from toys import FakeRun

from hoard.datasets import Dataset, ReplayBuffer


class FakeEnv:
    """Random observations and rewards, whatever is done; episodes of `length` steps. Keeps the actions it was given."""

    def __init__(self, dataset: Dataset, on_step: Callable[[], None], length: int) -> None:
        self.rng, self.dataset, self.on_step, self.length = np.random.default_rng(0), dataset, on_step, length
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.obs = self._new()

    def _new(self) -> np.ndarray:
        return self.rng.normal(size=self.dataset.obs_dim).astype(np.float32)

    def step(self, action: np.ndarray):
        before, self.obs = self.obs, self._new()
        self.actions.append(np.array(action))
        self.rewards.append(float(self.rng.normal()))
        self.on_step()
        space = self.dataset.action_space
        done = np.clip(action, space.low, space.high)
        return before, done, self.rewards[-1], self.obs, False, len(self.actions) % self.length == 0


class OnlineRun(FakeRun):
    """`FakeRun` with the online stage; evaluates after `eval_at` steps; `double` trains in float64."""

    def __init__(self, dataset: Dataset, seed: int, *, double: bool = False, episode: int = 20, **kwargs) -> None:
        super().__init__(dataset, seed, **kwargs)
        self.double, self.env_step, self.update = double, 0, 0
        self.env = FakeEnv(dataset, self._stepped, episode)
        self.eval_at: tuple[int, ...] = ()
        self.evaluated: list[tuple[int, str, object]] = []

    def _stepped(self) -> None:
        self.env_step += 1

    def training_env(self) -> FakeEnv:
        return self.env

    def register(self, **objects) -> None:
        if self.double:  # in place: optimisers know these very parameters
            for thing in objects.values():
                if isinstance(thing, torch.nn.Module):
                    thing.double()
                if isinstance(thing, ReplayBuffer):
                    for name in ("observations", "action", "reward", "terminated"):
                        setattr(thing, name, getattr(thing, name).double())
        super().register(**objects)

    def online(self, steps: int) -> Iterator[None]:
        while self.env_step < steps:
            self.evaluation_due = self.env_step + 1 in self.eval_at
            yield
            self.on_update()

    def say(self, text: str) -> None:
        self.said = text

    def evaluate(self, policy, variant: str = "") -> None:
        self.evaluated.append((self.env_step, variant, policy))
