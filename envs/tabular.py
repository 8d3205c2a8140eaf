"""Small finite-horizon MDPs as arrays, solved exactly, and the same as Gymnasium environments.

``hoard/DoubleChain-v0``
    A line of 31 states, the start in the middle; two actions, left and right, that do the opposite with probability
    0.1. Reward 1 for every step begun at the right end. 20 steps.
``hoard/GridWorld-v0``
    21 x 21 cells, start in the centre (10, 10), goal at (16, 16); four actions, of which one of the other three happens
    instead with probability 0.05; who walks into the border stays. Reward 1 for every step begun in the goal. 20 steps.

Sizes, starts, goal, horizon and probabilities are those of Tiapkin et al.'s maximum-entropy exploration experiments
(their configuration files); their environment package is not public, so what a failed move does and when rewards are
paid is ours, and the chain, which has no reward there, gets one.

Both give the state as Discrete and take Discrete actions; ``one_hot=True`` makes both Box (the state one-hot, the
action the index of the largest entry), which is what datasets and continuous algorithms here work with. Episodes end
at the time limit only.

Conventions: S states, A actions, horizon H; a policy is (H, S, A), rows summing to one; step h = 0..H-1; values are
(H + 1, S) with zeros behind the last step. Regularised values subtract weight * KL(policy(.|s) || reference(.|s)) at
every step (Tiapkin et al. 2024, "Demonstration-Regularized RL"; the recursion is derived, not copied).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import EzPickle
from scipy.special import logsumexp


@dataclass(frozen=True, eq=False)
class FiniteMDP:
    """`transition` (S, A, S), `reward` (H, S, A), `start` (S,), all float64.

    Raises ValueError if shapes disagree or a distribution does not sum to one.
    """

    transition: np.ndarray
    reward: np.ndarray
    start: np.ndarray

    def __post_init__(self) -> None:
        states, actions = self.states, self.actions
        if self.transition.shape != (states, actions, states) or self.reward.shape[1:] != (states, actions):
            raise ValueError(f"shapes disagree: {self.transition.shape}, {self.reward.shape}, {self.start.shape}")
        for name, rows in (("transition", self.transition), ("start", self.start)):
            if (rows < 0).any() or not np.allclose(rows.sum(axis=-1), 1):
                raise ValueError(f"{name}: probabilities must not be negative and sum to one")

    @property
    def states(self) -> int:
        return len(self.start)

    @property
    def actions(self) -> int:
        return self.transition.shape[1]

    @property
    def horizon(self) -> int:
        return len(self.reward)


# --- the problems ---


def double_chain(length: int = 31, failure: float = 0.1, horizon: int = 20) -> FiniteMDP:
    """See ``hoard/DoubleChain-v0``."""
    transition = np.zeros((length, 2, length))
    for s in range(length):
        left, right = max(s - 1, 0), min(s + 1, length - 1)
        for action, (meant, other) in enumerate(((left, right), (right, left))):
            transition[s, action, meant] += 1 - failure
            transition[s, action, other] += failure
    reward = np.zeros((horizon, length, 2))
    reward[:, -1] = 1
    return FiniteMDP(transition, reward, np.eye(length)[length // 2])


def grid_world(
    size: int = 21,
    start: tuple[int, int] = (10, 10),
    goal: tuple[int, int] = (16, 16),
    success: float = 0.95,
    horizon: int = 20,
) -> FiniteMDP:
    """See ``hoard/GridWorld-v0``; cell (row, column) is state row * size + column."""
    moves = ((-1, 0), (1, 0), (0, -1), (0, 1))
    states = size * size
    transition = np.zeros((states, 4, states))
    for s in range(states):
        row, column = divmod(s, size)
        for action in range(4):
            for k, (down, right) in enumerate(moves):
                to = min(max(row + down, 0), size - 1), min(max(column + right, 0), size - 1)
                transition[s, action, to[0] * size + to[1]] += success if k == action else (1 - success) / 3
    reward = np.zeros((horizon, states, 4))
    reward[:, goal[0] * size + goal[1]] = 1
    return FiniteMDP(transition, reward, np.eye(states)[start[0] * size + start[1]])


def random_mdp(states: int, actions: int, horizon: int, seed: int) -> FiniteMDP:
    """Dirichlet transitions and start, rewards uniform on [0, 1] that change with the step."""
    rng = np.random.default_rng(seed)
    return FiniteMDP(
        rng.dirichlet(np.full(states, 0.5), size=(states, actions)),
        rng.random((horizon, states, actions)),
        rng.dirichlet(np.ones(states)),
    )


# --- exact solutions ---


def soft_backup(q: np.ndarray, reference: np.ndarray, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """The best value of E[q] - weight * KL(. || reference) and the policy that has it: (...,), (..., A).

    With weight 0 the maximum of q; equally good actions then share the probability.
    """
    if weight == 0:
        best = q == q.max(axis=-1, keepdims=True)
        return q.max(axis=-1), best / best.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):  # where the reference has no mass, neither has the policy
        scores = np.log(reference) + q / weight
    value = logsumexp(scores, axis=-1)
    return weight * value, np.exp(scores - value[..., None])


def soft_value_iteration(
    mdp: FiniteMDP, reference: np.ndarray, weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Optimum of the regularised problem: Q (H, S, A), V (H + 1, S), policy (H, S, A)."""
    q, policy = np.empty(mdp.reward.shape), np.empty(mdp.reward.shape)
    v = np.zeros((mdp.horizon + 1, mdp.states))
    for h in reversed(range(mdp.horizon)):
        q[h] = mdp.reward[h] + mdp.transition @ v[h + 1]
        v[h], policy[h] = soft_backup(q[h], reference[h], weight)
    return q, v, policy


def value_iteration(mdp: FiniteMDP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Optimum without a penalty: Q, V, policy."""
    return soft_value_iteration(mdp, uniform_policy(mdp), 0.0)


def uniform_policy(mdp: FiniteMDP) -> np.ndarray:
    return np.full(mdp.reward.shape, 1 / mdp.actions)


def soft_expert(mdp: FiniteMDP, temperature: float) -> np.ndarray:
    """The optimum of reward + temperature * entropy: an expert that has a likelihood."""
    return soft_value_iteration(mdp, uniform_policy(mdp), temperature)[2]


def policy_kl(policy: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """KL(policy(.|s) || reference(.|s)), (H, S); infinite where the reference lacks an action that the policy takes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = policy * (np.log(policy) - np.log(reference))
    return np.where(policy > 0, terms, 0.0).sum(axis=-1)


def evaluate_policy(
    mdp: FiniteMDP, policy: np.ndarray, reference: np.ndarray | None = None, weight: float = 0.0
) -> np.ndarray:
    """V of a policy, (H + 1, S); with a reference, of the regularised objective."""
    penalty = weight * policy_kl(policy, reference) if reference is not None else np.zeros(policy.shape[:2])
    v = np.zeros((mdp.horizon + 1, mdp.states))
    for h in reversed(range(mdp.horizon)):
        v[h] = (policy[h] * (mdp.reward[h] + mdp.transition @ v[h + 1])).sum(axis=-1) - penalty[h]
    return v


def occupancy(mdp: FiniteMDP, policy: np.ndarray) -> np.ndarray:
    """Probability of being in s at step h, (H + 1, S)."""
    out = np.empty((mdp.horizon + 1, mdp.states))
    out[0] = mdp.start
    for h in range(mdp.horizon):
        out[h + 1] = (out[h][:, None] * policy[h]).ravel() @ mdp.transition.reshape(-1, mdp.states)
    return out


def trajectory_kl(mdp: FiniteMDP, policy: np.ndarray, reference: np.ndarray) -> float:
    """KL between the trajectories of two policies: sum over steps of E_policy KL(policy || reference)."""
    visited, kl = occupancy(mdp, policy)[:-1], policy_kl(policy, reference)
    return float(np.where(visited > 0, visited * np.where(visited > 0, kl, 0.0), 0.0).sum())


def sample_episodes(
    mdp: FiniteMDP, policy: np.ndarray, episodes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """States (n, H + 1) and actions (n, H)."""
    states = np.empty((episodes, mdp.horizon + 1), np.int64)
    actions = np.empty((episodes, mdp.horizon), np.int64)
    states[:, 0] = _draw(np.tile(mdp.start, (episodes, 1)), rng)
    for h in range(mdp.horizon):
        actions[:, h] = _draw(policy[h, states[:, h]], rng)
        states[:, h + 1] = _draw(mdp.transition[states[:, h], actions[:, h]], rng)
    return states, actions


def _draw(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index per row, by inversion; never one of probability 0."""
    cumulative = probabilities.cumsum(axis=-1)
    u = rng.random(len(probabilities)) * cumulative[:, -1]  # below the last entry, whatever rounding made of it
    return (cumulative <= u[:, None]).sum(axis=-1)


def laplace_clone(
    states: np.ndarray, actions: np.ndarray, n_states: int, n_actions: int, pseudo_count: float = 1.0
) -> np.ndarray:
    """The clone of episodes, (H, S, A): (count(h, s, a) + c) / (count(h, s) + c A), c = `pseudo_count`.

    It maximises log-likelihood + c * sum over (s, a) of log pi(a|s), a log-barrier that keeps every action possible.
    With c = 0 it is maximum likelihood, and uniform where nothing was seen. `states` may have a column behind the last
    action's, which is not read.
    """
    horizon = actions.shape[1]
    counts = np.zeros((horizon, n_states, n_actions))
    np.add.at(counts, (np.arange(horizon), states[:, :horizon], actions), 1)
    total = counts.sum(axis=-1, keepdims=True) + pseudo_count * n_actions
    return np.where(total > 0, (counts + pseudo_count) / np.where(total > 0, total, 1), 1 / n_actions)


# --- as environments ---


class TabularEnv(gym.Env, EzPickle):
    """A `FiniteMDP` to step through; rewards are those of step h since the reset, the time limit is the horizon's."""

    metadata = {"render_modes": []}  # noqa: RUF012  Gymnasium's own declaration

    def __init__(self, mdp: FiniteMDP, one_hot: bool = False, render_mode: str | None = None) -> None:
        self.mdp, self.one_hot, self.render_mode = mdp, one_hot, render_mode
        if one_hot:
            self.observation_space: Any = Box(0.0, 1.0, (mdp.states,), np.float32)
            self.action_space: Any = Box(0.0, 1.0, (mdp.actions,), np.float32)
        else:
            self.observation_space, self.action_space = Discrete(mdp.states), Discrete(mdp.actions)
        self._state, self._h = 0, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._state, self._h = int(_draw(self.mdp.start[None], self.np_random)[0]), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Raises RuntimeError beyond the horizon, where no reward is defined."""
        if self._h >= self.mdp.horizon:
            raise RuntimeError(f"the episode has only {self.mdp.horizon} steps: reset")
        a = int(np.argmax(action)) if self.one_hot else int(action)
        reward = float(self.mdp.reward[self._h, self._state, a])
        self._state = int(_draw(self.mdp.transition[self._state, a][None], self.np_random)[0])
        self._h += 1
        return self._observation(), reward, False, self._h == self.mdp.horizon, {"state": self._state}

    def _observation(self) -> Any:
        return np.eye(self.mdp.states, dtype=np.float32)[self._state] if self.one_hot else self._state


class DoubleChain(TabularEnv):
    def __init__(
        self,
        length: int = 31,
        failure: float = 0.1,
        horizon: int = 20,
        one_hot: bool = False,
        render_mode: str | None = None,
    ) -> None:
        EzPickle.__init__(self, length, failure, horizon, one_hot, render_mode)
        super().__init__(double_chain(length, failure, horizon), one_hot, render_mode)


class GridWorld(TabularEnv):
    def __init__(
        self,
        size: int = 21,
        start: tuple[int, int] = (10, 10),
        goal: tuple[int, int] = (16, 16),
        success: float = 0.95,
        horizon: int = 20,
        one_hot: bool = False,
        render_mode: str | None = None,
    ) -> None:
        EzPickle.__init__(self, size, start, goal, success, horizon, one_hot, render_mode)
        super().__init__(grid_world(size, start, goal, success, horizon), one_hot, render_mode)


for _name in ("DoubleChain", "GridWorld"):
    gym.register(f"hoard/{_name}-v0", entry_point=f"hoard.envs.tabular:{_name}", max_episode_steps=20)
