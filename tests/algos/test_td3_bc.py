"""TD3+BC's whole update written a second way, what it prefers, and its resume. Its parts: test_td3_family.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from resume import assert_same_run, kill, only_run
from toys import FakeRun, chain_dataset, flat_dataset, make_dataset

from hoard.algos import td3_bc
from hoard.runners.evaluate import uses_history


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options) -> td3_bc.Config:
    return td3_bc.Config(**{"hidden": (8,), "batch_size": 16, "lr": 1e-2, **options})


# --- the whole update ---


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_updates_equal_a_second_writing(delay):
    """Seven updates: noise, targets, the order of the steps, and the first head alone for the policy."""
    dataset = flat_dataset(n=40, seed=3)
    cfg = quick(updates=7, policy_delay=delay, target_tau=0.1, normalize_obs=False)
    run = FakeRun(dataset, seed=1, remember_start=True)
    td3_bc.train(cfg, run)

    nets, stream = run.start, run.start_generator
    actor, critic, slow, slow_actor = (nets[k] for k in ("networks.actor", "networks.critic", "target", "target_actor"))
    adam = [torch.optim.Adam(net.parameters(), lr=cfg.lr) for net in (actor, critic)]
    data = [
        torch.as_tensor(x) for x in (dataset.obs, dataset.action, dataset.reward, dataset.next_obs, dataset.terminated)
    ]
    for number in range(1, 8):
        index = torch.randint(len(dataset), (16,), generator=stream)
        s, a, r, n, end = (x[index] for x in data)
        noise = (0.2 * torch.randn(16, 2, generator=stream)).clamp(-0.5, 0.5)
        next_q = torch.minimum(*slow(n, (slow_actor(n) + noise).clamp(-1, 1))).detach()
        y = torch.where(end, r, r + 0.99 * next_q)
        one, two = critic(s, a)
        adam[1].zero_grad()
        (torch.nn.functional.mse_loss(one, y) + torch.nn.functional.mse_loss(two, y)).backward()
        adam[1].step()
        if number % delay:
            continue
        pi = actor(s)
        q = critic(s, pi)[0]
        adam[0].zero_grad()
        (torch.nn.functional.mse_loss(pi, a) - 2.5 / q.abs().mean().item() * q.mean()).backward()
        adam[0].step()
        for behind, net in ((slow, critic), (slow_actor, actor)):
            for mine, theirs in zip(behind.parameters(), net.parameters()):
                mine.data = 0.9 * mine.data + 0.1 * theirs.data
    for name, net in nets.items():
        for mine, theirs in zip(net.parameters(), run.objects[name].parameters()):
            torch.testing.assert_close(theirs.detach(), mine.detach(), rtol=1e-4, atol=1e-6)


# --- what it prefers ---


def two_behaviours(n: int = 200):
    """One-step episodes from the same state: action -0.8 returns 0, action +0.8 returns 1, nine to one."""
    good = np.arange(n) % 10 == 0
    return make_dataset(
        np.ones((2 * n, 2)), np.where(good, 0.8, -0.8)[:, None], good.astype(float), np.ones(n, bool), [1] * n
    )


def test_alpha_goes_from_cloning_to_the_best_action():
    """Cloning plays the mean, 0.1 * 0.8 - 0.9 * 0.8; with more weight on Q, the action moves to the good one's side."""
    played = []
    for alpha in (0.0, 2.5, 20.0):
        run = FakeRun(two_behaviours(), seed=0)
        td3_bc.train(td3_bc.Config(updates=1500, hidden=(32,), batch_size=64, lr=1e-3, alpha=alpha), run)
        played.append(run.objects["networks.actor"].act(torch.ones(1, 2)).item())
    assert played[0] == pytest.approx(-0.64, abs=0.08)
    assert played[0] + 0.3 < played[1]
    assert played[2] > 0.7


def test_it_finds_the_way_that_the_data_mixes():
    """On the chain the right move is played in 65 % of the steps: its mean is 0.3, the best policy's is 1.

    Half a move is worth about 0.1 where mean |Q| is 0.9, so alpha 2.5 would add about 0.15 to the mean.
    """
    run = FakeRun(chain_dataset(), seed=0)
    cfg = td3_bc.Config(updates=2000, hidden=(64,), lr=3e-3, target_tau=0.1, discount=0.9, alpha=25.0)
    td3_bc.train(cfg, run)
    with torch.no_grad():
        action = run.objects["networks.actor"](torch.eye(5)[:4])[:, 0]
        q = run.objects["networks.critic"](torch.eye(5)[[3, 2]], torch.ones(2, 1)).mean(dim=0)
    assert (action > 0.9).all(), action
    assert q[0].item() == pytest.approx(1.0, abs=0.1)  # the step into the goal
    assert q[1].item() == pytest.approx(-0.05 + 0.9 * 1.0, abs=0.12)  # the one before


# --- whole runs ---


def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path):
    done = run_file("td3_bc", *small(tiny))
    assert done.returncode == 0, done.stderr + done.stdout
    assert not uses_history(td3_bc.Actor(td3_bc.Config(), 3, 1, generator()))
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    """Checkpoints fall between two steps of the policy: the delay goes on where it stood."""
    args = small(tiny, updates=1200, checkpoint_every=101, eval_every=400)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("td3_bc", *args, results=straight).returncode == 0
    kill("td3_bc", args, broken, update=250)
    assert "resuming after update" in run_file("td3_bc", *args, results=broken).stdout
    assert_same_run(straight, broken)
