"""Reference returns for Minari's ``mujoco/*`` sets, which come from the hub without any.

Random: measured here, the mean undiscounted return of 100 episodes, reset(seed=0..99), actions from
``action_space.sample()`` after ``action_space.seed(0)``. ``python -m hoard.datasets.minari.references`` measures them
again (under a minute); the numbers below come from gymnasium 1.4.0 and mujoco 4.0.0. What others report: `PUBLISHED`.

Expert: only where a source can be named, and the source is part of the entry: D4RL's reference where the environment is
the same as far as scores go, so that scores compare with published ones; else the mean return of ``mujoco/*/expert-v0``
as published in `PUBLISHED`. Where there is neither, the dataset has no score and its returns are reported raw.
Numbers are never taken from files on this disk: a score would then depend on which of them happen to be there.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard.records.published_returns import PUBLISHED

EPISODES = 100

_D4RL = (
    "expert: D4RL's reference for {} (infos.py), a SAC policy in the -v2 environment (mujoco-py); how -v2 differs from "
    "-v5 has not been measured, so this is D4RL's scale and not the level of mujoco/*/expert-v0"
)

_EXPERT_SET = "expert: mean return of the episodes in mujoco/{}/expert-v0, as published"


@dataclass(frozen=True)
class Reference:
    """Mean returns in one environment at its defaults: `random` with its standard error, `expert` where known."""

    random: float
    standard_error: float
    expert: float | None
    source: str


MUJOCO = {
    "Ant-v5": Reference(
        -48.048,
        8.343,
        PUBLISHED["Ant-v5"][1],
        _EXPERT_SET.format("ant") + "; D4RL's value is for another observation and contact cost",
    ),
    "HalfCheetah-v5": Reference(-282.487, 7.263, 12135.0, _D4RL.format("halfcheetah") + " (v4 and v5 are identical)"),
    "Hopper-v5": Reference(
        16.669, 1.769, 3234.3, _D4RL.format("hopper") + " (v4 pays 1.0 more than v5 per failed episode)"
    ),
    "Humanoid-v5": Reference(112.599, 3.649, PUBLISHED["Humanoid-v5"][1], _EXPERT_SET.format("humanoid")),
    "HumanoidStandup-v5": Reference(33320.177, 205.576, None, "no expert: no source"),
    "InvertedDoublePendulum-v5": Reference(
        49.090, 1.798, PUBLISHED["InvertedDoublePendulum-v5"][1], _EXPERT_SET.format("inverteddoublependulum")
    ),
    "InvertedPendulum-v5": Reference(
        5.230, 0.370, 1000.0, "expert: the most that can be had, reward 1 at each of the 1000 steps of an episode"
    ),
    "Pusher-v5": Reference(-149.223, 0.656, PUBLISHED["Pusher-v5"][1], _EXPERT_SET.format("pusher")),
    "Reacher-v5": Reference(-43.292, 0.387, PUBLISHED["Reacher-v5"][1], _EXPERT_SET.format("reacher")),
    "Swimmer-v5": Reference(0.803, 0.930, PUBLISHED["Swimmer-v5"][1], _EXPERT_SET.format("swimmer")),
    "Walker2d-v5": Reference(
        1.770,
        0.778,
        PUBLISHED["Walker2d-v5"][1],
        _EXPERT_SET.format("walker2d") + "; D4RL's value is for other foot friction (v2 to v4)",
    ),
}


def reference(dataset_id: str, spec: EnvSpec | None) -> Reference | None:
    """The entry for a ``mujoco/*`` set, None for any other id or an environment that is not at its defaults."""
    if spec is None or not dataset_id.startswith("mujoco/") or spec.kwargs:
        return None
    found = MUJOCO.get(spec.id)
    return found if found and spec.max_episode_steps == gym.spec(spec.id).max_episode_steps else None


def measure_random(env_id: str, episodes: int = EPISODES) -> np.ndarray:
    """Undiscounted returns of the uniform random policy, (episodes,)."""
    env = gym.make(env_id)
    env.action_space.seed(0)
    returns = np.zeros(episodes)
    for seed in range(episodes):
        env.reset(seed=seed)
        done = False
        while not done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            returns[seed] += float(reward)
            done = terminated or truncated
    env.close()
    return returns


def main() -> None:
    """Measure every environment of the table and print it beside the value that is shipped."""
    print(f"{'environment':28}{'measured':>12}{'+- s.e.':>10}{'shipped':>12}")
    for env_id, entry in MUJOCO.items():
        returns = measure_random(env_id)
        error = returns.std(ddof=1) / np.sqrt(len(returns))
        print(f"{env_id:28}{returns.mean():12.3f}{error:10.3f}{entry.random:12.3f}", flush=True)


if __name__ == "__main__":
    main()
