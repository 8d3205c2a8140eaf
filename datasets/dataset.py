"""The one shape every dataset takes: flat transitions and whole episodes over the same memory.

A dataset keeps one table of observations. Transition t reads its observation at row `rows[t]` and its next observation
at `rows[t] + 1`; an episode of T steps therefore owns T+1 consecutive rows (Minari's layout), or shares its border row
with its neighbour (D4RL's layout). Nothing is stored twice, and the alignment is decided once, by the reader.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hoard.records.errors import BadInput

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.envs.registration import EnvSpec

_NDIM = {"observations": 2, "rows": 1, "action": 2, "reward": 1, "terminated": 1, "truncated": 1, "starts": 1}


class DatasetError(BadInput):
    """Data that cannot be trusted; the message names the dataset or file, the field and the row."""


def out_of_bounds(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which entries of `values` (N, columns) lie outside `low` and `high` (columns,), bool of the shape of `values`.

    Bounds have a tolerance of 1e-5 of their distance: data may be float64 where the bounds are float32.
    """
    room = 1e-5 * np.maximum(1.0, np.where(np.isfinite(high - low), high - low, 1.0))
    return np.asarray((values < low - room) | (values > high + room))


@dataclass(frozen=True, eq=False)
class Episode:
    """Views into one episode of T steps: `observations` (T+1, obs_dim), `action` (T, action_dim), the rest (T,)."""

    observations: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """Transitions of E episodes, N steps in all.

    `observations` (R, obs_dim) f32 is the table, `rows` (N,) i64 the row of each s_t (s_{t+1} is the row after);
    `action` (N, action_dim) f32 in environment units; `reward` (N,) f32; `terminated`, `truncated` (N,) bool;
    `starts` (E+1,) i64: episode k is transitions starts[k]:starts[k+1]. `terminated` alone stops bootstrapping.
    `env_spec` is the evaluation environment (None: unknown), `ref_min`/`ref_max` its reference returns for scores.
    `notes` say what a reader did to the data and is no error, for the data card. `weight` (N,) f64 of mean 1 says how
    much more often than another a transition is drawn, `blend` (N,) f64 in [0, 1] how far its bootstrapped value gives
    way to its Monte-Carlo return; both are set by `hoard.datasets.plugins` (None: all alike, not at all).
    Raises DatasetError when lengths disagree, a number is not finite or a flag stands inside an episode.
    """

    id: str
    observations: np.ndarray
    rows: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    starts: np.ndarray
    action_space: gym.spaces.Box
    env_spec: EnvSpec | None = None
    ref_min: float | None = None
    ref_max: float | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    weight: np.ndarray | None = None
    blend: np.ndarray | None = None
    _returns_to_go: dict[float, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()

    # --- sizes and views ---

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def num_episodes(self) -> int:
        return len(self.starts) - 1

    @property
    def obs_dim(self) -> int:
        return self.observations.shape[1]

    @property
    def action_dim(self) -> int:
        return self.action.shape[1]

    @property
    def obs(self) -> np.ndarray:
        """s_t of every transition, (N, obs_dim); gathered from the table at each call."""
        return self.observations[self.rows]

    @property
    def next_obs(self) -> np.ndarray:
        """s_{t+1} of every transition, (N, obs_dim); gathered from the table at each call."""
        return self.observations[self.rows + 1]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, (E,)."""
        return np.diff(self.starts)

    @cached_property
    def episode_index(self) -> np.ndarray:
        """Episode of each transition, (N,)."""
        return np.repeat(np.arange(self.num_episodes), self.lengths)

    @cached_property
    def timestep(self) -> np.ndarray:
        """Steps since the start of its episode, for each transition, (N,)."""
        return np.arange(len(self)) - self.starts[self.episode_index]

    def episode(self, k: int) -> Episode:
        """Episode k as views, no copy. Raises IndexError outside 0..E-1."""
        if not 0 <= k < self.num_episodes:
            raise IndexError(f"{self.id}: episode {k} of {self.num_episodes}")
        a, b = int(self.starts[k]), int(self.starts[k + 1])
        first = int(self.rows[a])
        return Episode(
            self.observations[first : first + (b - a) + 1],
            self.action[a:b],
            self.reward[a:b],
            self.terminated[a:b],
            self.truncated[a:b],
        )

    def episodes(self) -> Iterator[Episode]:
        return (self.episode(k) for k in range(self.num_episodes))

    # --- returns and scores ---

    @cached_property
    def returns(self) -> np.ndarray:
        """Undiscounted return of each episode, (E,) f64."""
        return np.add.reduceat(self.reward.astype(np.float64), self.starts[:-1])

    def returns_to_go(self, discount: float = 1.0) -> np.ndarray:
        """sum_k discount^k r_{t+k} to the end of the transition's own episode, (N,) f64; computed once per discount."""
        if discount not in self._returns_to_go:
            out = self.reward.astype(np.float64)
            # g_t = r_t + discount * g_{t+1}, all episodes at once, one step further from their ends each time.
            longest_first = np.argsort(-self.lengths, kind="stable")
            last, lengths = self.starts[1:][longest_first] - 1, self.lengths[longest_first]
            for back in range(1, int(lengths[0])):
                t = last[: np.searchsorted(-lengths, -back)] - back
                out[t] += discount * out[t + 1]
            out.setflags(write=False)
            self._returns_to_go[discount] = out
        return self._returns_to_go[discount]

    def normalized_score(self, returns: np.ndarray | float) -> np.ndarray:
        """100 (R - ref_min) / (ref_max - ref_min), NaN when the dataset has no reference returns."""
        returns = np.asarray(returns, dtype=np.float64)
        if self.ref_min is None or self.ref_max is None:
            return np.full_like(returns, np.nan)
        return 100.0 * (returns - self.ref_min) / (self.ref_max - self.ref_min)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of everything that can change a result: arrays, spaces, evaluation environment, references."""
        digest = hashlib.sha256()
        for name in ("observations", "rows", "action", "reward", "terminated", "truncated", "starts"):
            array = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            digest.update(array.data)
        for bound in (self.action_space.low, self.action_space.high):
            digest.update(np.ascontiguousarray(bound, dtype=np.float32).data)
        for name in ("weight", "blend"):
            if (array := getattr(self, name)) is not None:
                digest.update(f"{name}:".encode() + np.ascontiguousarray(array, dtype=np.float64).tobytes())
        env = self.env_spec.to_json() if self.env_spec else None
        digest.update(repr((env, self.ref_min, self.ref_max)).encode())
        return digest.hexdigest()

    # --- choosing episodes ---

    def top_episodes(self, fraction: float) -> Dataset:
        """The best `fraction` of the episodes by undiscounted return (at least one), in their original order.

        Whole episodes, cut at terminated or truncated, are ranked; equal returns keep the earlier episode.
        Raises DatasetError unless 0 < fraction <= 1.
        """
        if not 0 < fraction <= 1:
            raise DatasetError(f"top fraction {fraction}: must lie in (0, 1]")
        if fraction == 1:
            return self
        keep = max(1, int(fraction * self.num_episodes))
        chosen = np.sort(np.argsort(-self.returns, kind="stable")[:keep])
        index = np.concatenate([np.arange(self.starts[k], self.starts[k + 1]) for k in chosen])
        kept = None if self.weight is None else self.weight[index]
        return replace(
            self,
            rows=self.rows[index],
            action=self.action[index],
            reward=self.reward[index],
            terminated=self.terminated[index],
            truncated=self.truncated[index],
            starts=np.concatenate([[0], np.cumsum(self.lengths[chosen])]),
            weight=None if kept is None else kept / kept.mean(),
            blend=None if self.blend is None else self.blend[index],
        )

    # --- checks ---

    def actions_out_of_bounds(self) -> np.ndarray:
        """(N, action_dim) bool: entries outside the action space, see `out_of_bounds`."""
        return out_of_bounds(self.action, self.action_space.low, self.action_space.high)

    def _fail(self, field_name: str, problem: str) -> None:
        raise DatasetError(
            f"{self.id}: {field_name} {problem}" + (f" (read from {self.source})" if self.source else "")
        )

    def _check(self) -> None:
        n = len(self.reward)
        if n == 0:
            self._fail("data", "has no transitions")
        for name, ndim in _NDIM.items():
            if getattr(self, name).ndim != ndim:
                self._fail(name, f"has shape {getattr(self, name).shape}, expected {ndim}-d")
        for name in ("rows", "action", "terminated", "truncated"):
            if len(getattr(self, name)) != n:
                self._fail(name, f"has {len(getattr(self, name))} entries for {n} rewards")
        if self.action_space.shape != (self.action.shape[1],):
            self._fail("action", f"has {self.action.shape[1]} columns, its space {self.action_space.shape}")
        if self.starts[0] != 0 or self.starts[-1] != n or (np.diff(self.starts) <= 0).any():
            self._fail("starts", "must rise from 0 to the number of transitions without empty episodes")
        for name, most in (("weight", np.inf), ("blend", 1.0)):
            values = getattr(self, name)
            if values is not None and (values.shape != (n,) or not ((values >= 0) & (values <= most)).all()):
                self._fail(name, f"must be {n} numbers between 0 and {most:g}")
        if self.rows.min() < 0 or self.rows.max() + 1 >= len(self.observations):
            self._fail("rows", "point outside the observation table")
        inside = np.ones(n, dtype=bool)
        inside[self.starts[1:] - 1] = False
        if (np.diff(self.rows)[inside[:-1]] != 1).any():
            self._fail("rows", "are not consecutive inside an episode")
        for name in ("terminated", "truncated"):
            bad = np.flatnonzero(getattr(self, name) & inside)
            if len(bad):
                self._fail(name, f"is set at step {bad[0]}, inside an episode")
        for name in ("observations", "action", "reward"):
            array = getattr(self, name)
            # A sum is finite only if every entry is (or on overflow, which the exact test below clears).
            with np.errstate(invalid="ignore"):
                total = array.sum(dtype=np.float64)
            if not np.isfinite(total):
                bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
                if len(bad):
                    unit = "row" if name == "observations" else "transition"
                    self._fail(name, f"holds NaN or infinity, first at {unit} {bad[0]}")
        low, high = self.ref_min, self.ref_max
        both = low is not None and high is not None and -np.inf < low < high < np.inf
        if not both and (low, high) != (None, None):
            self._fail("reference returns", f"must be finite with min < max, got {low} and {high}")
