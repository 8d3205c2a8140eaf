"""MBRCSL: every part against computations made another way, and the whole under kills in each of its phases."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small
from kept import assert_kept_policy_repeats_the_score
from resume import Killed, assert_same_run, only_run
from toys import FakeRun, flat_dataset, make_dataset

from hoard.algos import mbrcsl
from hoard.algos.mbrcsl import Config
from hoard.datasets import ReplayBuffer
from hoard.records.errors import BadInput
from hoard.runners import config
from hoard.runners.nn import frozen_copy, linear
from hoard.runners.run import Run

TINY_NETS = {
    "dynamics_members": 3, "dynamics_elites": 2, "dynamics_hidden": (8,), "dynamics_decay": (1e-5, 1e-5),
    "dynamics_batch": 16, "dynamics_epochs": 2, "diffusion_widths": (8,), "diffusion_embedding": 4,
    "diffusion_steps": 3, "diffusion_updates": 6, "diffusion_batch": 8, "rollout_batch": 5, "rollout_batches": 2,
    "num_need_traj": 4, "best_share": 1.0, "hidden": (8,), "batch_size": 8, "updates": 4,
}  # fmt: skip


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class PhasedRun(FakeRun):
    """With the phases, and a record of what was said and kept; a round is counted by the phase's name."""

    def __init__(self, dataset, seed: int) -> None:
        super().__init__(dataset, seed)
        self.update, self.rounds, self.said, self.tables = 0, {}, [], {}
        self.evaluation_due = True
        self.policies = []

    def phase(self, name, updates):
        self.ended = False
        for number in range(1, updates + 1):
            self.rounds[name] = number
            yield number
            self.on_update()
            if self.ended:
                return

    def end_phase(self):
        self.ended = True

    def say(self, text):
        self.said.append(text)

    def save_table(self, name, table):
        self.tables[name] = table.to_pandas()

    def evaluate(self, policy):
        self.policies.append(policy)


def an_actor(cfg: Config, obs_dim: int = 3, action_dim: int = 2) -> mbrcsl.Actor:
    return mbrcsl.Actor(cfg, obs_dim, action_dim, seeded())


def ensemble(cfg: Config, buffer: ReplayBuffer, seed: int = 0) -> mbrcsl.Ensemble:
    obs_dim, action_dim = buffer.observations.shape[1], buffer.action.shape[1]
    x = torch.cat([buffer.observations[buffer.rows], buffer.action], dim=-1)
    return mbrcsl.Ensemble(obs_dim + action_dim, obs_dim + 1, *mbrcsl.statistics(x), cfg, seeded(seed))


# --- sizes as published ---


def test_the_papers_networks_have_the_papers_sizes():
    """Point maze: 4 observations, 2 actions. The dynamics' 10 bounds come on top of the weights and biases."""
    cfg = Config(**mbrcsl.PRESETS["paper"])
    dataset = make_dataset(np.zeros((3, 4)), np.zeros((2, 2)), [0, 0], [False, False], [2])
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    assert count(ensemble(cfg, ReplayBuffer(dataset))) == 868_070 + 10
    assert count(mbrcsl.UNet(4, 2, cfg, seeded())) == 17_633_282
    assert count(an_actor(cfg, 4, 2)) == 1_057_794
    assert math.ceil(199_000 / cfg.diffusion_batch) * 50 == cfg.diffusion_updates


def test_presets_are_configs():
    for options in mbrcsl.PRESETS.values():
        config.check(Config(**options))
    assert "small" in mbrcsl.PRESETS


# --- dynamics ---


def linear_system(n: int, seed: int = 0):
    """s' = s + 0.3 a + noise of std (0.05, 0.2), r = s_0 - a + noise of std 0.1; one step per episode."""
    rng = np.random.default_rng(seed)
    s, a = rng.normal(size=(n, 2)), rng.uniform(-1, 1, size=(n, 1))
    after = s + 0.3 * a + rng.normal(size=(n, 2)) * [0.05, 0.2]
    reward = s[:, 0] - a[:, 0] + rng.normal(size=n) * 0.1
    return make_dataset(np.stack([s, after], 1).reshape(2 * n, 2), a, reward, np.zeros(n, bool), [1] * n)


def fitted_dynamics(dataset, cfg: Config, lr: float = 1e-3):
    buffer = ReplayBuffer(dataset)
    model = ensemble(cfg, buffer)
    fit = mbrcsl.DynamicsFit(model, buffer, cfg, seed=1)
    adam = torch.optim.Adam(model.parameters(), lr=lr)
    for number in range(1, fit.batches * cfg.dynamics_epochs + 1):
        loss, _ = mbrcsl.dynamics_loss(model, *fit.batch(number))
        adam.zero_grad()
        loss.backward()
        adam.step()
        if number % fit.batches == 0:
            fit.end_of_epoch()
            if fit.done:
                break
    fit.finish()
    return model, fit


def test_dynamics_recover_a_linear_gaussian_system():
    cfg = Config(
        dynamics_members=3, dynamics_elites=2, dynamics_hidden=(32,), dynamics_decay=(1e-5, 1e-5), dynamics_epochs=12,
        dynamics_patience=12,
    )  # fmt: skip
    model, _ = fitted_dynamics(linear_system(6000), cfg, lr=5e-3)
    generator = seeded(3)
    obs, action = torch.tensor([[0.5, -0.5]]).repeat(4000, 1), torch.full((4000, 1), 0.4)
    with torch.no_grad():
        after, reward = model.step(obs, action, generator)
    torch.testing.assert_close(after.mean(0), torch.tensor([0.62, -0.38]), atol=0.03, rtol=0)
    assert reward.mean().item() == pytest.approx(0.1, abs=0.04)
    for got, wanted in zip([*after.std(0).tolist(), reward.std().item()], (0.05, 0.2, 0.1)):
        assert got == pytest.approx(wanted, rel=0.25)


def test_dynamics_loss_is_the_likelihood_plus_decay_and_bounds():
    """Against torch.distributions, member by member, each a plain network of its own slice of the weights."""
    cfg = Config(dynamics_members=2, dynamics_elites=1, dynamics_hidden=(5,), dynamics_decay=(0.1, 0.2))
    buffer = ReplayBuffer(flat_dataset(n=30))
    model = ensemble(cfg, buffer)
    x, y = torch.randn(2, 7, 5, generator=seeded(1)) + 1, torch.randn(2, 7, 4, generator=seeded(2))
    total = torch.zeros(())
    for e in range(2):
        h = (x[e] - model.shift) / model.scale
        h = h @ model.weights[0][e] + model.biases[0][e]
        h = (h * h.sigmoid()) @ model.weights[1][e] + model.biases[1][e]
        mean, log_var = h[:, :4], h[:, 4:]
        log_var = 0.5 - torch.log1p(torch.exp(0.5 - log_var))
        log_var = -10 + torch.log1p(torch.exp(log_var + 10))
        log_prob = torch.distributions.Normal(mean, (log_var / 2).exp()).log_prob(y[e])
        total = total - 2 * log_prob.mean() - math.log(2 * math.pi)
        total = total + 0.05 * model.weights[0][e].square().sum() + 0.1 * model.weights[1][e].square().sum()
    total = total + 0.01 * 4 * 10.5
    loss, metrics = mbrcsl.dynamics_loss(model, x, y)
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert not any(value.requires_grad for value in metrics.values())


def test_hold_out_and_bootstrap():
    """No member ever trains on the hold-out; each has its own list with repeats, reshuffled every epoch."""
    buffer = ReplayBuffer(flat_dataset(n=50))
    cfg = Config(**TINY_NETS)
    fit = mbrcsl.DynamicsFit(ensemble(cfg, buffer), buffer, cfg, seed=1)
    assert len(fit.held) == 10
    assert set(fit.held.tolist()) | set(fit.trained.tolist()) == set(range(50))
    first = fit.order
    assert first.shape == (3, 40)
    assert not set(fit.held.tolist()) & set(first.flatten().tolist())
    assert all(len(set(row)) < 40 for row in first.tolist())  # drawn with replacement
    assert sorted(first[0].tolist()) != sorted(first[1].tolist())
    seen = [fit.batch(k)[0] for k in (1, 2, 3)]
    assert [x.shape[1] for x in seen] == [16, 16, 8]
    x, _ = fit.pairs(first)
    assert torch.equal(torch.cat(seen, dim=1), x)
    fit.end_of_epoch()
    assert not torch.equal(fit.order, first)
    assert torch.equal(fit.order.sort(dim=1).values, first.sort(dim=1).values)
    big = ReplayBuffer(flat_dataset(n=6000))
    assert len(mbrcsl.DynamicsFit(ensemble(cfg, big), big, cfg, seed=1).held) == 1000


def test_best_weights_elites_and_early_stop():
    """Scripted hold-out errors: each member keeps its own best, the elites have the lowest, five idle epochs end it."""
    buffer = ReplayBuffer(flat_dataset(n=50))
    cfg = Config(**TINY_NETS, dynamics_selection="mse")
    model = ensemble(cfg, buffer)
    fit = mbrcsl.DynamicsFit(model, buffer, cfg, seed=1)
    _, y = fit.pairs(fit.held)
    script = [(3.0, 2.0, 1.0), (2.0, 2.5, 0.995), (2.5, 1.0, 0.992)] + [(1.99, 0.995, 1.5)] * 5
    for errors in script:
        with torch.no_grad():
            for p in (*model.weights, *model.biases):
                p.fill_(0.0)
            model.biases[-1][:, 0, : y.shape[1]] = torch.tensor(errors)[:, None]
        mean = torch.tensor(errors)[:, None, None]
        wanted = (mean - y).square().mean(dim=(1, 2))
        torch.testing.assert_close(fit.end_of_epoch(), wanted)
    best = torch.full((3,), torch.inf)
    kept = torch.zeros(3)
    for errors in script:
        now = (torch.tensor(errors)[:, None, None] - y).square().mean(dim=(1, 2))
        for m in range(3):
            if now[m] < 0.99 * best[m]:
                best[m], kept[m] = now[m], errors[m]
    fit.finish()
    torch.testing.assert_close(model.biases[-1][:, 0, 0], kept)
    torch.testing.assert_close(fit.errors, best)
    assert model.elites.tolist() == sorted(best.argsort()[:2].tolist())
    again, stale = mbrcsl.DynamicsFit(model, buffer, cfg, seed=1), []
    for _ in range(7):
        again.end_of_epoch()
        stale.append((again.stale, again.done))
    assert stale == [(0, False), (1, False), (2, False), (3, False), (4, False), (5, True), (6, True)]


def test_selection_by_likelihood():
    """Three members predict a constant 0; the one with the right variance is the best, whatever the squared errors."""
    buffer = ReplayBuffer(flat_dataset(n=60))
    cfg = Config(**TINY_NETS | {"dynamics_elites": 1}, dynamics_selection="likelihood")
    model = ensemble(cfg, buffer)
    fit = mbrcsl.DynamicsFit(model, buffer, cfg, seed=1)
    _, y = fit.pairs(fit.held)
    with torch.no_grad():
        for p in (*model.weights, *model.biases):
            p.zero_()
        model.max_log_var.fill_(20)
        model.min_log_var.fill_(-20)
        model.biases[-1][:, 0, 4:] = torch.tensor([-4.0, 0.7, 4.0])[:, None]
    errors = fit.end_of_epoch()
    std = torch.tensor([-2.0, 0.35, 2.0]).exp()
    for m in range(3):
        log_prob = torch.distributions.Normal(0.0, std[m]).log_prob(y).mean()
        assert errors[m].item() == pytest.approx(-2 * log_prob.item() - math.log(2 * math.pi), abs=1e-3)
    fit.finish()
    assert model.elites.tolist() == [1]
    fit.end_of_epoch()
    assert (fit.epoch, fit.stale) == (2, 1)


def test_predictions_stay_in_the_box_of_the_data():
    """A diverging model: with the option every rollout stays within the data's observations and rewards."""
    for clip in (True, False):
        dataset = flat_dataset(n=50)
        run = PhasedRun(dataset, 0)
        options = {"keep_above": -1e9, "clip_predictions": clip, "dynamics_lr": 0.0}
        mbrcsl.train(Config(**TINY_NETS | options), run)
        obs, reward = (run.objects["kept"].rollouts[name] for name in ("obs", "reward"))
        low, high = torch.tensor(dataset.observations.min(0)), torch.tensor(dataset.observations.max(0))
        inside = bool(((obs >= low) & (obs <= high)).all())
        assert inside == clip
        if clip:
            assert dataset.reward.min() <= reward.min() <= reward.max() <= dataset.reward.max()


def test_a_step_uses_elites_only_and_each_of_them():
    """Members without noise that add their own number: only the elites' numbers appear, in equal shares."""
    cfg = Config(dynamics_members=4, dynamics_elites=2, dynamics_hidden=(5,), dynamics_decay=(0.0, 0.0))
    buffer = ReplayBuffer(flat_dataset(n=30))
    model = ensemble(cfg, buffer)
    with torch.no_grad():
        for p in (*model.weights, *model.biases):
            p.zero_()
        model.biases[-1][:, 0, :4] = torch.arange(4.0)[:, None]
        model.biases[-1][:, 0, 4:] = -20
        model.min_log_var.fill_(-20)
    model.elites = torch.tensor([1, 3])
    after, reward = model.step(torch.zeros(2000, 3), torch.zeros(2000, 2), seeded())
    torch.testing.assert_close(after, reward[:, None].expand(-1, 3), atol=1e-3, rtol=0)
    assert set(reward.round().int().tolist()) == {1, 3}
    assert (reward.round() == 1).float().mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dynamics_decay": (0.1,)}, "dynamics_decay needs 2"),
        ({"dynamics_elites": 4}, "dynamics_elites 4"),
        ({"diffusion_embedding": 3}, "diffusion_embedding"),
        ({"diffusion_widths": ()}, "diffusion_widths"),
        ({"best_share": 0.0}, "best_share 0.0: must be above 0"),
        ({"num_need_traj": 0}, "num_need_traj 0: must be at least 1"),
        ({"dynamics_epochs": -1}, "dynamics_epochs -1: must be 0 or more"),
        ({"diffusion_lr": 0.0}, "diffusion_lr 0.0: must be above 0"),
        ({"ema_decay": 1.5}, "ema_decay 1.5: must be between 0 and 1"),
        ({"holdout": 1.0}, "holdout 1.0: must be at least 0 and below 1"),
        ({"reload_best": "always", "holdout": 0.0}, "reload_best always needs a holdout above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, text):
    config.check(Config(**TINY_NETS))
    with pytest.raises(BadInput, match=text):
        config.check(Config(**TINY_NETS | options))


# --- diffusion ---


def test_noise_levels_against_the_closed_form():
    schedule = mbrcsl.Schedule(10)
    level = lambda t: math.cos((t / 10 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2  # noqa: E731
    for k in range(9):  # the product of the steps telescopes, except for the last, whose beta is capped
        assert schedule.alpha_bar[k].item() == pytest.approx(level(k + 1), rel=1e-9)
    assert schedule.beta[9].item() == 0.999
    assert schedule.alpha_bar[9].item() == pytest.approx(level(9) * 0.001, rel=1e-9)


def test_the_posterior_is_bayes():
    """q(x_{k-1} | x_k, x_0) from the two Gaussians it is made of, by precision weighting."""
    schedule = mbrcsl.Schedule(6)
    for k in range(1, 6):
        beta, before = schedule.beta[k].item(), schedule.alpha_bar[k - 1].item()
        precision = (1 - beta) / beta + 1 / (1 - before)
        assert schedule.std[k].item() ** 2 == pytest.approx(1 / precision, rel=1e-5)
        assert schedule.of_clean[k].item() == pytest.approx(before**0.5 / (1 - before) / precision, rel=1e-5)
        assert schedule.of_noisy[k].item() == pytest.approx((1 - beta) ** 0.5 / beta / precision, rel=1e-5)


def test_the_exact_noise_leads_back_to_the_only_action():
    schedule, action = mbrcsl.Schedule(10), torch.tensor([0.3, -0.9])
    step, noise = torch.arange(10), torch.randn(10, 2, generator=seeded())
    noisy = schedule.add_noise(action.expand(10, 2), noise, step)
    for k in range(10):
        bar = schedule.alpha_bar[k].item()
        torch.testing.assert_close(noisy[k], math.sqrt(bar) * action + math.sqrt(1 - bar) * noise[k])

    def exact(x, step, obs):
        bar = schedule.alpha_bar[step].float()[:, None]
        return (x - bar.sqrt() * action) / (1 - bar).sqrt()

    torch.testing.assert_close(exact(noisy, step, None), noise, atol=2e-5, rtol=1e-4)
    sampled = schedule.sample(exact, torch.zeros(5, 3), 2, seeded(1))
    torch.testing.assert_close(sampled, action.expand(5, 2))
    clipped = schedule.sample(lambda x, step, obs: -100 * torch.ones_like(x), torch.zeros(5, 3), 2, seeded(1))
    assert torch.equal(clipped, torch.ones(5, 2))


def test_diffusion_learns_both_modes_with_their_weights():
    """Obs -1: 30 % of the actions near (-0.6, 0.5), 70 % near (0.7, -0.2); obs +1: only the first."""
    modes = torch.tensor([[-0.6, 0.5], [0.7, -0.2]])
    generator = seeded()
    n, width = 4000, 0.05
    obs = torch.where(torch.rand(n, 1, generator=generator) < 0.5, -1.0, 1.0)
    second = (torch.rand(n, generator=generator) < 0.7) & (obs[:, 0] < 0)
    action = modes[second.long()] + width * torch.randn(n, 2, generator=generator)
    cfg = Config(diffusion_widths=(32,), diffusion_embedding=16, diffusion_lr=5e-3, diffusion_updates=600)
    net, schedule = mbrcsl.UNet(1, 2, cfg, generator), mbrcsl.Schedule(10)
    average = frozen_copy(net)
    adam = torch.optim.AdamW(net.parameters(), lr=cfg.diffusion_lr)
    for number in range(1, cfg.diffusion_updates + 1):
        adam.param_groups[0]["lr"] = mbrcsl.diffusion_lr(number, 16, cfg)
        index = torch.randint(n, (128,), generator=generator)
        loss, _ = mbrcsl.diffusion_loss(net, schedule, obs[index], action[index], generator)
        adam.zero_grad()
        loss.backward()
        adam.step()
        mbrcsl.update_average(average, net, number, 0.99)
    for value, share in ((-1.0, 0.7), (1.0, 0.0)):
        sampled = schedule.sample(average, torch.full((2000, 1), value), 2, generator)
        distance = (sampled[:, None] - modes).norm(dim=-1)
        assert (distance.amin(dim=1) < 0.25).float().mean() > 0.95
        assert distance.argmin(dim=1).float().mean().item() == pytest.approx(share, abs=0.07)


def test_learning_rates():
    """`released`: constant within an epoch, zero in the first, 9.8e-6 in the 50th; `cosine`: warm-up, then to zero."""
    released = Config(diffusion_lr=1e-4, diffusion_lr_schedule="released")
    rate = lambda number: mbrcsl.diffusion_lr(number, 778, released)  # noqa: E731
    assert rate(1) == rate(778) == 0
    assert rate(779) == rate(2 * 778) == pytest.approx(2e-7)
    assert rate(49 * 778 + 1) == rate(50 * 778) == pytest.approx(9.8e-6)
    assert rate(10_000 * 778) == pytest.approx(1e-4)
    cosine = Config(diffusion_lr=1e-4, diffusion_lr_schedule="cosine", diffusion_updates=2500)
    rates = [mbrcsl.diffusion_lr(k, 778, cosine) for k in (1, 250, 500, 1500, 2500)]
    assert rates == pytest.approx([2e-7, 5e-5, 1e-4, 5e-5, 0.0])
    constant = Config(diffusion_lr=1e-4, diffusion_lr_schedule="constant")
    assert {mbrcsl.diffusion_lr(k, 778, constant) for k in (1, 500, 38_900)} == {1e-4}


def test_the_average_of_the_weights():
    net, average = linear(1, 1, seeded()), linear(1, 1, seeded(1))
    wanted = None
    for number in range(1, 6):
        with torch.no_grad():
            net.weight.fill_(float(number))
        decay = min(0.3, number / (9 + number)) if number > 1 else 0
        wanted = decay * (wanted or 0) + (1 - decay) * number
        mbrcsl.update_average(average, net, number, 0.3)
        assert average.weight.item() == pytest.approx(wanted)
    assert wanted != pytest.approx(5)


# --- rollouts ---


def kept_with(returns, cfg: Config, horizon: int = 4):
    """A `Kept` (data's best return: 3) after one batch of rollouts with these predicted returns, paid at the end."""
    dataset = make_dataset(np.zeros((8, 2)), np.zeros((6, 1)), [0, 0, 3, 1, 1, 0], [False] * 6, [3, 3])
    kept = mbrcsl.Kept(dataset, horizon, cfg, torch.device("cpu"))
    metrics = add_to(kept, returns, horizon)
    return dataset, kept, metrics


def add_to(kept, returns, horizon: int = 4):
    n = len(returns)
    reward = torch.zeros(n, horizon)
    reward[:, -1] = torch.tensor(returns, dtype=torch.float32)
    mark = torch.tensor(returns, dtype=torch.float32)[:, None, None]  # observations that tell the rollouts apart
    return kept.add(mark.expand(n, horizon, 2).clone(), torch.zeros(n, horizon, 1), reward)


def test_rollouts_above_the_data_are_kept():
    dataset, kept, metrics = kept_with([1.0, 3.0, 3.5, 9.0], Config(num_need_traj=3, best_share=1.0))
    assert kept.threshold == 3
    assert kept.rollouts["obs"][:, 0, 0].tolist() == [3.5, 9.0]  # 3.0 is not above
    assert metrics["rollouts/accepted"] == 0.5
    assert not kept.enough
    add_to(kept, [5.0, 6.0, math.nan])
    assert kept.enough  # and the batch overshoots
    assert kept.rollouts["obs"][:, 0, 0].tolist() == [3.5, 9.0, 5.0, 6.0]
    assert "kept 4 of 7" in kept.report(dataset)
    assert "57.14 %" in kept.report(dataset)


def test_the_best_share_of_what_passed():
    dataset, kept, _ = kept_with([4.0, 1.0, 7.0, 5.0], Config(num_need_traj=5, best_share=0.4))
    assert not kept.enough
    add_to(kept, [6.0, 9.0])
    assert kept.enough
    assert kept.rollouts["obs"][:, 0, 0].tolist() == [7.0, 9.0]
    assert kept.rollouts["number"].tolist() == [2, 5]
    assert "kept 5 of 6" in kept.report(dataset)
    assert "the best 2: predicted return 8.0" in kept.report(dataset)


def test_a_threshold_of_ones_own():
    _, kept, _ = kept_with([1.0, 3.0, 3.5, 9.0], Config(keep_above=0.5, best_share=1.0))
    assert len(kept.rollouts["obs"]) == 4


def test_without_a_rollout_above_the_data_the_best_are_used():
    dataset, kept, _ = kept_with([1.0, -2.0, 2.0, math.nan], Config(num_need_traj=2, best_share=1.0))
    add_to(kept, [1.5, -math.inf, 0.0])
    assert not kept.enough
    assert kept.rollouts["obs"][:, 0, 0].tolist() == [2.0, 1.5]
    assert "none of 7" in kept.report(dataset)
    assert "best 2" in kept.report(dataset)


def test_too_few_are_said_and_nothing_at_all_is_an_error():
    dataset, kept, _ = kept_with([1.0, 4.0], Config(num_need_traj=2, best_share=1.0))
    assert "fewer than the 2" in kept.report(dataset)
    _, kept, _ = kept_with([math.nan], Config(num_need_traj=2, best_share=1.0))
    with pytest.raises(FloatingPointError, match="diverged"):
        kept.report(dataset)


def test_unfiltered_the_first_are_kept():
    dataset, kept, _ = kept_with([1.0, 9.0, math.nan, -2.0, 3.0], Config(num_need_traj=6, best_share=0.5, filter=False))
    assert kept.enough
    assert kept.rollouts["obs"][:, 0, 0].tolist() == [1.0, 9.0, -2.0]
    assert "3 unfiltered" in kept.report(dataset)


def test_labels_are_the_predicted_total_less_what_was_paid():
    _, kept, _ = kept_with([], Config(num_need_traj=2, best_share=1.0))
    reward = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 9.0]])
    kept.add(torch.zeros(2, 4, 2), torch.zeros(2, 4, 1), reward)
    for k in range(2):
        total, paid = reward[k].sum().item(), 0.0
        for t in range(4):
            assert kept.returns_to_go()[k, t].item() == pytest.approx(total - paid)
            paid += reward[k, t].item()


def test_a_rollout_follows_model_and_policy():
    """A model that adds the action, without noise: every row is its own whole episode."""
    cfg = Config(dynamics_members=1, dynamics_elites=1, dynamics_hidden=(5,), dynamics_decay=(0.0, 0.0))
    buffer = ReplayBuffer(flat_dataset(n=30))
    model = ensemble(cfg, buffer)

    class Adds:
        def step(self, obs, action, generator):
            return obs + action.sum(dim=1, keepdim=True), obs[:, 0]

    starts = torch.tensor([[0.0, 0, 0], [5.0, 0, 0]])
    obs, action, reward = mbrcsl.roll_out(Adds(), lambda o: torch.ones(2, 2), starts, 4, seeded())
    assert obs[:, :, 0].tolist() == [[0, 2, 4, 6], [5, 7, 9, 11]]
    assert reward.tolist() == obs[:, :, 0].tolist()
    assert action.shape == (2, 4, 2)
    shapes = mbrcsl.roll_out(model, lambda o: torch.ones(2, 2), starts, 3, seeded())
    assert [tuple(x.shape) for x in shapes] == [(2, 3, 3), (2, 3, 2), (2, 3)]


def test_the_table_holds_what_a_replay_needs():
    """A row per rollout tried, in order; start and actions, in [-1, 1], of those that are trained on."""
    _, kept, _ = kept_with([4.0, 1.0], Config(num_need_traj=9, best_share=1.0))
    action = torch.arange(4.0).reshape(1, 4, 1) / 10
    kept.add(torch.tensor([[[6.0, 7.0]]]).expand(1, 4, 2), action, torch.full((1, 4), 2.0))
    rows = kept.table().to_pandas()
    assert rows.predicted_return.tolist() == [4.0, 1.0, 8.0]
    assert rows.trained_on.tolist() == [True, False, True]
    assert rows.start[2].tolist() == [6.0, 7.0]
    assert rows.action[2] == pytest.approx(action.flatten().numpy())
    assert rows.start[1] is None
    assert rows.action[1] is None


# --- the policy ---


@pytest.mark.parametrize("rtg_input", ["raw", "normalised"])
def test_the_target_is_reduced_by_what_was_collected(rtg_input):
    actor = an_actor(Config(hidden=(8,), rtg_input=rtg_input))
    actor.target.fill_(50.0)

    class Now:
        return_so_far = torch.tensor([0.0, 20.0])

    seen = []
    actor.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][:, -1].tolist()))
    obs = torch.randn(2, 3, generator=seeded())
    action = actor.act(obs, Now())
    assert seen == [[50.0, 30.0] if rtg_input == "raw" else pytest.approx([1.0, 0.6])]
    torch.testing.assert_close(action, actor(obs, torch.tensor([50.0, 30.0])))


def test_actions_trained_on_and_kept_are_in_unit_range():
    """The data's actions reach +-2: the behaviour imitates them in [-1, 1], and that is what rollouts and actor see."""
    dataset = flat_dataset(n=50, high=2.0)
    run = PhasedRun(dataset, 0)
    mbrcsl.train(Config(**TINY_NETS | {"keep_above": -1e9}), run)
    assert np.abs(dataset.action).max() > 1.5
    assert run.objects["kept"].rollouts["action"].abs().max() <= 1
    buffer = run.objects["fit"].buffer
    torch.testing.assert_close(buffer.action, torch.tensor(dataset.action) / 2)


def test_the_loss_is_the_squared_error_on_the_kept_actions():
    actor, generator = an_actor(Config(hidden=(8,))), seeded(1)
    new = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    batch = {"obs": new(6, 3), "return_to_go": new(6), "action": new(6, 2)}
    loss, metrics = mbrcsl.actor_loss(actor, batch)
    error = actor(batch["obs"], batch["return_to_go"]) - batch["action"]
    assert loss.item() == pytest.approx((error**2).sum().item() / 12)
    assert metrics["losses/actor"] == loss
    assert not metrics["losses/actor"].requires_grad


def searching(cfg: Config, losses):
    actor = an_actor(cfg)
    search = mbrcsl.Search(actor, cfg, seed=0)
    for k, loss in enumerate(losses):
        with torch.no_grad():
            actor.layers[0].bias.fill_(float(k))
        search.look(torch.tensor(loss))
    return actor, search


def test_best_weights_are_taken_when_the_search_ends():
    """An improvement of less than 1 % is none; five of those end it, at the weights of the best."""
    actor, search = searching(Config(patience=5, hidden=(4,)), [3.0, 2.0, 1.99, 1.985, 1.99, 1.981, 1.99])
    assert search.ended
    assert actor.layers[0].bias[0].item() == 1.0
    actor, search = searching(Config(patience=5, hidden=(4,)), [3.0, 2.0, 1.99, 1.985, 1.99, 1.9, 1.99])
    assert not search.ended
    assert actor.layers[0].bias[0].item() == 6.0
    search.reload()
    assert actor.layers[0].bias[0].item() == 5.0


def test_weights_stay_where_nobody_has_looked_at_the_hold_out():
    """As in a training of fewer updates than an epoch has."""
    actor = an_actor(Config(hidden=(4,)))
    search = mbrcsl.Search(actor, Config(hidden=(4,)), seed=0)
    with torch.no_grad():
        actor.layers[0].bias.fill_(3.0)
    search.reload()
    assert (actor.layers[0].bias == 3.0).all()


def test_hold_out_of_transitions():
    _, search = searching(Config(hidden=(4,), holdout=0.1), [])
    trained, held = search.split(200)
    assert len(held) == 20
    assert sorted([*trained.tolist(), *held.tolist()]) == list(range(200))
    search.cfg = Config(hidden=(4,), holdout=0.0)
    assert len(search.split(200)[1]) == 0


# --- the whole ---


def test_phases_end_where_they_must():
    """Rollouts stop at num_need_traj; dynamics at their epochs; the target is the largest kept return."""
    run = PhasedRun(flat_dataset(n=50), 0)
    cfg = Config(**TINY_NETS | {"keep_above": -1e9, "rollout_batches": 50, "num_need_traj": 7})
    mbrcsl.train(cfg, run)
    assert run.rounds == {"dynamics": 2 * 3, "diffusion": 6, "rollouts": 2}
    kept, actor = run.objects["kept"], run.objects["networks.actor"]
    assert len(kept.rollouts["obs"]) == 10
    assert actor.target == kept.rollouts["reward"].sum(dim=1).max()
    assert all(policy is actor for policy in run.policies)
    rows = run.tables["rollouts"]
    assert rows.trained_on.sum() == len(rows) == 10
    assert not rows.predicted_return.is_monotonic_decreasing  # in the order they were tried
    assert rows.predicted_return.to_numpy() == pytest.approx(kept.rollouts["reward"].sum(1).numpy(), rel=1e-5)
    assert rows.start[3].tolist() == pytest.approx(kept.rollouts["obs"][3, 0].tolist())
    assert rows.action[3].tolist() == pytest.approx(kept.rollouts["action"][3].flatten().tolist())


def test_starts_are_the_datas_own():
    run = PhasedRun(dataset := flat_dataset(n=50, lengths=[10] * 5), 0)
    mbrcsl.train(Config(**TINY_NETS | {"keep_above": -1e9, "num_need_traj": 20, "rollout_batches": 4}), run)
    first = {tuple(row) for row in run.objects["kept"].rollouts["obs"][:, 0].tolist()}
    assert first <= {tuple(row) for row in dataset.obs[dataset.starts[:-1]].tolist()}
    assert len(first) > 1


def test_without_a_good_rollout_the_run_says_so_and_goes_on():
    run = PhasedRun(flat_dataset(n=50), 0)
    mbrcsl.train(Config(**TINY_NETS | {"keep_above": 1e9}), run)
    assert run.rounds["rollouts"] == 2
    assert any("none of 10 is predicted to return more than 1000000000.0" in text for text in run.said)
    assert len(run.objects["kept"].rollouts["obs"]) == 4
    assert len(run.policies) == 4
    rows = run.tables["rollouts"]
    assert len(rows) == 10
    assert sorted(rows.predicted_return[rows.trained_on]) == sorted(rows.predicted_return)[-4:]


def test_training_without_the_filter():
    run = PhasedRun(flat_dataset(n=50), 0)
    mbrcsl.train(Config(**TINY_NETS | {"filter": False, "keep_above": 1e9}), run)
    assert run.rounds["rollouts"] == 1
    assert len(run.objects["kept"].rollouts["obs"]) == 4


def test_dynamics_stop_early():
    """Nothing improves at a learning rate of 0: the first epoch, then as many idle ones as the patience."""
    run = PhasedRun(flat_dataset(n=50), 0)
    mbrcsl.train(Config(**TINY_NETS | {"dynamics_lr": 0.0, "dynamics_patience": 3, "dynamics_epochs": 0}), run)
    assert run.rounds["dynamics"] == (1 + 3) * 3


@pytest.mark.parametrize("mode", ["on_stop", "always", "never"])
def test_reloading_the_best_policy(mode):
    """The hold-out is looked at every epoch after `search_from`; what is evaluated last is what the option says."""
    run = PhasedRun(flat_dataset(n=50), 0)
    options = {
        "updates": 60,
        "search_from": 0.5,
        "patience": 2,
        "lr": 0.3,
        "lr_schedule": "constant",
        "reload_best": mode,
        "keep_above": -1e9,
        "normalize_obs": False,
        "input_noise": 0.0,
    }
    weights = []
    run.on_update = lambda: weights.append(run.objects["networks.actor"].layers[0].weight.detach().clone())
    mbrcsl.train(Config(**TINY_NETS | options), run)
    weights = weights[-60:]
    looks = sum("losses/holdout" in row for row in run.logged)
    search = run.objects["search"]
    best = search.weights["layers.0.weight"]
    assert (looks > 0) == (mode != "never")
    assert search.ended == (mode != "never")  # at this learning rate the loss soon stops improving
    if mode == "never":
        assert all(not torch.equal(a, b) for a, b in zip(weights, weights[1:]))  # noqa: RUF007
    else:
        assert sum("losses/actor" in row for row in run.logged) < 60  # the training has ended
        assert torch.equal(weights[-1], best)


def test_input_noise_is_drawn_in_training_alone():
    """It is added to the standardised inputs: the first layer sees the asked spread around them in training alone."""
    actor = an_actor(Config(**TINY_NETS | {"input_noise": 0.3}))
    actor.normalize.fit(torch.full((3,), 2.0), torch.full((3,), 4.0))
    actor.target.fill_(50.0)
    seen = []
    actor.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    obs, to_go = torch.full((4000, 3), 10.0), torch.full((4000,), 25.0)
    clean = torch.tensor([2.0, 2.0, 2.0, 0.5]).expand(4000, 4)
    actor(obs, to_go)
    assert torch.equal(seen[0], clean)
    actor(obs, to_go, seeded())
    assert (seen[1] - clean).std(dim=0).tolist() == pytest.approx([0.3] * 4, rel=0.05)
    assert (seen[1] - clean).mean(dim=0).tolist() == pytest.approx([0.0] * 4, abs=0.02)


@pytest.mark.slow
def test_it_stitches():
    """On a line that pays its coordinate, half of the data walk from 0 to 1 and stay, half go back to -1 first and then
    on to 2. Nobody goes straight from 0 to 2; the trained policy does, in the true system."""
    rng = np.random.default_rng(0)
    horizon, obs, actions, rewards = 20, [], [], []
    for k in range(200):
        x, turned = 0.05 * rng.normal(), False
        obs.append([x])
        for _ in range(horizon):
            turned |= x < -1
            goal = (1.0 if k % 2 else (2.0 if turned else -1.2)) - x
            a = np.clip(goal / 0.25, -1, 1) + 0.1 * rng.normal()
            x += 0.25 * np.clip(a, -1, 1)
            obs.append([x])
            actions.append([np.clip(a, -1, 1)])
            rewards.append(max(0.0, x))
    dataset = make_dataset(obs, actions, rewards, np.zeros(len(rewards), bool), [horizon] * 200)
    run = PhasedRun(dataset, 0)
    run.episode_limit, run.evaluation_due = horizon, False
    cfg = Config(
        dynamics_members=3, dynamics_elites=2, dynamics_hidden=(32, 32), dynamics_decay=(1e-5, 1e-5, 1e-5),
        diffusion_widths=(48,), diffusion_embedding=16, diffusion_updates=2500, diffusion_lr=3e-3, hidden=(64,),
        updates=2000, lr=3e-3,
    )  # fmt: skip
    mbrcsl.train(cfg, run)
    actor, x, total = run.objects["networks.actor"], torch.zeros(1, 1), torch.zeros(1)
    with torch.no_grad():
        for _ in range(horizon):
            x = x + 0.25 * actor(x, actor.target - total).clamp(-1, 1)
            total = total + x[:, 0].clamp(min=0)
    assert total.item() > dataset.returns.max() + 2


# --- kills ---


def options(dataset: str) -> list[str]:
    """A run of all four stages in a second: 2 epochs of 25 updates, 40 updates, up to 9 batches, 60 updates."""
    return small(
        dataset,
        dynamics_members=3, dynamics_elites=2, dynamics_hidden=8, dynamics_decay="1e-5 1e-5", dynamics_batch=64,
        dynamics_epochs=2, diffusion_widths=8, diffusion_embedding=4, diffusion_steps=2, diffusion_updates=40,
        diffusion_batch=16, rollout_batch=4, rollout_batches=9, keep_above=1e9, num_need_traj=5, best_share=1.0,
        checkpoint_every=7, log_every=9, reload_best="always", search_from=0.2, patience=50, holdout=0.2,
    )  # fmt: skip


def test_killed_in_every_phase_it_ends_with_the_same_bits(tiny, run_file, tmp_path, monkeypatch):
    """It dies within a phase, between its checkpoints, again and again; and between the phases."""
    args = options(tiny)
    straight = run_file("mbrcsl", *args, results=tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr + straight.stdout
    log, point = Run.log, ("", 0)

    def dying(self, metrics, updates=1):
        log(self, metrics, updates)
        if (self.stage, self.count) == point:
            raise Killed

    points = [
        ("dynamics", 3), ("dynamics", 12), ("dynamics", 30), ("diffusion", 1), ("diffusion", 17), ("rollouts", 1),
        ("rollouts", 8), ("", 1), ("", 25), ("", 59),
    ]  # fmt: skip
    monkeypatch.setattr(Run, "log", dying)
    for point in points:  # noqa: B007 (read by dying)
        with pytest.raises(Killed):
            run_file("mbrcsl", *args, results=tmp_path / "broken")
    monkeypatch.setattr(Run, "log", log)
    resumed = run_file("mbrcsl", *args, results=tmp_path / "broken")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(tmp_path / "straight", tmp_path / "broken", "rollouts.parquet")


def test_records_of_a_whole_run(tiny, run_file, tmp_path):
    done = run_file("mbrcsl", *options(tiny))
    assert done.returncode == 0, done.stderr + done.stdout
    folder = only_run(tmp_path / "results")
    metrics = pd.read_parquet(folder / "metrics.parquet")
    for phase, column in (
        ("dynamics", "dynamics/holdout"), ("diffusion", "diffusion/loss"), ("rollouts", "rollouts/accepted"),
        ("", "losses/actor"),
    ):  # fmt: skip
        assert metrics[metrics.phase.fillna("") == phase][column].notna().any(), phase
    rows = pd.read_parquet(folder / "rollouts.parquet")
    assert (len(rows), rows.trained_on.sum()) == (36, 5)
    assert rows[rows.trained_on].predicted_return.min() >= rows[~rows.trained_on].predicted_return.max()
    assert "none of 36" in (folder / "log.txt").read_text()


def test_the_kept_policy_repeats_the_last_evaluation(tiny, run_file, tmp_path):
    """Weights, target and statistics of the observations are all in the folder."""
    assert run_file("mbrcsl", *options(tiny)).returncode == 0
    policy = assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))
    assert policy.actor.target != 1
    assert not torch.equal(policy.actor.normalize.std, torch.ones(3))
