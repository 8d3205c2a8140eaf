"""Reference returns for Minari's ``mujoco/*`` sets, which come from the hub without any.

Random: measured here, the mean undiscounted return of 100 episodes, reset(seed=0..99), actions from
``action_space.sample()`` after ``action_space.seed(0)``. ``python -m hoard.datasets.references`` measures them again
(under a minute); the numbers below come from gymnasium 1.4.0 and mujoco 4.0.0.

Expert: only where a source can be named, and the source is part of the entry. Where there is none the dataset has no
score, and its returns are reported raw; a made-up scale would look like one that can be compared.
The returns of ``mujoco/*/expert-v0`` itself are no such source: nobody has published them, and taking them from the
disk would make a score depend on which files happen to lie there.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

EPISODES = 100

_D4RL = (
    "expert: D4RL's reference for {} (infos.py), a SAC policy in the -v2 environment (mujoco-py); how -v2 differs from "
    "-v5 has not been measured, so this is D4RL's scale and not the level of mujoco/*/expert-v0"
)


@dataclass(frozen=True)
class Reference:
    """Mean returns in one environment at its defaults: `random` with its standard error, `expert` where known."""

    random: float
    standard_error: float
    expert: float | None
    source: str


MUJOCO = {
    "Ant-v5": Reference(-48.048, 8.343, None, "no expert: D4RL's value is for another observation and contact cost"),
    "HalfCheetah-v5": Reference(-282.487, 7.263, 12135.0, _D4RL.format("halfcheetah") + " (v4 and v5 are identical)"),
    "Hopper-v5": Reference(
        16.669, 1.769, 3234.3, _D4RL.format("hopper") + " (v4 pays 1.0 more than v5 per failed episode)"
    ),
    "Humanoid-v5": Reference(112.599, 3.649, None, "no expert: no source"),
    "HumanoidStandup-v5": Reference(33320.177, 205.576, None, "no expert: no source"),
    "InvertedDoublePendulum-v5": Reference(49.090, 1.798, None, "no expert: no source"),
    "InvertedPendulum-v5": Reference(
        5.230, 0.370, 1000.0, "expert: the most that can be had, reward 1 at each of the 1000 steps of an episode"
    ),
    "Pusher-v5": Reference(-149.223, 0.656, None, "no expert: no source"),
    "Reacher-v5": Reference(-43.292, 0.387, None, "no expert: no source"),
    "Swimmer-v5": Reference(0.803, 0.930, None, "no expert: no source"),
    "Walker2d-v5": Reference(1.770, 0.778, None, "no expert: D4RL's value is for other foot friction (v2 to v4)"),
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
