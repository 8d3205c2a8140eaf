"""The policies behind ``hoard/{hopper,halfcheetah,walker2d}/*``: stored actors, and episodes of them.

Each task has a ladder of policies. Rung 0 is the uniform random one; the others are actors of one SAC training, saved
on the way: rungs 1, 2, ... up to the one that is called medium, and above it the expert. Version 1 keeps medium and
expert alone. ``weights/<task>.safetensors`` (``<task>-v1.safetensors``) holds the actors (float16, used exactly as they
are stored), ``.json`` beside it what they are, how they were trained and what each returns.
`tools/train_locomotion_policies.py` writes both.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from hoard.datasets.d4rl.table import ENTRIES
from hoard.datasets.dataset import DatasetError


@dataclass(frozen=True)
class Task:
    env_id: str
    obs_dim: int
    action_dim: int


TASKS = {
    "hopper": Task("Hopper-v4", 11, 3),
    "halfcheetah": Task("HalfCheetah-v4", 17, 6),
    "walker2d": Task("Walker2d-v4", 17, 6),
}
WEIGHTS = Path(__file__).with_name("weights")
RANDOM = 0  # the rung of the uniform random policy
NOISE_SEED = 2**31  # first number of the seeds of action noise; alone, data reset no environment with it
LOG_STD_RANGE = np.float32(-20.0), np.float32(2.0)  # stable-baselines3's limits


def references(task: str) -> tuple[float, float]:
    """D4RL's reference returns of the random policy and of the expert."""
    entry = ENTRIES[f"{task}-medium-v2"]
    assert entry.ref_min is not None
    assert entry.ref_max is not None
    return entry.ref_min, entry.ref_max


def d4rl_score(task: str, returns: float) -> float:
    """100 (return - random) / (expert - random), with D4RL's references."""
    low, high = references(task)
    return 100 * (returns - low) / (high - low)


# --- actors ---


@dataclass(frozen=True)
class Actor:
    """SAC's policy: hidden layers of rectifiers, then mean and log standard deviation of a normal, then a tanh.

    `weights` (out, in) and `biases` (out,) of the layers, float32; the last layer has 2 x action_dim outputs. It takes
    one observation at a time and does without BLAS, whose rounding may depend on its number of threads.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def distribution(self, obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation before the tanh, (action_dim,) each, for an observation (obs_dim,) float32."""
        x = obs
        for weight, bias in zip(self.weights[:-1], self.biases[:-1]):
            x = np.maximum(np.einsum("ij,j->i", weight, x) + bias, np.float32(0.0))
        mean, log_std = (np.einsum("ij,j->i", self.weights[-1], x) + self.biases[-1]).reshape(2, -1)
        low, high = LOG_STD_RANGE
        return mean, np.exp(np.minimum(np.maximum(log_std, low), high))

    def act(self, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Action in [-1, 1], float32; `noise` (action_dim,) float32 is standard normal, or zero for the mode."""
        mean, std = self.distribution(obs)
        return np.tanh(mean + std * noise)

    def rounded(self) -> Actor:
        """This actor after a way through `save_actors` and `load_ladder`."""
        halve = lambda parts: tuple(part.astype(np.float16).astype(np.float32) for part in parts)  # noqa: E731
        return Actor(halve(self.weights), halve(self.biases))


@dataclass(frozen=True)
class Ladder:
    """The policies of a task: `actors[r - 1]` is rung r, the last is the expert. `about` is the JSON file."""

    task: str
    version: int
    actors: tuple[Actor, ...]
    about: dict[str, Any]

    @property
    def medium(self) -> int:
        """The rung called medium, one below the expert."""
        return len(self.actors) - 1

    @property
    def expert(self) -> int:
        return len(self.actors)

    def actor(self, rung: int) -> Actor | None:
        """None is the uniform random policy."""
        return None if rung == RANDOM else self.actors[rung - 1]

    def name(self, rung: int) -> str:
        return {RANDOM: "random", self.medium: "medium", self.expert: "expert"}.get(rung, f"rung {rung}")


def save_actors(file: Path, actors: list[Actor]) -> str:
    """Write actors to a safetensors file, as float16, and return its SHA-256; equal actors give equal bytes."""
    arrays: dict[str, Any] = {
        f"{rung}.{i}.{kind}": part.astype(np.float16)
        for rung, actor in enumerate(actors, start=1)
        for kind, parts in (("weight", actor.weights), ("bias", actor.biases))
        for i, part in enumerate(parts)
    }
    data = safetensors.save(arrays)
    file.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def stem(task: str, version: int) -> str:
    """The name of a task's files."""
    return f"{task}-v{version}" if version else task


def load_ladder(task: str, version: int = 0, folder: Path = WEIGHTS) -> Ladder:
    """The policies that ship for a task. Raises DatasetError naming a file that is missing, damaged or does not fit."""
    file, about_file = (folder / f"{stem(task, version)}.{kind}" for kind in ("safetensors", "json"))
    try:
        about = json.loads(about_file.read_text())
        expected, count = about["sha256"], len(about["rungs"]) - 1
        data = file.read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{about_file} has no field {error}" if isinstance(error, KeyError) else f"{error}"
        raise DatasetError(f"the policies of {task} cannot be read ({what}); reinstall hoard") from error
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise DatasetError(
            f"the policies of {task} are damaged: {file} has SHA-256 {found[:16]}..., {about_file.name} beside it says "
            f"{str(expected)[:16]}...; reinstall hoard"
        )
    try:
        arrays = safetensors.load(data)
        actors = tuple(_actor(arrays, rung) for rung in range(1, count + 1))
        for rung, actor in enumerate(actors, start=1):
            _check(rung, actor, TASKS[task])
        if count < 2:
            raise ValueError(f"{count} actors, expected two or more: medium, then expert")
    except (ValueError, KeyError, SafetensorError) as error:
        raise DatasetError(f"the policies of {task} in {file} do not fit: {error}") from error
    return Ladder(task, version, actors, about)


def _actor(arrays: dict[str, np.ndarray], rung: int) -> Actor:
    layers = range(sum(name.startswith(f"{rung}.") for name in arrays) // 2)
    weights, biases = (
        tuple(arrays[f"{rung}.{i}.{kind}"].astype(np.float32) for i in layers) for kind in ("weight", "bias")
    )
    return Actor(weights, biases)


def _check(rung: int, actor: Actor, task: Task) -> None:
    shapes = [weight.shape for weight in actor.weights]
    whole = bool(shapes) and all(len(shape) == 2 for shape in shapes)
    if not whole or [bias.shape for bias in actor.biases] != [shape[:1] for shape in shapes]:
        raise ValueError(f"rung {rung} has layers of shapes {shapes}")
    if any(before[0] != after[1] for before, after in itertools.pairwise(shapes)):
        raise ValueError(f"the layers of rung {rung} do not follow one another: {shapes}")
    if (shapes[0][1], shapes[-1][0]) != (task.obs_dim, 2 * task.action_dim):
        raise ValueError(
            f"rung {rung} maps {shapes[0][1]} numbers to {shapes[-1][0]}, {task.env_id} needs {task.obs_dim} and "
            f"{2 * task.action_dim}"
        )
    if not all(np.isfinite(part).all() for part in (*actor.weights, *actor.biases)):
        raise ValueError(f"rung {rung} has weights that are not finite")


# --- episodes ---


@dataclass(frozen=True)
class Trajectory:
    """A whole episode of T steps, float32: `observations` (T + 1, obs_dim), `actions` (T, action_dim), `rewards` (T,).

    `terminated`: the robot fell in the last step. `truncated`: it was the last one that the time limit allows.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        return len(self.rewards)


class Stage:
    """The environment of a task, for whole episodes."""

    def __init__(self, task: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # v4 is called out of date; D4RL's scores need it
            env: Any = gym.make(TASKS[task].env_id)
        self.spec, self.action_space = env.spec, env.action_space
        self.limit: int = env.spec.max_episode_steps
        self.action_dim = TASKS[task].action_dim
        # Nothing is left for the wrappers to do (the limit is kept below), and they cost a quarter of the time.
        self.env = env.unwrapped

    def episode(self, actor: Actor | None, seed: int, rng: np.random.Generator, mode: bool = False) -> Trajectory:
        """Reset with a seed and act to the end; `rng` draws the actions, unless `mode` asks for the most likely ones.

        No actor is the uniform random policy. The actor sees float32 observations, and the environment is given the
        float32 actions that are recorded.
        """
        shape = self.limit, self.action_dim
        if actor is None:
            noise = rng.random(shape, dtype=np.float32) * np.float32(2.0) - np.float32(1.0)
        else:
            noise = np.zeros(shape, np.float32) if mode else rng.standard_normal(shape, dtype=np.float32)
        obs = np.asarray(self.env.reset(seed=seed)[0], np.float32)
        observations, terminated = [obs], False
        actions: list[np.ndarray] = []
        rewards: list[float] = []
        while not terminated and len(actions) < self.limit:
            action = noise[len(actions)] if actor is None else actor.act(obs, noise[len(actions)])
            raw, reward, terminated, _, _ = self.env.step(action)
            obs = np.asarray(raw, np.float32)
            observations.append(obs)
            actions.append(action)
            rewards.append(reward)
        return Trajectory(
            np.stack(observations),
            np.stack(actions),
            np.array(rewards, np.float32),
            bool(terminated),
            len(actions) == self.limit,
        )

    def close(self) -> None:
        self.env.close()
