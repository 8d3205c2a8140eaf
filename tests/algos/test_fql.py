"""FQL's whole update written a second way, its flow in closed form, and resume."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from online_toys import OnlineRun
from resume import assert_same_run, kill, only_run
from toys import FakeRun, chain_dataset, flat_dataset

from hoard.algos import fql
from hoard.datasets import plugins
from hoard.records.errors import BadInput
from hoard.runners.config import check


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options) -> fql.Config:
    return fql.Config(**{"hidden": (8,), "batch_size": 16, "lr": 1e-2, "normalize_obs": False, **options})


def data_of(dataset):
    fields = (dataset.obs, dataset.action, dataset.reward, dataset.next_obs, dataset.terminated)
    return [torch.as_tensor(x) for x in fields]


def assert_same_networks(mine, theirs):
    for name, net in mine.items():
        for one, two in zip(net.parameters(), theirs[name].parameters()):
            torch.testing.assert_close(two.detach(), one.detach(), rtol=1e-3, atol=1e-5, msg=name)


def test_updates_equal_a_second_writing():
    dataset = flat_dataset(n=40, seed=3)
    for options in ({}, {"normalize_q": True, "target_q": "min", "alpha": 0.3}):
        cfg = quick(updates=5, target_tau=0.1, flow_steps=3, **options)
        run = FakeRun(dataset, seed=1, remember_start=True)
        fql.train(cfg, run)

        nets, stream = run.start, run.start_generator
        flow, actor, critic, slow = (nets[k] for k in ("networks.flow", "networks.actor", "networks.critic", "target"))
        adam = {net: torch.optim.Adam(net.parameters(), lr=cfg.lr) for net in (flow, actor, critic)}

        def descend(net, loss, adam=adam):
            adam[net].zero_grad()
            loss.backward()
            adam[net].step()

        for _ in range(5):
            index = torch.randint(len(dataset), (16,), generator=stream)
            s, a, r, n, end = (x[index] for x in data_of(dataset))
            with torch.no_grad():
                q = slow(n, actor(n, torch.randn(16, 2, generator=stream)).clamp(-1, 1))
                y = r + 0.99 * ~end * (torch.minimum(*q) if cfg.target_q == "min" else (q[0] + q[1]) / 2)
            one, two = critic(s, a)
            descend(critic, ((one - y) ** 2).mean() / 2 + ((two - y) ** 2).mean() / 2)
            z = torch.randn(16, 2, generator=stream)
            with torch.no_grad():
                x = z
                for k in range(3):
                    x = x + flow(s, x, torch.full((16, 1), k / 3)) / 3
            action = actor(s, z)
            q = critic(s, action.clamp(-1, 1)).mean(0)
            size = q.abs().mean().item() if cfg.normalize_q else 1.0
            descend(actor, cfg.alpha * ((action - x.clamp(-1, 1)) ** 2).mean() - q.mean() / size)
            for mine, theirs in zip(slow.parameters(), critic.parameters()):
                mine.data = 0.9 * mine.data + 0.1 * theirs.data
            z, t = torch.randn(16, 2, generator=stream), torch.rand(16, 1, generator=stream)
            descend(flow, ((flow(s, z + t * (a - z), t) - a + z) ** 2).mean())
        assert_same_networks(nets, run.objects)


def test_euler_is_exact_on_a_constant_velocity_and_known_on_a_linear_one():
    flow = fql.Flow(fql.Config(hidden=(4,), flow_steps=8), 3, 2, generator())
    obs, noise = torch.zeros(5, 3), 0.1 * torch.randn(5, 2, generator=generator())
    flow.forward = lambda obs, x, t: torch.full_like(x, 0.25)
    assert flow.solve(obs, noise) == pytest.approx(noise + 0.25)
    flow.forward = lambda obs, x, t: -x
    torch.testing.assert_close(flow.solve(obs, noise), noise * (1 - 1 / 8) ** 8)
    seen = []
    flow.forward = lambda obs, x, t: seen.append(t[0].item()) or 9 * torch.ones_like(x)
    assert flow.solve(obs, noise).tolist() == [[1.0, 1.0]] * 5  # cut at the end
    assert seen == [k / 8 for k in range(8)]


def test_the_flow_keeps_both_modes_that_a_mean_would_mix():
    rng = np.random.default_rng(0)
    dataset = flat_dataset(n=400, seed=0)
    dataset.observations[:] = 1.0
    dataset.action[:, 0] = np.where(rng.random(400) < 0.5, -0.7, 0.7)
    run = FakeRun(dataset, seed=0)
    fql.train(quick(updates=1500, hidden=(64, 64), lr=2e-3, batch_size=128, policy="flow"), run)
    drawn = run.objects["networks.flow"].explore(torch.ones(1000, 3), generator(5))[:, 0]
    assert ((drawn.abs() - 0.7).abs() < 0.2).float().mean() > 0.85
    assert 0.35 < (drawn > 0).float().mean() < 0.65
    before = run.objects["networks.critic"].weights[0]
    assert torch.equal(before, fql.frozen_copy(run.objects["target"]).weights[0])  # no critic is trained


@pytest.mark.slow
def test_alpha_goes_from_climbing_to_cloning():
    run_of = {}
    for alpha in (0.03, 100.0):
        run = FakeRun(chain_dataset(), seed=0)
        cfg = fql.Config(
            updates=1500, hidden=(64, 64), lr=2e-3, target_tau=0.1, discount=0.9, alpha=alpha, normalize_q=True
        )
        fql.train(cfg, run)
        run_of[alpha] = run.objects["networks.actor"].explore(torch.eye(5)[2].expand(500, -1), generator(1)).mean()
    assert run_of[0.03] > 0.9
    assert run_of[100.0] < 0.7


def test_online_it_learns_from_its_own_steps():
    run = OnlineRun(flat_dataset(n=40), seed=0)
    fql.train(quick(updates=2, online_steps=30, offline_ratio=0.5), run)
    assert len(run.env.actions) == 30 == run.objects["buffer"].online_size
    assert np.abs(run.env.actions).max() <= 1


@pytest.mark.parametrize(
    "option", [{"alpha": -1.0}, {"flow_steps": 0}, {"online_steps": 10, "policy": "flow", "updates": 10}]
)
def test_unusable_options_are_refused(option):
    with pytest.raises(BadInput, match=next(iter(option))):
        check(fql.Config(**option))


def test_values_blended_by_hubl_need_values():
    data = plugins.apply(flat_dataset(n=40), "hubl=rank:0.1")
    fql.train(quick(updates=1), OnlineRun(data, seed=0))
    with pytest.raises(ValueError, match="bootstraps no value"):
        fql.train(quick(updates=1, policy="flow"), OnlineRun(data, seed=0))


def test_the_policy_is_copied_whole():
    actor = fql.Actor(fql.Config(hidden=(4,)), 3, 2, generator())
    assert torch.equal(
        copy.deepcopy(actor).explore(torch.ones(4, 3), generator(1)), actor.explore(torch.ones(4, 3), generator(1))
    )
    assert math.isfinite(actor.explore(torch.ones(4, 3), generator(2)).sum())


# --- whole runs ---


@pytest.mark.parametrize("preset", list(fql.PRESETS))
def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path, preset):
    done = run_file("fql", *small(tiny, preset=preset))
    assert done.returncode == 0, done.stderr + done.stdout
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(tiny, updates=60, online_steps=420, checkpoint_every=60, eval_every=200)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("fql", *args, results=straight).returncode == 0
    kill("fql", args, broken, env_step=210)
    assert "resuming after" in run_file("fql", *args, results=broken).stdout
    assert_same_run(straight, broken)
