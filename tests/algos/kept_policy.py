"""The policy that a finished run keeps, rolled out again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hoard.envs import make_env
from hoard.runners.policy import load_policy


def assert_kept_policy_repeats_the_score(folder: Path) -> None:
    """From the seeds of the last evaluation, `load_policy` earns the returns in the run's records, to the bit."""
    rows = pd.read_parquet(folder / "episodes.parquet")
    rows = rows[rows.final & (rows.variant == "")]
    policy = load_policy(folder)
    envs = [make_env(policy.task.env_spec) for _ in range(len(rows))]
    obs = np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(envs, rows.eval_seed)])
    returns = np.zeros(len(rows))
    for _ in range(policy.task.episode_limit):  # environments whose episodes all end at the time limit
        steps = [env.step(action) for env, action in zip(envs, policy(obs))]
        obs = np.stack([step[0] for step in steps])
        returns += [step[1] for step in steps]
    assert returns.tolist() == rows["return"].to_list()
