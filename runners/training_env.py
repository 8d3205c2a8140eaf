"""The environment that an online stage trains in: one episode after the other, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard.envs import make_env
from hoard.runners.evaluate import training_seed


class TrainingEnv:
    """Steps the environment of a dataset. Episode k starts from `training_seed(run_seed, k)`: no evaluation's seed.

    Its whole state between two episodes is the number of the next one. `on_step` is called after each step with the
    return of the episode that it ended, or None.
    """

    def __init__(self, spec: EnvSpec, run_seed: int, on_step: Callable[[float | None], None]) -> None:
        self._env: Any = make_env(spec)
        self._run_seed, self._on_step = run_seed, on_step
        self._obs: np.ndarray | None = None
        self._return = 0.0
        self.episode = 0  # number of the present or next episode

    @property
    def between_episodes(self) -> bool:
        return self._obs is None

    @property
    def obs(self) -> np.ndarray:
        """The present observation, (obs_dim,) float32; starts the next episode if none is running."""
        if self._obs is None:
            self._obs = self._env.reset(seed=training_seed(self._run_seed, self.episode))[0]
            self._return = 0.0
        return self._obs

    @property
    def action_space(self) -> Any:
        return self._env.action_space

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, bool, bool]:
        """Act, in environment units: (obs, action as clipped to the space, reward, next_obs, terminated, truncated).

        Raises FloatingPointError for an action that is not finite.
        """
        obs = self.obs
        if not np.isfinite(action).all():
            raise FloatingPointError(f"the policy returned a non-finite action in training episode {self.episode}")
        action = np.clip(action, self._env.action_space.low, self._env.action_space.high).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = self._env.step(action)
        self._return += float(reward)
        ended = bool(terminated or truncated)
        self._obs = None if ended else next_obs
        self.episode += ended
        self._on_step(self._return if ended else None)
        return obs, action, float(reward), next_obs, bool(terminated), bool(truncated)

    def state_dict(self) -> dict[str, int]:
        return {"episode": self.episode}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.episode = state["episode"]
        self._obs = None

    def close(self) -> None:
        self._env.close()
