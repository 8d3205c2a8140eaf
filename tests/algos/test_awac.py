"""AWAC's whole update written a second way, what it prefers, and its resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from online_toys import OnlineRun
from resume import assert_same_run, kill, only_run
from toys import FakeRun, chain_dataset, flat_dataset

from hoard.algos import awac
from hoard.records.errors import BadInput
from hoard.runners.config import check


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options) -> awac.Config:
    return awac.Config(**{"hidden": (8,), "batch_size": 16, "lr": 1e-2, "normalize_obs": False, **options})


def data_of(dataset):
    fields = (dataset.obs, dataset.action, dataset.reward, dataset.next_obs, dataset.terminated)
    return [torch.as_tensor(x) for x in fields]


def assert_same_networks(mine, theirs):
    for name, net in mine.items():
        for one, two in zip(net.parameters(), theirs[name].parameters()):
            torch.testing.assert_close(two.detach(), one.detach(), rtol=1e-3, atol=1e-5, msg=name)


def test_updates_equal_a_second_writing():
    dataset = flat_dataset(n=40, seed=3)
    cfg = quick(updates=6, target_tau=0.1, beta=2.0, max_weight=1.5)
    run = FakeRun(dataset, seed=1, remember_start=True)
    awac.train(cfg, run)

    nets, stream = run.start, run.start_generator
    actor, critic, slow = (nets[k] for k in ("networks.actor", "networks.critic", "target"))
    adam = {net: torch.optim.Adam(net.parameters(), lr=cfg.lr) for net in (actor, critic)}

    def drawn(obs):
        mean, log_std = actor(obs)
        return torch.distributions.Normal(mean, log_std.exp()), (
            mean + log_std.exp() * torch.randn(mean.shape, generator=stream)
        ).clamp(-1, 1)

    for _ in range(6):
        index = torch.randint(len(dataset), (16,), generator=stream)
        s, a, r, n, end = (x[index] for x in data_of(dataset))
        with torch.no_grad():
            y = r + 0.99 * ~end * torch.minimum(*slow(n, drawn(n)[1]))
        adam[critic].zero_grad()
        sum(torch.nn.functional.mse_loss(q, y) for q in critic(s, a)).backward()
        adam[critic].step()
        with torch.no_grad():
            gain = torch.minimum(*critic(s, a)) - torch.minimum(*critic(s, drawn(s)[1]))
            weight = torch.exp(2.0 * gain).clamp(max=1.5)
        mean, log_std = actor(s)
        log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(a).sum(-1)
        adam[actor].zero_grad()
        (-(weight * log_prob).mean()).backward()
        adam[actor].step()
        for mine, theirs in zip(slow.parameters(), critic.parameters()):
            mine.data = 0.9 * mine.data + 0.1 * theirs.data
    assert_same_networks(nets, run.objects)


def test_it_finds_the_way_that_the_data_mixes():
    """On the chain the right move is played in 65 % of the steps; beta 0 clones that, a large one takes the best."""
    played = []
    for beta in (0.0, 30.0):
        run = FakeRun(chain_dataset(), seed=0)
        cfg = awac.Config(
            updates=1500, hidden=(64,), lr=3e-3, target_tau=0.1, discount=0.9, beta=beta, normalize_obs=False
        )
        awac.train(cfg, run)
        with torch.no_grad():
            played.append(run.objects["networks.actor"].act(torch.eye(5)[:4])[:, 0])
    assert (played[0] < 0.7).all(), played
    assert (played[1] > 0.9).all(), played


def test_online_it_learns_from_its_own_steps():
    run = OnlineRun(flat_dataset(n=40), seed=0)
    awac.train(quick(updates=2, online_steps=30, offline_ratio=0.5), run)
    assert len(run.env.actions) == 30 == run.objects["buffer"].online_size
    assert np.abs(run.env.actions).max() <= 1
    assert len(run.logged) == 32


@pytest.mark.parametrize("option", [{"beta": -1.0}, {"max_weight": 0.0}])
def test_unusable_options_are_refused(option):
    with pytest.raises(BadInput, match=next(iter(option))):
        check(awac.Config(**option))


# --- whole runs ---


@pytest.mark.parametrize("preset", list(awac.PRESETS))
def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path, preset):
    done = run_file("awac", *small(tiny, preset=preset))
    assert done.returncode == 0, done.stderr + done.stdout
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(tiny, updates=60, online_steps=700, checkpoint_every=100, eval_every=200)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("awac", *args, results=straight).returncode == 0
    kill("awac", args, broken, env_step=300)
    assert "resuming after" in run_file("awac", *args, results=broken).stdout
    assert_same_run(straight, broken)
