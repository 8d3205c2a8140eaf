"""IQL's losses and fixed points against computations made another way."""

from __future__ import annotations

import copy
import importlib
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from toys import FakeRun, chain_dataset, flat_dataset

from hoard.algos import iql
from hoard.datasets import ReplayBuffer


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.9])
def test_expectile_loss_and_gradient(expectile):
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(50, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = iql.expectile_loss(error, expectile)
    by_hand = sum((expectile if u > 0 else 1 - expectile) * u * u for u in error.tolist()) / len(error)
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, error)
    step = 1e-6
    for i in range(len(error)):
        shifted = error.detach().clone()
        shifted[i] += step
        up = iql.expectile_loss(shifted, expectile)
        shifted[i] -= 2 * step
        down = iql.expectile_loss(shifted, expectile)
        assert gradient[i].item() == pytest.approx((up - down).item() / (2 * step), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("expectile", [0.5, 0.8, 0.95])
def test_loss_is_least_at_the_expectile(expectile):
    """The tau-expectile m solves tau E[(x-m)+] = (1-tau) E[(m-x)+]."""
    x = np.random.default_rng(0).normal(size=200)
    m = expectile_of(x, np.ones_like(x), expectile)
    at = lambda v: iql.expectile_loss(torch.as_tensor(x - v), expectile).item()  # noqa: E731
    assert at(m) < min(at(m - 1e-3), at(m + 1e-3))


def expectile_of(x: np.ndarray, weight: np.ndarray, tau: float) -> float:
    def balance(m: float) -> float:
        return float((weight * (tau * np.maximum(x - m, 0) - (1 - tau) * np.maximum(m - x, 0))).sum())

    return x[0] if np.ptp(x) == 0 else brentq(balance, x.min(), x.max(), xtol=1e-12)


def fixed_point(dataset, expectile: float, discount: float) -> tuple[dict, dict]:
    """V(s) = expectile over the data of Q(s, .), Q(s, a) = mean of r + discount (1 - terminated) V(s')."""
    state, action = dataset.obs.argmax(1), np.round(dataset.action[:, 0], 3)
    following = dataset.next_obs.argmax(1)
    v = dict.fromkeys(range(dataset.obs_dim), 0.0)
    for _ in range(2000):
        backup = dataset.reward + discount * (1 - dataset.terminated) * np.array([v[s] for s in following])
        q = {key: backup[(state == key[0]) & (action == key[1])].mean() for key in set(zip(state, action))}
        values = np.array([q[key] for key in zip(state, action)])
        v |= {s: expectile_of(values[state == s], np.ones((state == s).sum()), expectile) for s in set(state)}
    return v, q


@pytest.mark.parametrize(("order", "expectile"), [("paper", 0.7), pytest.param("corl", 0.9, marks=pytest.mark.slow)])
def test_training_reaches_the_tabular_fixed_point(order, expectile):
    """On one-hot states, V and Q of a whole training run are the fixed point found by direct iteration."""
    dataset = chain_dataset()
    cfg = iql.Config(
        updates=4000, hidden=(64,), batch_size=256, lr=3e-3, target_tau=0.1, discount=0.9, expectile=expectile,
        reward_mode="none", clip_actions=False, update_order=order,
    )  # fmt: skip
    run = FakeRun(dataset, seed=0)
    iql.train(cfg, run)
    value, critic = run.objects["networks.value"], run.objects["networks.critic"]
    v, q = fixed_point(dataset, expectile, cfg.discount)
    span = max(v.values()) - min(v.values())
    assert span > 0.3  # the problem is not trivial
    with torch.no_grad():
        for s in set(dataset.obs.argmax(1)):
            learnt = value(torch.eye(dataset.obs_dim)[[s]]).item()
            assert learnt == pytest.approx(v[s], abs=0.04 * span), f"V({s})"
        for (s, a), wanted in q.items():
            learnt = critic(torch.eye(dataset.obs_dim)[[s]], torch.tensor([[a]], dtype=torch.float32)).mean().item()
            assert learnt == pytest.approx(wanted, abs=0.06 * span), f"Q({s}, {a})"


@pytest.mark.parametrize("order", ["paper", "corl"])
@pytest.mark.parametrize("q_loss", ["sum", "mean"])
def test_one_update_in_the_stated_order(order, q_loss):
    """Three updates equal a second writing of them: order, new or old V, reduction, Polyak step, cosine."""
    dataset = flat_dataset(n=40, seed=3)
    cfg = iql.Config(
        updates=3, hidden=(8,), batch_size=16, lr=1e-2, beta=2.0, update_order=order, q_loss=q_loss, reward_mode="none"
    )
    run = FakeRun(dataset, seed=1, remember_start=True)
    iql.train(cfg, run)

    nets = {name.removeprefix("networks."): net for name, net in run.start.items()}
    actor, value, critic, target = (nets[k] for k in ("actor", "value", "critic", "target"))
    adam = {k: torch.optim.Adam(nets[k].parameters(), lr=cfg.lr) for k in ("actor", "value", "critic")}
    generator = run.start_generator
    data = {
        "obs": torch.tensor(dataset.obs),
        "action": torch.tensor(dataset.action).clamp(-1 + 1e-5, 1 - 1e-5),
        "reward": torch.tensor(dataset.reward),
        "next": torch.tensor(dataset.next_obs),
        "end": torch.tensor(dataset.terminated).float(),
    }

    def descend(name, loss):
        adam[name].zero_grad()
        loss.backward()
        adam[name].step()

    for k in range(3):
        adam["actor"].param_groups[0]["lr"] = cfg.lr * (1 + math.cos(math.pi * k / 3)) / 2
        index = torch.randint(len(dataset), (16,), generator=generator)
        s, a, r, n, d = (data[key][index] for key in ("obs", "action", "reward", "next", "end"))
        qt = torch.minimum(*target(s, a)).detach()
        old_backup, old_advantage = (r + 0.99 * (1 - d) * value(n)).detach(), (qt - value(s)).detach()
        u = qt - value(s)
        descend("value", (torch.abs(0.7 - (u < 0).float()) * u**2).mean())
        new_backup, new_advantage = (r + 0.99 * (1 - d) * value(n)).detach(), (qt - value(s)).detach()
        backup, advantage = (new_backup, new_advantage) if order == "paper" else (old_backup, old_advantage)
        mean, log_std = actor(s)
        log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(a).sum(-1)
        descend("actor", -(torch.exp(2.0 * advantage).clamp(max=100) * log_prob).mean())
        q1, q2 = critic(s, a)
        loss = ((q1 - backup) ** 2).mean() + ((q2 - backup) ** 2).mean()
        descend("critic", loss if q_loss == "sum" else loss / 2)
        for slow, fast in zip(target.parameters(), critic.parameters()):
            slow.data = 0.995 * slow.data + 0.005 * fast.data
    for name in ("actor", "value", "critic", "target"):
        trained = run.objects[name if name == "target" else f"networks.{name}"]
        for mine, theirs in zip(nets[name].parameters(), trained.parameters()):
            torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-6)


def test_reward_range_is_cut_at_episode_ends():
    """Three 1000-step episodes of constant reward 1, 2, 3: the range of returns is exactly 2000."""
    dataset = flat_dataset(rewards=np.repeat([1.0, 2.0, 3.0], 1000), lengths=[1000, 1000, 1000])
    reward = torch.as_tensor(dataset.reward)
    for mode, wanted in (("return_range", reward * 0.5), ("minus_one", reward - 1), ("none", reward)):
        scale, shift = iql.reward_transform(dataset, iql.Config(reward_mode=mode))
        assert torch.equal(ReplayBuffer(dataset, reward_scale=scale, reward_shift=shift).reward, wanted)


def test_reward_range_of_equal_returns_is_refused():
    dataset = flat_dataset(rewards=np.ones(20), lengths=[10, 10])
    with pytest.raises(ValueError, match="same return"):
        iql.reward_transform(dataset, iql.Config())


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.0), ("constant", 1e-3)])
def test_actor_learning_rate_over_the_run(schedule, last):
    """The schedule ends with its horizon: nearly 0 at the last update, never climbing back."""
    cfg = iql.Config(updates=200, hidden=(4,), batch_size=4, lr=1e-3, actor_lr_schedule=schedule, reward_mode="none")
    seen = []
    run = FakeRun(flat_dataset(n=20), seed=0)
    run.on_update = lambda: seen.append(run.objects["optimizers.actor"].param_groups[0]["lr"])
    iql.train(cfg, run)
    assert seen[0] == pytest.approx(1e-3)
    assert seen[-1] == pytest.approx(last, abs=1e-6)
    assert all(a >= b for a, b in zip(seen, seen[1:]))  # noqa: RUF007


def test_wide_action_spaces_are_mapped_to_the_unit_box():
    """Actions four times as wide train the same weights: the file sees them in [-1, 1]."""
    narrow, wide = (FakeRun(flat_dataset(n=30, high=high), seed=0) for high in (1.0, 4.0))
    for run in (narrow, wide):
        iql.train(iql.Config(updates=20, hidden=(8,), batch_size=8, reward_mode="none"), run)
    actors = [run.objects["networks.actor"] for run in (narrow, wide)]
    obs = torch.as_tensor(narrow.dataset.obs)
    assert torch.equal(*[actor.act(obs) for actor in actors])
    assert actors[0].act(obs).abs().max() <= 1


def test_reloaded_policy_acts_identically_on_raw_observations():
    """Normalisation belongs to the weights: nothing beside the state_dict is needed to act."""
    dataset = flat_dataset(n=60, seed=5)
    cfg = iql.Config(updates=5, hidden=(8,), batch_size=8, reward_mode="none", normalize_obs=True)
    first, second = FakeRun(dataset, seed=0), FakeRun(flat_dataset(n=60, seed=6), seed=1)
    iql.train(cfg, first)
    iql.train(cfg, second)
    saved = copy.deepcopy(first.objects["networks.actor"].state_dict())
    second.objects["networks.actor"].load_state_dict(saved)
    obs = torch.as_tensor(dataset.obs)
    assert torch.equal(first.objects["networks.actor"].act(obs), second.objects["networks.actor"].act(obs))


def test_dropout_is_drawn_from_the_runs_generator_and_off_when_acting():
    dataset = flat_dataset(n=30)
    cfg = iql.Config(updates=3, hidden=(16,), batch_size=8, reward_mode="none", actor_dropout=0.5)
    before = torch.get_rng_state()
    runs = [FakeRun(dataset, seed=0) for _ in range(2)]
    for run in runs:
        iql.train(cfg, run)
    assert torch.equal(before, torch.get_rng_state())
    obs = torch.as_tensor(dataset.obs)
    assert torch.equal(*[run.objects["networks.actor"].act(obs) for run in runs])
    actor = runs[0].objects["networks.actor"]
    assert torch.equal(actor.act(obs), actor.act(obs))
    assert not torch.equal(actor(obs, runs[0].generator)[0], actor(obs, runs[0].generator)[0])


def test_presets_are_configs():
    for options in iql.PRESETS.values():
        iql.Config(**options)
    assert iql.Config(**iql.PRESETS["corl"]).update_order == "corl"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["iql", "rcsl", "td3_bc", "rebrac"])
def test_updates_do_not_wait_for_the_device(name):
    """No .item() in the hot loop: updates run under torch's sync-debug mode."""
    module = importlib.import_module(f"hoard.algos.{name}")
    run = FakeRun(flat_dataset(n=60), seed=0, device="cuda")
    run.on_update = lambda: torch.cuda.set_sync_debug_mode("error")
    try:
        module.train(module.Config(updates=5, hidden=(8,), batch_size=8), run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
