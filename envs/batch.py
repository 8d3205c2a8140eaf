"""`make_batch`: many episodes of one environment at once, where the environment knows how."""

from typing import Any, Protocol

import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator


class Batch(Protocol):
    """n episodes in lockstep, all of `horizon` steps. Observations are float32 (n, obs_dim)."""

    n: int
    horizon: int

    def reset(self, seed: int | np.random.Generator) -> np.ndarray:
        """Start n episodes; all randomness until the next reset comes from `seed`."""
        ...

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray]:
        """(n, action_dim), in environment units and not clipped here -> obs, reward (n,), ended, success (n,) bool."""
        ...


def make_batch(spec: EnvSpec, n: int) -> Batch | None:
    """n episodes of the environment that `spec` describes; None if its class has no classmethod `batch(n, **kwargs)`.

    None also for a specification with wrappers, or with another time limit than the length of its episodes.
    """
    creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    own = [
        w for w in spec.additional_wrappers if w.name != "FlattenFloat32"
    ]  # flat float32 is what a batch gives anyway
    if not hasattr(creator, "batch") or own:
        return None
    batch: Batch = creator.batch(n, **spec.kwargs)
    return batch if batch.horizon == spec.max_episode_steps else None
