"""The environments that an online stage trains in: one episode after the other, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hoard.datasets.actions import ActionScaler
from hoard.envs import Batch, make_batch, make_env
from hoard.runners.evaluate import training_seed
from hoard.runners.guide import Guide
from hoard.runners.task import Task


class Step(NamedTuple):
    """One step of the environment: `obs`, `next_obs` (obs_dim,), `executed_action` (action_dim,) as it was clipped."""

    obs: np.ndarray
    executed_action: np.ndarray
    reward: float
    next_obs: np.ndarray
    terminated: bool
    truncated: bool


class TrainingEnv:
    """Steps the environment of a task. Episode k starts from `training_seed(run_seed, k)`: no evaluation's seed.

    Actions are in [-1, 1], or in the environment's units with `scale_actions` false. Its whole state between two
    episodes is the number of the next one. `on_step` is called after each step with the return of the episode that it
    ended, or None. A `guide` acts in place of the given actions at the beginning of an episode.
    """

    def __init__(
        self,
        task: Task,
        run_seed: int,
        device: torch.device,
        on_step: Callable[[float | None], None],
        scale_actions: bool = True,
        guide: Guide | None = None,
    ) -> None:
        assert task.env_spec is not None  # the run has looked
        self._env: Any = make_env(task.env_spec)
        self._scaler, self._scaled = ActionScaler(task.low, task.high, device), scale_actions
        self._unscaler = ActionScaler(task.low, task.high)
        self._run_seed, self._device, self._on_step = run_seed, device, on_step
        self._guide, self._t = guide, 0
        self._reward: float | None = None  # of the step before
        self._obs: np.ndarray | None = None
        self._return = 0.0
        self.action_dim = task.action_dim
        self.episode = 0  # number of the present or next episode

    @property
    def between_episodes(self) -> bool:
        return self._obs is None

    @property
    def obs(self) -> Tensor:
        """The present observation, (1, obs_dim) on the device; an episode starts here if none is running."""
        return torch.as_tensor(self._present(), device=self._device)[None]

    def _present(self) -> np.ndarray:
        if self._obs is None:
            self._obs = self._env.reset(seed=training_seed(self._run_seed, self.episode))[0]
            self._return, self._t, self._reward = 0.0, 0, None
            if self._guide is not None:
                self._guide.begin(self.episode)
        return self._obs

    def random_action(self, generator: torch.Generator) -> Tensor:
        """A uniformly drawn action in [-1, 1], (1, action_dim)."""
        return 2 * torch.rand(1, self.action_dim, generator=generator, device=self._device) - 1

    def step(self, action: Tensor) -> Step:
        """Take an action, (1, action_dim) or (action_dim,), or the guide's. It is clipped, and given back so.

        Raises FloatingPointError for an action that is not finite.
        """
        obs = self._present()
        if self._guide is not None and self._t < self._guide.horizon:
            flat = self._guide.action(obs, self._reward)
        else:
            flat = (self._scaler.to_env(action) if self._scaled else action).detach().reshape(-1).cpu().numpy()
        if not np.isfinite(flat).all():
            raise FloatingPointError(f"the policy returned a non-finite action in training episode {self.episode}")
        clipped = np.clip(flat, self._env.action_space.low, self._env.action_space.high).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = self._env.step(clipped)
        self._return += float(reward)
        self._t, self._reward = self._t + 1, float(reward)
        ended = bool(terminated or truncated)
        self._obs = None if ended else next_obs
        self.episode += ended
        if ended and self._guide is not None:
            self._guide.ended(self._return)
        self._on_step(self._return if ended else None)
        executed = self._unscaler.to_unit(torch.from_numpy(clipped)).numpy() if self._scaled else clipped
        return Step(obs, executed, float(reward), next_obs, bool(terminated), bool(truncated))

    def state_dict(self) -> dict[str, Any]:
        return {"episode": self.episode} | ({"guide": self._guide.state_dict()} if self._guide is not None else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episode = state["episode"]
        self._obs = None
        if self._guide is not None:
            self._guide.load_state_dict(state["guide"])

    def close(self) -> None:
        self._env.close()


class TrainingBatch:
    """n episodes of equal length in lockstep, where the environment knows how. Actions are in environment units.

    Batch k starts from `training_seed(run_seed, k)`. `on_steps` is called with the number of environment steps spent.
    """

    def __init__(self, batch: Batch, run_seed: int, on_steps: Callable[[int], None]) -> None:
        self._batch, self._run_seed, self._on_steps = batch, run_seed, on_steps
        self.n, self.horizon = batch.n, batch.horizon

    def reset(self, number: int) -> np.ndarray:
        """Start batch `number`: observations (n, obs_dim)."""
        return self._batch.reset(training_seed(self._run_seed, number))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray]:
        """(n, action_dim), not clipped here -> next observations, rewards (n,), whether all ended, successes (n,)."""
        out = self._batch.step(action)
        self._on_steps(self.n)
        return out


def training_batch(task: Task, n: int, run_seed: int, on_steps: Callable[[int], None]) -> TrainingBatch | None:
    """None where the environment cannot step many episodes at once."""
    assert task.env_spec is not None
    batch = make_batch(task.env_spec, n)
    return None if batch is None else TrainingBatch(batch, run_seed, on_steps)
