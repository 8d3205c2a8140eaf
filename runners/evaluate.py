"""Evaluation: whole episodes of a policy, several environments in lockstep, every episode with a recorded seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from hoard.datasets import DatasetError
from hoard.datasets.actions import ActionScaler
from hoard.envs.crew import UNSAID, Alone, Crew
from hoard.runners.task import Task

# Reset seeds with the top bit set are for evaluation, those without for training and for making datasets.
_EVALUATION_BIT = 1 << 31
_LOCKSTEP = 10


@dataclass
class History:
    """What the environments have shown since reset, for policies that condition on it; n environments, t steps so far.

    `obs` (n, T+1, obs_dim), `action` (n, T, action_dim), `reward` (n, T), zero beyond the present; obs[:, t] is now.
    Actions are in the units that the policy acts in. `generator` is for policies that draw their actions: it is seeded
    anew for every evaluation.
    """

    t: int
    obs: Tensor
    action: Tensor
    reward: Tensor
    generator: torch.Generator

    @property
    def return_so_far(self) -> Tensor:
        """Undiscounted return since reset, (n,)."""
        return self.reward[:, : self.t].sum(dim=1)


Act = Callable[[Tensor, History], Tensor]


class Actor(Protocol):
    """What is evaluated: a module whose `act(obs)` or `act(obs, history)` maps (n, obs_dim) to (n, action_dim).

    Actions are in [-1, 1]; the runner maps them to the environment's units and clips them. A class attribute
    `scale_actions = False` says that its actions are in the environment's units already.
    """

    act: Callable[..., Tensor]


Policy = Actor | Act
"""A module with `act`, or a function (obs, history) -> action in [-1, 1]."""

Witness = Callable[[int, gym.Env, np.ndarray | None, np.ndarray], None]
"""Called with an episode's number, its environment, the action just executed (None: a reset), and the observation."""


def uses_history(policy: Policy) -> bool:
    """Whether a policy looks at more than the present observation."""
    act: Any = getattr(policy, "act", policy)
    return len(inspect.signature(act).parameters) > 1


def act_of(policy: Policy) -> tuple[Act, bool]:
    """The policy as a function (obs, history) -> action, and whether its actions are in [-1, 1]."""
    act: Any = getattr(policy, "act", policy)
    scaled = getattr(policy, "scale_actions", True)
    return (act if uses_history(policy) else lambda obs, history: act(obs)), scaled


def evaluation_seed(run_seed: int, update: int, episode: int, env_step: int = 0) -> int:
    """Reset seed of one evaluation episode: new for every evaluation, the same for every method at equal run seed.

    Evaluations are placed on the axis of updates, once an environment step is spent on that of environment steps.
    """
    place = [run_seed, env_step, episode, 1] if env_step else [run_seed, update, episode]
    return int(np.random.SeedSequence(place).generate_state(1)[0]) | _EVALUATION_BIT


def fresh_seed(seed: int, episode: int) -> int:
    """Reset seed of an episode that belongs to no run: for scoring a trained policy once more."""
    return int(np.random.SeedSequence([seed, 0, 0, episode, 2]).generate_state(1)[0]) | _EVALUATION_BIT


def evaluation_generator(
    run_seed: int, update: int, env_step: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator that a policy draws its actions from in one evaluation."""
    place = [run_seed, env_step, 2] if env_step else [run_seed, update, 0, 2]
    seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)


def training_seed(run_seed: int, number: int) -> int:
    """Reset seed number `number` of the training environments; never equal to an evaluation seed."""
    return int(np.random.SeedSequence([run_seed, number]).generate_state(1)[0]) & ~_EVALUATION_BIT


class Evaluator:
    """Rolls a policy out in the environment of a task, several episodes in lockstep.

    So many `processes`, this one among them, step the environments; the rows are the same. Raises DatasetError when the
    task names no environment, one whose spaces do not fit it, or one that cannot be sent to another process.
    """

    def __init__(self, task: Task, device: torch.device | str = "cpu", processes: int = 1) -> None:
        if task.env_spec is None:
            raise DatasetError(f"{task.dataset}: no evaluation environment is known for this dataset")
        self.task, self.device, self.spec = task, torch.device(device), task.env_spec
        self.scaler = ActionScaler(task.low, task.high, self.device)
        try:
            self._alone = Alone(self.spec)
        except (TypeError, ValueError, ImportError, gym.error.Error) as error:
            raise DatasetError(f"{task.dataset}: environment {self.spec.id} cannot be made: {error}") from error
        self._check_spaces()
        assert self.spec.max_episode_steps is not None  # make_env refuses environments without a time limit
        self.max_steps = self.spec.max_episode_steps
        try:
            self._crew = Crew(self._alone, processes) if processes > 1 else None
        except ValueError as error:
            raise DatasetError(f"{task.dataset}: {error}; evaluate in one process") from error

    @property
    def envs(self) -> list[gym.Env]:
        """The environments of this process."""
        return self._alone.envs

    def _check_spaces(self) -> None:
        task, name = self.task, self.spec.id
        env: Any = self.envs[0]
        if env.observation_space.shape != (task.obs_dim,):
            raise DatasetError(
                f"{task.dataset}: observations have {task.obs_dim} numbers, environment {name} gives "
                f"{env.observation_space.shape[0]}"
            )
        theirs = env.action_space
        if theirs.shape != task.low.shape or not (
            np.allclose(task.low, theirs.low) and np.allclose(task.high, theirs.high)
        ):
            raise DatasetError(
                f"{task.dataset}: actions from {task.low} to {task.high} do not fit {theirs} of environment {name}"
            )

    @torch.no_grad()
    def __call__(
        self, policy: Policy, seeds: list[int], generator: torch.Generator, witness: Witness | None = None
    ) -> list[dict[str, Any]]:
        """One row per seed: eval_seed, return, length, success (None if never reported), score.

        `generator` is what a stochastic policy draws from. `witness` is told of every reset and every step; the
        environments are stepped in this process then.
        """
        rows: list[dict[str, Any]] = []
        for first in range(0, len(seeds), _LOCKSTEP):
            rows += self._lockstep(policy, seeds[first : first + _LOCKSTEP], generator, witness, first)
        scores = self.task.normalized_score(np.array([row["return"] for row in rows]))
        for row, score in zip(rows, scores):
            row["score"] = float(score)
        return rows

    def _lockstep(
        self, policy: Policy, seeds: list[int], generator: torch.Generator, witness: Witness | None, first: int
    ) -> list[dict[str, Any]]:
        """The episodes of some seeds; the number of the first among all is `first`."""
        act, scaled = act_of(policy)
        n = len(seeds)
        stage = self._crew if self._crew and not witness else self._alone
        low, high = self.task.low, self.task.high
        remembers = uses_history(policy)
        steps = self.max_steps if remembers else 0  # nobody reads what would be kept for the others
        new = lambda *shape: torch.zeros(shape, device=self.device)  # noqa: E731
        history = History(
            0, new(n, steps + 1, self.task.obs_dim), new(n, steps, self.task.action_dim), new(n, steps), generator
        )
        obs = stage.reset(seeds)
        if witness:
            for k in range(n):
                witness(first + k, self.envs[k], None, obs[k])
        total, length = np.zeros(n), np.zeros(n, int)
        success = np.full(n, UNSAID, np.int8)
        running = np.ones(n, bool)
        # Finished environments keep their last observation, so the policy always sees n rows: batch shape, and with it
        # rounding, never depends on who finished first.
        for t in range(self.max_steps):
            history.t = t if remembers else 0
            now = history.obs[:, history.t]
            now.copy_(torch.as_tensor(obs))
            action = act(now, history)
            wanted = (self.scaler.to_env(action) if scaled else action).to(torch.float32).numpy(force=True)
            if not np.isfinite(wanted).all():
                raise FloatingPointError(f"the policy returned a non-finite action at step {t} of an evaluation")
            clipped = np.minimum(np.maximum(wanted, low), high)
            obs, reward, ended, now_successful = stage.step(clipped, running)
            if witness:
                for i in np.flatnonzero(running):
                    witness(first + int(i), self.envs[i], clipped[i], obs[i])
            success = np.maximum(success, now_successful)
            total += reward
            length += running
            running &= ~ended
            if remembers:
                executed = torch.as_tensor(clipped, device=self.device)
                history.action[:, t] = self.scaler.to_unit(executed) if scaled else executed
                history.reward[:, t] = torch.as_tensor(reward, dtype=torch.float32, device=self.device)
            if not running.any():
                break
        return [
            {
                "eval_seed": seeds[i],
                "return": float(total[i]),
                "length": int(length[i]),
                "success": None if success[i] == UNSAID else bool(success[i]),
            }
            for i in range(n)
        ]

    def close(self) -> None:
        self._alone.close()
        if self._crew:
            self._crew.close()
