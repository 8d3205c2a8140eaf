"""How the policies of `hoard.datasets.recipes.locomotion_policies` were made: SAC by stable-baselines3, on one core.

    python tools/train_locomotion_policies.py train hopper --steps 300000 --out runs/hopper   # 16 minutes
    python tools/train_locomotion_policies.py choose hopper --out runs/hopper                 # 2 minutes

What ships came from these commands; halfcheetah had 300,000 steps as well (18 minutes), walker2d 400,000 (23 minutes).

``train`` keeps the actor every `snapshot_every` steps, and every action that was taken (what ships came from a `train`
that kept actors alone). It is not resumed, but ``choose`` also takes what a training
that was stopped has left: it rounds the snapshots to what is stored, measures each, names the medium and the expert
one, measures the rungs of the ladder again on other episodes, and writes ``<task>.safetensors`` and
``<task>.json``.

Deviations from stable-baselines3's defaults are for speed on a CPU: small networks, eight environments with one update
per two of their steps, a step size that starts at 1e-3 and falls to a tenth of it. The policies need not be good, only
different.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from safetensors import numpy as safetensors
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from hoard.datasets.recipes.locomotion_policies import (
    NOISE_SEED,
    RANDOM,
    TASKS,
    WEIGHTS,
    Actor,
    Stage,
    d4rl_score,
    save_actors,
)

TaskName = Literal["hopper", "halfcheetah", "walker2d"]
_SNAPSHOT = re.compile(r"step(\d{8})\.safetensors")
_RECORD, _ACTIONS = "training.json", "actions.safetensors"
_GRID = np.float32(127)  # actions are whole numbers of 1 / 127
# Reset seeds with the top bit set are for evaluation; those of the data and of the training have it not.
_FIRST_LOOK, _SECOND_LOOK = 2**31, 2**31 + 2**20


@dataclass
class Train:
    """Train a policy and keep its snapshots."""

    task: Annotated[TaskName, tyro.conf.Positional]
    out: Path  # folder of the snapshots; a training that is there already is refused
    seed: int = 0
    steps: int = 400_000  # environment steps, all environments together
    snapshot_every: int = 10_000  # steps
    envs: int = 8  # environments in lockstep
    gradient_steps: int = 4  # updates per step of all environments
    batch_size: int = 256
    hidden: tuple[int, ...] = (128, 128)  # of actor and critics
    lr: float = 1e-3  # at the start; falls linearly
    final_lr: float = 1e-4  # at the end
    discount: float = 0.99
    tau: float = 0.005
    start_steps: int = 5_000  # uniform random actions at first


@dataclass
class Choose:
    """Measure snapshots, choose the levels, write the weights that ship."""

    task: Annotated[TaskName, tyro.conf.Positional]
    out: Path  # the folder of `train`
    weights: Path = WEIGHTS  # where the two files go
    episodes: int = 20  # for the first look at each snapshot
    final_episodes: int = 100  # for the numbers on record
    medium_share: float = 0.4  # medium is the first sturdy snapshot with this share of the expert's score
    expert_share: float = 0.25  # the expert is the best sturdy one of this last share of the snapshots
    shake: float = 0.0  # every weight is changed by a normal number of this size, relative to it ...
    sturdy: float = 0.9  # ... and a snapshot that keeps this share of its score is sturdy; all are with shake 0
    shakes: int = 5  # changed actors for the look at that, which share the episodes


# --- training ---


class Rounded(gym.ActionWrapper):
    """Takes actions on a grid of 1 / 127 and keeps them, so that the whole replay can be stored: a byte a number.

    `taken` (steps, action_dim) int8 are the actions of all episodes on end. The first episode starts from a reset with
    the seed of the environment, the others from resets without one: the same resets and actions repeat them all.
    """

    def __init__(self, env: gym.Env, room: int) -> None:
        super().__init__(env)
        self._taken = np.zeros((room, *env.action_space.shape), np.int8)  # type: ignore[misc]
        self._steps = 0

    @property
    def taken(self) -> np.ndarray:
        return self._taken[: self._steps]

    def action(self, action: np.ndarray) -> np.ndarray:
        self._taken[self._steps] = np.rint(np.clip(action, -1, 1) * _GRID)
        self._steps += 1
        return action_of(self._taken[self._steps - 1])


def action_of(whole: np.ndarray) -> np.ndarray:
    """The actions, float32 in [-1, 1], that `Rounded` has kept as int8."""
    return whole.astype(np.float32) / _GRID


class _Snapshots(BaseCallback):
    """Saves the actor every so many steps, and with it the record of the training and the actions so far."""

    def __init__(self, config: Train, envs: list[Rounded]) -> None:
        super().__init__()
        self.config, self.envs, self.saved, self.returns = config, envs, 0, []  # type: ignore[var-annotated]
        self.started = time.process_time(), time.time()

    def _on_step(self) -> bool:
        self.returns += [
            [self.num_timesteps, float(info["episode"]["r"])] for info in self.locals["infos"] if "episode" in info
        ]
        if self.num_timesteps // self.config.snapshot_every > self.saved:
            self.saved = self.num_timesteps // self.config.snapshot_every
            _save_snapshot(self.config.out / f"step{self.num_timesteps:08d}.safetensors", actor_of(self.model))  # type: ignore[arg-type]
            self.write_record()
        return True

    def write_record(self) -> None:
        cpu, wall = time.process_time() - self.started[0], time.time() - self.started[1]
        record = {
            "options": {name: value for name, value in asdict(self.config).items() if name != "out"},
            "versions": {
                name: version(name) for name in ("stable-baselines3", "torch", "gymnasium", "mujoco", "numpy")
            },
            "steps_done": self.num_timesteps,
            "updates_done": self.model._n_updates,  # type: ignore[attr-defined]
            "core_minutes": round(cpu / 60, 1),
            "wall_minutes": round(wall / 60, 1),
            "episode_returns": self.returns,  # [step, return] of the training's own episodes
        }
        _write(self.config.out / _RECORD, json.dumps(record).encode())
        actions = np.stack([env.taken for env in self.envs])  # (envs, steps, action_dim)
        _write(self.config.out / _ACTIONS, safetensors.save({"actions": actions}))
        recent = [r for _, r in self.returns[-20:]]
        mean = float(np.mean(recent)) if recent else float("nan")
        print(
            f"{self.num_timesteps:9,} steps, {cpu / 60:5.1f} core-minutes, last {len(recent)} episodes: mean return "
            f"{mean:8.1f}, D4RL score {d4rl_score(self.config.task, mean):5.1f}",
            flush=True,
        )


def actor_of(model: SAC) -> Actor:
    """The actor as plain arrays."""
    actor: Any = model.policy.actor
    layers = [layer for layer in actor.latent_pi if isinstance(layer, torch.nn.Linear)]
    others = [
        type(layer).__name__ for layer in actor.latent_pi if not isinstance(layer, (torch.nn.Linear, torch.nn.ReLU))
    ]
    if others:
        raise ValueError(f"the actor has layers that cannot be stored: {others}")
    numpy = lambda *tensors: np.concatenate([t.detach().cpu().numpy() for t in tensors])  # noqa: E731
    heads = actor.mu, actor.log_std
    return Actor(
        (*(numpy(layer.weight) for layer in layers), numpy(*(head.weight for head in heads))),
        (*(numpy(layer.bias) for layer in layers), numpy(*(head.bias for head in heads))),
    )


def train(config: Train) -> None:
    """Raises FileExistsError where the folder holds a training already."""
    if any(config.out.glob("step*.safetensors")):
        raise FileExistsError(f"{config.out} holds snapshots already; give --out another folder, or remove them")
    config.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # v4 is called out of date; D4RL's scores need it
        envs: Any = make_vec_env(
            TASKS[config.task].env_id,
            n_envs=config.envs,
            seed=config.seed,
            wrapper_class=Rounded,  # type: ignore[arg-type]
            wrapper_kwargs={"room": config.steps // config.envs + 1},
        )
    model = SAC(
        "MlpPolicy",
        envs,
        learning_rate=lambda left: config.final_lr + (config.lr - config.final_lr) * left,
        buffer_size=config.steps,
        learning_starts=config.start_steps,
        batch_size=config.batch_size,
        tau=config.tau,
        gamma=config.discount,
        train_freq=1,
        gradient_steps=config.gradient_steps,
        policy_kwargs={"net_arch": list(config.hidden), "optimizer_kwargs": {"fused": True}},
        seed=config.seed,
        device="cpu",
    )
    snapshots = _Snapshots(config, envs.envs)
    model.learn(config.steps, callback=snapshots)
    snapshots.write_record()
    envs.close()


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
    scores: list[float], medium_share: float, expert_share: float, sturdy: list[bool] | None = None
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
    medium = next(
        i for i, score in enumerate(scores) if i == expert or (sturdy[i] and score >= medium_share * scores[expert])
    )
    if medium >= expert:
        raise ValueError(f"no snapshot before the expert's has {medium_share} of its score {scores[expert]:.1f}")
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
    """Write the two files of a task. Raises FileNotFoundError where the folder holds no training."""
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
    medium, expert = choose_levels(scores, config.medium_share, config.expert_share, sturdy)

    ladder = [*range(medium + 1), expert]
    rungs: list[dict[str, Any]] = []
    for name, index in [("random", None), *(("", i) for i in range(medium)), ("medium", medium), ("expert", expert)]:
        chosen = None if index is None else actors[index]
        row: dict[str, Any] = {"rung": len(rungs), "name": name or f"rung {len(rungs)}"}
        row["step"] = 0 if index is None else steps[index]
        row |= measure(stage, config.task, chosen, _SECOND_LOOK, config.final_episodes, mode=False)
        if chosen is not None:
            row["mode"] = measure(stage, config.task, chosen, _SECOND_LOOK, config.final_episodes, mode=True)
        rungs.append(row)
        print(row, flush=True)
    stage.close()
    assert rungs[RANDOM]["name"] == "random"

    config.weights.mkdir(parents=True, exist_ok=True)
    digest = save_actors(config.weights / f"{config.task}.safetensors", [actors[i] for i in ladder])
    training.pop("episode_returns")
    about = {
        "env_id": TASKS[config.task].env_id,
        "sha256": digest,
        "made_by": "tools/train_locomotion_policies.py",
        "training": training,
        "choice": {
            "medium_share": config.medium_share,
            "expert_share": config.expert_share,
            "shake": config.shake,
            "sturdy": config.sturdy,
            "evaluated_with": {name: version(name) for name in ("gymnasium", "mujoco", "numpy")},
        },
        "rungs": rungs,
        "curve": curve,
    }
    _write(config.weights / f"{config.task}.json", (json.dumps(about, indent=1) + "\n").encode())


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
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
