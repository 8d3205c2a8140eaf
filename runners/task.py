"""What a policy is asked to do: shapes and units of its observations and actions, and how it is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard.datasets import Dataset
from hoard.datasets.discrete import require_box_actions


@dataclass(frozen=True)
class Task:
    """The evaluation side of a dataset, small enough to be stored beside a policy.

    `low`, `high` (action_dim,) float32 bound the actions in environment units; `ref_min`, `ref_max` are the reference
    returns of scores (None: there are none).
    """

    dataset: str
    obs_dim: int
    low: np.ndarray
    high: np.ndarray
    env_spec: EnvSpec | None
    ref_min: float | None
    ref_max: float | None

    @property
    def action_dim(self) -> int:
        return len(self.low)

    @property
    def episode_limit(self) -> int:
        """Steps after which the environment truncates an episode. Raises ValueError if there is no such limit."""
        if self.env_spec is None or self.env_spec.max_episode_steps is None:
            raise ValueError(f"{self.dataset}: its evaluation environment has no time limit")
        return self.env_spec.max_episode_steps

    def normalized_score(self, returns: np.ndarray) -> np.ndarray:
        """100 (R - ref_min) / (ref_max - ref_min); NaN without reference returns."""
        if self.ref_min is None or self.ref_max is None:
            return np.full(len(returns), np.nan)
        return 100.0 * (np.asarray(returns, np.float64) - self.ref_min) / (self.ref_max - self.ref_min)

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "obs_dim": self.obs_dim,
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "env_spec": self.env_spec.to_json() if self.env_spec else None,
            "ref_min": self.ref_min,
            "ref_max": self.ref_max,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Task:
        spec = EnvSpec.from_json(value["env_spec"]) if value["env_spec"] else None
        bounds = {name: np.asarray(value[name], np.float32) for name in ("low", "high")}
        return cls(**(value | bounds | {"env_spec": spec}))


def task_of(dataset: Dataset) -> Task:
    """The task of a dataset. Raises DatasetError if its actions are not continuous."""
    require_box_actions(dataset)
    space = dataset.action_space
    return Task(dataset.id, dataset.obs_dim, space.low, space.high, dataset.env_spec, dataset.ref_min, dataset.ref_max)
