"""Command lines of algorithm files and a suite, as tests start them; data for an environment of a test's own."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import gymnasium as gym

from hoard import datasets

ROOT = Path(__file__).resolve().parent.parent
SMALL_SUITE = """
description = "a test"
seeds = 2
datasets = ["test/pendulum-v0"]
[options]
updates = 40
hidden = [16]
batch_size = 32
log_every = 20
eval_every = 40
eval_episodes = 2
final_eval_episodes = 3
checkpoint_every = 20
[method.bc]
"""


def command(algo: str | Path, *args: str, results: Path) -> list[str]:
    """The command line of an algorithm file, by name in algos/ or by path; the run keeps its last checkpoint."""
    file = algo if isinstance(algo, Path) else ROOT / "algos" / f"{algo}.py"
    return [sys.executable, str(file), *args, "--results", str(results), "--keep-checkpoint", "true"]


def small(dataset: str, **options: object) -> list[str]:
    """Options of a run that takes a second: 60 updates of a small network, two evaluations."""
    values: dict[str, object] = {
        "dataset": dataset,
        "updates": 60,
        "hidden": 16,
        "batch_size": 32,
        "log_every": 10,
        "eval_every": 30,
        "eval_episodes": 2,
        "final_eval_episodes": 3,
        "checkpoint_every": 20,
        **options,
    }
    return [
        part
        for name, value in values.items()
        if value is not None
        for part in (f"--{name.replace('_', '-')}", *str(value).split(" "))
    ]


def one_number_in(dataset: str, env: type[gym.Env], limit: int) -> datasets.Dataset:
    """The first number of a dataset's observations, to be evaluated in `env` with a time limit."""
    name = f"test/{env.__name__}-v0"
    if name not in gym.registry:
        gym.register(name, env, max_episode_steps=limit)
    data = datasets.load(dataset)
    return dataclasses.replace(data, observations=data.observations[:, :1], env_spec=gym.spec(name))
