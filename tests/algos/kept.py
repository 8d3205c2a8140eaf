"""Whether the policy that a finished run kept plays as the one that was evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from hoard.envs import make_env
from hoard.runners.evaluate import Evaluator, evaluation_generator
from hoard.runners.policy import Policy, load_policy


def assert_kept_policy_repeats_the_score(folder: Path) -> Policy:
    """On the seeds of the run's last evaluation the loaded policy has the same returns; called step by step too.

    At most ten episodes that all end at the time limit.
    """
    policy = load_policy(folder)
    rows = pd.read_parquet(folder / "episodes.parquet")
    rows = rows[rows.final & (rows.variant == "")]
    seeds = [int(seed) for seed in rows.eval_seed]
    update, env_step = (int(rows[name].iloc[0]) for name in ("update", "env_step"))
    evaluator = Evaluator(policy.task)
    generator = evaluation_generator(policy.config["seed"], update, env_step)
    drawn_from = generator.initial_seed()
    again = evaluator(policy.actor, seeds, generator)  # type: ignore[arg-type]
    evaluator.close()
    assert [row["return"] for row in again] == rows["return"].tolist()

    envs = [make_env(policy.task.env_spec) for _ in seeds]
    obs = np.stack([env.reset(seed=seed)[0] for env, seed in zip(envs, seeds)])
    reward, returns = np.zeros(len(seeds)), np.zeros(len(seeds))
    policy.reset(drawn_from)
    for _ in range(policy.task.episode_limit):
        steps = [env.step(action) for env, action in zip(envs, policy(obs, reward))]
        obs, reward = (np.array([step[k] for step in steps]) for k in (0, 1))
        returns += reward
    assert returns.tolist() == rows["return"].tolist()
    return policy
