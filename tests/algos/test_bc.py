"""BC's losses, what it clones, and the policy that a run keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from resume import assert_same_run, kill, only_run
from toys import FakeRun, Listening, flat_dataset, history_of, make_dataset

from hoard.algos import bc
from hoard.records.errors import BadInput
from hoard.runners.config import check
from hoard.runners.evaluate import uses_history


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_losses_in_closed_form():
    dataset = flat_dataset(n=40)
    batch = {"obs": torch.tensor(dataset.obs), "action": torch.tensor(dataset.action)}
    for output in ("tanh", "gaussian"):
        actor = bc.Actor(bc.Config(hidden=(8,), output=output), 3, 2, generator())
        with torch.no_grad():
            actor.log_std += 0.3
        loss, metrics = bc.actor_loss(actor, batch, generator())
        mean = actor(batch["obs"])
        mse = ((mean - batch["action"]) ** 2).mean()
        log_prob = torch.distributions.Normal(mean, actor.log_std.exp()).log_prob(batch["action"]).sum(-1).mean()
        assert loss.item() == pytest.approx((mse if output == "tanh" else -log_prob).item(), rel=1e-5)
        assert metrics["losses/actor"] == loss.detach()
        assert metrics.get("losses/mse", loss.detach()).item() == pytest.approx(mse.item(), rel=1e-5)


def two_behaviours(n: int = 200):
    """One-step episodes from the same state: action -0.8 returns 0, action +0.8 returns 1, nine to one."""
    good = np.arange(n) % 10 == 0
    return make_dataset(
        np.ones((2 * n, 2)), np.where(good, 0.8, -0.8)[:, None], good.astype(float), np.ones(n, bool), [1] * n
    )


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, 0.1 * 0.8 - 0.9 * 0.8),  # plain BC clones the mean
        ({"output": "gaussian"}, 0.1 * 0.8 - 0.9 * 0.8),
        ({"top_fraction": 0.1}, 0.8),  # 10 % BC the best tenth
        ({"lr_schedule": "cosine"}, 0.1 * 0.8 - 0.9 * 0.8),
    ],
    ids=str,
)
def test_what_is_cloned(options, wanted):
    run = Listening(two_behaviours(), seed=0)
    bc.train(bc.Config(updates=1000, hidden=(32,), batch_size=64, lr=1e-3, **options), run)
    with torch.no_grad():
        action = run.policies[""](torch.ones(1, 2), history_of(torch.ones(1, 2, 2)))
    assert action.item() == pytest.approx(wanted, abs=0.08)


def test_weight_decay_shrinks_the_weights():
    sizes = []
    for decay in (0.0, 1.0):
        run = FakeRun(two_behaviours(), seed=0)
        bc.train(bc.Config(updates=200, hidden=(32,), batch_size=64, weight_decay=decay), run)
        sizes.append(sum(p.square().sum() for p in run.objects["actor"].parameters()))
    assert sizes[1] < 0.9 * sizes[0]


def test_observations_are_standardised_by_the_episodes_that_are_kept():
    dataset = flat_dataset(rewards=np.r_[np.ones(10), np.zeros(30)], lengths=[10, 30])
    best = dataset.obs[:10]
    run = FakeRun(dataset, seed=0)
    bc.train(bc.Config(updates=1, hidden=(4,), batch_size=4, top_fraction=0.5), run)
    normalize = run.objects["actor"].normalize
    np.testing.assert_allclose(normalize.mean, best.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(normalize.std, best.std(axis=0) + 1e-3, rtol=1e-5)


def test_dropout_is_drawn_from_the_runs_generator_and_off_when_acting():
    before = torch.get_rng_state()
    actor, obs = bc.Actor(bc.Config(hidden=(16,), dropout=0.5), 3, 2, generator()), torch.ones(4, 3)
    assert torch.equal(actor.act(obs), actor.act(obs))
    assert torch.equal(actor(obs, generator(1)), actor(obs, generator(1)))
    assert not torch.equal(actor(obs, generator(1)), actor(obs, generator(2)))
    assert torch.equal(before, torch.get_rng_state())


def test_input_noise_is_added_while_training_alone():
    before = torch.get_rng_state()
    actor, obs = (
        bc.Actor(bc.Config(hidden=(16,), input_noise=0.3), 3, 2, generator()),
        torch.randn(4, 3, generator=generator(5)),
    )
    noisy = obs
    noisy = noisy + 0.3 * torch.randn(noisy.shape, generator=generator(1))
    assert torch.equal(actor(noisy), actor(obs, generator(1)))
    plain = bc.Actor(bc.Config(hidden=(16,)), 3, 2, generator())
    assert torch.equal(actor(obs), plain(obs, generator(1)))
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="input_noise -1: must be 0 or more"):
        bc.Config(input_noise=-1).check()


def test_presets_are_configs():
    for options in bc.PRESETS.values():
        check(bc.Config(**options))
    assert bc.PRESETS["bc"] == {}
    assert bc.Config(**bc.PRESETS["bc10"]).top_fraction == 0.1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_of_episodes_that_makes_no_sense_is_refused(share):
    with pytest.raises(BadInput, match="top_fraction"):
        check(bc.Config(top_fraction=share))


@pytest.mark.parametrize("preset", ["bc", "bc10"])
def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path, preset):
    done = run_file("bc", *small(tiny, preset=preset))
    assert done.returncode == 0, done.stderr + done.stdout
    assert not uses_history(bc.Actor(bc.Config(), 3, 1, generator()))
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(tiny, updates=3000, dropout=0.1, checkpoint_every=500, eval_every=1000)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("bc", *args, results=straight).returncode == 0
    kill("bc", args, broken, update=700)
    assert "resuming after update" in run_file("bc", *args, results=broken).stdout
    assert_same_run(straight, broken)


# --- sampled actions ---


def test_sampled_evaluation_draws_around_the_mean_with_the_policys_spread():
    run = Listening(flat_dataset(), seed=0)
    bc.train(bc.Config(updates=5, batch_size=8, hidden=(8,), output="gaussian", eval_actions="sample"), run)
    actor = run.objects["actor"]
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([-1.0, 0.5]))
    obs = torch.zeros(20_000, 3)
    history = history_of(torch.zeros(20_000, 1, 3))
    with torch.no_grad():
        action, again = actor.act(obs, history), actor.act(obs, history_of(torch.zeros(20_000, 1, 3)))
    assert torch.equal(action, again)  # from the evaluation's generator
    torch.testing.assert_close(action.mean(0), actor(obs[:1])[0].detach(), atol=0.05, rtol=0)
    torch.testing.assert_close(action.std(0), torch.tensor([-1.0, 0.5]).exp(), atol=0.05, rtol=0)
    assert not torch.equal(action, actor.act(obs, history))
    assert not uses_history(bc.Actor(bc.Config(), 3, 2, generator()))


def test_a_sampling_policy_is_kept_and_loaded(tiny, run_file, tmp_path):
    more = {"--output": "gaussian", "--eval-actions": "sample"}
    done = run_file("bc", *small(tiny), *(part for pair in more.items() for part in pair))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


def test_a_bounded_output_has_nothing_to_sample():
    with pytest.raises(BadInput, match="eval_actions sample: only output gaussian"):
        check(bc.Config(eval_actions="sample"))
