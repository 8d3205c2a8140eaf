"""``hoard/comblock/h<H>-v0``: the offline data of HNPG's combination lock (Zhou et al., ICLR 2024), any H below 100.

50,000 episodes in ``hoard/CombLock-v0`` with horizon H, lock_seed 0 and the released rewards. The behaviour is
epsilon-greedy around the optimal policy with epsilon = 1/H, the coin tossed at every step, as in the authors' public
code (YifeiZhou02/HNPG, collect_offline.py). The greedy action is the one-hot vector of the code (in the dead state:
that of state 1), which the softmax at temperature 0.1 turns into the right latent action with probability 0.9996; the
random one is uniform in [0, 1]^10, and right in one of ten cases. So ((1 - epsilon) 0.9996 + epsilon / 10)^H of the
episodes are optimal: 0.370, 0.388 and 0.393 for H = 5, 10, 15, where the paper says 0.32 to 0.36.

Variants, in the id in this order (``hoard/comblock/h10-paper-rich-lock3-v0``):

    paper    the paper's rewards: whoever falls is paid 0.1 with probability 1/2, at any step
    rich     observations of ``hoard/CombLockRich-v0``, 512 numbers; 20,000 episodes
    forced   the action at step H // 2 is uniform in every episode, as in Hy-Q's "epsilon" data (Song et al. 2023)
    unit     the action space is [0, 1]^10, as the release's own RLPD has it; else +-5
    lock<n>  codes and both generators of lock n: the release draws lock and data anew for every seed

All episodes are stepped at once. Environment and behaviour have a generator each, seeded with 0 and 1; episodes have no
seeds of their own. ``infos`` hold the latent state at each of the H + 1 observations.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from minari.data_collector import EpisodeBuffer

from hoard.datasets.recipes._common import (
    REFERENCE_EPISODES,
    Meter,
    Progress,
    Recording,
    describe,
    reference_scores,
)
from hoard.envs.comblock import ACTIONS, LockBatch, RichLockBatch

ENV_ID, RICH_ID = "hoard/CombLock-v0", "hoard/CombLockRich-v0"
EPISODES, RICH_EPISODES = 50_000, 20_000
ENV_SEED, BEHAVIOUR_SEED = 0, 1
NOTES = {
    "released": "released: whoever is not optimal gets 0.1 with probability 0.5 at the last step.",
    "paper": "in the paper: whoever falls gets 0.1 with probability 0.5, at any step.",
    "forced": "The action of the middle step is uniform in every episode.",
    "rich": "Observations are vectors of a bank that stands in for CLIP features.",
}


def greedy(lock: LockBatch) -> np.ndarray:
    """The optimal actions, (n, 10): one-hot vectors of the codes."""
    return np.eye(ACTIONS, dtype=np.float32)[lock.right_actions()]


def behaviour(lock: LockBatch, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Epsilon-greedy actions, (n, 10) float32; with epsilon 1 all are uniform."""
    explore = rng.random(lock.n) < epsilon
    return np.where(explore[:, None], rng.random((lock.n, ACTIONS), dtype=np.float32), greedy(lock))


def record(
    horizon: int,
    variants: tuple[str, ...] = (),
    lock_seed: int = 0,
    progress: Progress | None = None,
    episodes: int | None = None,
    reference_episodes: int = REFERENCE_EPISODES,
) -> Recording:
    """Generate a set of the lock of `horizon` steps, see the module's docstring."""
    rich, forced = "rich" in variants, "forced" in variants
    episodes = episodes or (RICH_EPISODES if rich else EPISODES)
    mode = "paper" if "paper" in variants else "released"
    rules: dict[str, Any] = {"horizon": horizon, "reward_mode": mode, "lock_seed": lock_seed}
    box: dict[str, Any] = {"low": 0.0, "high": 1.0} if "unit" in variants else {}
    env = gym.make(RICH_ID if rich else ENV_ID, **rules, **box, max_episode_steps=horizon)
    assert env.spec is not None
    meter = Meter(progress, (episodes + 2 * reference_episodes) * horizon)
    lock = (RichLockBatch if rich else LockBatch)(episodes, **rules)
    # Lock 0 is that of the sets without a number.
    seeds: list[Any] = [seed if lock_seed == 0 else [seed, lock_seed] for seed in (ENV_SEED, BEHAVIOUR_SEED)]
    rng = np.random.default_rng(seeds[1])

    observations = np.empty((episodes, horizon + 1, lock.obs_dim), np.float32)
    latents = np.empty((episodes, horizon + 1), np.int8)
    actions, rewards = np.empty((episodes, horizon, ACTIONS), np.float32), np.empty((episodes, horizon))
    observations[:, 0], latents[:, 0] = lock.reset(np.random.default_rng(seeds[0])), lock.latent
    success = np.zeros(episodes, bool)
    for h in range(horizon):
        actions[:, h] = behaviour(lock, 1.0 if forced and h == horizon // 2 else 1 / horizon, rng)
        observations[:, h + 1], rewards[:, h], _, success = lock.step(actions[:, h])
        latents[:, h + 1] = lock.latent
        for _ in range(episodes):
            meter.step()
    ends = np.arange(horizon) == horizon - 1
    buffers = [
        EpisodeBuffer(
            id=k,
            observations=observations[k],
            actions=actions[k],
            rewards=rewards[k],
            terminations=ends,
            truncations=np.zeros(horizon, bool),
            infos={"latent": latents[k]},
        )
        for k in range(episodes)
    ]

    inner: Any = env.unwrapped
    ref_min, ref_max = reference_scores(env, lambda: lambda _: greedy(inner.lock)[0], reference_episodes, meter)
    recording = Recording(
        buffers,
        env.observation_space,
        env.action_space,
        env.spec,
        env.spec,
        ref_min,
        ref_max,
        algorithm_name="epsilon-greedy around the optimal policy",
        description=describe(
            f"""Continuous combination lock with rich observations (HNPG, Zhou et al., ICLR 2024), regenerated from its
            published recipe: {episodes} episodes of {horizon} steps, epsilon-greedy around the optimal policy, epsilon
            1/{horizon}; greedy actions are one-hot, random ones uniform in [0, 1]^10.
            {NOTES["forced"] if forced else ""} {100 * success.mean():.1f} % of the episodes are optimal (reward 1 at
            the end). Rewards as {NOTES[mode]} {NOTES["rich"] if rich else ""} Codes from lock_seed {lock_seed};
            generators seeded with {seeds[0]} (environment) and {seeds[1]} (behaviour). Latent states are in
            infos/latent.""",
            expert="the optimal policy, which is told the latent state",
            episodes=reference_episodes,
        ),
        reference_episodes=reference_episodes,
    )
    env.close()
    return recording
