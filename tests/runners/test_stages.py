"""Runs of several stages: preparatory phases, the main loop, the online stage; each resumes to the bit."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from resume import Killed, assert_same_run, dying_at, only_run

from hoard.datasets import load
from hoard.runners.evaluate import evaluation_seed, training_seed
from hoard.runners.task import task_of
from hoard.runners.training_env import TrainingEnv

TOY = '''
from dataclasses import dataclass

import torch

from hoard.datasets import ReplayBuffer
from hoard.runners import Run, main


@dataclass
class Config:
    """A linear policy that drifts at random through every kind of stage."""

    dataset: str = ""
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    updates: int = 20
    online_steps: int = 450
    log_every: int = 7
    eval_every: int = 10
    eval_episodes: int = 1
    final_eval_episodes: int = 2
    checkpoint_every: int = 6


PRESETS = {}


class Counter:
    def __init__(self):
        self.rounds = []

    def state_dict(self):
        return {"rounds": list(self.rounds)}

    def load_state_dict(self, state):
        self.rounds = list(state["rounds"])


def train(cfg: Config, run: Run) -> None:
    weight = torch.nn.utils.skip_init(torch.nn.Linear, run.dataset.obs_dim, run.dataset.action_dim)
    weight.requires_grad_(False).weight.zero_()
    weight.bias.zero_()
    seen = Counter()
    buffer = ReplayBuffer(run.dataset, run.device, online_capacity=cfg.online_steps or 1)
    env = run.training_env() if cfg.online_steps else None
    run.register(policy=weight, seen=seen, buffer=buffer)

    def drift(name):
        weight.weight += 0.1 * torch.randn(weight.weight.shape, generator=run.generator)
        run.log({name: weight.weight.norm()})

    for number in run.phase("first", 1000):
        seen.rounds.append(["first", number])
        drift("first/norm")
        if number == 15:
            run.end_phase()
    for number in run.phase("second", 9):
        seen.rounds.append(["second", number])
        drift("second/norm")
    for number in run.loop(cfg.updates):
        seen.rounds.append(["main", number])
        drift("norm")
        if run.evaluation_due:
            run.evaluate(lambda obs, history: weight(obs))
    for _ in run.online(cfg.online_steps):
        buffer.add(*env.step(weight(env.obs)))
        if run.env_step % 3 == 0:
            drift("online/norm")
        if run.evaluation_due:
            run.evaluate(lambda obs, history: weight(obs))


if __name__ == "__main__":
    main(Config, train, PRESETS)
'''


@pytest.fixture
def toy(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    return file


def options(dataset: str, **more: object) -> list[str]:
    values = {"dataset": dataset, "eval_every": 200, "checkpoint_every": 50, **more}
    return [part for k, v in values.items() for part in (f"--{k.replace('_', '-')}", str(v))]


def test_every_stage_runs_once_in_order_and_is_recorded(tiny, toy, run_file, tmp_path):
    assert run_file(toy, *options(tiny)).returncode == 0
    folder = only_run(tmp_path / "results")
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    expected = [["first", k] for k in range(1, 16)] + [["second", k] for k in range(1, 10)]
    assert state["objects"]["seen"]["rounds"] == expected + [["main", k] for k in range(1, 21)]
    assert (state["update"], state["env_step"]) == (20 + 150, 450)
    assert state["objects"]["buffer"]["online_size"] == 450

    rows = pd.read_parquet(folder / "episodes.parquet")
    points = rows.groupby(["update", "env_step", "final"]).size().to_dict()
    assert points == {(20, 0, False): 1, (86, 200, False): 1, (153, 400, False): 1, (170, 450, True): 2}
    seeds = [evaluation_seed(0, 170, k, 450) for k in range(2)]
    assert rows[rows.final].eval_seed.tolist() == seeds
    assert rows.eval_seed.is_unique

    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert metrics.phase.drop_duplicates().tolist() == ["first", "second", "", "online"]
    assert metrics[metrics.phase == "first"]["update"].tolist() == [7, 14, 15]
    assert metrics[metrics.phase == "online"].env_step.tolist() == [*range(7, 450, 7), 450]
    ended = metrics["online/return"].dropna()
    assert len(ended) == 2  # two whole episodes of 200 steps
    assert metrics[metrics["online/return"].notna()].env_step.tolist() == [203, 406]
    status = json.loads((folder / "status.json").read_text())
    assert (status["status"], status["phase"], status["env_step"], status["env_steps"]) == (
        "finished",
        "online",
        450,
        450,
    )


def test_a_kill_in_any_stage_loses_nothing(tiny, toy, run_file, tmp_path, monkeypatch):
    """It dies right after each of its checkpoints, or somewhere between two, and goes on each time."""
    args = options(tiny, checkpoint_every=6)
    assert run_file(toy, *args, results=tmp_path / "straight").returncode == 0

    replace = os.replace

    def at_a_checkpoint(source, target):
        replace(source, target)
        if Path(target).name == "checkpoint.pt":
            raise Killed

    kills = 0
    while True:
        monkeypatch.setattr(os, "replace", at_a_checkpoint)
        try:
            done = run_file(toy, *args, results=tmp_path / "often")
        except Killed:
            kills += 1
            assert kills < 100
            continue
        finally:
            monkeypatch.setattr(os, "replace", replace)
        break
    assert done.returncode == 0
    assert kills == 3 + 2 + 4 + 3  # one at each checkpoint: rounds 6, 12, 15; 6, 9; 6, 12, 18, 20; steps 200, 400, 450
    assert_same_run(tmp_path / "straight", tmp_path / "often")

    for call in (5, 13, 8, 25, 50, 100):  # rounds that the process sees before it dies
        with dying_at(monkeypatch, "log", call):
            run_file(toy, *args, results=tmp_path / "between")
    assert run_file(toy, *args, results=tmp_path / "between").returncode == 0
    assert_same_run(tmp_path / "straight", tmp_path / "between")


def test_asked_to_stop_online_it_waits_for_the_end_of_the_episode(tiny, toy, run_file, tmp_path):
    toy.write_text(
        TOY.replace(
            "        if run.env_step % 3 == 0:",
            "        run.stop_requested = run.env_step == 230 or run.stop_requested\n        if run.env_step % 3 == 0:",
        )
    )
    first = run_file(toy, *options(tiny))
    assert first.returncode == 130
    assert "stopped after environment step 400" in first.stdout
    assert torch.load(only_run(tmp_path / "results") / "checkpoint.pt", weights_only=True)["env_step"] == 400
    second = run_file(toy, *options(tiny))
    assert second.returncode == 0
    assert "resuming after environment step 400" in second.stdout


def test_without_an_online_stage_the_last_update_is_final(tiny, toy, run_file, tmp_path):
    assert run_file(toy, *options(tiny, online_steps=0, eval_every=10)).returncode == 0
    rows = pd.read_parquet(only_run(tmp_path / "results") / "episodes.parquet")
    assert rows.groupby(["update", "final"]).size().to_dict() == {(10, False): 1, (20, True): 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("        if number == 15:", "        run.evaluate(None)\n        if number == 15:"), "phase 'first'"),
        (('run.phase("second", 9)', 'run.phase("online", 9)'), "cannot name a phase"),
        (("        buffer.add(*env.step(weight(env.obs)))", "        pass"), "spent no env"),
        (("        if run.env_step % 3 == 0:", "        run.end_phase()\n        if True:"), "inside the loop over"),
        (("env.step(weight(env.obs))", "env.step(weight(env.obs) * float('nan'))"), "training episode 0"),
    ],
)
def test_misuse_is_named(tiny, toy, run_file, tmp_path, change, message):
    assert change[0] in TOY
    toy.write_text(TOY.replace(*change))
    assert run_file(toy, *options(tiny)).returncode == 1
    error = json.loads((only_run(tmp_path / "results") / "status.json").read_text())["error"]
    assert message in error


def test_a_phase_after_the_main_loop_is_refused(tiny, toy, run_file, tmp_path):
    toy.write_text(
        TOY.replace(
            "    for _ in run.online", '    for _ in run.phase("late", 3):\n        pass\n    for _ in run.online'
        )
    )
    assert run_file(toy, *options(tiny)).returncode == 1
    error = json.loads((only_run(tmp_path / "results") / "status.json").read_text())["error"]
    assert "phase 'late' comes after the main loop" in error


@pytest.mark.parametrize(
    "more", [{"updates": -1}, {"online_steps": -5}, {"online_steps": 0, "updates": 0}, {"eval_every": 0}]
)
def test_budgets_that_make_no_sense_are_refused(tiny, toy, run_file, more):
    done = run_file(toy, *options(tiny, **more))
    assert done.returncode == 2
    assert f"error: {next(reversed(more))} " in done.stderr


def test_no_updates_before_the_online_stage(tiny, toy, run_file, tmp_path):
    assert run_file(toy, *options(tiny, updates=0, online_steps=60, eval_every=30)).returncode == 0
    rows = pd.read_parquet(only_run(tmp_path / "results") / "episodes.parquet")
    assert rows.groupby(["update", "env_step"]).size().to_dict() == {(10, 30): 1, (20, 60): 2}


def test_training_episodes_start_from_seeds_of_their_own(tiny):
    returns: list[float | None] = []
    env = env_of(tiny, 7, returns.append)
    assert env.between_episodes
    first = env.obs.clone()
    assert not env.between_episodes
    for _ in range(200):
        env.step(torch.zeros(1, 1))
    assert env.between_episodes
    assert returns[:-1] == [None] * 199
    assert returns[-1] < 0
    second = env.obs.clone()
    again = env_of(tiny, 7, returns.append)
    assert (again.obs == first).all()
    again.load_state_dict({"episode": 1})
    assert (again.obs == second).all()
    assert not (first == second).all()
    assert training_seed(7, 0) != training_seed(7, 1)
    assert (env_of(tiny, 8, returns.append).obs != first).any()


def test_the_recorded_action_is_the_executed_one(tiny):
    env = env_of(tiny, 0, lambda _: None)
    before = env.obs.clone()
    step = env.step(torch.tensor([[25.0]]))
    assert (step.obs == before[0].numpy()).all()
    assert step.executed_action.tolist() == [1.0]  # the torque was clipped to 2, which is 1 in [-1, 1]
    assert (step.next_obs == env.obs[0].numpy()).all()
    torques = env_of(tiny, 0, lambda _: None, scale_actions=False)
    assert torques.step(torch.tensor([50.0])).executed_action.tolist() == [2.0]


def env_of(dataset_id, seed, on_step, scale_actions=True):
    return TrainingEnv(task_of(load(dataset_id)), seed, torch.device("cpu"), on_step, scale_actions)
