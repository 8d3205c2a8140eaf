"""DRBC: densities and penalties against torch.distributions, its backup against exact soft values, stages, resume."""

from __future__ import annotations

import contextlib
import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import small
from online_toys import OnlineRun
from resume import assert_same_run, checkpoint, kill, only_run
from scipy.integrate import quad
from torch.distributions import Independent, Normal, TransformedDistribution, kl_divergence
from torch.distributions.transforms import TanhTransform
from toys import FakeRun, flat_dataset, make_dataset

from hoard.algos import drbc
from hoard.envs import tabular
from hoard.records.errors import BadInput
from hoard.runners.config import check
from hoard.runners.evaluate import Evaluator
from hoard.runners.policy import load_policy

ONLINE = {"online_steps": 430, "warmup_steps": 60, "expert_fraction": 0.4, "eval_every": 200, "checkpoint_every": 100}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def actor_of(dataset, cfg: drbc.Config, seed: int = 0) -> drbc.Actor:
    return drbc.Actor(cfg, dataset.obs_dim, dataset.action_dim, generator(seed))


def gaussians(n: int = 60, dim: int = 2, seed: int = 0) -> list[torch.Tensor]:
    """Mean, log-std, another mean and log-std, and points before the tanh."""
    draws = generator(seed)
    return [torch.randn(n, dim, generator=draws, dtype=torch.float64) for _ in range(5)]


# --- densities ---


def test_log_prob_is_that_of_the_transformed_distribution():
    mean, log_std, _, _, u = gaussians()
    dist = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    torch.testing.assert_close(
        drbc.squashed_log_prob(mean, log_std, u), dist.log_prob(torch.tanh(u)).sum(-1), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("mixture", [0.0, 1e-3, 0.1, 1.0])
def test_the_mixture_is_a_density(mixture):
    """It integrates to one over [-1, 1] (in u, so that the edges are covered)."""
    mean, log_std = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[-0.7]], dtype=torch.float64)

    def density(u: float) -> float:
        point = torch.tensor([[u]], dtype=torch.float64)
        return drbc.reference_log_prob(mean, log_std, point, mixture).exp().item() * (1 - math.tanh(u) ** 2)

    assert quad(density, -12, 12, limit=200)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("mixture", [1e-3, 0.1])
def test_the_mixture_never_vanishes_and_the_clone_alone_does(mixture):
    mean, log_std = torch.zeros(1, 2), torch.full((1, 2), -5.0)
    far = torch.full((1, 2), 3.0)
    floor = math.log(mixture) - 2 * math.log(2)
    assert drbc.reference_log_prob(mean, log_std, far, 0.0).item() < -1e5
    assert drbc.reference_log_prob(mean, log_std, far, mixture).item() == pytest.approx(floor, rel=1e-5)
    mean, log_std, _, _, u = gaussians(500)
    clone, mixed = (drbc.reference_log_prob(mean, log_std, u, k) for k in (0.0, mixture))
    assert (mixed >= floor - 1e-9).all()
    assert (mixed >= clone + math.log1p(-mixture) - 1e-9).all()
    assert (mixed <= torch.logaddexp(clone, torch.full_like(clone, floor)) + 1e-9).all()


def test_gradients_of_the_mixture_stay_finite_far_from_the_clone():
    u = torch.tensor([[40.0, -40.0]], requires_grad=True)
    drbc.reference_log_prob(torch.zeros(1, 2), torch.full((1, 2), -5.0), u, 0.01).sum().backward()
    assert torch.isfinite(u.grad).all()


def test_kl_of_gaussians_and_its_estimate():
    mean, log_std, ref_mean, ref_log_std, _ = gaussians()
    one, two = (Independent(Normal(m, s.exp()), 1) for m, s in ((mean, log_std), (ref_mean, ref_log_std)))
    analytic = drbc.gaussian_kl(mean, log_std, ref_mean, ref_log_std)
    torch.testing.assert_close(analytic, kl_divergence(one, two))
    mean, log_std, ref_mean, ref_log_std = (x[:1].expand(200_000, -1) for x in (mean, log_std, ref_mean, ref_log_std))
    u = mean + log_std.exp() * torch.randn(mean.shape, generator=generator(3), dtype=torch.float64)
    ratio = drbc.squashed_log_prob(mean, log_std, u) - drbc.reference_log_prob(ref_mean, ref_log_std, u, 0.0)
    error = ratio.std().item() / math.sqrt(len(u))
    assert abs(ratio.mean().item() - analytic[0].item()) < 5 * error


def test_a_policy_has_no_kl_to_itself_and_the_floor_applies_to_the_reference_alone():
    dataset = flat_dataset()
    cfg = drbc.Config(hidden=(8,), ref_mixture=0.0, kl_estimate="analytic", ref_log_std_min=-5.0)
    actor = actor_of(dataset, cfg)
    obs = torch.as_tensor(dataset.obs)
    noise = torch.randn(len(obs), 2, generator=generator())
    action, kl = drbc.sample_with_kl(actor, actor, 0.0, obs, noise, cfg)
    assert action.abs().max() < 1
    assert torch.equal(kl, torch.zeros(len(obs)))
    cfg.kl_estimate = "sample"
    assert drbc.sample_with_kl(actor, actor, 0.0, obs, noise, cfg)[1].abs().max() < 1e-5
    actor.layers[-1].weight.data[2:] = 0
    actor.layers[-1].bias.data[2:] = -4.0  # log-std
    cfg = drbc.Config(hidden=(8,), ref_mixture=0.0, kl_estimate="analytic", ref_log_std_min=-1.0)
    kl = drbc.sample_with_kl(actor, actor, 0.0, obs, noise, cfg)[1]
    torch.testing.assert_close(kl, torch.full_like(kl, 2 * (3.0 + 0.5 * math.exp(-6) - 0.5)))


# --- losses ---


def test_clone_loss_is_the_mean_negative_log_likelihood():
    dataset = flat_dataset()
    clone = actor_of(dataset, drbc.Config(hidden=(8,)))
    obs, action = torch.as_tensor(dataset.obs), torch.as_tensor(dataset.action) * 0.9
    mean, log_std = clone(obs)
    dist = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform())
    loss, _ = drbc.clone_loss(clone, obs, action, 0.1)
    assert loss.item() == pytest.approx(-dist.log_prob(action).sum(-1).mean().item(), rel=1e-4)
    beyond, _ = drbc.clone_loss(clone, obs, action * 10, 0.25)
    clipped, _ = drbc.clone_loss(clone, obs, (action * 10).clamp(-0.75, 0.75), 0.01)
    assert beyond.item() == pytest.approx(clipped.item())


def test_saturated_demonstrations_are_fitted_without_blowing_up():
    """Every action at the bound, where atanh is infinite."""
    obs = np.random.default_rng(0).normal(size=(42, 3))
    ones = np.where(np.arange(40) % 2, 1.0, -1.0)[:, None]
    dataset = make_dataset(obs, ones, np.arange(40.0), np.zeros(40, bool), [20, 20])
    run = FakeRun(dataset, seed=0)
    drbc_run = run_clone(run, demonstrations=2, updates=50)
    assert all(torch.isfinite(p).all() for p in drbc_run.objects["networks.clone"].parameters())
    assert (drbc_run.objects["buffer"].action.abs() == 1).all()  # what RL learns from is not clipped


def run_clone(run: FakeRun, **options) -> FakeRun:
    run.update = run.env_step = 0
    run.say = run.evaluate = lambda *args, **kwargs: None
    drbc.train(
        drbc.Config(
            **{"online_steps": 0, "hidden": (16,), "batch_size": 32, "lr": 0.01, "expert_fraction": 1.0} | options
        ),
        run,
    )
    return run


def test_backup_and_actor_loss_by_hand():
    q = torch.tensor([[1.0, 5.0], [2.0, 3.0]])
    kl, weight = torch.tensor([0.5, 2.0]), torch.tensor(0.1)
    backup = drbc.soft_backup(torch.tensor([10.0, 20.0]), torch.tensor([0.0, 1.0]), q, kl, weight, 0.9)
    torch.testing.assert_close(backup, torch.tensor([10 + 0.9 * (1.0 - 0.05), 20.0]))
    loss, _ = drbc.actor_loss(q, kl, weight)
    assert loss.item() == pytest.approx(((0.05 - 1.0) + (0.2 - 3.0)) / 2)


def test_the_expected_backup_is_the_soft_bellman_operator():
    """For a finite MDP: with pi the KL-regularised optimum, r + E[Q - w log(pi / ref)] is the exact soft Q."""
    mdp, rng = tabular.random_mdp(states=5, actions=3, horizon=4, seed=0), np.random.default_rng(1)
    reference = rng.dirichlet(np.ones(3), size=(4, 5))
    weight = 0.3
    q, v, policy = tabular.soft_value_iteration(mdp, reference, weight)
    kl = np.log(policy) - np.log(reference)  # of each action: the one-sample estimate
    for h in range(3):
        for a in range(3):  # next action, its two critics equal
            backup = drbc.soft_backup(
                torch.as_tensor(mdp.reward[h]),
                torch.zeros(5, 3, dtype=torch.float64),
                torch.as_tensor(mdp.transition @ q[h + 1][:, a]).expand(2, -1, -1),
                torch.as_tensor(mdp.transition @ kl[h + 1][:, a]),
                torch.tensor(weight, dtype=torch.float64),
                1.0,
            )
            # At the optimum Q - w log(pi / ref) is V(s') whatever the action: no sampling error is left.
            np.testing.assert_allclose(backup.numpy(), q[h], rtol=1e-10)
    np.testing.assert_allclose((policy * (q - weight * kl)).sum(-1), v[:-1], rtol=1e-10)


def test_schedules_of_the_weight():
    cfg = drbc.Config(kl_weight=0.4, online_steps=1000, anneal_to=0.1, anneal_by=0.5)
    at = lambda step: drbc.scheduled_weight(cfg, step)  # noqa: E731
    assert at(0) == 0.4
    assert at(250) == pytest.approx(0.4 * 0.55)
    assert at(500) == at(999) == pytest.approx(0.04)
    cfg.kl_rule = "fixed"
    assert at(0) == at(999) == 0.4
    log = torch.zeros((), requires_grad=True)
    for kl, rises in ((4.0, True), (2.0, False)):
        loss, metrics = drbc.kl_weight_loss(log, torch.tensor(kl), 3.0)
        assert metrics["losses/kl_weight"].requires_grad is False
        (gradient,) = torch.autograd.grad(loss, log)
        assert (gradient.item() < 0) is rises


def test_the_uniform_share_follows_the_number_of_demonstrations():
    share = lambda n, **options: drbc.mixture_share(drbc.Config(**options), n)  # noqa: E731
    assert share(1) == 0.1
    assert share(19) == 0.05
    assert share(1500) == 1e-3
    assert share(1, ref_mixture=0.0) == 0.0


# --- data ---


def test_which_episodes_are_demonstrations():
    rewards = np.repeat([1.0, 5.0, 3.0, 4.0, 2.0, 0.0, 9.0, 8.0], 4)
    dataset = flat_dataset(rewards=rewards, lengths=[4] * 8)

    def chosen(**options):
        return [part.tolist() for part in drbc.choose_demonstrations(dataset, drbc.Config(**options))]

    assert chosen(expert_fraction=0.5, demonstrations=0, holdout=0.0) == [[1, 3, 6, 7], []]
    assert chosen(expert_fraction=0.5, demonstrations=99, holdout=0.0) == [[1, 3, 6, 7], []]
    assert chosen(expert_fraction=0.01, demonstrations=0) == [[6], []]
    fitted, held = chosen(expert_fraction=0.5, demonstrations=0, holdout=0.25)
    assert (len(fitted), len(held)) == (3, 1)
    assert sorted(fitted + held) == [1, 3, 6, 7]
    draws = [chosen(expert_fraction=0.5, demonstrations=2, holdout=0.0, seed=s)[0] for s in range(40)]
    assert len({tuple(d) for d in draws}) == 6  # all pairs of the four best
    assert len(chosen(expert_fraction=1.0, demonstrations=5, holdout=0.0)[0]) == 5


def test_the_clone_looks_at_the_demonstrations_alone():
    """The other episodes hold no numbers, nor do any rewards, yet the clone is finite."""
    rewards = np.repeat([0.0, 5.0, 1.0], 10)
    dataset = flat_dataset(rewards=rewards, lengths=[10] * 3)
    run = FakeRun(dataset, seed=0)
    register = run.register

    def spoil(**objects):
        objects["buffer"].reward[:] = math.nan
        objects["buffer"].action[:10] = objects["buffer"].action[20:] = math.nan
        register(**objects)

    run.register = spoil
    run_clone(run, demonstrations=1, expert_fraction=0.4, updates=20)
    assert all(torch.isfinite(p).all() for p in run.objects["networks.clone"].parameters())


def test_the_reference_is_the_clone_that_fitted_held_out_episodes_best():
    """Noise has nothing to generalise: the held-out likelihood is best early, and that clone is kept."""
    dataset = flat_dataset(n=120, lengths=[10] * 12)
    run = FakeRun(dataset, seed=0)
    held_out, snapshots = [], []

    def look():
        if "clone/nll_held_out" in run.logged[-1]:
            held_out.append(run.logged[-1]["clone/nll_held_out"].item())
            snapshots.append(copy.deepcopy(run.objects["networks.clone"].state_dict()))

    run.on_update = look
    run_clone(run, demonstrations=12, holdout=0.25, updates=600, hidden=(64,))
    assert len(held_out) == 6
    best = int(np.argmin(held_out))
    assert best < 5  # it did overfit
    reference = run.objects["reference"].state_dict()
    assert all(torch.equal(reference[k], snapshots[best][k]) for k in reference)
    assert run.objects["best_nll"][0].item() == pytest.approx(min(held_out))
    alone = run_clone(FakeRun(dataset, seed=0), demonstrations=5, updates=3)  # half an episode held out: none
    assert alone.objects["reference"] is alone.objects["networks.clone"]


def test_rewards_are_scaled_by_their_range():
    dataset = flat_dataset(rewards=[-3.0] * 5 + [1.0] * 5)
    assert drbc.reward_scale(dataset, None) == 0.25
    assert drbc.reward_scale(dataset, 2.0) == 2.0
    with pytest.raises(ValueError, match="reward_scale"):
        drbc.reward_scale(flat_dataset(rewards=np.ones(10)), None)


def test_online_steps_are_stored_as_the_data_are():
    """Rewards by the same factor, actions in [-1, 1], whatever the environment's units."""
    dataset = flat_dataset(high=3.0)
    run = online(dataset)
    stored, scale = run.objects["buffer"], drbc.reward_scale(dataset, None)
    torch.testing.assert_close(stored.reward[:50], scale * torch.as_tensor(dataset.reward))
    torch.testing.assert_close(stored.action[:50], torch.as_tensor(dataset.action) / 3)
    torch.testing.assert_close(stored.reward[50:], scale * torch.tensor(run.env.rewards))
    torch.testing.assert_close(stored.action[50:], torch.as_tensor(np.array(run.env.actions)) / 3)


# --- the online stage, looked into ---


def online(dataset=None, **options) -> OnlineRun:
    base = {
        "updates": 5,
        "online_steps": 40,
        "expert_fraction": 1.0,
        "warmup_steps": 20,
        "hidden": (8,),
        "batch_size": 8,
        "lr": 0.01,
    }
    run = OnlineRun(dataset or flat_dataset(), seed=0)
    run.eval_at = (base["online_steps"],)
    drbc.train(drbc.Config(**base | {"demonstrations": 2} | options), run)
    return run


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_rl_starts_as_the_clone_and_the_reference_stays():
    warm = online(warmup_steps=100)
    assert same(warm.objects["networks.actor"], warm.objects["networks.clone"])
    assert not any("losses/actor" in metrics for metrics in warm.logged)
    assert sum("losses/critic" in metrics for metrics in warm.logged) == 33  # from the 8th step on
    assert warm.update == 5 + 33  # of the clone, then of RL
    after = online()
    assert same(after.objects["reference"], warm.objects["reference"])
    assert not same(after.objects["networks.actor"], after.objects["reference"])
    assert sum("losses/actor" in metrics for metrics in after.logged) == 20
    assert not same(
        online(warmup_steps=100, actor_init="random").objects["networks.actor"], warm.objects["networks.clone"]
    )


def test_penalty_reaches_actor_and_target_as_asked():
    """One seed, one setting changed: weights may differ where the option says, and nowhere else."""
    both, actor_only, none = (
        online(**o, kl_weight=w) for o, w in (({}, 5.0), ({"kl_in_target": False}, 5.0), ({}, 0.0))
    )
    q = lambda run: next(m["values/q"].item() for m in reversed(run.logged) if "values/q" in m)  # noqa: E731
    assert not same(both.objects["networks.actor"], none.objects["networks.actor"])
    assert not same(actor_only.objects["networks.actor"], none.objects["networks.actor"])
    assert q(both) != q(actor_only)
    # While the actor is the clone, a penalty of the actor alone cannot be told from none.
    warm = [online(warmup_steps=100, kl_in_target=False, kl_weight=w) for w in (5.0, 0.0)]
    assert same(warm[0].objects["networks.critic"], warm[1].objects["networks.critic"])


def test_a_heavy_penalty_holds_the_actor_to_the_clone():
    def kl(weight):
        run = online(kl_weight=weight, kl_rule="fixed", online_steps=150, ref_mixture=0.0, kl_estimate="analytic")
        return run.logged[-1]["policy/kl"].item()

    assert kl(100.0) < kl(0.0)


def test_demonstrations_in_rl_batches(monkeypatch):
    sizes = []
    sample = drbc.ReplayBuffer.sample

    def watched(self, size, *args):
        sizes.append(size)
        return sample(self, size, *args)

    monkeypatch.setattr(drbc.ReplayBuffer, "sample", watched)
    online(demo_ratio=0.25)
    assert set(sizes) == {6}
    run = online(demo_ratio=1.0)
    assert len(sizes) == 33
    assert run.update == 5 + 33


def test_the_budget_moves_the_weight():
    up = online(kl_rule="budget", kl_budget=-100.0, kl_weight=0.5)
    down = online(kl_rule="budget", kl_budget=1e6, kl_weight=0.5)
    assert down.objects["networks.kl_weight"]() < 0.5 < up.objects["networks.kl_weight"]()


def test_headline_and_sampled_policies():
    """The mean without a draw, the actor itself; the variant draws from the evaluation's generator alone."""
    run = online()
    (step, name, policy), (_, sampled_name, sampled) = run.evaluated
    assert (step, name, sampled_name) == (40, "", "sampled")
    assert policy is run.objects["networks.actor"]
    obs = torch.zeros(2000, 3)
    before = run.generator.get_state()
    histories = [SimpleNamespace(generator=generator(7)) for _ in range(2)]
    mean, draws, again = policy.act(obs), sampled(obs, histories[0]), sampled(obs, histories[1])
    assert torch.equal(run.generator.get_state(), before)
    assert (mean == mean[0]).all()
    assert torch.equal(draws, again)
    assert draws.std(dim=0).min() > 0.01
    assert draws.abs().max() <= 1


def test_uniform_from_clone_keeps_the_entropy_and_drops_the_clone_from_the_penalty():
    """The penalty is the negative entropy but for a constant, whatever the clone is; RL starts as the clone."""
    cfg = drbc.Config(hidden=(8,), **drbc.PRESETS["uniform_from_clone"])
    dataset = flat_dataset()
    obs, actor = torch.as_tensor(dataset.obs), actor_of(dataset, cfg)
    noise, kls = torch.randn(len(obs), 2, generator=generator()), []
    for seed in (1, 2):
        mixture = drbc.mixture_share(cfg, demonstrations=20)
        _, kl = drbc.sample_with_kl(actor, actor_of(dataset, cfg, seed), mixture, obs, noise, cfg)
        kls.append(kl)
    mean, log_std = actor(obs)
    u = mean + log_std.exp() * noise
    torch.testing.assert_close(kls[0], drbc.squashed_log_prob(mean, log_std, u) + 2 * math.log(2))
    assert torch.equal(*kls)

    preset = drbc.PRESETS["uniform_from_clone"]
    warm = online(warmup_steps=100, **preset)
    assert same(warm.objects["networks.actor"], warm.objects["networks.clone"])
    one, two = (online(kl_weight=w, **preset) for w in (0.0, 5.0))  # it is not the ablation of the whole penalty
    assert not same(one.objects["networks.actor"], two.objects["networks.actor"])
    assert {k: v for k, v in vars(drbc.Config(**preset)).items() if v != getattr(drbc.Config(), k)} == preset


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"updates": 0}, "updates 0"),
        ({"kl_estimate": "analytic"}, "ref_mixture 0"),
        ({"ref_mixture": -0.5}, "ref_mixture -0.5"),
        ({"demo_ratio": 2.0}, "demo_ratio 2"),
        ({"kl_weight": -1.0}, "kl_weight -1"),
        ({"kl_rule": "budget", "kl_weight": 0.0}, "kl_weight 0"),
        ({"anneal_by": 0.0}, "anneal_by"),
        ({"expert_fraction": 1.2}, "expert_fraction 1.2"),
        ({"demonstrations": -1}, "demonstrations -1"),
        ({"warmup_steps": -1}, "warmup_steps -1"),
        ({"holdout": 1.0}, "holdout 1.0"),
        ({"action_clip": 0.0}, "action_clip 0.0"),
        ({"reward_scale": 0.0}, "reward_scale 0.0"),
        ({"ref_log_std_min": -6.0}, "ref_log_std_min -6.0"),
        ({"target_tau": 1.5}, "target_tau 1.5"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(BadInput, match=re.escape(message)):
        check(drbc.Config(**options))


def test_presets_are_usable():
    for options in drbc.PRESETS.values():
        check(drbc.Config(**options))


# --- whole runs ---


def points(folder) -> dict:
    rows = pd.read_parquet(folder / "episodes.parquet")
    return rows.groupby(["variant", "update", "env_step", "final"]).size().to_dict()


def test_without_online_steps_the_clone_is_the_result(tiny, run_file, tmp_path):
    done = run_file("drbc", *small(tiny, expert_fraction=0.4, online_steps=0))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path / "results")
    assert points(folder) == {("", 30, 0, False): 2, ("", 60, 0, True): 3, ("sampled", 60, 0, True): 3}
    objects = checkpoint(folder)["objects"]
    assert not objects["optimizers.critic"]["state"]
    assert objects["optimizers.clone"]["state"]


@pytest.mark.parametrize("preset", ["drbc", "uniform"])
def test_end_to_end(tiny, run_file, tmp_path, preset):
    updates = 0 if preset == "uniform" else 60
    done = run_file("drbc", "--preset", preset, *small(tiny, **ONLINE | {"updates": updates, "online_steps": 230}))
    assert done.returncode == 0, done.stdout + done.stderr
    seen = points(only_run(tmp_path / "results"))
    last = updates + 230 - 31  # an update a step once there is a batch of 32
    clone = {("", 60, 0, False): 2} if updates else {}  # eval_every is 200
    rl = {("", last - 30, 200, False): 2, ("", last, 230, True): 3, ("sampled", last, 230, True): 3}
    assert seen == clone | rl


@pytest.mark.slow
def test_killed_online_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = small(tiny, **ONLINE | {"expert_fraction": 1.0, "kl_rule": "budget", "checkpoint_every": 150})
    assert run_file("drbc", *args, results=tmp_path / "straight").returncode == 0
    kill("drbc", args, tmp_path / "broken", env_step=210)
    resumed = run_file("drbc", *args, results=tmp_path / "broken")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resuming after environment step" in resumed.stdout
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.parametrize("online_steps", [0, 60])
def test_the_kept_policy_is_the_evaluated_actor(tiny, run_file, tmp_path, online_steps):
    """The clone of a run without an online stage, else the trained actor; both from raw observations."""
    options = small(tiny, **ONLINE | {"online_steps": online_steps, "warmup_steps": 40, "updates": 20})
    done = run_file("drbc", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path / "results")
    policy = load_policy(folder)
    saved = checkpoint(folder)["objects"]
    wanted = saved["networks.actor" if online_steps else "reference"]
    assert all(torch.equal(value, wanted[name]) for name, value in policy.actor.state_dict().items())
    rows = pd.read_parquet(folder / "episodes.parquet").query("final and variant == ''")
    with contextlib.closing(Evaluator(policy.task)) as evaluate:
        again = evaluate(policy.actor, rows["eval_seed"].tolist(), generator())
    assert [row["return"] for row in again] == rows["return"].tolist()
