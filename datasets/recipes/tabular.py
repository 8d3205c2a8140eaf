"""``hoard/gridworld/expert-v0``, ``hoard/doublechain/expert-v0``: demonstrations in two finite MDPs.

3000 episodes of 20 steps each from the soft expert of the environment (`hoard.envs.tabular`): the optimal policy of
reward + 0.05 * entropy, which depends on the step and has a likelihood. States are one-hot observations; actions are
one-hot, and whoever acts plays the index of the largest entry. Sampled from the arrays with ``default_rng(0)``.

Reference returns are exact expectations, not measurements: uniform actions, and the optimum (not the expert).
"""

from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer

from hoard.datasets.recipes._common import Meter, Progress, Recording
from hoard.datasets.recipes.catalogue import TABULAR
from hoard.envs import tabular

EPISODES = 3000
TEMPERATURE = 0.05
SEED = 0


def expert_policy(dataset_id: str, mdp: tabular.FiniteMDP) -> np.ndarray | None:
    """The exact policy behind a dataset of this recipe, (H, S, A); None for any other dataset."""
    known = any(dataset_id == f"hoard/{problem}/expert-v0" for problem in TABULAR)
    return tabular.soft_expert(mdp, TEMPERATURE) if known else None


def record(problem: str, progress: Progress | None = None, episodes: int = EPISODES) -> Recording:
    """Generate ``hoard/<problem>/expert-v0``."""
    env: Any = gym.make(TABULAR[problem], one_hot=True)
    mdp = env.unwrapped.mdp
    meter = Meter(progress, episodes * mdp.horizon)
    expert = tabular.soft_expert(mdp, TEMPERATURE)
    states, actions = tabular.sample_episodes(mdp, expert, episodes, np.random.default_rng(SEED))
    rewards = mdp.reward[np.arange(mdp.horizon), states[:, :-1], actions]
    codes, moves = np.eye(mdp.states, dtype=np.float32), np.eye(mdp.actions, dtype=np.float32)
    ends = np.arange(mdp.horizon) == mdp.horizon - 1
    buffers = []
    for k in range(episodes):
        buffers.append(
            EpisodeBuffer(
                id=k,
                observations=codes[states[k]],
                actions=moves[actions[k]],
                rewards=rewards[k],
                terminations=np.zeros(mdp.horizon, bool),
                truncations=ends,
                infos={"state": states[k]},
            )
        )
        for _ in range(mdp.horizon):
            meter.step()

    def value(policy: np.ndarray) -> float:
        return float(mdp.start @ tabular.evaluate_policy(mdp, policy)[0])

    best = float(mdp.start @ tabular.value_iteration(mdp)[1][0])
    recording = Recording(
        buffers,
        env.observation_space,
        env.action_space,
        env.spec,
        env.spec,
        value(tabular.uniform_policy(mdp)),
        best,
        algorithm_name="soft value iteration",
        description=(
            f"{env.spec.id}, {episodes} episodes of {mdp.horizon} steps from the exact optimum of reward + "
            f"{TEMPERATURE} * entropy, whose expected return is {value(expert):.4f} (optimum: {best:.4f}); mean return "
            f"of these episodes {rewards.sum(axis=1).mean():.4f}. States and actions are one-hot. Sampled with "
            f"default_rng({SEED}). "
            "Reference scores are exact: uniform actions (min), the optimum (max). hoard's own recipe, no published "
            f"counterpart. Generated with gymnasium {version('gymnasium')}, numpy {version('numpy')}."
        ),
        reference_episodes=None,
    )
    env.close()
    return recording
