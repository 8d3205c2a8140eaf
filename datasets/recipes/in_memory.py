"""Datasets that are quicker to generate than to read: from a recipe's recording to a `Dataset`, past the disk."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box

from hoard.datasets.dataset import Dataset, DatasetError
from hoard.datasets.recording import Recording
from hoard.envs import flatten_obs, flatten_space


def dataset_of(dataset_id: str, recording: Recording) -> Dataset:
    """The arrays that Minari's reader would give had the recording been stored. Raises DatasetError, as it does."""
    if not isinstance(recording.action_space, Box):
        raise DatasetError(f"{dataset_id}: action space {recording.action_space} is not supported, only a flat Box is")
    episodes, space = recording.episodes, recording.observation_space
    lengths = np.array([len(episode.rewards) for episode in episodes])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    steps = int(starts[-1])
    observations = np.empty((steps + len(episodes), flatten_space(space).shape[0]), np.float32)
    action = np.empty((steps, *recording.action_space.shape), np.float32)
    reward, terminated, truncated = np.empty(steps, np.float32), np.empty(steps, bool), np.empty(steps, bool)
    for k, episode in enumerate(episodes):
        a, b = starts[k], starts[k + 1]
        observations[a + k : b + k + 1] = flatten_obs(space, episode.observations, batch=True)
        action[a:b], reward[a:b] = episode.actions, episode.rewards
        terminated[a:b], truncated[a:b] = episode.terminations, episode.truncations
    return Dataset(
        id=dataset_id,
        observations=observations,
        rows=np.arange(steps) + np.repeat(np.arange(len(episodes)), lengths),
        action=action,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        starts=starts,
        action_space=recording.action_space,
        env_spec=recording.eval_env_spec,
        ref_min=recording.ref_min_score,
        ref_max=recording.ref_max_score,
        source="generated in memory",
    )
