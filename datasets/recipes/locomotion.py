"""``hoard/{hopper,halfcheetah,walker2d}/{random,medium,medium-replay,medium-expert}[-<N>k]-v{0,1}``: MuJoCo locomotion.

D4RL's kinds of locomotion data from SAC policies of our own, so that nothing has to be downloaded. The policies, for
each task and version a ladder of snapshots of one training, are those of `hoard.datasets.recipes.locomotion_policies`:

=================  ===================================================================================================
``random``         rung 0, uniform random actions; the same in both versions
``medium``         the medium rung
``medium-replay``  in version 1 the training's replay buffer when it had reached medium, see
                   `hoard.datasets.recipes.locomotion_replay`; a length takes its last steps. In version 0 equally many
                   steps of every rung from 0 to the medium one, in this order: fresh episodes of the policies at a few
                   points on the way
``medium-expert``  half of it medium, the very episodes of ``medium``, then half expert
``expert``         the expert rung, in version 1
=================  ===================================================================================================

Medium and expert are names of our rungs, not D4RL's levels: the description of a set gives the returns and scores of
its parts. As in D4RL, actions are drawn from the policies and arrays are float32. Data and evaluation both use
Gymnasium's v4 environments at their defaults, at most 1000 steps, and the reference returns are D4RL's: scores are on
its scale. Episodes are whole, so a part of N steps ends with the episode that contains the N-th.

Episode k of rung r resets with seed 1,000,000 r + k; its actions come from a generator of its own. So an episode can be
replayed to the bit from its seed and its actions, a longer set starts with the shorter one (for the mixed ones: each
part does), and the number of processes that share the work changes nothing. ``infos["rung"]`` tells the episodes of the
mixed sets apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer

from hoard.datasets.dataset import DatasetError
from hoard.datasets.recipes._common import Meter, Progress, Recording
from hoard.datasets.recipes.catalogue import ROBOT_STEPS
from hoard.datasets.recipes.locomotion_policies import (
    NOISE_SEED,
    RANDOM,
    TASKS,
    WEIGHTS,
    Ladder,
    Stage,
    Trajectory,
    d4rl_score,
    load_ladder,
    references,
)
from hoard.datasets.recipes.locomotion_replay import Replay, load_replay
from hoard.records.child import Child

SEEDS_PER_RUNG = 1_000_000
_STEPS_PER_PROCESS = 50_000  # fewer are made before another process has started


def parts(ladder: Ladder, level: str, steps: int) -> list[tuple[int, int]]:
    """(rung, steps) of each part of a set; the parts differ by one step where they cannot be equal."""
    rungs = {
        "random": [RANDOM],
        "medium": [ladder.medium],
        "expert": [ladder.expert],
        "medium-replay": list(range(RANDOM, ladder.medium + 1)),
        "medium-expert": [ladder.medium, ladder.expert],
    }[level]
    ends = [steps * i // len(rungs) for i in range(len(rungs) + 1)]
    return [(rung, end - start) for rung, start, end in zip(rungs, ends, ends[1:])]


def reset_seed(rung: int, k: int) -> int:
    return SEEDS_PER_RUNG * rung + k


def record_episode(stage: Stage, ladder: Ladder, rung: int, k: int) -> Trajectory:
    """Episode k of a rung."""
    rng = np.random.default_rng((NOISE_SEED, rung, k))
    return stage.episode(ladder.actor(rung), reset_seed(rung, k), rng)


def record(
    task: str,
    level: str,
    version: int = 0,
    steps: int | None = None,
    progress: Progress | None = None,
    processes: int | None = None,
    weights: Path = WEIGHTS,
) -> Recording:
    """Generate ``hoard/<task>/<level>-v<version>``; `processes` (default: one a core, fewer for short sets) share it.

    Raises DatasetError if the policies in the folder `weights` cannot be used, a process fails, or a replay does not
    have that many steps or takes another path on this machine.
    """
    steps = steps or ROBOT_STEPS[version][level]
    ladder, stage = load_ladder(task, version, weights), Stage(task)
    if (version, level) == (1, "medium-replay"):
        buffers, texts = _replayed(ladder, load_replay(ladder, weights), stage, steps, progress)
    else:
        assert steps is not None
        if processes is None:
            processes = max(1, min(_cores(), steps // _STEPS_PER_PROCESS))
        with _crew(ladder, stage, processes, weights) as crew:
            buffers, texts = _fresh(ladder, crew, parts(ladder, level, steps), Meter(progress, steps))
    ref_min, ref_max = references(task)
    recording = Recording(
        buffers,
        Box(-np.inf, np.inf, (TASKS[task].obs_dim,), np.float32),
        stage.action_space,
        stage.spec,
        stage.spec,
        ref_min,
        ref_max,
        algorithm_name="uniform random actions" if level == "random" else f"SAC, {_trainer(ladder)}, {level}",
        description=_describe(ladder, level, texts),
        reference_episodes=None,
    )
    stage.close()
    return recording


def _fresh(
    ladder: Ladder, crew: _Alone | _Shared, plan: list[tuple[int, int]], meter: Meter
) -> tuple[list[EpisodeBuffer], list[str]]:
    """Episodes of the policies for each (rung, steps), and what to say of each."""
    buffers: list[EpisodeBuffer] = []
    texts = []
    for rung, share in plan:
        made, returns = 0, []
        for k, episode in enumerate(crew.episodes(rung)):
            for _ in range(min(len(episode), share - made)):
                meter.step()
            made += len(episode)
            returns.append(float(episode.rewards.sum(dtype=np.float64)))
            several = {"rung": np.full(len(episode) + 1, rung, np.int8)} if len(plan) > 1 else {}
            buffers.append(_buffer(len(buffers), reset_seed(rung, k), episode, several))
            if made >= share:
                break
        trained = "" if rung == RANDOM else f" after {ladder.about['rungs'][rung]['step']:,} steps of training"
        texts.append(_part_text(ladder, f"{ladder.name(rung)}{trained}", made, returns))
    return buffers, texts


def _replayed(
    ladder: Ladder, replay: Replay, stage: Stage, steps: int | None, progress: Progress | None
) -> tuple[list[EpisodeBuffer], list[str]]:
    """The last episodes of a training, and what to say of them."""
    chosen = replay.last(steps)
    made = int(replay.lengths[chosen.start :].sum())
    buffers: list[EpisodeBuffer] = []
    meter, returns = Meter(progress, made), []
    for k in chosen:
        episode = replay.episode(stage, k)
        for _ in range(len(episode)):
            meter.step()
        returns.append(float(episode.rewards.sum(dtype=np.float64)))
        buffers.append(_buffer(len(buffers), int(replay.seeds[k]), episode, {}))
    last = f"the last of its first {int(replay.ends[-1]):,}" if chosen.start else "all of its"
    name = f"the training's own steps until it had reached medium, {last} steps"
    return buffers, [_part_text(ladder, name, made, returns)]


def _buffer(number: int, seed: int, episode: Trajectory, infos: dict[str, np.ndarray]) -> EpisodeBuffer:
    last = np.arange(len(episode)) == len(episode) - 1
    return EpisodeBuffer(
        id=number,
        seed=seed,
        observations=episode.observations,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=last & episode.terminated,
        truncations=last & episode.truncated,
        infos=infos,
    )


def _part_text(ladder: Ladder, name: str, steps: int, returns: list[float]) -> str:
    mean = float(np.mean(returns))
    return (
        f"{name}: {steps:,} steps in {len(returns):,} episodes, mean return {mean:.1f}, "
        f"D4RL score {d4rl_score(ladder.task, mean):.1f}"
    )


def _trainer(ladder: Ladder) -> str:
    """The package whose SAC trained the policies."""
    versions = ladder.about["training"]["versions"]
    return next(name for name in ("stable-baselines3", "hoard") if name in versions)


def _describe(ladder: Ladder, level: str, texts: list[str]) -> str:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("gymnasium", "mujoco", "numpy"))
    several = " infos/rung tells the parts apart." if len(texts) > 1 else ""
    actors = "Uniform random actions"
    if level != "random":
        training = ladder.about["training"]
        name = _trainer(ladder)
        made_with = f"{name} {training['versions'][name]}, seed {training['options']['seed']}"
        what = "those of" if (ladder.version, level) == (1, "medium-replay") else "drawn from snapshots of"
        actors = f"Actions {what} one SAC training ({made_with})"
    return (
        f"{TASKS[ladder.task].env_id}, of D4RL's kind {level}, but with hoard's own policies, which are not D4RL's "
        f"levels. {actors}; whole episodes of at most 1000 steps. {'; '.join(texts)}.{several} Each episode can be "
        f"replayed from its reset seed and its actions. Reference returns are D4RL's for {ladder.task}. "
        f"Generated with {packages}."
    )


# --- sharing the work ---


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Alone:
    """Makes episodes in this process."""

    def __init__(self, ladder: Ladder, stage: Stage) -> None:
        self.ladder, self.stage = ladder, stage

    def episodes(self, rung: int) -> Iterator[Trajectory]:
        """Episodes 0, 1, 2, ... of a rung, without end."""
        k = 0
        while True:
            yield record_episode(self.stage, self.ladder, rung, k)
            k += 1


class _Shared:
    """Has episodes made by `serve` in other processes: whoever is free makes the next. They are given out in order."""

    def __init__(self, ladder: Ladder, processes: int, weights: Path) -> None:
        self.task = TASKS[ladder.task]
        code = "import sys; from hoard.datasets.recipes.locomotion import serve; serve(*sys.argv[1:])"
        made = [Child(code, ladder.task, str(ladder.version), str(weights)) for _ in range(processes)]
        self.children = {child.connection: child for child in made}
        self.idle = list(self.children)

    def episodes(self, rung: int) -> Iterator[Trajectory]:
        """Episodes 0, 1, 2, ... of a rung, without end."""
        asked = given = 0
        arrived: dict[int, Trajectory] = {}
        while True:
            while self.idle:
                self._ask(self.idle.pop(), rung, asked)
                asked += 1
            for connection in wait(list(self.children)):
                whose, k, episode = self._answer(connection)  # type: ignore[arg-type]
                self.idle.append(connection)  # type: ignore[arg-type]
                if whose == rung:  # not one that was asked for too much, for the rung before
                    arrived[k] = episode
            while given in arrived:
                yield arrived.pop(given)
                given += 1

    def _ask(self, connection: Connection, rung: int, k: int) -> None:
        try:
            connection.send_bytes(np.array([rung, k]).tobytes())
        except OSError as error:
            raise self._lost(connection) from error

    def _answer(self, connection: Connection) -> tuple[int, int, Trajectory]:
        try:
            head = np.frombuffer(connection.recv_bytes(), np.int64)
            table = np.frombuffer(connection.recv_bytes(), np.float32).reshape(int(head[2]) + 1, -1)
        except (EOFError, OSError) as error:
            raise self._lost(connection) from error
        observations, actions, rewards = np.split(
            table, [self.task.obs_dim, self.task.obs_dim + self.task.action_dim], 1
        )
        episode = Trajectory(
            observations.copy(), actions[:-1].copy(), rewards[:-1, 0].copy(), bool(head[3]), bool(head[4])
        )
        return int(head[0]), int(head[1]), episode

    def _lost(self, connection: Connection) -> DatasetError:
        status = self.children[connection].wait()
        return DatasetError(f"a process that made episodes in {self.task.env_id} ended with status {status}")

    def close(self) -> None:
        for child in self.children.values():
            child.close()


@contextmanager
def _crew(ladder: Ladder, stage: Stage, processes: int, weights: Path) -> Iterator[_Alone | _Shared]:
    if processes < 1:
        raise ValueError(f"processes must be 1 or more, got {processes}")
    if processes == 1:
        yield _Alone(ladder, stage)
        return
    shared = _Shared(ladder, processes, weights)
    try:
        yield shared
    finally:
        shared.close()


def serve(task: str, version: str, weights: str, descriptor: str) -> None:
    """The life of a worker: take (rung, k) from the connection, answer with the episode, until the other side ends."""
    connection = Connection(int(descriptor))
    ladder, stage = load_ladder(task, int(version), Path(weights)), Stage(task)
    try:
        while True:
            rung, k = np.frombuffer(connection.recv_bytes(), np.int64).tolist()
            episode = record_episode(stage, ladder, rung, k)
            head = np.array([rung, k, len(episode), episode.terminated, episode.truncated], np.int64)
            blank = np.zeros((1, stage.action_dim + 1), np.float32)  # after the last observation nothing is done
            done = np.concatenate([np.column_stack([episode.actions, episode.rewards]), blank])
            connection.send_bytes(head.tobytes())
            connection.send_bytes(np.column_stack([episode.observations, done]).tobytes())
    except (EOFError, ConnectionError):
        return
