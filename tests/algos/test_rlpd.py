"""RLPD against a plain writing of SAC, sources; options; resume."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from online_toys import OnlineRun, watch_shares
from plain_sac import PlainSAC, assert_close, flat, layers, stacked
from resume import assert_same_run, checkpoint, kill, only_run
from toys import flat_dataset

from hoard.algos import rlpd
from hoard.datasets import load

ONLINE = {
    "updates": 10, "online_steps": 430, "start_steps": 60, "critics": 3, "updates_per_step": 2, "eval_every": 200,
    "checkpoint_every": 100,
}  # fmt: skip


# --- the whole update ---


@pytest.mark.parametrize("k", [1, 3])
def test_with_two_critics_and_no_layer_norm_it_is_sac_with_one_actor_step_in_k(k):
    cfg = rlpd.Config(
        updates=6 // k, online_steps=0, hidden=(16, 8), batch_size=32, lr=0.01, updates_per_step=k, critics=2,
        layer_norm=False, actor_q="min",
    )  # fmt: skip
    run = OnlineRun(flat_dataset(n=60, seed=3), seed=1, double=True, remember_start=True)
    rlpd.train(cfg, run)
    sac = PlainSAC(run.start, cfg.lr, run.dataset.action_dim)
    noise = lambda: torch.randn((32, run.dataset.action_dim), generator=run.start_generator, dtype=torch.float64)  # noqa: E731
    for _ in range(6 // k):
        for _ in range(k):
            batch = run.objects["buffer"].sample(32, run.start_generator, 1.0)
            sac.critic_step(batch, noise())
        sac.actor_step(batch["obs"], noise(), target_entropy=-0.5)
    got = run.objects
    assert_close(layers(got["networks.actor"]), flat(sac.actor))
    assert_close(stacked(got["networks.critic"]), flat(sac.critics[0] + sac.critics[1]))
    assert_close(stacked(got["target"]), flat(sac.targets[0] + sac.targets[1]))
    assert_close([got["networks.alpha"].log], [sac.log_alpha])
    assert (run.start["networks.critic"].weights[0] - got["networks.critic"].weights[0]).abs().max() > 0.01  # it moved


def test_critics_step_k_times_and_the_actor_once_per_environment_step():
    run = OnlineRun(flat_dataset(), seed=0)
    cfg = rlpd.Config(online_steps=12, start_steps=4, hidden=(8,), batch_size=8, critics=3, updates_per_step=5)
    rlpd.train(cfg, run)
    steps = {
        name: next(iter(run.objects[f"optimizers.{name}"].state.values()))["step"].item()
        for name in ("critic", "actor", "alpha")
    }
    assert steps == {"critic": 40, "actor": 8, "alpha": 8}
    assert run.update == 40
    assert len(run.logged) == 8


# --- sources ---


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_batches_hold_exactly_the_share(monkeypatch, ratio):
    shares = watch_shares(monkeypatch)
    cfg = rlpd.Config(
        online_steps=12, start_steps=4, hidden=(4,), batch_size=16, offline_ratio=ratio, updates_per_step=5, critics=2
    )
    rlpd.train(cfg, OnlineRun(flat_dataset(), seed=0))
    assert shares == [ratio] * 8 * 5


def test_sacfd_draws_from_data_and_own_steps_alike(monkeypatch):
    asked, sample = [], rlpd.ReplayBuffer.sample

    def spy(self, batch_size, generator, offline_ratio=None):
        asked.append(offline_ratio)
        return sample(self, batch_size, generator, offline_ratio)

    monkeypatch.setattr(rlpd.ReplayBuffer, "sample", spy)
    cfg = rlpd.Config(**rlpd.PRESETS["sacfd"] | {"updates": 3, "online_steps": 9, "start_steps": 4, "hidden": (4,)})
    run = OnlineRun(flat_dataset(n=40), seed=0)
    rlpd.train(cfg, run)
    assert asked == [1.0] * 3 + [None] * 5
    critic = run.objects["networks.critic"]
    assert len(critic.weights[0]) == 2
    assert not [name for name, _ in critic.named_parameters() if "scale" in name or "norm" in name]


def test_random_start_then_the_policy():
    run = OnlineRun(flat_dataset(high=3.0), seed=0)
    cfg = rlpd.Config(online_steps=330, start_steps=320, hidden=(8,), batch_size=8, critics=2, updates_per_step=1)
    rlpd.train(cfg, run)
    assert len(run.logged) == 10 == run.update
    start = np.array(run.env.actions[:320])
    assert np.abs(start).max() <= 3
    assert np.abs(start).max() > 2.9
    assert start.std() == pytest.approx(3 / math.sqrt(3), rel=0.1)  # uniform on [-3, 3]


def test_what_the_buffer_holds():
    """Both parts have their actions in [-1, 1] and their rewards transformed alike; terminations are data's or none."""
    dataset = flat_dataset(high=3.0)
    options = {"online_steps": 30, "start_steps": 20, "hidden": (8,), "batch_size": 8, "critics": 2}
    run = OnlineRun(dataset, seed=0)
    rlpd.train(rlpd.Config(**options, reward_scale=2.0, reward_shift=-1.0), run)
    buffer, n = run.objects["buffer"], len(dataset)
    assert buffer.reward[:n].numpy() == pytest.approx(2 * (dataset.reward - 1))
    assert buffer.reward[n:].numpy() == pytest.approx(2 * (np.array(run.env.rewards) - 1), abs=1e-6)
    executed = np.clip(np.array(run.env.actions) / 3, -1 + 1e-5, 1 - 1e-5)
    assert buffer.action[n:].numpy() == pytest.approx(executed, abs=1e-6)
    assert buffer.action[:n].numpy() == pytest.approx(dataset.action / 3, abs=1e-6)
    assert buffer.terminated[:n].sum() == 1
    run = OnlineRun(dataset, seed=0)
    rlpd.train(rlpd.Config(**options, offline_terminals=False), run)
    assert run.objects["buffer"].terminated.sum() == 0


# --- options ---


def test_the_defaults_are_the_authors_for_locomotion():
    cfg = rlpd.Config()
    assert (cfg.critics, cfg.target_min, cfg.updates_per_step, cfg.offline_ratio) == (10, 2, 20, 0.5)
    assert (cfg.actor_q, cfg.layer_norm, cfg.target_entropy, cfg.backup_entropy) == ("mean", True, -0.5, True)
    for options in rlpd.PRESETS.values():
        rlpd.Config(**options).check()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"offline_ratio": 1.5}, "offline_ratio 1.5: must be between 0 and 1"),
        ({"target_min": 4}, "target_min 4: must lie between 1 and critics = 3"),
        ({"target_min": 0}, "target_min 0: must lie between 1 and critics = 3"),
        ({"updates_per_step": 0}, "updates_per_step 0: must be at least 1"),
        ({"init_alpha": 0.0}, "init_alpha 0.0: must be above 0"),
    ],
)
def test_unusable_options_are_refused(tiny, run_file, option, message):
    done = run_file("rlpd", *small(tiny, **ONLINE | option))
    assert done.returncode == 2
    assert message in done.stderr


# --- whole runs ---


def test_end_to_end(tiny, run_file, tmp_path):
    done = run_file("rlpd", *small(tiny, **ONLINE | {"updates": 5, "online_steps": 130}))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path / "results")
    rows = pd.read_parquet(folder / "episodes.parquet")
    assert rows.groupby(["update", "env_step", "final"]).size().to_dict() == {(5, 0, False): 2, (145, 130, True): 3}
    stored = checkpoint(folder)["objects"]["buffer"]
    assert len(load(tiny)) + stored["online_size"] == stored["offline_size"] + 130
    assert_kept_policy_repeats_the_score(folder)


def test_killed_online_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(tiny, **ONLINE | {"checkpoint_every": 150})
    assert run_file("rlpd", *args, results=tmp_path / "straight").returncode == 0
    kill("rlpd", args, tmp_path / "broken", env_step=210)
    resumed = run_file("rlpd", *args, results=tmp_path / "broken")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resuming after environment step" in resumed.stdout
    assert_same_run(tmp_path / "straight", tmp_path / "broken")
