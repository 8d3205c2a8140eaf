"""`make_env`: an environment id or specification -> an environment as every algorithm here expects it."""

import difflib
import re
import warnings

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box

from hoard.envs._robotics import ADROIT_NOTICE
from hoard.envs.flatten import FlattenFloat32

_ADROIT_AFFECTED = re.compile(r"AdroitHand(Door|Hammer|Relocate)-v1")


def make_env(spec: EnvSpec | str, **kwargs) -> gym.Env:
    """Make an environment with a float32 vector observation (`flatten_obs`) and a time limit.

    ``spec`` is a Gymnasium id or a specification such as Minari stores with a dataset; ``kwargs`` go to
    ``gymnasium.make``. The time limit is that of the specification, unless ``max_episode_steps`` is given: scores
    mean nothing without one, so an environment that has none is refused.
    """
    if isinstance(spec, str):
        spec = _find(spec)
    limit = kwargs.get("max_episode_steps", spec.max_episode_steps)
    if limit is None or limit < 1:  # gymnasium.make reads -1 as "no limit"
        raise ValueError(f"{spec.id} has no time limit: pass max_episode_steps, on which its scores depend")
    if ADROIT_NOTICE and _ADROIT_AFFECTED.fullmatch(spec.id):
        warnings.warn(ADROIT_NOTICE, stacklevel=2)
    env = gym.make(spec, **kwargs)
    if not isinstance(env.action_space, Box):
        env.close()
        raise TypeError(f"{spec.id} has action space {env.action_space}; only Box (continuous) actions are supported")
    return FlattenFloat32(env)


def _find(env_id: str) -> EnvSpec:
    try:
        return gym.spec(env_id)
    except gym.error.Error as error:
        near = difflib.get_close_matches(env_id, gym.registry, n=5, cutoff=0.4)
        raise ValueError(f"unknown environment {env_id!r}; nearest ids: {', '.join(near) or 'none'}") from error
