"""PRDC's neighbours by brute force, its whole update written a second way, what it prefers, and its resume.

What it shares with TD3+BC: test_td3_family.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from resume import assert_same_run, kill, only_run
from toys import FakeRun, flat_dataset, make_dataset

from hoard.algos import prdc
from hoard.records.errors import BadInput
from hoard.runners.config import check
from hoard.runners.evaluate import uses_history


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options) -> prdc.Config:
    return prdc.Config(**{"hidden": (8,), "batch_size": 16, "lr": 1e-2, **options})


# --- neighbours ---


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_are_those_of_a_search_by_hand(beta, k):
    obs, action = torch.randn(200, 3, generator=generator()), torch.rand(200, 2, generator=generator(1)) * 2 - 1
    neighbors = prdc.Neighbors(obs, action, quick(beta=beta, neighbor=k))
    asked, played = torch.randn(50, 3, generator=generator(2)), torch.rand(50, 2, generator=generator(3)) * 2 - 1
    got = neighbors.actions(asked, played)
    for s, a, found in zip(asked, played, got):
        distance = [
            sum((beta * (x - y)) ** 2 for x, y in zip(s.tolist(), t.tolist()))
            + sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist()))
            for t, b in zip(obs, action)
        ]
        assert torch.equal(found, action[sorted(range(200), key=distance.__getitem__)[k - 1]])


def test_no_gradient_runs_through_the_search():
    neighbors = prdc.Neighbors(torch.zeros(4, 3), torch.rand(4, 2, generator=generator()), quick())
    assert not neighbors.actions(torch.zeros(1, 3), torch.zeros(1, 2, requires_grad=True)).requires_grad


def test_more_neighbours_than_steps_are_refused():
    with pytest.raises(ValueError, match="neighbor 9: the dataset has only 8 steps"):
        prdc.train(quick(neighbor=9), FakeRun(flat_dataset(n=8), seed=0))


@pytest.mark.parametrize("normalize", [True, False])
def test_the_search_sees_observations_as_the_networks_do(monkeypatch, normalize):
    """Both the tree and the keys; actions in [-1, 1] though the environment's go to 4."""
    dataset, built, asked = flat_dataset(n=30, high=4.0), [], []
    init, actions = prdc.Neighbors.__init__, prdc.Neighbors.actions
    spy = lambda self, *args: (built.append(args[:2]), init(self, *args))[1]  # noqa: E731
    monkeypatch.setattr(prdc.Neighbors, "__init__", spy)
    monkeypatch.setattr(prdc.Neighbors, "actions", lambda self, *args: (asked.append(args), actions(self, *args))[1])
    prdc.train(quick(updates=2, normalize_obs=normalize), FakeRun(dataset, seed=0))
    mean, std = (dataset.obs.mean(0), dataset.obs.std(0) + 1e-3) if normalize else (0.0, 1.0)
    ((obs, action),) = built
    assert obs.numpy() == pytest.approx((dataset.obs - mean) / std, abs=1e-4)
    assert action.numpy() == pytest.approx(dataset.action / 4, abs=1e-6)
    rows = {tuple(row) for row in obs.tolist()}
    assert all(tuple(row) in rows for row in asked[0][0].tolist())


# --- the whole update ---


def test_updates_equal_a_second_writing():
    """Six updates: the policy is held to the action of the step nearest to where it stands, found by brute force."""
    dataset = flat_dataset(n=40, seed=3)
    cfg = quick(updates=6, target_tau=0.1, beta=0.7, normalize_obs=False, reward_scale=3.0, reward_shift=-1.0)
    run = FakeRun(dataset, seed=1, remember_start=True)
    prdc.train(cfg, run)

    nets, stream = run.start, run.start_generator
    actor, critic, slow, slow_actor = (nets[k] for k in ("networks.actor", "networks.critic", "target", "target_actor"))
    adam = [torch.optim.Adam(net.parameters(), lr=cfg.lr) for net in (actor, critic)]
    data = [
        torch.as_tensor(x) for x in (dataset.obs, dataset.action, dataset.reward, dataset.next_obs, dataset.terminated)
    ]
    steps = torch.cat([0.7 * data[0], data[1]], 1)
    others = 0
    for number in range(1, 7):
        index = torch.randint(len(dataset), (16,), generator=stream)
        s, a, r, n, end = (x[index] for x in data)
        noise = (0.2 * torch.randn(16, 2, generator=stream)).clamp(-0.5, 0.5)
        next_q = torch.minimum(*slow(n, (slow_actor(n) + noise).clamp(-1, 1))).detach()
        y = 3 * (r - 1) + torch.where(end, 0.0, 0.99 * next_q)
        one, two = critic(s, a)
        adam[1].zero_grad()
        (torch.nn.functional.mse_loss(one, y) + torch.nn.functional.mse_loss(two, y)).backward()
        adam[1].step()
        if number % 2:
            continue
        pi = actor(s)
        nearest = torch.cdist(torch.cat([0.7 * s, pi], 1), steps).argmin(1)
        others += (nearest != index).sum().item()
        q = critic(s, pi)[0]
        adam[0].zero_grad()
        (torch.nn.functional.mse_loss(pi, data[1][nearest]) - 2.5 / q.abs().mean().item() * q.mean()).backward()
        adam[0].step()
        for behind, net in ((slow, critic), (slow_actor, actor)):
            for mine, theirs in zip(behind.parameters(), net.parameters()):
                mine.data = 0.9 * mine.data + 0.1 * theirs.data
    assert others > 10  # the neighbour is not always the step itself
    for name, net in nets.items():
        for mine, theirs in zip(net.parameters(), run.objects[name].parameters()):
            torch.testing.assert_close(theirs.detach(), mine.detach(), rtol=1e-4, atol=1e-6)


# --- what it prefers ---


def test_without_values_it_plays_an_action_of_the_data_and_not_the_mean_of_two():
    """One state, actions -0.8 and +0.8 in equal shares: cloning plays 0, which is far from every step of the data."""
    action = np.where(np.arange(200) % 2 == 0, 0.8, -0.8)[:, None]
    dataset = make_dataset(np.ones((400, 2)), action, np.zeros(200), np.ones(200, bool), [1] * 200)
    run = FakeRun(dataset, seed=0)
    prdc.train(prdc.Config(updates=1000, hidden=(32,), batch_size=64, lr=1e-3, alpha=0.0), run)
    assert abs(run.objects["networks.actor"].act(torch.ones(1, 2)).item()) == pytest.approx(0.8, abs=0.05)


def test_beta_says_how_far_away_a_state_may_be():
    """States 0 and 1: the first was seen with action -0.8 only, the second with +0.8 only, worth 1.

    With a small beta the second's action is at hand in the first state; with a large one it is not.
    """
    good = np.arange(200) % 2 == 0
    state = np.repeat(np.where(good, 1.0, 0.0), 2)[:, None]
    dataset = make_dataset(state, np.where(good, 0.8, -0.8)[:, None], good.astype(float), np.ones(200, bool), [1] * 200)
    played = []
    for beta in (0.01, 10.0):
        run = FakeRun(dataset, seed=0)
        cfg = prdc.Config(updates=1500, hidden=(32,), batch_size=64, lr=1e-3, beta=beta, normalize_obs=False)
        prdc.train(cfg, run)
        played.append(run.objects["networks.actor"].act(torch.zeros(1, 1)).item())
    assert played[0] > 0.8
    assert played[1] < 0.2


# --- options ---


def test_presets_are_the_authors():
    assert prdc.Config().beta == 2.0
    assert prdc.Config(**prdc.PRESETS["halfcheetah"]).alpha == 40.0
    antmaze = prdc.Config(**prdc.PRESETS["antmaze"])
    assert (antmaze.alpha, antmaze.beta, antmaze.reward_scale, antmaze.reward_shift) == (7.5, 7.5, 10_000.0, -1.0)


@pytest.mark.parametrize(
    ("option", "message"),
    [({"beta": -1.0}, "beta -1.0: must not be negative"), ({"neighbor": 0}, "neighbor 0: must be at least 1")],
)
def test_unusable_options_are_refused(option, message):
    with pytest.raises(BadInput, match=message):
        check(prdc.Config(**option))


# --- whole runs ---


def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path):
    done = run_file("prdc", *small(tiny))
    assert done.returncode == 0, done.stderr + done.stdout
    assert not uses_history(prdc.Actor(prdc.Config(), 3, 1, generator()))
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    """Checkpoints fall between two steps of the policy: the delay goes on where it stood."""
    args = small(tiny, updates=1600, checkpoint_every=401, eval_every=800)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("prdc", *args, results=straight).returncode == 0
    kill("prdc", args, broken, update=700)
    assert "resuming after update" in run_file("prdc", *args, results=broken).stdout
    assert_same_run(straight, broken)
