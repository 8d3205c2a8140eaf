"""Evaluation: whole episodes of a policy, several environments in lockstep, every episode with a recorded seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from hoard.datasets import Dataset, DatasetError
from hoard.datasets.discrete import require_box_actions
from hoard.envs import make_env

# Reset seeds with the top bit set are for evaluation, those without for training and for making datasets.
_EVALUATION_BIT = 1 << 31
_LOCKSTEP = 10


@dataclass
class History:
    """What the environments have shown since reset, for policies that condition on it; n environments, t steps so far.

    `obs` (n, T+1, obs_dim), `action` (n, T, action_dim), `reward` (n, T), zero beyond the present; obs[:, t] is now.
    """

    t: int
    obs: Tensor
    action: Tensor
    reward: Tensor

    @property
    def return_so_far(self) -> Tensor:
        """Undiscounted return since reset, (n,)."""
        return self.reward[:, : self.t].sum(dim=1)


Policy = Callable[[Tensor, History], Tensor]
"""(obs (n, obs_dim), history) -> action (n, action_dim) in environment units; it is clipped to the action space."""


def evaluation_seed(run_seed: int, update: int, episode: int, env_step: int = 0) -> int:
    """Reset seed of one evaluation episode: new for every evaluation, the same for every method at equal run seed.

    Evaluations are placed on the axis of updates, once an environment step is spent on that of environment steps.
    """
    place = [run_seed, env_step, episode, 1] if env_step else [run_seed, update, episode]
    return int(np.random.SeedSequence(place).generate_state(1)[0]) | _EVALUATION_BIT


def training_seed(run_seed: int, number: int) -> int:
    """Reset seed number `number` of the training environments; never equal to an evaluation seed."""
    return int(np.random.SeedSequence([run_seed, number]).generate_state(1)[0]) & ~_EVALUATION_BIT


class Evaluator:
    """Rolls a policy out in the dataset's evaluation environment.

    Raises DatasetError when the dataset names no environment, or one whose spaces do not fit the data.
    """

    def __init__(self, dataset: Dataset, device: torch.device | str = "cpu") -> None:
        require_box_actions(dataset)
        if dataset.env_spec is None:
            raise DatasetError(f"{dataset.id}: no evaluation environment is known for this dataset")
        self.dataset, self.device, self.spec = dataset, torch.device(device), dataset.env_spec
        try:
            self.envs = [make_env(self.spec)]
        except (TypeError, ValueError, ImportError, gym.error.Error) as error:
            raise DatasetError(f"{dataset.id}: environment {self.spec.id} cannot be made: {error}") from error
        self._check_spaces()
        assert self.spec.max_episode_steps is not None  # make_env refuses environments without a time limit
        self.max_steps = self.spec.max_episode_steps

    def _check_spaces(self) -> None:
        data, name = self.dataset, self.spec.id
        env: Any = self.envs[0]
        if env.observation_space.shape != (data.obs_dim,):
            raise DatasetError(
                f"{data.id}: observations have {data.obs_dim} numbers, environment {name} gives "
                f"{env.observation_space.shape[0]}"
            )
        mine, theirs = data.action_space, env.action_space
        if theirs.shape != mine.shape or not (
            np.allclose(mine.low, theirs.low) and np.allclose(mine.high, theirs.high)
        ):
            raise DatasetError(f"{data.id}: its action space {mine} does not fit {theirs} of environment {name}")

    @torch.no_grad()
    def __call__(self, policy: Policy, seeds: list[int]) -> list[dict[str, Any]]:
        """One row per seed: eval_seed, return, length, success (None if never reported), score."""
        rows: list[dict[str, Any]] = []
        for first in range(0, len(seeds), _LOCKSTEP):
            rows += self._lockstep(policy, seeds[first : first + _LOCKSTEP])
        scores = self.dataset.normalized_score(np.array([row["return"] for row in rows]))
        for row, score in zip(rows, scores):
            row["score"] = float(score)
        return rows

    def _lockstep(self, policy: Policy, seeds: list[int]) -> list[dict[str, Any]]:
        n = len(seeds)
        while len(self.envs) < n:
            self.envs.append(make_env(self.spec))
        low, high = self.dataset.action_space.low, self.dataset.action_space.high
        new = lambda *shape: torch.zeros(shape, device=self.device)  # noqa: E731
        history = History(
            0,
            new(n, self.max_steps + 1, self.dataset.obs_dim),
            new(n, self.max_steps, self.dataset.action_dim),
            new(n, self.max_steps),
        )
        obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds)])
        total, length = np.zeros(n), np.zeros(n, int)
        success: list[bool | None] = [None] * n
        running = np.ones(n, bool)
        # Finished environments keep their last observation, so the policy always sees n rows: batch shape, and with it
        # rounding, never depends on who finished first.
        for t in range(self.max_steps):
            history.t = t
            history.obs[:, t] = torch.as_tensor(obs, device=self.device)
            action = policy(history.obs[:, t], history).to(torch.float32)
            if not torch.isfinite(action).all():
                raise FloatingPointError(f"the policy returned a non-finite action at step {t} of an evaluation")
            clipped = np.clip(action.cpu().numpy(), low, high)
            reward = np.zeros(n)
            for i in np.flatnonzero(running):
                obs[i], reward[i], terminated, truncated, info = self.envs[i].step(clipped[i])
                length[i] += 1
                if "success" in info:
                    success[i] = bool(success[i]) or bool(info["success"])
                running[i] = not (terminated or truncated)
            total += reward
            history.action[:, t] = torch.as_tensor(clipped, device=self.device)
            history.reward[:, t] = torch.as_tensor(reward, dtype=torch.float32, device=self.device)
            if not running.any():
                break
        return [
            {"eval_seed": seeds[i], "return": float(total[i]), "length": int(length[i]), "success": success[i]}
            for i in range(n)
        ]

    def close(self) -> None:
        for env in self.envs:
            env.close()
