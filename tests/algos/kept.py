"""Whether the policy that a finished run kept plays as the one that was evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hoard.envs import make_env
from hoard.runners.evaluate import Evaluator, evaluation_generator
from hoard.runners.policy import Policy, load_policy


def assert_kept_policy_repeats_the_score(folder: Path) -> Policy:
    """On the seeds of the run's last evaluation the loaded policy has the same returns; called step by step, nearly."""
    policy = load_policy(folder)
    rows = pd.read_parquet(folder / "episodes.parquet")
    rows = rows[rows.final & (rows.variant == "")]
    update, env_step = (int(rows[name].iloc[0]) for name in ("update", "env_step"))
    evaluator = Evaluator(policy.task)
    generator = evaluation_generator(policy.config["seed"], update, env_step)
    again = evaluator(policy.actor, [int(seed) for seed in rows.eval_seed], generator)  # type: ignore[arg-type]
    evaluator.close()
    assert [row["return"] for row in again] == rows["return"].tolist()

    env = make_env(policy.task.env_spec)
    obs, reward, total, over = env.reset(seed=int(rows.eval_seed.iloc[0]))[0], None, 0.0, False
    policy.reset()
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy(obs, reward))
        total, over = total + float(reward), terminated or truncated
    env.close()
    # One row instead of several at once: sums are rounded differently.
    assert total == pytest.approx(rows["return"].iloc[0], rel=1e-3)
    assert np.isfinite(total)
    return policy
