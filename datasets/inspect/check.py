"""`hoard data check`: one dataset from its files to a replay in its environment, one finding per question.

A reader refuses what it cannot trust, so much of this has been asked once when a dataset is loaded. Here it is asked
again, of the loaded arrays and without the reader's code, together with what loading does not ask: spaces, time limit,
duplicates, Minari's own reader, and whether the recorded states lead to the recorded rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard import datasets
from hoard.datasets.dataset import Dataset, DatasetError, out_of_bounds
from hoard.datasets.discrete import OneHot, boxed, boxed_space
from hoard.datasets.minari.metadata import infos_of
from hoard.envs import flatten_obs, flatten_space, make_env

SAMPLE = 200  # steps that are replayed
COPIES = 0.25  # share of the episodes that may be exact copies of another one: beyond it, one file was put in twice
_EPISODES_READ_TWICE = 10


@dataclass(frozen=True)
class Finding:
    """The answer to one question; `text` says what was seen, or why nothing could be."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    text: str


class _Skip(Exception):
    """This question cannot be answered for this dataset; the message says why."""


class _Fail(Exception):
    """The answer is no; the message says what was seen."""


def check(dataset_id: str, sample: int = SAMPLE, seed: int = 0) -> list[Finding]:
    """Check a dataset that is on this disk; see `inspect` for the questions.

    What the reader refuses is a finding. Raises DatasetError for an id that is unknown or not on this disk.
    """
    datasets.check_id(dataset_id)
    if not datasets.is_at_hand(dataset_id):
        raise DatasetError(f"{dataset_id}: not on this disk; `hoard data make {dataset_id}` makes or fetches it")
    try:
        data = datasets.load(dataset_id)
        metadata = datasets.metadata_of(dataset_id)
    except DatasetError as error:
        return [
            Finding("readable", "failed", str(error)),
            *(Finding(name, "skipped", "the dataset cannot be loaded") for name in _QUESTIONS),
        ]
    text = f"{len(data):,} steps in {data.num_episodes:,} episodes, sha256 {data.content_hash[:16]}"
    return [Finding("readable", "ok", text), *inspect(data, metadata, sample, seed)]


def inspect(
    data: Dataset, metadata: dict[str, Any] | None = None, sample: int = SAMPLE, seed: int = 0
) -> list[Finding]:
    """Ask everything of a loaded dataset. `metadata` (Minari sets): what `hoard.datasets.metadata_of` gives.

    `sample` steps are replayed, and a few episodes read again, chosen by `seed`.
    """
    about = _About(data, metadata or {}, sample, np.random.default_rng(seed))
    findings = []
    for name, ask in _QUESTIONS.items():
        try:
            findings.append(Finding(name, "ok", ask(about)))
        except _Skip as why:
            findings.append(Finding(name, "skipped", str(why)))
        except _Fail as why:
            findings.append(Finding(name, "failed", str(why)))
    return findings


@dataclass(frozen=True)
class _About:
    data: Dataset
    metadata: dict[str, Any]
    sample: int
    rng: np.random.Generator


# --- the arrays ---


def _episodes(about: _About) -> str:
    """Every transition in one episode, rows side by side within it, no row of the table used by two episodes."""
    data = about.data
    if data.starts[0] != 0 or data.starts[-1] != len(data) or (np.diff(data.starts) < 1).any():
        raise _Fail("episode starts do not cover the transitions in order")
    first, last = data.rows[data.starts[:-1]], data.rows[data.starts[1:] - 1]
    broken = np.flatnonzero((np.diff(data.rows) != 1) & (np.diff(data.episode_index) == 0))
    if len(broken):
        raise _Fail(f"observations are not contiguous, first in episode {data.episode_index[broken[0]]}")
    # Row r and r + 1 belong to a transition; a border row may serve the end of one episode and the start of the next.
    if (first[1:] < last[:-1] + 1).any():
        raise _Fail(f"episode {int(np.argmax(first[1:] < last[:-1] + 1)) + 1} starts inside the one before it")
    joined = int((first[1:] == last[:-1] + 1).sum())
    note = f"; {joined:,} start on the last row of the one before" if joined else ""
    return f"{data.num_episodes:,} contiguous episodes of {data.lengths.min()} to {data.lengths.max()} steps{note}"


def _finite(about: _About) -> str:
    for name in ("observations", "action", "reward"):
        bad = ~np.isfinite(getattr(about.data, name))
        if bad.any():
            first = np.argwhere(bad)[0][0]
            raise _Fail(f"{name} holds {int(bad.sum()):,} NaN or infinite numbers, first in row {first}")
    return "no NaN, no infinity in observations, actions and rewards"


def _ends(about: _About) -> str:
    data = about.data
    last = np.zeros(len(data), bool)
    last[data.starts[1:] - 1] = True
    for name in ("terminated", "truncated"):
        inside = np.flatnonzero(getattr(data, name) & ~last)
        if len(inside):
            raise _Fail(f"{name} is set inside an episode at {len(inside):,} steps, first at step {inside[0]}")
    terminated, truncated = data.terminated[last], data.truncated[last]
    text = f"flags on last steps only: {int(terminated.sum()):,} terminated, {int(truncated.sum()):,} truncated"
    if (terminated & truncated).any():
        text += f", {int((terminated & truncated).sum()):,} of them both (terminated counts)"
    if neither := int((~terminated & ~truncated).sum()):
        text += f", {neither:,} without a flag (cut off; treated as truncated)"
    return text


def _observation_space(about: _About) -> str:
    data, space = about.data, about.metadata.get("observation_space")
    if space is None:
        raise _Skip("the file records no observation space")
    box = flatten_space(boxed_space(space))
    if box.shape != (data.obs_dim,):
        raise _Fail(f"the recorded space has {box.shape[0]} numbers, the observations {data.obs_dim}")
    _none_outside("observation", out_of_bounds(data.observations, box.low, box.high))
    return f"all {len(data.observations):,} observations lie in the recorded space of {data.obs_dim} numbers"


def _action_space(about: _About) -> str:
    data, space = about.data, about.data.action_space
    if isinstance(space, OneHot):
        if not np.isin(data.action, (0.0, 1.0)).all():
            raise _Fail(f"entries other than 0 and 1 in actions that are the {space}")
        return f"every action is the {space}"
    _none_outside("action", data.actions_out_of_bounds())
    return f"all actions lie in {space}"


def _none_outside(name: str, entries: np.ndarray) -> None:
    outside = entries.any(axis=1)
    if outside.any():
        raise _Fail(
            f"{int(outside.sum()):,} of {len(entries):,} {name}s lie outside their space, first in row "
            f"{int(np.argmax(outside))}"
        )


def _time_limit(about: _About) -> str:
    """Two episodes that were merged are longer than the limit that ended the others."""
    data = about.data
    spec = about.metadata.get("recording_env") if about.metadata else data.env_spec
    if spec is None or not spec.max_episode_steps:
        raise _Skip("no time limit is known for the recording environment")
    limit, ends = spec.max_episode_steps, data.starts[1:] - 1
    longer, at_limit = int((data.lengths > limit).sum()), data.lengths == limit
    in_force = int((at_limit & data.truncated[ends]).sum())
    if longer and in_force:
        raise _Fail(f"{longer:,} episodes are longer than the {limit} steps of {spec.id} that cut {in_force:,} others")
    if longer:
        return f"the {limit} steps of {spec.id} were not applied: {longer:,} episodes are longer, none is cut there"
    early = int((data.truncated[ends] & ~at_limit).sum())
    return f"no episode is longer than the {limit} steps of {spec.id}; {in_force:,} are cut there" + (
        f", {early:,} are truncated before" if early else ""
    )


def _references(about: _About) -> str:
    data = about.data
    if data.ref_min is None or data.ref_max is None:
        raise _Skip("no reference returns: this dataset has returns, no scores")
    if not (np.isfinite([data.ref_min, data.ref_max]).all() and data.ref_min < data.ref_max):
        raise _Fail(f"random {data.ref_min} must lie below expert {data.ref_max}")
    score = float(data.normalized_score(data.returns.mean()))
    return f"random {data.ref_min:.4g}, expert {data.ref_max:.4g}; the mean return scores {score:.1f}"


def _duplicates(about: _About) -> str:
    """Copies of whole episodes make a dataset look larger than it is; single steps may well recur."""
    data = about.data
    steps = np.hstack([data.obs, data.action, data.reward[:, None], data.next_obs])
    steps = np.ascontiguousarray(steps + 0.0)  # -0.0 equals 0.0 but has other bytes
    packed = steps.view(np.dtype((np.void, steps.shape[1] * steps.itemsize)))[:, 0]
    repeated = len(packed) - len(np.unique(packed))
    whole = [packed[a:b].tobytes() for a, b in zip(data.starts[:-1], data.starts[1:])]
    copies = len(whole) - len(set(whole))
    text = f"{copies:,} of {len(whole):,} episodes and {repeated:,} of {len(packed):,} steps are exact copies"
    if copies > COPIES * len(whole) and not isinstance(data.action_space, OneHot):
        raise _Fail(f"{text}; at most {100 * COPIES:g} % of the episodes may be")
    return text


# --- other readers and the environment ---


def _second_reader(about: _About) -> str:
    data = about.data
    if not about.metadata:
        raise _Skip("Minari's reader does not read this format")
    chosen = np.sort(about.rng.permutation(data.num_episodes)[:_EPISODES_READ_TWICE])
    space, actions = about.metadata["observation_space"], about.metadata["action_space"]
    try:
        theirs = list(minari.load_dataset(data.id).iterate_episodes(chosen))
    except Exception as error:  # it needs more of a file than we do
        raise _Skip(f"Minari's reader refuses the files: {type(error).__name__}: {error}") from error
    for k, episode in zip(chosen, theirs):
        mine = data.episode(int(k))
        table = flatten_obs(boxed_space(space), boxed(space, episode.observations), batch=True)
        pairs = {
            "observations": (mine.observations, table),
            "action": (mine.action, np.asarray(boxed(actions, episode.actions), np.float32).reshape(mine.action.shape)),
            "reward": (mine.reward, np.asarray(episode.rewards, np.float32).reshape(-1)),
            "terminated": (mine.terminated, np.asarray(episode.terminations, bool).reshape(-1)),
            "truncated": (mine.truncated, np.asarray(episode.truncations, bool).reshape(-1)),
        }
        for name, (ours, other) in pairs.items():
            if not np.array_equal(ours, other):
                raise _Fail(f"{name} of episode {k} is not what Minari's own reader gives")
    return f"{len(chosen)} episodes read by Minari itself are the same, number for number"


def _environment(about: _About) -> str:
    data, space = about.data, about.data.action_space
    if isinstance(space, OneHot):
        raise _Skip(f"actions are {space.original}: the set can be loaded and described, not trained on here")
    with _made(data.env_spec) as env:
        assert data.env_spec is not None
        assert env.observation_space.shape is not None
        name, limit = data.env_spec.id, data.env_spec.max_episode_steps
        if env.observation_space.shape != (data.obs_dim,):
            raise _Fail(f"{name} gives {env.observation_space.shape[0]} numbers, the data has {data.obs_dim}")
        theirs: Any = env.action_space
        if theirs.shape != space.shape or not np.allclose([space.low, space.high], [theirs.low, theirs.high]):
            raise _Fail(f"actions of the data are {space}, {name} takes {theirs}")
        return f"{name} can be made here, fits the data, and stops after {limit} steps"


def _replay(about: _About) -> str:
    """Set the environment to a recorded state, apply the recorded action, compare reward and next state."""
    data = about.data
    if isinstance(data.action_space, OneHot):
        raise _Skip("not possible because the environments with discrete actions hide part of their state")
    spec = about.metadata.get("recording_env") or data.env_spec
    if spec is None:
        raise _Skip("not possible because no environment is known")
    how = next((way for start, way in _WAYS.items() if spec.id.startswith(start)), None)
    if how is None:
        raise _Skip(f"not possible because the recorded observations do not hold the whole state of {spec.id}")
    steps = np.sort(about.rng.permutation(len(data))[: about.sample])
    apart, replayed = [], 0
    with _made(spec) as env:
        if (env.observation_space.shape, env.action_space.shape) != ((data.obs_dim,), (data.action_dim,)):
            raise _Skip(f"not possible because the data does not fit {spec.id}")
        infos: dict[int, dict[str, Any]] = {}
        for t in steps.tolist():
            k = int(data.episode_index[t])
            if how.info and k not in infos:
                infos[k] = infos_of(data.id, k) if about.metadata else {}
                if how.info not in infos[k]:
                    raise _Skip(f"not possible because the data has no infos['{how.info}'] and {spec.id} hides it")
            row = int(data.rows[t])
            now, then = data.observations[row].astype(np.float64), data.observations[row + 1].astype(np.float64)
            env.reset(seed=0)
            info = infos[k][how.info][int(data.timestep[t])] if how.info else None
            if not how.set_state(env.unwrapped, now, then, info):
                continue
            obs, reward, *_ = env.step(data.action[t])
            replayed += 1
            off = abs(float(reward) - float(data.reward[t])) / max(1.0, abs(float(data.reward[t])))
            state = float(np.max(np.abs(np.delete(obs - then, how.ignore))))
            if off > how.tolerance or state > how.state_tolerance:
                apart.append((t, off, state))
    if not replayed:
        raise _Skip("not possible because the environment clips every state in the sample")
    if len(apart) > (1 - how.share) * replayed:
        t, off, state = apart[0]
        raise _Fail(
            f"{len(apart)} of {replayed} replayed steps differ, first step {t}: reward by {off:.3g} (relative), next "
            f"observation by {state:.3g}"
        )
    agree = f"{replayed - len(apart)} of {replayed} steps replayed in {spec.id} give the recorded reward and next state"
    return agree + ("; the others differ as between versions of MuJoCo (hoard data versions)" if apart else "")


@contextmanager
def _made(spec: EnvSpec | None) -> Iterator[gym.Env]:
    if spec is None:
        raise _Skip("no evaluation environment is known")
    try:
        env = make_env(spec)
    except Exception as error:  # packages missing here, versions, spaces that cannot be flattened
        raise _Skip(f"{spec.id} cannot be made here: {type(error).__name__}: {error}") from error
    try:
        yield env
    finally:
        env.close()


# --- how a state is restored from what was recorded ---


@dataclass(frozen=True)
class _Way:
    """How one family of environments is put into a recorded state.

    `set_state(env, obs, next_obs, info)` returns False where the observation does not determine the state. `info` is
    an entry of infos that is needed as well. Rewards must agree within `tolerance` (relative, absolute below 1), next
    observations, but for the columns in `ignore`, within `state_tolerance`, in a `share` of the steps.
    """

    set_state: Callable[[Any, np.ndarray, np.ndarray, Any], bool]
    info: str = ""
    tolerance: float = 1e-3
    state_tolerance: float = 1e-3
    share: float = 1.0
    ignore: tuple[int, ...] = ()


def _set_pendulum(env: Any, obs: np.ndarray, _next: np.ndarray, _info: Any) -> bool:
    env.state = np.array([np.arctan2(obs[1], obs[0]), obs[2]])
    return True


def _set_hidden_goal_maze(env: Any, obs: np.ndarray, _next: np.ndarray, goal: Any) -> bool:
    if goal is not None:
        env.goal = goal
    env.point_env.set_state(obs[:2], obs[2:4])
    return True


def _set_point_maze(env: Any, obs: np.ndarray, then: np.ndarray, _info: Any) -> bool:
    """Columns: achieved goal, desired goal, then x, y, vx, vy. The goal in force during a step is the one that the
    observation after it shows: row 0 of an episode may still show the goal that has just been reached."""
    env.goal = then[2:4].copy()
    env.update_target_site_pos()
    env.point_env.set_state(obs[4:6], obs[6:8])
    return True


def _set_planar(env: Any, obs: np.ndarray, _next: np.ndarray, _info: Any) -> bool:
    """The position along the track, on which nothing depends, is not observed."""
    env.set_state(np.concatenate([[0.0], obs[: env.model.nq - 1]]), obs[env.model.nq - 1 :])
    return True


def _set_clipped(env: Any, obs: np.ndarray, _next: np.ndarray, _info: Any) -> bool:
    """Hopper and Walker2d observe velocities clipped to +-10."""
    if (np.abs(obs[env.model.nq - 1 :]) >= 10 - 1e-4).any():
        return False
    return _set_planar(env, obs, _next, _info)


def _set_whole(env: Any, obs: np.ndarray, _next: np.ndarray, _info: Any) -> bool:
    env.set_state(obs[: env.model.nq], obs[env.model.nq :])
    return True


# By the beginning of the environment's id. MuJoCo's planar robots agree step by step where data and installation have
# the same physics; Hopper's changed with MuJoCo 3.5.0 (envs/README.md), hence its wide tolerance.
_WAYS = {
    "Pendulum-v1": _Way(_set_pendulum),
    "hoard/StitchMaze-": _Way(_set_hidden_goal_maze, info="goal"),
    "hoard/Maze2d-": _Way(_set_hidden_goal_maze),
    "PointMaze_": _Way(_set_point_maze, ignore=(2, 3)),
    "HalfCheetah-v": _Way(_set_planar, share=0.9),
    "Hopper-v": _Way(_set_clipped, tolerance=1e-2, state_tolerance=2e-2, share=0.9),
    "Walker2d-v": _Way(_set_clipped, tolerance=1e-2, state_tolerance=2e-2, share=0.9),
    "InvertedPendulum-v": _Way(_set_whole),
}

_QUESTIONS: dict[str, Callable[[_About], str]] = {
    "episodes": _episodes,
    "finite": _finite,
    "ends": _ends,
    "observations": _observation_space,
    "actions": _action_space,
    "time limit": _time_limit,
    "references": _references,
    "duplicates": _duplicates,
    "second reader": _second_reader,
    "environment": _environment,
    "replay": _replay,
}
