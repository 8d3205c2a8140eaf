"""RCSL's labels, targets, losses and what it clones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from toys import FakeRun, flat_dataset, make_dataset

from hoard.algos import rcsl
from hoard.runners.evaluate import History


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


class Listening(FakeRun):
    """Keeps the policies it is asked to evaluate after the last update."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluation_due = True
        self.policies = {}

    def evaluate(self, policy, variant=""):
        self.policies[variant] = policy


def history_of(rewards: list[float]) -> History:
    t = len(rewards)
    return History(t, torch.zeros(1, 9, 3), torch.zeros(1, 8, 2), torch.tensor([rewards + [0.0] * (8 - t)]))


@pytest.mark.parametrize(("label", "reduces"), [("sum", True), ("average", False)])
def test_the_target_during_an_episode(label, reduces, monkeypatch):
    """Sums are reduced by what was collected, averages held constant; each extra target is its own variant."""
    run = Listening(flat_dataset(n=40), seed=0)
    cfg = rcsl.Config(updates=1, hidden=(8,), batch_size=8, label=label, scale_label=False, extra_targets=(0.5,))
    rcsl.train(cfg, run)
    asked = []
    monkeypatch.setattr(rcsl.Policy, "act", lambda self, obs, wanted: asked.append(wanted.item()) or obs[:, :2])
    labels = rcsl.labels_of(run.dataset, label)
    for variant, fraction in (("", 1.0), ("target=0.5", 0.5)):
        asked.clear()
        run.policies[variant](torch.zeros(1, 3), history_of([]))
        run.policies[variant](torch.zeros(1, 3), history_of([2.0, 3.0]))
        start = labels.min() + fraction * (labels.max() - labels.min())
        assert asked == pytest.approx([start, start - 5.0 * reduces], rel=1e-5)
    assert set(run.policies) == {"", "target=0.5"}


def test_losses_in_closed_form():
    dataset = flat_dataset(n=40)
    batch = {"obs": torch.tensor(dataset.obs), "action": torch.tensor(dataset.action)}
    for output in ("tanh", "gaussian"):
        cfg = rcsl.Config(condition="none", hidden=(8,), output=output)
        policy = rcsl.Policy(dataset, cfg, torch.device("cpu"), torch.Generator().manual_seed(0))
        with torch.no_grad():
            policy.log_std += 0.3
        loss, _ = rcsl.policy_loss(policy, batch, torch.Generator())
        mean = policy(batch["obs"], None)
        wanted = (
            ((mean - batch["action"]) ** 2).mean()
            if output == "tanh"
            else -torch.distributions.Normal(mean, policy.log_std.exp()).log_prob(batch["action"]).sum(-1).mean()
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
        ({"condition": "none"}, 0.1 * 0.8 - 0.9 * 0.8),  # plain BC clones the mean
        ({"condition": "none", "top_fraction": 0.1}, 0.8),  # 10 % BC the best tenth
        ({"output": "gaussian", "label": "average", "scale_label": False}, 0.8),
    ],
)
def test_what_is_cloned(options, wanted):
    cfg = rcsl.Config(updates=1000, hidden=(32,), batch_size=64, **options)
    run = Listening(two_behaviours(), seed=0)
    rcsl.train(cfg, run)
    history = History(0, torch.ones(1, 2, 2), torch.zeros(1, 1, 1), torch.zeros(1, 1))
    with torch.no_grad():
        assert run.policies[""](torch.ones(1, 2), history).item() == pytest.approx(wanted, abs=0.08)


def test_presets_are_configs():
    for options in rcsl.PRESETS.values():
        rcsl.Config(**options)
    assert rcsl.Config(**rcsl.PRESETS["bc10"]).top_fraction == 0.1
