"""What a recipe returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from gymnasium.spaces import Space
    from minari.data_collector import EpisodeBuffer

REFERENCE_EPISODES = 100


@dataclass(frozen=True)
class Recording:
    """A generated dataset, ready to be written in Minari's format.

    Episodes hold T + 1 observations and infos beside T actions, rewards and flags, as arrays that may be views of
    one another: a walk that was never reset shares the boundary observation between two episodes.
    """

    episodes: list[EpisodeBuffer]
    observation_space: Space  # of the raw observations, before flattening
    action_space: Space
    env_spec: EnvSpec  # the environment that the data was recorded in
    eval_env_spec: EnvSpec  # the environment that scores are measured in
    ref_min_score: float  # mean return of the uniform random policy in the evaluation environment
    ref_max_score: float  # mean return of the expert there
    algorithm_name: str
    description: str
    reference_episodes: int | None = REFERENCE_EPISODES  # behind each mean; None: exact, or taken from elsewhere
