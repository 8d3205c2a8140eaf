"""IQL's online stage: what it stores, what it draws, what it learns with, and that it survives a kill."""

from __future__ import annotations

import subprocess

import numpy as np
import pandas as pd
import pytest
from helpers import command, small
from resume import assert_same_run, checkpoint, kill, only_run
from safetensors.torch import load_file

from hoard.algos import iql
from hoard.datasets import ReplayBuffer, load

ONLINE = {"updates": 20, "online_steps": 430, "log_every": 50, "eval_every": 200, "checkpoint_every": 100}


def test_what_is_stored_and_drawn(tiny, run_file, tmp_path, monkeypatch):
    """Online steps enter as the data did: rewards scaled by the same factor, actions in [-1, 1]."""
    ratios = []
    sample = ReplayBuffer.sample

    def spy(self, size, generator, offline_ratio=None):
        index = self.draw(size, generator, offline_ratio)
        if self.online_size:
            ratios.append((index < self.offline_size).float().mean().item())
        return self.gather(index)

    monkeypatch.setattr(ReplayBuffer, "sample", spy)
    done = run_file("iql", *small(tiny, **ONLINE, offline_ratio=0.25))
    monkeypatch.setattr(ReplayBuffer, "sample", sample)
    assert done.returncode == 0, done.stderr
    assert set(ratios) == {0.25}
    assert len(ratios) == 430

    state = checkpoint(only_run(tmp_path / "results"))
    stored = state["objects"]["buffer"]
    dataset = load(tiny)
    scale = 1000 / float(dataset.returns.max() - dataset.returns.min())
    cosine, sine, speed = stored["observations"][0::2].numpy().T
    theta = np.arctan2(sine, cosine)
    torque = 2 * stored["action"][:, 0].numpy()
    cost = theta**2 + 0.1 * speed**2 + 0.001 * torque**2  # Pendulum-v1's own reward
    assert stored["reward"].numpy() == pytest.approx(-cost * scale, rel=1e-3, abs=1e-3)
    assert stored["action"].abs().max() <= 1 - 1e-5
    assert stored["action"].std() > 0.3  # it explores
    assert state["objects"]["optimizers.actor"]["param_groups"][0]["lr"] == iql.Config().lr
    assert (state["update"], state["env_step"]) == (450, 430)


def test_a_ratio_is_not_needed(tiny, run_file, tmp_path):
    assert run_file("iql", *small(tiny, **ONLINE)).returncode == 0
    rows = pd.read_parquet(only_run(tmp_path / "results") / "episodes.parquet")
    points = rows.groupby(["update", "env_step", "final"]).size().to_dict()
    assert points == {(20, 0, False): 2, (220, 200, False): 2, (420, 400, False): 2, (450, 430, True): 3}


@pytest.mark.parametrize("name", ["iql", "cql", "awac"])
def test_statistics_of_observations_are_those_of_the_data(name, tiny, run_file, tmp_path):
    """Room for online steps that have not come yet must not count."""
    options = small(tiny, updates=10, online_steps=200, normalize_obs="true", eval_every=200)
    assert run_file(name, *options).returncode == 0
    obs = load(tiny).obs
    weights = load_file(only_run(tmp_path / "results") / "policy.safetensors")
    (shift,) = (value for key, value in weights.items() if key.endswith("normalize.mean"))
    (scale,) = (value for key, value in weights.items() if key.endswith("normalize.std"))
    assert shift.numpy() == pytest.approx(obs.mean(axis=0), abs=1e-4)
    assert scale.numpy() == pytest.approx(obs.std(axis=0) + 1e-3, abs=2e-3)


@pytest.mark.slow
def test_killed_online_and_resumed_equals_undisturbed(tiny, tmp_path):
    args = small(tiny, **ONLINE | {"online_steps": 1010, "checkpoint_every": 150}, offline_ratio=0.5)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    subprocess.run(command("iql", *args, results=straight), check=True, capture_output=True, timeout=120)
    for step in (250, 650):
        kill("iql", args, broken, env_step=step)
    resumed = subprocess.run(command("iql", *args, results=broken), capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after environment step" in resumed.stdout
    assert_same_run(straight, broken)


def test_an_unusable_ratio_is_refused(tiny, run_file):
    done = run_file("iql", *small(tiny, **ONLINE, offline_ratio=1.5))
    assert done.returncode == 2
    assert "offline_ratio 1.5: must be between 0 and 1" in done.stderr


def test_an_actor_without_noise_does_not_go_online(tiny, run_file):
    done = run_file("iql", *small(tiny, **ONLINE, actor="deterministic"))
    assert done.returncode == 2
    assert "it learns no noise to explore with" in done.stderr


def test_the_offline_result_does_not_depend_on_the_online_stage(tiny, run_file, tmp_path):
    """A stage that is off takes no randomness: the old config gives the old weights."""
    for name, steps in (("off", 0), ("on", 30)):
        options = small(tiny, updates=20, eval_every=20, online_steps=steps, actor_lr_schedule="constant")
        assert run_file("iql", *options, results=tmp_path / name).returncode == 0
    rows = [pd.read_parquet(only_run(tmp_path / name) / "episodes.parquet") for name in ("off", "on")]
    at_twenty = [r[(r["update"] == 20) & (r.env_step == 0)]["return"].to_list()[:2] for r in rows]
    assert at_twenty[0] == at_twenty[1]
