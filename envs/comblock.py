"""The continuous combination lock with rich observations (HNPG: Zhou, Sekhari, Song, Sun, ICLR 2024, arXiv 2311.08384).

Two good latent states, 0 and 1, and a dead one, 2. At each of H steps one of ten latent actions is right in state 0 and
one in state 1, secret codes fixed by ``lock_seed``; after a right action the two good states swap with probability 1/2,
a wrong one leads to the dead state for good. The right action in a good state at the last step pays 1, so a uniform
policy is paid with probability 10^-H. An action is ten numbers a; the latent action is drawn from softmax(a / 0.1).

``reward_mode`` says who is paid the consolation of 0.1 with probability 1/2 (the release and the paper differ):

    released   everyone who is not optimal at the last step, the dead included; nothing before
    paper      whoever falls from a good state to the dead one, at any step: a bait that comes early

``hoard/CombLock-v0``
    The observation has D = 2^ceil(log2(H + 4)) numbers: normal noise of standard deviation 0.1 on the first H + 3, 1
    added at the latent state and at 3 + h, all multiplied by the Hadamard matrix of order D (entries +-1, not scaled).
``hoard/CombLockRich-v0``
    A stand-in, made here, for the paper's lock over CIFAR-100 images seen through CLIP, of which nothing is used: the
    observation is a unit vector of 512 numbers, drawn at every step from those that a fixed bank has for the class
    3h + s. Classes overlap. ``split`` chooses the 500 vectors of each class that data and training see ("train") or 100
    others ("test"). How hard classes are to tell apart was tuned to what the paper reports (that its figure is about
    all classes, and not the three of one h, is inferred); see `bank`.

Constants and rules are those of the authors' public code (YifeiZhou02/HNPG, lock_continuous.py). Differences: softmax
is computed without overflow; the codes come from a generator of their own; the action space has bounds, +-5 per
number unless `low` and `high` say otherwise, where the original has none (its RLPD acts in [0, 1]). Nothing is clipped
in here: an action beyond the bounds means what it says.

Episodes last H steps and end with ``terminated``. Both ids are registered without a time limit; pass
``max_episode_steps=horizon`` where one is wanted. ``info`` holds ``time_step`` h, ``latent`` (the state now), and
``success``, true exactly on the step that pays 1.
"""

from functools import lru_cache
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.utils import EzPickle
from scipy.linalg import hadamard

GOOD_A, GOOD_B, DEAD = 0, 1, 2
ACTIONS = 10
TEMPERATURE = 0.1
BOUND = 5.0  # of the action space: 50 temperatures, far beyond what chooses a latent action with certainty


# The bank of the rich lock, see `bank`.
FEATURES, SUBSPACE, SUPER_CLASSES, MEMBERS = 512, 16, 20, {"train": 500, "test": 100}
BANK_NOISE, BANK_CLUTTER = 1.2, 0.2


def latent_actions(action: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Categorical(softmax(action / 0.1)) by inverting uniform numbers: (n, 10), (n,) in [0, 1) -> (n,) in 0..9."""
    logits = np.asarray(action, np.float64) / TEMPERATURE
    weight = np.exp(logits - logits.max(axis=1, keepdims=True)).cumsum(axis=1)
    chosen = (weight <= uniform[:, None] * weight[:, -1:]).sum(axis=1)
    return np.minimum(chosen, ACTIONS - 1)


@lru_cache
def rotation(order: int) -> np.ndarray:
    """The Hadamard matrix, (order, order) float64."""
    return hadamard(order).astype(np.float64)


class LockBatch:
    """n locks with the same codes in lockstep: all episodes begin and end together, after `horizon` steps.

    `latent` (n,) and `h` are the state. Every random number comes from the generator given to `reset`, in arrays with
    a row for each episode. Raises ValueError for an unknown reward_mode or a horizon below 1.
    """

    def __init__(
        self,
        n: int,
        horizon: int = 5,
        reward_mode: Literal["released", "paper"] = "released",
        lock_seed: int = 0,
        switch: float = 0.5,
        noise: float = 0.1,
    ) -> None:
        if reward_mode not in ("released", "paper"):
            raise ValueError(f"reward_mode {reward_mode!r}: must be 'released' or 'paper'")
        if horizon < 1:
            raise ValueError(f"horizon {horizon}: must be at least 1")
        self.n, self.horizon, self.reward_mode, self.switch, self.noise = n, horizon, reward_mode, switch, noise
        self.codes = np.random.default_rng(lock_seed).integers(0, ACTIONS, (2, horizon))  # of states 0 and 1
        self.h, self.latent = horizon, np.full(n, DEAD)
        self._rng: np.random.Generator | None = None

    @property
    def obs_dim(self) -> int:
        return 1 << (self.horizon + 3).bit_length()  # the least power of two that is at least horizon + 4

    def right_actions(self) -> np.ndarray:
        """The code of each episode at this step, (n,); the dead state shows that of state 1, as in the original."""
        return self.codes[np.minimum(self.latent, GOOD_B), self.h]

    def reset(self, seed: int | np.random.Generator) -> np.ndarray:
        """Start n episodes from a seed or a generator; float32 observations (n, obs_dim)."""
        self._rng = np.random.default_rng(seed)
        self.h = 0
        self.latent = np.where(self._rng.random((self.n, 1))[:, 0] < 0.5, GOOD_A, GOOD_B)
        return self.observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray]:
        """(n, 10) numbers -> observations (n, obs_dim), rewards (n,) float64, whether all ended, successes (n,) bool.

        Raises RuntimeError when the episodes have ended, or never began.
        """
        if self.h >= self.horizon or self._rng is None:
            raise RuntimeError("the episodes have ended: call reset")
        draws = self._rng.random((self.n, 3))
        chosen = latent_actions(action, draws[:, 0])
        good = self.latent != DEAD
        right = good & (chosen == self.right_actions())
        last = self.h == self.horizon - 1
        consoled = ~right & (draws[:, 2] < 0.5)
        if self.reward_mode == "paper":
            reward = np.where(consoled & good, 0.1, 0.0)
        else:
            reward = np.where(consoled & last, 0.1, 0.0)
        if last:
            reward = np.where(right, 1.0, reward)
            self.latent = np.where(right, self.latent, DEAD)
        else:
            swapped = np.where(draws[:, 1] < self.switch, 1 - self.latent, self.latent)
            self.latent = np.where(right, swapped, DEAD)
        self.h += 1
        return self.observe(), reward, last, right & last

    def observe(self) -> np.ndarray:
        """Fresh observations of the present states, (n, obs_dim) float32."""
        assert self._rng is not None
        z = np.zeros((self.n, self.obs_dim))
        z[:, : self.horizon + 3] = self.noise * self._rng.standard_normal((self.n, self.horizon + 3))
        z[np.arange(self.n), self.latent] += 1
        z[:, 3 + self.h] += 1
        return (z @ rotation(self.obs_dim)).astype(np.float32)


@lru_cache(maxsize=4)
def bank(classes: int, seed: int, noise: float, clutter: float, split: str) -> np.ndarray:
    """Unit vectors for `classes` classes, (classes, 500 or 100, 512) float32: the observations of the rich lock.

    What tells classes apart lies in a random subspace of 16 dimensions. There a class has a mean, that of one of 20
    super-classes (a random unit vector) plus half of another, and its members add normal noise whose expected length is
    about `noise`: classes overlap. All 512 dimensions get normal noise of length `clutter`, which networks learn by
    heart: what they know of "train" is worth less on "test". Vectors are then scaled to length 1. With the constants
    of this file a 2 x 64 tanh network, 15 epochs of Adam, names the class of 78 % of the train and 71 % of the test
    vectors (H = 10, one seed), where the paper says 77.7 and 72.1; of the three states at a known h, 98 and 97 %.
    Raises ValueError for a split other than "train" and "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r}: must be 'train' or 'test'")
    rng = np.random.default_rng([seed, classes])
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    basis = np.linalg.qr(rng.standard_normal((FEATURES, SUBSPACE)))[0].astype(np.float32)
    groups = unit(rng.standard_normal((SUPER_CLASSES, SUBSPACE)))
    means = groups[rng.integers(0, SUPER_CLASSES, classes)] + 0.5 * unit(rng.standard_normal((classes, SUBSPACE)))
    own = dict(zip(("train", "test"), rng.spawn(2)))[split]
    shape = (classes, MEMBERS[split])
    inner = own.standard_normal((*shape, SUBSPACE), dtype=np.float32) * np.float32(noise / np.sqrt(SUBSPACE))
    outer = own.standard_normal((*shape, FEATURES), dtype=np.float32) * np.float32(clutter / np.sqrt(FEATURES))
    out = unit((means[:, None].astype(np.float32) + inner) @ basis.T + outer)
    out.setflags(write=False)
    return out


class RichLockBatch(LockBatch):
    """`LockBatch` whose observations are vectors of a `bank`, drawn anew at every step for the class 3h + latent."""

    def __init__(
        self,
        n: int,
        horizon: int = 5,
        reward_mode: Literal["released", "paper"] = "released",
        lock_seed: int = 0,
        switch: float = 0.5,
        noise: float = BANK_NOISE,
        clutter: float = BANK_CLUTTER,
        bank_seed: int = 0,
        split: Literal["train", "test"] = "train",
    ) -> None:
        self._clutter = clutter
        self._bank = bank(3 * (horizon + 1), bank_seed, noise, clutter, split)
        super().__init__(n, horizon, reward_mode, lock_seed, switch, noise)

    @property
    def obs_dim(self) -> int:
        return FEATURES

    def observe(self) -> np.ndarray:
        assert self._rng is not None
        member = self._rng.integers(0, self._bank.shape[1], (self.n, 1))[:, 0]
        return self._bank[3 * self.h + self.latent, member]


class CombLock(gym.Env, EzPickle):
    """One combination lock (see the module's docstring): a `LockBatch` of one, driven by `np_random`."""

    metadata = {"render_modes": []}  # noqa: RUF012  Gymnasium's own convention
    batch_type: type[LockBatch] = LockBatch

    def __init__(self, low: float = -BOUND, high: float = BOUND, **kwargs: Any) -> None:
        EzPickle.__init__(self, low, high, **kwargs)
        self.lock = self.batch(1, **kwargs)
        self.observation_space = Box(-np.inf, np.inf, (self.lock.obs_dim,), np.float32)
        self.action_space = Box(low, high, (ACTIONS,), np.float32)

    @classmethod
    def batch(cls, n: int, low: float = -BOUND, high: float = BOUND, **kwargs: Any) -> LockBatch:
        """n episodes at once, see `hoard.envs.batch.make_batch`; arguments are those of the environment."""
        return cls.batch_type(n, **kwargs)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.lock.reset(self.np_random)[0], self._info(False)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, ended, success = self.lock.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), ended, False, self._info(bool(success[0]))

    def _info(self, success: bool) -> dict:
        return {"time_step": self.lock.h, "latent": int(self.lock.latent[0]), "success": success}


class CombLockRich(CombLock):
    """One lock with the observations of `RichLockBatch`."""

    batch_type = RichLockBatch


gym.register("hoard/CombLock-v0", entry_point="hoard.envs.comblock:CombLock")
gym.register("hoard/CombLockRich-v0", entry_point="hoard.envs.comblock:CombLockRich")
