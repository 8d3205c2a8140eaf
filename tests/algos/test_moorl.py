"""MOORL against a plain writing of SAC and Reptile; its parts against their definitions; sources; resume."""

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

from hoard.algos import moorl
from hoard.datasets import load

ONLINE = {"online_steps": 430, "start_steps": 60, "inner_steps": 2, "eval_every": 200, "checkpoint_every": 100}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the whole update ---


def by_hand(run: OnlineRun, cfg: moorl.Config, bursts: int) -> tuple[PlainSAC, list, list]:
    """The same bursts by `PlainSAC` with an outer update; the meta-weights of actor and critics."""
    sac = PlainSAC(run.start, cfg.lr, run.dataset.action_dim)
    draws = run.start_generator
    buffer = run.objects["buffer"]
    weights = [flat(sac.actor), flat(sac.critics[0] + sac.critics[1])]
    meta = [[w.detach().clone() for w in group] for group in weights]
    for _ in range(bursts):
        for group, slow in zip(weights, meta):
            for w, m in zip(group, slow):
                w.data = m.clone()
        for _ in range(cfg.inner_steps):
            batch = buffer.gather(torch.randint(len(run.dataset), (cfg.batch_size,), generator=draws))
            noise = lambda: torch.randn((cfg.batch_size, 2), generator=draws, dtype=torch.float64)  # noqa: E731
            sac.critic_step(batch, noise())
            sac.actor_step(batch["obs"], noise(), target_entropy=-1.0)
        for group, slow in zip(weights, meta):
            for w, m in zip(group, slow):
                m += cfg.eta_meta * (w.detach() - m)
    return sac, *meta


def trained(cfg: moorl.Config) -> OnlineRun:
    run = OnlineRun(flat_dataset(n=60, seed=3), seed=1, double=True, remember_start=True)
    moorl.train(cfg, run)
    return run


@pytest.mark.parametrize("k", [1, 3])
def test_without_meta_step_and_on_one_source_it_is_sac_update_for_update(k):
    cfg = moorl.Config(
        updates=6 // k, online_steps=0, hidden=(16, 8), batch_size=32, eta_meta=1.0, inner_steps=k, lr=0.01
    )
    run = trained(cfg)
    sac, *_ = by_hand(run, cfg, bursts=6 // k)
    got = run.objects
    assert_close(layers(got["networks.actor"]), flat(sac.actor))
    assert_close(stacked(got["networks.critic"]), flat(sac.critics[0] + sac.critics[1]))
    assert_close(stacked(got["target"]), flat(sac.targets[0] + sac.targets[1]))
    assert_close([got["networks.alpha"].log], [sac.log_alpha])
    assert (
        run.start["networks.critic"].weights[0] - got["networks.critic"].weights[0]
    ).abs().max() > 0.01  # it went somewhere
    for name in ("actor", "critic"):  # the outer update is a copy, to the bit
        slow, fast = got[f"meta.{name}"].parameters(), got[f"networks.{name}"].parameters()
        assert all(torch.equal(a, b) for a, b in zip(slow, fast, strict=True))


@pytest.mark.parametrize("eta", [0.25, 0.7])
def test_the_outer_update_is_reptiles(eta):
    """meta + eta (fast - meta) after every burst of K = 3; bursts start from meta; Adam and target go on."""
    cfg = moorl.Config(updates=3, online_steps=0, hidden=(16, 8), batch_size=32, eta_meta=eta, inner_steps=3, lr=0.01)
    run = trained(cfg)
    sac, meta_actor, meta_critic = by_hand(run, cfg, bursts=3)
    got = run.objects
    assert_close(layers(got["meta.actor"]), meta_actor)
    assert_close(stacked(got["meta.critic"]), meta_critic)
    assert_close(stacked(got["networks.critic"]), flat(sac.critics[0] + sac.critics[1]))
    assert_close(stacked(got["target"]), flat(sac.targets[0] + sac.targets[1]))
    assert_close([got["networks.alpha"].log], [sac.log_alpha])


def test_options_of_the_burst():
    def run(**options):
        base = {"updates": 2, "online_steps": 0, "hidden": (8,), "batch_size": 16, "lr": 0.01, "inner_steps": 3}
        return trained(moorl.Config(**base | options)).objects

    def start_and_end(got, name):
        return [torch.cat([p.flatten() for p in got[n].parameters()]) for n in (f"networks.{name}", f"meta.{name}")]

    plain = run()
    steps = lambda got: next(iter(got["optimizers.critic"].state.values()))["step"].item()  # noqa: E731
    assert (steps(plain), steps(run(reset_adam=True))) == (6, 3)

    once = trained(
        cfg := moorl.Config(updates=1, online_steps=0, hidden=(8,), inner_steps=3, target_mode="meta_once_per_burst")
    )
    old, meta, target = (
        net.weights[0] for net in (once.start["target"], once.objects["meta.critic"], once.objects["target"])
    )
    torch.testing.assert_close(target, old + cfg.target_tau * (meta - old))

    assert torch.equal(run(alpha_mode="fixed")["networks.alpha"].log.exp(), torch.ones((), dtype=torch.float64))
    one = trained(
        cfg := moorl.Config(updates=1, online_steps=0, hidden=(8,), inner_steps=3, lr=0.01, alpha_mode="meta")
    )
    fast, slow = one.objects["networks.alpha"].log, one.objects["meta.alpha"].log
    assert slow.item() == pytest.approx(cfg.eta_meta * fast.item())  # it started at log 1 = 0
    assert fast.item() != 0

    only_last = run(actor_steps="last")
    assert next(iter(only_last["optimizers.actor"].state.values()))["step"].item() == 2
    assert steps(only_last) == 6
    slow, fast = start_and_end(plain, "actor")
    assert not torch.equal(slow, fast)


@pytest.mark.parametrize(("reuse", "batches"), [(False, 6), (True, 2)])
def test_batches_of_a_burst(monkeypatch, reuse, batches):
    drawn = watch_shares(monkeypatch)
    trained(moorl.Config(updates=2, online_steps=0, hidden=(8,), batch_size=16, inner_steps=3, reuse_batch=reuse))
    assert drawn == [1.0] * batches


@pytest.mark.parametrize("act_with", ["meta", "fast"])
def test_who_acts_and_is_evaluated(act_with, monkeypatch):
    run = OnlineRun(flat_dataset(), seed=0)
    explore, acted = moorl.Actor.explore, []
    monkeypatch.setattr(moorl.Actor, "explore", lambda self, *args: acted.append(self) or explore(self, *args))
    run.eval_at = (12,)
    moorl.train(
        moorl.Config(online_steps=12, start_steps=6, hidden=(8,), batch_size=4, act_with=act_with, lr=0.01), run
    )
    acting = run.objects["meta.actor" if act_with == "meta" else "networks.actor"]
    assert run.evaluated == [(12, "", acting)]
    assert acted == [acting] * 6


# --- sources ---


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_one_source_per_burst_as_often_as_asked(monkeypatch, p):
    shares = watch_shares(monkeypatch)
    cfg = moorl.Config(online_steps=158, start_steps=8, hidden=(4,), batch_size=8, inner_steps=2, p_offline=p)
    moorl.train(cfg, OnlineRun(flat_dataset(), seed=0))
    bursts = np.array(shares).reshape(-1, 2)
    assert len(bursts) == 150
    assert set(bursts.flatten()) <= {0.0, 1.0}
    assert (bursts[:, 0] == bursts[:, 1]).all()
    # Five standard deviations of a binomial; p = 0 and 1 leave no room at all.
    assert abs(bursts[:, 0].mean() - p) <= 5 * math.sqrt(p * (1 - p) / 150)


def test_several_bursts_a_step_draw_their_source_each(monkeypatch):
    shares = watch_shares(monkeypatch)
    options = {"online_steps": 108, "start_steps": 8, "hidden": (4,), "batch_size": 8, "inner_steps": 1}
    run = OnlineRun(flat_dataset(), seed=0)
    moorl.train(moorl.Config(**options, bursts_per_step=5), run)
    assert len(shares) == 5 * 101 - 5 == run.update
    late = np.array(shares[50:]).reshape(-1, 5)
    assert (late.min(axis=1) < late.max(axis=1)).any()
    assert abs(late.mean() - 0.5) <= 5 * math.sqrt(0.25 / late.size)


def test_the_dataset_alone_until_the_replay_holds_a_batch(monkeypatch):
    shares = watch_shares(monkeypatch)
    cfg = moorl.Config(online_steps=40, start_steps=0, hidden=(4,), batch_size=16, inner_steps=1, p_offline=0.01)
    moorl.train(cfg, OnlineRun(flat_dataset(), seed=0))
    assert shares[:15] == [1.0] * 15
    assert np.mean(shares[15:]) < 0.5


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_mixed_batches_hold_exactly_the_share(monkeypatch, ratio):
    shares = watch_shares(monkeypatch)
    cfg = moorl.Config(
        online_steps=12, start_steps=4, hidden=(4,), batch_size=16, sampling="mixed", offline_ratio=ratio
    )
    moorl.train(cfg, OnlineRun(flat_dataset(), seed=0))
    assert shares == [ratio] * 8 * 5


def test_with_no_chance_for_the_dataset_it_is_never_looked_at():
    """Not a number anywhere in the offline part, and every weight stays finite."""
    cfg = moorl.Config(online_steps=20, start_steps=5, hidden=(8,), batch_size=8, p_offline=0.0)
    run = OnlineRun(flat_dataset(), seed=0)
    register = run.register

    def spoil(**objects):
        for name in ("action", "reward"):
            getattr(objects["buffer"], name)[: len(run.dataset)] = math.nan
        register(**objects)

    run.register = spoil
    moorl.train(cfg, run)
    assert len(run.logged) == 15
    assert all(torch.isfinite(p).all() for n in ("actor", "critic") for p in run.objects[f"networks.{n}"].parameters())


def test_random_start_then_the_policy():
    run = OnlineRun(flat_dataset(high=3.0), seed=0)
    moorl.train(moorl.Config(online_steps=330, start_steps=320, hidden=(8,), batch_size=8), run)
    assert len(run.logged) == 10 == run.update
    start = np.array(run.env.actions[:320])
    assert np.abs(start).max() <= 3
    assert np.abs(start).max() > 2.9
    assert start.std() == pytest.approx(3 / math.sqrt(3), rel=0.1)  # uniform on [-3, 3]


def test_what_the_buffer_holds():
    """Both parts have their actions in [-1, 1] and their rewards transformed alike; terminations are data's or none."""
    dataset = flat_dataset(high=3.0)
    options = {"online_steps": 30, "start_steps": 20, "hidden": (8,), "batch_size": 8, "reward_scale": 2.0}
    run = OnlineRun(dataset, seed=0)
    moorl.train(moorl.Config(**options, reward_shift=-1.0), run)
    buffer, n = run.objects["buffer"], len(dataset)
    assert buffer.reward[:n].numpy() == pytest.approx(2 * (dataset.reward - 1))
    assert buffer.reward[n:].numpy() == pytest.approx(2 * (np.array(run.env.rewards) - 1), abs=1e-6)
    done = np.clip(np.array(run.env.actions) / 3, -1 + 1e-5, 1 - 1e-5)
    assert buffer.action[n:].numpy() == pytest.approx(done, abs=1e-6)
    assert buffer.action[:n].numpy() == pytest.approx(dataset.action / 3, abs=1e-6)
    assert buffer.terminated[:n].sum() == 1
    run = OnlineRun(dataset, seed=0)
    moorl.train(moorl.Config(**options, offline_terminals=False), run)
    assert run.objects["buffer"].terminated.sum() == 0


# --- options ---


def test_presets_are_configs():
    assert moorl.Config(**moorl.PRESETS["moorl"]) == moorl.Config()
    for options in moorl.PRESETS.values():
        moorl.Config(**options).check()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"p_offline": 1.5}, "p_offline 1.5: must lie between 0 and 1"),
        ({"offline_ratio": -0.1}, "offline_ratio -0.1: must be between 0 and 1"),
        ({"target_min": 3}, "target_min 3: must lie between 1 and critics = 2"),
        ({"eta_meta": 0.0}, "eta_meta 0.0: above 0, at most 1"),
        ({"inner_steps": 0}, "inner_steps 0: at least 1"),
        ({"bursts_per_step": 0}, "bursts_per_step 0: at least 1"),
        ({"init_alpha": 0.0}, "init_alpha 0.0: must be above 0"),
    ],
)
def test_unusable_options_are_refused(tiny, run_file, option, message):
    done = run_file("moorl", *small(tiny, **ONLINE | option))
    assert done.returncode == 2
    assert message in done.stderr


# --- whole runs ---


@pytest.mark.parametrize("act_with", ["meta", "fast"])
@pytest.mark.parametrize(("sampling", "source"), [("burst", "online"), ("mixed", "mixed")])
def test_end_to_end(tiny, run_file, tmp_path, act_with, sampling, source):
    options = ONLINE | {"updates": 5, "online_steps": 130, "act_with": act_with, "sampling": sampling}
    done = run_file("moorl", *small(tiny, **options))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path / "results")
    rows = pd.read_parquet(folder / "episodes.parquet")
    assert rows.groupby(["update", "env_step", "final"]).size().to_dict() == {(5, 0, False): 2, (75, 130, True): 3}
    metrics = pd.read_parquet(folder / "metrics.parquet")
    # offline: the five updates before the first environment step, and with bursts also some of those after it
    assert {name for name in metrics if name.startswith("values/q_")} == {"values/q_offline", f"values/q_{source}"}
    stored = checkpoint(folder)["objects"]["buffer"]
    assert len(load(tiny)) + stored["online_size"] == stored["offline_size"] + 130
    assert_kept_policy_repeats_the_score(folder)


def test_killed_online_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(tiny, **ONLINE | {"updates": 10, "checkpoint_every": 150})
    assert run_file("moorl", *args, results=tmp_path / "straight").returncode == 0
    kill("moorl", args, tmp_path / "broken", env_step=210)
    resumed = run_file("moorl", *args, results=tmp_path / "broken")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resuming after environment step" in resumed.stdout
    assert_same_run(tmp_path / "straight", tmp_path / "broken")
