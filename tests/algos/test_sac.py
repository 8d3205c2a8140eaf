"""The SAC baseline: stable-baselines3's update on our buffer and protocol."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from resume import assert_same_run, checkpoint, dying_at, only_run

from hoard.runners.main import main
from hoard.runners.plan import import_file

ONLINE = {
    "online_steps": 430, "start_steps": 210, "hidden": 16, "batch_size": 32, "log_every": 50, "eval_every": 200,
    "eval_episodes": 2, "final_eval_episodes": 3, "checkpoint_every": 100,
}  # fmt: skip


def options(dataset, **more):
    values = {"dataset": dataset, **ONLINE, **more}
    return [part for k, v in values.items() for part in (f"--{k.replace('_', '-')}", str(v))]


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """A run that nothing disturbed."""
    module = import_file(ROOT / "algos" / "sac.py")
    results = tmp_path_factory.mktemp("sac")
    with pytest.raises(SystemExit) as end:
        main(module.Config, module.train, module.PRESETS, [*options(tiny), "--results", str(results)])
    assert end.value.code == 0
    return only_run(results)


def test_its_records(straight):
    rows = pd.read_parquet(straight / "episodes.parquet")
    points = rows.groupby(["update", "env_step", "final"]).size().to_dict()
    assert points == {(0, 200, False): 2, (190, 400, False): 2, (220, 430, True): 3}
    state = checkpoint(straight)
    assert state["objects"]["buffer"]["online_size"] == 430
    assert state["objects"]["temperature"]["log_alpha"].item() != 0
    metrics = pd.read_parquet(straight / "metrics.parquet")
    assert metrics["losses/critic"].notna().sum() == 5


def test_no_transition_of_the_dataset_is_stored(straight):
    """Rewards and observations are Pendulum's for the actions done, which cover the whole range at first."""
    stored = checkpoint(straight)["objects"]["buffer"]
    cosine, sine, speed = stored["observations"][0::2].numpy().T
    torque = 2 * stored["action"][:, 0].numpy()
    cost = np.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * torque**2
    assert stored["reward"].numpy() == pytest.approx(-cost, rel=1e-3, abs=1e-3)
    first = stored["action"][:210, 0]
    assert (first.min(), first.max()) == (pytest.approx(-1, abs=0.05), pytest.approx(1, abs=0.05))


def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path, straight, monkeypatch):
    for call in (30, 150):  # before the first checkpoint with updates behind it, and after it
        with dying_at(monkeypatch, "log", call):
            run_file("sac", *options(tiny))
    torch.randn(17)  # whatever else happened to the global stream between two starts
    assert run_file("sac", *options(tiny)).returncode == 0
    assert "resuming after environment step 200" in (only_run(tmp_path / "results") / "log.txt").read_text()
    assert_same_run(straight.parents[3], tmp_path / "results")


def test_a_fixed_temperature_stays(tiny, run_file, tmp_path):
    assert run_file("sac", *options(tiny, alpha=0.3, online_steps=230, eval_every=230)).returncode == 0
    metrics = pd.read_parquet(only_run(tmp_path / "results") / "metrics.parquet")
    assert metrics["policy/alpha"].dropna().to_list() == pytest.approx([0.3] * metrics["policy/alpha"].notna().sum())


def test_a_tuned_temperature_starts_where_told(tiny, run_file, tmp_path):
    assert run_file("sac", *options(tiny, init_alpha=0.05, lr=1e-9, online_steps=230, eval_every=230)).returncode == 0
    metrics = pd.read_parquet(only_run(tmp_path / "results") / "metrics.parquet")
    assert metrics["policy/alpha"].dropna().to_list() == pytest.approx([0.05] * metrics["policy/alpha"].notna().sum())


def test_an_offline_budget_is_refused(tiny, run_file, tmp_path):
    assert run_file("sac", *options(tiny, updates=5)).returncode == 1
    error = json.loads((only_run(tmp_path / "results") / "status.json").read_text())["error"]
    assert "updates 5: SAC from scratch has no offline stage" in error
