"""O-DICE: its conjugates, the projection, its whole update written a second way, what it prefers, and its resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from resume import assert_same_run, kill, only_run
from toys import FakeRun, chain_dataset, flat_dataset

from hoard.algos import odice
from hoard.records.errors import BadInput
from hoard.runners.config import check


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options) -> odice.Config:
    return odice.Config(
        **{"hidden": (8,), "batch_size": 16, "lr": 1e-2, "reward_mode": "none", "residual_weight": 0.8, **options}
    )


def batch_of(dataset, index):
    names = ("obs", "action", "reward", "next_obs", "terminated")
    batch = {name: torch.as_tensor(getattr(dataset, name))[index] for name in names}
    return batch | {"terminated": batch["terminated"].float()}


@pytest.mark.parametrize("divergence", ["pearson", "reverse_kl"])
def test_conjugates_are_the_largest_w_x_minus_f(divergence):
    x = torch.linspace(-4, 3, 29).double()
    w = torch.linspace(0, 40, 400_001).double()
    f = (w - 1).square() if divergence == "pearson" else torch.xlogy(w, w)
    by_search = torch.stack([(w * one - f).max() for one in x])
    cfg = quick(divergence=divergence)
    torch.testing.assert_close(odice.conjugate(x, cfg), by_search, atol=1e-6, rtol=1e-6)


def test_weights_of_the_policy():
    x = torch.tensor([-3.0, 0.0, 0.5, 400.0])
    assert odice.policy_weight(x, quick()).tolist() == [0.0, 0.0, 0.5, 100.0]
    kl = odice.policy_weight(x, quick(divergence="reverse_kl", max_weight=7.0))
    assert kl.tolist() == pytest.approx([np.exp(-4), np.exp(-1), np.exp(-0.5), 7.0])


def gradients(cfg, seed=0):
    """Forward, backward and applied gradients of one batch, flat."""
    dataset = flat_dataset(n=40, seed=3)
    value, target = (odice.MLP(cfg, 3, 1, generator(seed + k)) for k in (1, 2))
    batch = batch_of(dataset, torch.arange(40))
    v, forward, backward = odice.residuals(value, target, batch, cfg)
    flat = lambda tensors: torch.cat([t.reshape(-1) for t in tensors])  # noqa: E731
    of = lambda loss: flat(torch.autograd.grad(loss, value.parameters(), retain_graph=True))  # noqa: E731
    weight = cfg.residual_weight
    ahead = of(weight * odice.conjugate(forward, cfg).mean())
    back = of(weight * cfg.backward_weight * odice.conjugate(backward, cfg).mean()) if backward.requires_grad else None
    own = of((1 - weight) * v.mean())
    applied, metrics = odice.value_gradient(value, v, forward, backward, cfg)
    return own, ahead, back, flat(applied), metrics


@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_the_backward_gradient_is_applied_without_its_part_along_the_forward_one(eta):
    own, ahead, back, applied, metrics = gradients(quick(backward_weight=eta))
    projected = applied - own - ahead
    assert torch.dot(projected, ahead) == pytest.approx(0, abs=1e-6 * float(ahead.norm() * back.norm()))
    assert projected.norm() > 0.01 * back.norm()
    along = torch.dot(ahead, back) / ahead.norm().square()
    torch.testing.assert_close(projected + along * ahead, back)
    assert metrics["values/overlap"] == pytest.approx(along.item(), rel=1e-4)


def test_the_true_gradient_is_that_of_the_whole_loss():
    cfg = quick(gradient="true")
    own, ahead, _, applied, _ = gradients(cfg)
    torch.testing.assert_close(applied, own + ahead)
    dataset = flat_dataset(n=40, seed=3)
    value = odice.MLP(cfg, 3, 1, generator(1))
    batch = batch_of(dataset, torch.arange(40))
    v, after = value(batch["obs"])[:, 0], value(batch["next_obs"])[:, 0]
    x = batch["reward"] + 0.99 * (1 - batch["terminated"]) * after - v
    w = torch.relu(x / 2 + 1)
    loss = (0.2 * v + 0.8 * (x * w - (w - 1) ** 2)).mean()
    wanted = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, value.parameters())])
    torch.testing.assert_close(applied, wanted)


def test_where_the_conjugate_is_flat_nothing_divides_by_zero():
    cfg = quick()
    value = odice.MLP(cfg, 3, 1, generator())
    batch = batch_of(flat_dataset(n=10, rewards=np.full(10, -1000.0)), torch.arange(10))
    v, forward, backward = odice.residuals(value, value, batch, cfg)
    applied, _ = odice.value_gradient(value, v, forward, backward, cfg)
    assert all(torch.isfinite(g).all() for g in applied)
    assert any((g != 0).any() for g in applied)  # (1 - lambda) V remains


def test_updates_equal_a_second_writing():
    """Gradients by two backward passes that accumulate, as the authors take them."""
    dataset = flat_dataset(n=40, seed=3)
    cfg = quick(updates=6, target_tau=0.1, backward_weight=0.7)
    run = FakeRun(dataset, seed=1, remember_start=True)
    odice.train(cfg, run)

    nets, stream = run.start, run.start_generator
    actor, value, slow = (nets[k] for k in ("networks.actor", "networks.value", "target"))
    of_value = torch.optim.Adam(value.parameters(), lr=cfg.lr)
    of_actor = torch.optim.Adam(actor.parameters(), lr=cfg.lr, weight_decay=1e-5)

    def dual(x):
        return torch.where(x > -2, x + x**2 / 4, -torch.ones_like(x)).mean()

    for _ in range(6):
        b = batch_of(dataset, torch.randint(len(dataset), (16,), generator=stream))
        on = 0.99 * (1 - b["terminated"])
        with torch.no_grad():
            here, there = slow(b["obs"])[:, 0], slow(b["next_obs"])[:, 0]
        ahead = b["reward"] + on * there - value(b["obs"])[:, 0]
        behind = b["reward"] + on * value(b["next_obs"])[:, 0] - here
        of_value.zero_grad()
        (0.8 * dual(ahead)).backward(retain_graph=True)
        first = [p.grad.clone() for p in value.parameters()]
        (0.8 * 0.7 * dual(behind)).backward()
        second = [p.grad - g for p, g in zip(value.parameters(), first)]
        along = sum((g * h).sum() for g, h in zip(first, second)) / sum((g * g).sum() for g in first)
        of_value.zero_grad()
        (0.2 * value(b["obs"]).mean()).backward()
        for p, g, h in zip(value.parameters(), first, second):
            p.grad += (1 - along) * g + h
        of_value.step()
        for mine, theirs in zip(slow.parameters(), value.parameters()):
            mine.data = 0.9 * mine.data + 0.1 * theirs.data
        density = torch.distributions.Normal(actor(b["obs"]), actor.log_std.exp()).log_prob(b["action"]).sum(-1)
        of_actor.zero_grad()
        (-(ahead.detach().clamp(0, 100) * density).mean()).backward()
        of_actor.step()
    for name in ("networks.actor", "networks.value", "target"):
        for one, two in zip(nets[name].parameters(), run.objects[name].parameters()):
            torch.testing.assert_close(two.detach(), one.detach(), rtol=1e-3, atol=1e-5, msg=name)


def test_it_finds_the_way_that_the_data_mixes():
    """On the chain the right move is played in 65 % of the steps."""
    run = FakeRun(chain_dataset(), seed=0)
    odice.train(quick(updates=1500, hidden=(64,), lr=3e-3, batch_size=256, target_tau=0.1, discount=0.9), run)
    with torch.no_grad():
        played = run.objects["networks.actor"].act(torch.eye(5)[:4])[:, 0]
    assert (played > 0.75).all(), played


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"residual_weight": 1.0}, "residual_weight 1.0: must lie between 0 and 1"),
        ({"backward_weight": -1.0}, "backward_weight -1.0 must not be negative"),
        ({"gradient": "semi", "backward_weight": 0.5}, "only gradient orthogonal has one"),
    ],
)
def test_unusable_options_are_refused(option, message):
    with pytest.raises(BadInput, match=message):
        check(odice.Config(**option))


def test_a_range_of_returns_is_needed():
    dataset = flat_dataset(rewards=np.zeros(20))
    with pytest.raises(ValueError, match="every episode of test/toy-v0 has the same return; use none"):
        odice.train(quick(reward_mode="return_range", updates=1), FakeRun(dataset, 0))


# --- whole runs ---


@pytest.mark.parametrize("preset", ["odice", "semi_gradient"])
def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path, preset):
    done = run_file("odice", *small(tiny, preset=preset, normalize_obs="true"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(tiny, updates=3000, checkpoint_every=500, eval_every=1000)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("odice", *args, results=straight).returncode == 0
    kill("odice", args, broken, update=1200)
    assert "resuming after" in run_file("odice", *args, results=broken).stdout
    assert_same_run(straight, broken)
