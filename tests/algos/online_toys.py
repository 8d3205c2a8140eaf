"""A run with an online stage and nothing written, for tests that look inside an algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from toys import FakeRun

from hoard.datasets import Dataset, ReplayBuffer
from hoard.datasets.actions import ActionScaler
from hoard.runners.training_env import Step


class FakeEnv:
    """Random observations and rewards, whatever is done; episodes of `length` steps.

    As `TrainingEnv`, it takes actions in [-1, 1]. It keeps those it was given, in environment units, and the rewards.
    """

    def __init__(self, dataset: Dataset, on_step: Callable[[], None], length: int) -> None:
        self.rng, self.dataset, self.on_step, self.length = np.random.default_rng(0), dataset, on_step, length
        self.scaler = ActionScaler(dataset.action_space.low, dataset.action_space.high)
        self.actions: list[np.ndarray] = []
        self.rewards: list[float] = []
        self._obs = self._new()

    def _new(self) -> np.ndarray:
        return self.rng.normal(size=self.dataset.obs_dim).astype(np.float32)

    @property
    def obs(self) -> torch.Tensor:
        return torch.as_tensor(self._obs)[None]

    def random_action(self, generator: torch.Generator) -> torch.Tensor:
        return 2 * torch.rand(1, self.dataset.action_dim, generator=generator) - 1

    def step(self, action: torch.Tensor) -> Step:
        before, self._obs = self._obs, self._new()
        self.actions.append(self.scaler.to_env(action).detach().reshape(-1).numpy())
        self.rewards.append(float(self.rng.normal()))
        self.on_step()
        space = self.dataset.action_space
        clipped = torch.as_tensor(np.clip(self.actions[-1], space.low, space.high))
        executed = self.scaler.to_unit(clipped).numpy()
        return Step(before, executed, self.rewards[-1], self._obs, False, len(self.actions) % self.length == 0)


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

    def training_env(self, scale_actions: bool = True) -> FakeEnv:
        return self.env

    def register(self, **objects) -> None:
        super().register(**objects)
        if self.double:  # in place: optimisers know these very parameters
            for thing in [*self.objects.values(), *getattr(self, "start", {}).values()]:
                if isinstance(thing, torch.nn.Module):
                    thing.double()
                if isinstance(thing, ReplayBuffer):
                    for name in ("observations", "action", "reward", "terminated"):
                        setattr(thing, name, getattr(thing, name).double())

    def online(self, steps: int) -> Iterator[None]:
        while self.env_step < steps:
            self.evaluation_due = self.env_step + 1 in self.eval_at
            yield
            self.on_update()

    def log(self, metrics, updates: int = 1) -> None:
        self.update += updates
        super().log(metrics)

    @property
    def evaluation_final(self) -> bool:
        return self.evaluation_due and self.env_step >= max(self.eval_at)

    def say(self, text: str) -> None:
        self.said = text

    def evaluate(self, policy, variant: str = "") -> None:
        self.evaluated.append((self.env_step, variant, policy))


def watch_shares(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The dataset's share of every batch drawn from now on, counted on the indices."""
    shares: list[float] = []
    draw = ReplayBuffer.draw

    def watched(self, *args):
        index = draw(self, *args)
        shares.append((index < self.offline_size).float().mean().item())
        return index

    monkeypatch.setattr(ReplayBuffer, "draw", watched)
    return shares
