"""One order for flattening observations, shared by the data and the environments.

A policy learns from dataset rows and acts on environment observations; both must put the same number in the same
place. The order is therefore fixed here and nowhere else:

- ``Box``: C order, as ``reshape(-1)``;
- ``Dict``: keys in alphabetical order, recursively, whatever order the space or the observation lists them in;
- ``Tuple``: position order, recursively.

Everything is float32. Other spaces (``Discrete``, ``MultiDiscrete``, ``Text``, ...) are refused.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Space, Tuple
from gymnasium.utils import RecordConstructorArgs


def flatten_space(space: Space) -> Box:
    """The float32 ``Box`` of shape (n,) that `flatten_obs` maps ``space`` into, bounds included."""
    with np.errstate(over="ignore"):  # a float64 bound beyond float32 becomes infinite, which is what it means
        low = np.concatenate([box.low.reshape(-1).astype(np.float32) for box in _leaves(space)])
        high = np.concatenate([box.high.reshape(-1).astype(np.float32) for box in _leaves(space)])
    return Box(low, high, dtype=np.float32)


def flatten_obs(space: Space, obs: Any, batch: bool = False) -> np.ndarray:
    """One observation as a float32 vector (n,), or, with ``batch``, T stacked observations as (T, n).

    A batch is laid out as Minari stores an episode: the structure of the space, with T rows in every leaf.
    """
    parts = [
        np.asarray(value, np.float32).reshape(len(value) if batch else 1, int(np.prod(box.shape)))
        for box, value in _pairs(space, obs)
    ]
    flat = np.concatenate(parts, axis=1)
    return flat if batch else flat[0]


class FlattenFloat32(gym.ObservationWrapper, RecordConstructorArgs):
    """Observations of any supported space as one float32 vector, see `flatten_obs`."""

    def __init__(self, env: gym.Env):
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = flatten_space(env.observation_space)

    def observation(self, observation: Any) -> np.ndarray:
        return flatten_obs(self.env.observation_space, observation)


def _leaves(space: Space) -> list[Box]:
    return [box for box, _ in _pairs(space, None)]


def _pairs(space: Space, obs: Any) -> list[tuple[Box, Any]]:
    """The Box leaves of a space beside their part of the observation, in the documented order."""
    if isinstance(space, Box):
        return [(space, obs)]
    if isinstance(space, Dict):
        parts = [(space[key], None if obs is None else obs[key]) for key in sorted(space.keys())]
    elif isinstance(space, Tuple):
        parts = [(child, None if obs is None else obs[i]) for i, child in enumerate(space)]
    else:
        raise TypeError(f"cannot flatten {space}: only Box, and Dict or Tuple made of Box, are supported")
    return [pair for child, part in parts for pair in _pairs(child, part)]
