"""How policies for `hoard.datasets.recipes.locomotion_policies` are made: hoard's SAC, on one core.

    python tools/train_locomotion_policies.py train halfcheetah --steps 1000000 --out runs/halfcheetah
    python tools/train_locomotion_policies.py choose halfcheetah --out runs/halfcheetah --shake 0.01

``train`` keeps the actor every `snapshot_every` steps, and every action that was taken. The same command goes on with a
training that was stopped. ``choose`` takes what is there: it rounds the snapshots to what is stored, measures each,
names the medium and the expert one, measures these again on other episodes, plays the training again up to the medium
one, and writes ``<task>-v1.safetensors``, ``<task>-v1.replay.safetensors`` and ``<task>-v1.json``.

The policies that ship as version 0 came from an earlier form of this file, with stable-baselines3's SAC and actors kept
alone, at revision 622c7540b0f4: 300,000 steps of hopper (16 minutes) and halfcheetah (18), 400,000 of walker2d (23).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from safetensors import numpy as safetensors

from hoard.datasets.recipes.locomotion_policies import (
    NOISE_SEED,
    RANDOM,
    TASKS,
    WEIGHTS,
    Actor,
    Stage,
    d4rl_score,
    save_actors,
    stem,
)
from hoard.datasets.recipes.locomotion_replay import GRID, Replay, make_replay, save_replay
from hoard.records.errors import STOPPED
from hoard.runners import algorithms
from hoard.runners.entry import execute
from hoard.runners.evaluate import training_seed
from hoard.runners.options import Options, build
from hoard.runners.run import Stopped

TaskName = Literal["hopper", "halfcheetah", "walker2d"]
_SNAPSHOT = re.compile(r"step(\d{8})\.safetensors")
_RECORD, _ACTIONS = "training.json", "actions.safetensors"
_KINDS = ("weight", "bias")
VERSION = 1  # of the sets that these policies are for
# Reset seeds with the top bit set are for evaluation; those of the data and of the training have it not.
_FIRST_LOOK, _SECOND_LOOK = 2**31, 2**31 + 2**20


@dataclass
class Train:
    """Train a policy and keep its snapshots, or go on with that."""

    task: Annotated[TaskName, tyro.conf.Positional]
    out: Path  # folder of the snapshots
    seed: int = 0
    steps: int = 1_000_000  # environment steps
    snapshot_every: int = 20_000  # steps
    updates_per_step: int = 1
    batch_size: int = 256
    hidden: tuple[int, ...] = (128, 128)  # of actor and critics
    lr: float = 3e-4
    target_tau: float = 0.005
    start_steps: int = 10_000  # uniform random actions at first
    compile: bool = True


@dataclass
class Choose:
    """Measure snapshots, choose the levels, write the weights that ship."""

    task: Annotated[TaskName, tyro.conf.Positional]
    out: Path  # the folder of `train`
    weights: Path = WEIGHTS  # where the three files go
    episodes: int = 20  # for the first look at each snapshot
    final_episodes: int = 100  # for the numbers on record
    medium_score: float = 33.3  # medium is the first sturdy snapshot with this score: a third of D4RL's expert
    expert_share: float = 0.25  # the expert is the best sturdy one of this last share of the snapshots
    shake: float = 0.0  # every weight is changed by a normal number of this size, relative to it ...
    sturdy: float = 0.9  # ... and a snapshot that keeps this share of its score is sturdy; all are with shake 0
    shakes: int = 5  # changed actors for the look at that, which share the episodes


# --- training ---


class Recorder:
    """Rounds the actions that a training takes, keeps them, and saves the actor every so many steps.

    With actions on a grid the whole replay can be stored, a byte a number, see
    `hoard.datasets.recipes.locomotion_replay`: episode k starts from a reset with `training_seed(seed, k)`.
    """

    def __init__(self, config: Train, run: Any) -> None:
        self.config, self._run, self.actor = config, run, None
        self.actions: list[np.ndarray] = []  # (action_dim,) int8 of each step
        self.ends: list[int] = []  # steps after which an episode was over
        self.returns: list[float] = []  # of these episodes
        self._return = 0.0
        self._began = time.process_time(), time.time()

    def watch(self, env: Any) -> None:
        """Stand between the training and its environment."""
        step = env.step

        def rounded(action: torch.Tensor) -> Any:
            whole = (action.clamp(-1, 1) * float(GRID)).round()
            done = step(whole / float(GRID))
            self.actions.append(whole.reshape(-1).to(torch.int8).numpy())
            self._return += done.reward
            if done.terminated or done.truncated:
                self.ends.append(len(self.actions))
                self.returns.append(self._return)
                self._return = 0.0
            if self._run.env_step % self.config.snapshot_every == 0:
                self.save()
            return done

        env.step = rounded

    def save(self) -> None:
        """The actor as it is, the record of the training and its actions so far."""
        assert self.actor is not None
        _save_snapshot(self.config.out / f"step{self._run.env_step:08d}.safetensors", actor_of(self.actor))
        cpu, wall = time.process_time() - self._began[0], time.time() - self._began[1]
        record = {
            "options": {name: value for name, value in asdict(self.config).items() if name != "out"},
            "versions": {name: version(name) for name in ("hoard", "torch", "gymnasium", "mujoco", "numpy")},
            "steps_done": self._run.env_step,
            "updates_done": self._run.update,
            "core_minutes": round(cpu / 60, 1),  # since the last start
            "wall_minutes": round(wall / 60, 1),
            "episode_returns": [list(row) for row in zip(self.ends, self.returns)],  # [step, return]
        }
        _write(self.config.out / _RECORD, json.dumps(record).encode())
        arrays = {"actions": np.stack(self.actions), "ends": np.array(self.ends, np.int64)}
        _write(self.config.out / _ACTIONS, safetensors.save(arrays))
        recent = self.returns[-20:]
        mean = float(np.mean(recent)) if recent else float("nan")
        print(
            f"{self._run.env_step:9,} steps, {cpu / 60:5.1f} core-minutes, last {len(recent)} episodes: mean return "
            f"{mean:8.1f}, D4RL score {d4rl_score(self.config.task, mean):5.1f}",
            flush=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """Whole episodes: a checkpoint comes between two."""
        count = self.ends[-1] if self.ends else 0
        dim = TASKS[self.config.task].action_dim
        actions = np.stack(self.actions[:count]) if count else np.zeros((0, dim), np.int8)
        return {
            "actions": torch.from_numpy(actions),
            "ends": torch.tensor(self.ends, dtype=torch.int64),
            "returns": torch.tensor(self.returns, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.actions = list(state["actions"].numpy())
        self.ends, self.returns = state["ends"].tolist(), state["returns"].tolist()


def actor_of(actor: Any) -> Actor:
    """The actor of algos/sac.py as plain arrays."""
    numpy = [tuple(getattr(layer, kind).detach().cpu().numpy().copy() for layer in actor.layers) for kind in _KINDS]
    return Actor(*numpy)


def train(config: Train) -> None:
    """Raises ValueError where the folder holds another training."""
    record = config.out / _RECORD
    if record.is_file():
        options, mine = json.loads(record.read_text())["options"], json.loads(json.dumps(asdict(config), default=str))
        other = sorted(name for name, value in mine.items() if name != "out" and options.get(name) != value)
        if other:
            raise ValueError(f"{config.out} holds a training with other {', '.join(other)}; give --out another folder")
    config.out.mkdir(parents=True, exist_ok=True)
    file = algorithms.find("sac")
    sac = algorithms.import_file(file)

    def watched(cfg: Any, run: Any) -> None:
        recorder, register, environment = Recorder(config, run), run.register, run.training_env

        def watched_environment() -> Any:
            env = environment()
            recorder.watch(env)
            return env

        def register_too(**objects: Any) -> None:
            recorder.actor = objects["networks"]["actor"]
            register(**objects, recorder=recorder)

        run.register, run.training_env = register_too, watched_environment
        sac.train(cfg, run)

    options = {
        "dataset": f"hoard/{config.task}/random-1k-v0",  # for its environment
        "online_steps": config.steps,
        "eval_every": config.steps,
        "final_eval_episodes": 10,
        "checkpoint_every": config.snapshot_every,
    }
    for name in ("seed", "updates_per_step", "batch_size", "hidden", "lr", "target_tau", "start_steps", "compile"):
        options[name] = getattr(config, name)
    parsed = build(sac.Config, sac.PRESETS, file.name, Options(results=config.out), options)
    execute(parsed, watched, file, file.read_text())


# --- choosing ---


def measure(stage: Stage, task: str, actor: Actor | None, first_seed: int, episodes: int, mode: bool) -> dict[str, Any]:
    """Mean return, its standard error, D4RL score and mean length over episodes with seeds of their own."""
    made = [
        stage.episode(actor, first_seed + k, np.random.default_rng((NOISE_SEED, first_seed + k)), mode)
        for k in range(episodes)
    ]
    returns = np.array([episode.rewards.sum(dtype=np.float64) for episode in made])
    return {
        "episodes": episodes,
        "return": round(float(returns.mean()), 2),
        "standard_error": round(float(returns.std(ddof=1) / np.sqrt(episodes)), 2),
        "d4rl_score": round(d4rl_score(task, float(returns.mean())), 2),
        "length": round(float(np.mean([len(episode) for episode in made])), 1),
    }


def shaken(actor: Actor, size: float, rng: np.random.Generator) -> Actor:
    """The actor with every number changed by a normal one of this size, relative to it."""

    def changed(parts: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(part * (1 + size * rng.standard_normal(part.shape)).astype(np.float32) for part in parts)

    return Actor(changed(actor.weights), changed(actor.biases))


def choose_levels(
    scores: list[float], medium_score: float, expert_share: float, sturdy: list[bool] | None = None
) -> tuple[int, int]:
    """Indices of the medium and the expert snapshot, from the scores of all in the order of training.

    Only those that are `sturdy` are taken. Raises ValueError where none of the last share is, or where there is no
    medium one below the expert.
    """
    sturdy = sturdy or [True] * len(scores)
    tail = max(1, round(expert_share * len(scores)))
    last = [i for i in range(len(scores) - tail, len(scores)) if sturdy[i]]
    if not last:
        raise ValueError(f"none of the last {tail} snapshots is sturdy")
    expert = max(last, key=lambda i: scores[i])
    medium = next((i for i in range(expert) if sturdy[i] and scores[i] >= medium_score), None)
    if medium is None:
        raise ValueError(f"no sturdy snapshot before the expert's (score {scores[expert]:.1f}) has {medium_score}")
    return medium, expert


def _shaken_score(stage: Stage, config: Choose, actor: Actor) -> float:
    """The D4RL score of the actor with its weights changed: the mean over several changes."""
    scores = []
    for k in range(config.shakes):
        changed = shaken(actor, config.shake, np.random.default_rng((NOISE_SEED, k)))
        first = _FIRST_LOOK + k * config.episodes
        scores.append(measure(stage, config.task, changed, first, max(2, config.episodes // config.shakes), mode=False))
    return round(float(np.mean([row["d4rl_score"] for row in scores])), 2)


def choose(config: Choose) -> None:
    """Write the files of a task. Raises FileNotFoundError where the folder holds no training."""
    if not (config.out / _RECORD).is_file():
        raise FileNotFoundError(f"{config.out} holds no {_RECORD}; run `train` first")
    training = json.loads((config.out / _RECORD).read_text())
    if training["options"]["task"] != config.task:
        raise ValueError(f"{config.out} is a training of {training['options']['task']}, not of {config.task}")
    files = sorted(path for path in config.out.iterdir() if _SNAPSHOT.fullmatch(path.name))
    steps = [int(path.stem.removeprefix("step")) for path in files]
    actors = [_load_snapshot(path).rounded() for path in files]
    stage = Stage(config.task)

    curve, sturdy = [], []
    for step, actor in zip(steps, actors):
        seen = {"step": step, **measure(stage, config.task, actor, _FIRST_LOOK, config.episodes, mode=False)}
        if config.shake:
            seen["shaken"] = _shaken_score(stage, config, actor)
        curve.append(seen)
        sturdy.append(seen.get("shaken", seen["d4rl_score"]) >= config.sturdy * seen["d4rl_score"])
        print(f"{step:9,} steps: {seen}", flush=True)
    scores = [row["d4rl_score"] for row in curve]
    medium, expert = choose_levels(scores, config.medium_score, config.expert_share, sturdy)

    rungs: list[dict[str, Any]] = []
    for name, index in (("random", None), ("medium", medium), ("expert", expert)):
        chosen = None if index is None else actors[index]
        row: dict[str, Any] = {"rung": len(rungs), "name": name, "step": 0 if index is None else steps[index]}
        row |= measure(stage, config.task, chosen, _SECOND_LOOK, config.final_episodes, mode=False)
        if chosen is not None:
            row["mode"] = measure(stage, config.task, chosen, _SECOND_LOOK, config.final_episodes, mode=True)
        rungs.append(row)
        print(row, flush=True)
    assert rungs[RANDOM]["name"] == "random"

    kept = safetensors.load_file(config.out / _ACTIONS)
    ends = [int(end) for end in kept["ends"] if end <= steps[medium]]
    seeds = [training_seed(training["options"]["seed"], k) for k in range(len(ends))]
    replay = make_replay(stage, config.task, kept["actions"][: ends[-1]], ends, seeds)
    _check_returns(stage, replay, training["episode_returns"])
    stage.close()

    config.weights.mkdir(parents=True, exist_ok=True)
    actors_file = config.weights / f"{stem(config.task, VERSION)}.safetensors"
    digest = save_actors(actors_file, [actors[medium], actors[expert]])
    replayed = {"sha256": save_replay(replay, config.weights), "steps": ends[-1], "episodes": len(ends)}
    training.pop("episode_returns")
    about = {
        "env_id": TASKS[config.task].env_id,
        "sha256": digest,
        "replay": replayed,
        "made_by": "tools/train_locomotion_policies.py",
        "training": training,
        "choice": {
            "medium_score": config.medium_score,
            "expert_share": config.expert_share,
            "shake": config.shake,
            "sturdy": config.sturdy,
            "evaluated_with": {name: version(name) for name in ("gymnasium", "mujoco", "numpy")},
        },
        "rungs": rungs,
        "curve": curve,
    }
    _write(config.weights / f"{stem(config.task, VERSION)}.json", (json.dumps(about, indent=1) + "\n").encode())


def _check_returns(stage: Stage, replay: Replay, recorded: list[list[float]]) -> None:
    """Raises ValueError unless the replay has the very rewards of the training."""
    for k in range(len(replay)):
        end, total = recorded[k]
        again = float(replay.episode(stage, k).rewards.sum(dtype=np.float64))
        if end != replay.ends[k] or not np.isclose(again, total, rtol=1e-5, atol=1e-3):
            raise ValueError(f"episode {k} returned {total} in the training, {again} when it was played again")


# --- files ---


def _save_snapshot(file: Path, actor: Actor) -> None:
    arrays: dict[str, Any] = {f"weight{i}": part for i, part in enumerate(actor.weights)}
    arrays |= {f"bias{i}": part for i, part in enumerate(actor.biases)}
    _write(file, safetensors.save(arrays))


def _load_snapshot(file: Path) -> Actor:
    arrays = safetensors.load(file.read_bytes())
    layers = range(len(arrays) // 2)
    return Actor(tuple(arrays[f"weight{i}"] for i in layers), tuple(arrays[f"bias{i}"] for i in layers))


def _write(file: Path, data: bytes) -> None:
    unfinished = file.with_name(file.name + ".unfinished")
    unfinished.write_bytes(data)
    os.replace(unfinished, file)


def main() -> None:
    Commands = Annotated[Train, tyro.conf.subcommand("train")] | Annotated[Choose, tyro.conf.subcommand("choose")]
    config: Any = tyro.cli(Commands, description=__doc__)  # type: ignore[arg-type]
    try:
        (train if isinstance(config, Train) else choose)(config)
    except Stopped:
        print("stopped; the same command goes on from here")
        sys.exit(STOPPED)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
