"""Small datasets with known contents, and a second, slow way to read what is on the disk."""

import json
import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.storage import get_dataset_path

from hoard.datasets import Dataset

ACTIONS = spaces.Box(-1.0, 1.0, (2,), np.float32)
SPACES = {
    "box": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "float64": spaces.Box(-np.inf, np.inf, (2,), np.float64),
    "matrix": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "dict": spaces.Dict([("b", spaces.Box(-9.0, 9.0, (2,), np.float64)), ("a", spaces.Box(-9.0, 9.0, (1,)))]),
    "nested": spaces.Dict(
        {
            "z": spaces.Dict(
                {"y": spaces.Box(-9.0, 9.0, (1,)), "x": spaces.Dict({"w": spaces.Box(-9.0, 9.0, (2, 1))})}
            ),
            "a": spaces.Tuple((spaces.Box(-9.0, 9.0, (1,)), spaces.Box(-9.0, 9.0, (2,), np.float64))),
        }
    ),
}


def observations(space, rows, rng):
    """`rows` random observations in Minari's layout: the structure of the space with `rows` rows in every leaf."""
    if isinstance(space, spaces.Dict):
        return {key: observations(part, rows, rng) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(observations(part, rows, rng) for part in space.spaces)
    return rng.normal(size=(rows, *space.shape)).astype(space.dtype)


def random_buffers(lengths, space, seed):
    """Random episodes; each ends terminated, truncated, with both flags or with none."""
    rng = np.random.default_rng(seed)
    buffers = []
    for k, steps in enumerate(lengths):
        flags = np.zeros((2, steps), bool)
        flags[:, -1] = rng.integers(2, size=2)
        actions = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        obs = observations(space, steps + 1, rng)
        buffers.append(EpisodeBuffer(k, None, None, obs, actions, rng.normal(size=steps), flags[0], flags[1], {}))
    return buffers


def tagged_buffers(lengths):
    """Observation (episode, t), action (episode, t) / 100, reward episode + t / 1000; every episode truncated."""
    buffers = []
    for k, steps in enumerate(lengths):
        tags = np.stack([np.full(steps + 1, k), np.arange(steps + 1)], axis=1).astype(np.float64)
        end = np.arange(steps) == steps - 1
        reward = k + np.arange(steps) / 1000
        actions = (tags[:-1] / 100).astype(np.float32)
        buffers.append(EpisodeBuffer(k, None, None, tags, actions, reward, end & False, end, {}))
    return buffers


def store(dataset_id, buffers, space=SPACES["float64"], actions=ACTIONS, data_format="hdf5", **metadata):
    """Write with Minari's own code. Returns the folder that holds metadata.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the author, the algorithm and other fields left out
        minari.create_dataset_from_buffers(
            dataset_id, buffers, observation_space=space, action_space=actions, data_format=data_format
        )
    folder = Path(get_dataset_path(dataset_id)) / "data"
    edit_metadata(folder, **metadata)
    return folder


def edit_metadata(folder, **fields):
    path = folder / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def flat(space, raw):
    """Rows of a stored observation as the documentation says: keys in alphabetical order, C order, float32."""
    if isinstance(space, spaces.Dict):
        return np.concatenate([flat(space[key], raw[key]) for key in sorted(space.spaces)], axis=1)
    if isinstance(space, spaces.Tuple):
        name = "_index_{}".format if isinstance(raw, h5py.Group) else int
        return np.concatenate([flat(part, raw[name(i)]) for i, part in enumerate(space.spaces)], axis=1)
    values = np.array(raw)
    return values.reshape(len(values), -1).astype(np.float32)


def rows_by_h5py(folder, space):
    """(obs, action, next_obs, reward, terminated, truncated) of every step, one at a time, from the file itself."""
    with h5py.File(folder / "main_data.hdf5") as file:
        for k in range(len(file)):
            group = file[f"episode_{k}"]
            obs = flat(space, group["observations"])
            for t in range(len(group["rewards"])):
                last = (group[name][t] for name in ("rewards", "terminations", "truncations"))
                yield obs[t], group["actions"][t], obs[t + 1], *last


def rows_by_minari(dataset_id, space):
    """The same through `minari.load_dataset`."""
    for episode in minari.load_dataset(dataset_id).iterate_episodes():
        obs = flat(space, episode.observations)
        for t in range(len(episode.rewards)):
            last = (episode.rewards[t], episode.terminations[t], episode.truncations[t])
            yield obs[t], episode.actions[t], obs[t + 1], *last


def toy(lengths=(3, 1, 4), terminated=(), obs_dim=2, actions=ACTIONS, **fields):
    """A Dataset in memory, Minari's layout: observation (episode, t, ...), action 0, reward = index of the transition.

    The episodes in `terminated` end so, the others are truncated.
    """
    lengths = np.asarray(lengths)
    steps, episodes = int(lengths.sum()), len(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    table = np.zeros((steps + episodes, obs_dim), np.float32)
    table[:, 0] = np.repeat(np.arange(episodes), lengths + 1)
    table[:, 1] = np.concatenate([np.arange(n + 1) for n in lengths])
    ends = np.zeros((2, steps), bool)
    for k in range(episodes):
        ends[0 if k in terminated else 1, starts[k + 1] - 1] = True
    arrays = {
        "observations": table,
        "rows": np.arange(steps) + np.repeat(np.arange(episodes), lengths),
        "action": np.zeros((steps, actions.shape[0]), np.float32),
        "reward": np.arange(steps, dtype=np.float32),
        "terminated": ends[0],
        "truncated": ends[1],
        "starts": starts,
        "env_spec": gym.spec("Pendulum-v1"),
        "ref_min": 0.0,
        "ref_max": 10.0,
    }
    return Dataset(**{"id": "toy-v0", "action_space": actions} | arrays | fields)
