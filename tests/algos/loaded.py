"""The policy that a finished run keeps, loaded and rolled out again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hoard.envs import make_env
from hoard.records.files import read_json
from hoard.runners.evaluate import evaluation_generator
from hoard.runners.policy import Policy, load_policy


def assert_kept_policy_repeats_the_last_evaluation(folder: Path) -> Policy:
    """`load_policy` earns, from the seeds of the last evaluation, the very returns on record; the policy.

    At most ten episodes that all end at the time limit. What the policy draws comes from the evaluation's seed.
    """
    rows = pd.read_parquet(folder / "episodes.parquet")
    rows = rows[rows.final & (rows.variant == "")]
    update, env_step = int(rows["update"].iloc[0]), int(rows.env_step.iloc[0])
    seed = read_json(folder / "config.json")["config"]["seed"]
    policy = load_policy(folder)
    policy.reset(evaluation_generator(seed, update, env_step).initial_seed())
    envs = [make_env(policy.task.env_spec) for _ in range(len(rows))]
    obs = np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(envs, rows.eval_seed)])
    reward, returns = np.zeros(len(rows)), np.zeros(len(rows))
    for _ in range(policy.task.episode_limit):
        steps = [env.step(action) for env, action in zip(envs, policy(obs, reward))]
        obs, reward = (np.array([step[k] for step in steps]) for k in (0, 1))
        returns += reward
    assert returns.tolist() == rows["return"].to_list()
    return policy
