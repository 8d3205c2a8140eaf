"""RCSL's labels, targets, losses, what it clones, and the policy that a run keeps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from resume import only_run
from toys import Listening, flat_dataset, history_of, make_dataset

from hoard.algos import rcsl
from hoard.records.errors import BadInput
from hoard.runners.config import check


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_labels_by_hand():
    dataset = flat_dataset(rewards=[1.0, 2.0, 4.0, 8.0, 16.0], lengths=[2, 3])
    assert rcsl.labels_of(dataset, "sum").tolist() == [3, 2, 28, 24, 16]
    # T_max is the longest episode of the dataset (3), also for the shorter one.
    assert rcsl.labels_of(dataset, "average").tolist() == pytest.approx([3 / 3, 2 / 2, 28 / 3, 24 / 2, 16 / 1])


@pytest.mark.parametrize(
    ("rule", "label", "fraction", "wanted"),
    [
        ("dataset_range", "sum", 1.0, 28.0),
        ("dataset_range", "sum", 0.5, 2 + 0.5 * 26),
        ("max_return", "sum", 2.0, 56.0),
        ("max_return", "average", 1.0, 16.0),
        ("reference_range", "sum", 0.5, 15.0),
        ("reference_range", "average", 1.0, 2.0),
    ],
)
def test_targets_by_hand(rule, label, fraction, wanted):
    dataset = dataclasses.replace(flat_dataset(rewards=[1.0, 2, 4, 8, 16], lengths=[2, 3]), ref_min=10.0, ref_max=20.0)
    cfg = rcsl.Config(target_rule=rule, label=label)
    assert rcsl.target_of(dataset, rcsl.labels_of(dataset, label), cfg, fraction, 10) == pytest.approx(wanted)


def test_reference_rule_without_references_is_refused():
    dataset = flat_dataset()
    with pytest.raises(ValueError, match="no reference returns"):
        rcsl.target_of(dataset, dataset.returns_to_go(), rcsl.Config(target_rule="reference_range"), 1.0, 10)


@pytest.mark.parametrize(("label", "reduces"), [("sum", True), ("average", False)])
def test_the_target_during_an_episode(label, reduces, monkeypatch):
    """Sums are reduced by what was collected, averages held constant; each extra target is its own variant."""
    run = Listening(flat_dataset(n=40), seed=0)
    cfg = rcsl.Config(updates=1, hidden=(8,), batch_size=8, label=label, scale_label=False, extra_targets=(0.5,))
    rcsl.train(cfg, run)
    asked = []
    monkeypatch.setattr(rcsl.Actor, "forward", lambda self, obs, wanted: asked.append(wanted.item()) or obs[:, :2])
    labels = rcsl.labels_of(run.dataset, label)
    obs, reward = torch.zeros(1, 9, 3), torch.tensor([[2.0, 3.0, 0, 0, 0, 0, 0, 0]])
    for variant, fraction in (("", 1.0), ("target=0.5", 0.5)):
        asked.clear()
        for t in (0, 2):
            run.policies[variant](obs[:, t], history_of(obs, reward=reward, t=t))
        start = labels.min() + fraction * (labels.max() - labels.min())
        assert asked == pytest.approx([start, start - 5.0 * reduces], rel=1e-5)
    assert set(run.policies) == {"", "target=0.5"}


def test_labels_and_targets_are_divided_by_the_range_of_labels(monkeypatch):
    run = Listening(flat_dataset(rewards=[1.0, 2.0, 4.0, 8.0, 16.0], lengths=[2, 3]), seed=0)
    seen = []
    original = rcsl.actor_loss
    monkeypatch.setattr(rcsl, "actor_loss", lambda *args: seen.append(args[1]["label"]) or original(*args))
    rcsl.train(rcsl.Config(updates=1, hidden=(8,), batch_size=200), run)
    assert sorted(set(seen[0].tolist())) == pytest.approx([2 / 26, 3 / 26, 16 / 26, 24 / 26, 28 / 26])
    actor = run.objects["actor"]
    assert (actor.target.item(), actor.label_scale.item()) == (28.0, 26.0)
    asked = []
    monkeypatch.setattr(rcsl.Actor, "forward", lambda self, obs, wanted: asked.append(wanted.item()) or obs[:, :2])
    run.policies[""](torch.zeros(1, 3), history_of(torch.zeros(1, 2, 3)))
    assert asked == pytest.approx([28 / 26])


def test_losses_in_closed_form():
    dataset = flat_dataset(n=40)
    label = torch.linspace(-1, 1, 40)
    batch = {"obs": torch.tensor(dataset.obs), "action": torch.tensor(dataset.action), "label": label}
    for output in ("tanh", "gaussian"):
        actor = rcsl.Actor(rcsl.Config(hidden=(8,), output=output), 3, 2, generator())
        with torch.no_grad():
            actor.log_std += 0.3
        loss, _ = rcsl.actor_loss(actor, batch, generator())
        mean = actor(batch["obs"], label)
        wanted = (
            ((mean - batch["action"]) ** 2).mean()
            if output == "tanh"
            else -torch.distributions.Normal(mean, actor.log_std.exp()).log_prob(batch["action"]).sum(-1).mean()
        )
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def two_behaviours(n: int = 200):
    """One-step episodes from the same state: action -0.8 returns 0, action +0.8 returns 1, nine to one."""
    good = np.arange(n) % 10 == 0
    return make_dataset(
        np.ones((2 * n, 2)), np.where(good, 0.8, -0.8)[:, None], good.astype(float), np.ones(n, bool), [1] * n
    )


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"target_fraction": 1.0}, 0.8),
        ({"target_fraction": 0.0}, -0.8),
        ({"target_fraction": 0.0, "top_fraction": 0.1}, 0.8),  # nothing else is left to ask for
        ({"output": "gaussian", "label": "average", "scale_label": False}, 0.8),
    ],
)
def test_what_is_cloned(options, wanted):
    cfg = rcsl.Config(updates=1000, hidden=(32,), batch_size=64, **options)
    run = Listening(two_behaviours(), seed=0)
    rcsl.train(cfg, run)
    with torch.no_grad():
        action = run.policies[""](torch.ones(1, 2), history_of(torch.ones(1, 2, 2)))
    assert action.item() == pytest.approx(wanted, abs=0.08)


def test_input_noise_is_added_while_training_alone():
    before = torch.get_rng_state()
    actor, obs = (
        rcsl.Actor(rcsl.Config(hidden=(16,), input_noise=0.3), 3, 2, generator()),
        torch.randn(4, 3, generator=generator(5)),
    )
    label = torch.linspace(-1, 1, 4)
    noisy = torch.cat([obs, label[:, None]], dim=-1)
    noisy = noisy + 0.3 * torch.randn(noisy.shape, generator=generator(1))
    assert torch.equal(actor(noisy[:, :3], noisy[:, 3]), actor(obs, label, generator(1)))
    plain = rcsl.Actor(rcsl.Config(hidden=(16,)), 3, 2, generator())
    assert torch.equal(actor(obs, label), plain(obs, label, generator(1)))
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="input_noise -1: must be 0 or more"):
        rcsl.Config(input_noise=-1).check()


def test_presets_are_configs():
    for options in rcsl.PRESETS.values():
        check(rcsl.Config(**options))
    with pytest.raises(BadInput, match="top_fraction"):
        check(rcsl.Config(top_fraction=0.0))


@pytest.mark.parametrize(
    "options",
    [{"normalize_obs": True}, {"label": "average", "scale_label": False, "output": "gaussian"}],
    ids=["sum", "average"],
)
def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path, options):
    """Target, scale of the labels and normalisation are kept with the weights."""
    done = run_file("rcsl", *small(tiny, target_fraction=0.7, extra_targets=0.2, **options))
    assert done.returncode == 0, done.stderr + done.stdout
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))
