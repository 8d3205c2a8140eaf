"""What td3_bc.py, prdc.py and rebrac.py write alike: networks, the target's noise, the delay, bounds, observations."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from toys import FakeRun, flat_dataset

from hoard.algos import prdc, rebrac, td3_bc
from hoard.records.errors import BadInput
from hoard.runners.config import check

ALL = {"td3_bc": td3_bc, "prdc": prdc, "rebrac": rebrac}
each = pytest.mark.parametrize("algo", ALL.values(), ids=ALL)
plain = pytest.mark.parametrize("algo", [td3_bc, prdc], ids=["td3_bc", "prdc"])  # ReBRAC's critics and losses differ


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(algo: ModuleType, **options) -> Any:
    return algo.Config(**{"hidden": (8,), "batch_size": 16, "lr": 1e-2, **options})


def constant(*values: float):
    """A critic of two heads that answers with these numbers, (2, B), whatever it is asked."""
    return lambda obs, action: torch.tensor(values).reshape(2, -1)


# --- networks ---


@plain
def test_both_heads_are_networks_of_their_own(algo):
    dataset = flat_dataset()
    critic = algo.Critic(quick(algo, hidden=(16, 8)), 3, 2, generator()).double()
    critic.normalize.fit(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 1.0]))
    obs, action = torch.as_tensor(dataset.obs).double(), torch.as_tensor(dataset.action).double()
    q = critic(obs, action)
    assert q.shape == (2, len(dataset))
    for i in range(2):
        x = torch.cat([(obs - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([0.5, 2.0, 1.0]), action], -1)
        for k, (w, b) in enumerate(zip(critic.weights, critic.biases)):
            layer = torch.nn.Linear(w.shape[1], w.shape[2]).double()
            layer.weight.data, layer.bias.data = w[i].T, b[i, 0]
            x = layer(x) if k == 2 else torch.relu(layer(x))
        torch.testing.assert_close(q[i], x[:, 0])
    assert not torch.equal(q[0], q[1])


@plain
def test_weights_begin_as_torchs_linear_layers_do(algo):
    critic = algo.Critic(quick(algo, hidden=(64, 64)), 3, 2, generator())
    for inputs, weight, bias in zip((5, 64, 64), critic.weights, critic.biases):
        for tensor in (weight, bias):
            assert tensor.abs().max() <= 1 / np.sqrt(inputs)
        assert weight.abs().max() > 0.9 / np.sqrt(inputs)


# --- losses ---


@each
def test_noise_on_the_targets_action_is_gaussian_and_clipped(algo):
    """0.2 times a standard normal, cut at 0.3; the action then at 1."""
    cfg = quick(algo, policy_noise=0.2, noise_clip=0.3)
    obs = torch.linspace(-1.2, 1.2, 4001)[:, None]
    actor = lambda obs: obs.clamp(-1, 1)  # noqa: E731
    normal = torch.randn(4001, 1, generator=generator(3))
    got = algo.smoothed_action(actor, obs, normal, cfg)
    by_hand = [
        max(-1.0, min(1.0, a + max(-0.3, min(0.3, 0.2 * n))))
        for a, n in zip(actor(obs)[:, 0].tolist(), normal[:, 0].tolist())
    ]
    assert got[:, 0].numpy() == pytest.approx(np.array(by_hand), abs=1e-6)
    assert (got.abs() <= 1).all()
    inner = (got - actor(obs))[obs.abs() < 0.5]
    assert inner.abs().max() == pytest.approx(0.3)
    assert 0.1 < (inner.abs() > 0.2999).float().mean() < 0.17  # beyond 1.5 standard deviations lies 13.4 %


@plain
def test_critic_loss_of_hand_computed_targets(algo):
    """The smaller target value: 1 + 0.9 * 3 = 3.7; the second transition terminates: 2."""
    batch = {
        "obs": torch.zeros(2, 3), "action": torch.zeros(2, 1), "next_obs": torch.zeros(2, 3),
        "reward": torch.tensor([1.0, 2.0]), "terminated": torch.tensor([0.0, 1.0]),
    }  # fmt: skip
    q, target_q = constant(3.0, 2.5, 4.7, 0.0), constant(3.0, 5.0, 4.0, 1.0)
    still = lambda obs: torch.zeros(len(obs), 1)  # noqa: E731
    batch = algo.with_noise(batch, generator())
    loss, metrics = algo.critic_loss(q, target_q, still, batch, quick(algo, discount=0.9))
    assert loss.item() == pytest.approx((0.7**2 + 0.5**2) / 2 + (1.0**2 + 2.0**2) / 2)
    assert metrics["losses/critic"].item() == loss.item()
    assert metrics["values/q"].item() == pytest.approx((3.0 + 2.5 + 4.7 + 0.0) / 4)


@plain
def test_target_is_asked_about_the_slow_policys_action_under_noise(algo):
    seen = {}

    def target(obs, action):
        seen["obs"], seen["action"] = obs, action
        return torch.zeros(2, len(obs))

    batch = {
        "obs": torch.zeros(5, 3), "action": torch.zeros(5, 2), "next_obs": torch.randn(5, 3, generator=generator()),
        "reward": torch.zeros(5), "terminated": torch.zeros(5),
    }  # fmt: skip
    slow = lambda obs: obs[:, :2].tanh()  # noqa: E731
    batch = algo.with_noise(batch, generator(7))
    algo.critic_loss(constant(*[0.0] * 10), target, slow, batch, quick(algo))
    assert seen["obs"] is batch["next_obs"]
    noise = torch.randn(5, 2, generator=generator(7))
    assert torch.equal(seen["action"], algo.smoothed_action(slow, batch["next_obs"], noise, quick(algo)))


@plain
def test_actor_loss_and_its_gradient_by_hand(algo):
    """mean |Q| = 3, so lambda = 2.5 / 3, and it is a constant to the gradient."""
    q = torch.tensor([2.0, -4.0], requires_grad=True)
    action = torch.tensor([[0.5, 0.0], [0.0, 1.0]], requires_grad=True)
    data_action = torch.tensor([[0.0, 0.0], [0.0, -1.0]])
    loss, metrics = algo.actor_loss(q, action, data_action, quick(algo))
    assert loss.item() == pytest.approx((0.25 + 4.0) / 4 - 2.5 / 3 * (-1.0))
    of_q, of_action = torch.autograd.grad(loss, (q, action))
    assert of_q.tolist() == pytest.approx([-2.5 / 3 / 2] * 2)
    assert of_action.flatten().tolist() == pytest.approx([2 * 0.5 / 4, 0, 0, 2 * 2.0 / 4])
    assert metrics["losses/mse"].item() == pytest.approx(4.25 / 4)
    assert metrics["policy/q_weight"].item() == pytest.approx(2.5 / 3)
    assert not any(value.requires_grad for value in metrics.values())


@plain
def test_the_scale_of_rewards_does_not_move_the_actors_loss(algo):
    action, data_action = torch.rand(9, 2, generator=generator()), torch.zeros(9, 2)
    q = torch.randn(9, generator=generator(1))
    losses = [algo.actor_loss(scale * q, action, data_action, quick(algo))[0].item() for scale in (1.0, 1000.0)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- training ---


@each
def test_policy_and_targets_step_once_in_policy_delay_updates(algo):
    run = FakeRun(flat_dataset(), seed=0, remember_start=True)
    moved = []
    run.on_update = lambda: moved.append(
        not torch.equal(run.objects["target"].biases[0], run.start["target"].biases[0])
    )
    algo.train(quick(algo, updates=7, policy_delay=3), run)
    assert moved == [False, False] + [True] * 5
    states = {name: run.objects[f"optimizers.{name}"].state for name in ("actor", "critic")}
    steps = {name: next(iter(state.values()))["step"].item() for name, state in states.items()}
    assert steps == {"actor": 2, "critic": 7}
    assert [number for number, metrics in enumerate(run.logged, 1) if "losses/actor" in metrics] == [3, 6]
    assert all("losses/critic" in metrics for metrics in run.logged)


# --- actions and observations ---


@each
def test_wide_action_spaces_are_mapped_to_the_unit_box(algo):
    """Actions four times as wide train the same weights: noise, clipping and cloning happen in [-1, 1]."""
    narrow, wide = (FakeRun(flat_dataset(n=30, high=high), seed=0) for high in (1.0, 4.0))
    for run in (narrow, wide):
        algo.train(quick(algo, updates=20), run)
    actors = [run.objects["networks.actor"] for run in (narrow, wide)]
    obs = torch.as_tensor(narrow.dataset.obs)
    assert torch.equal(*[actor.act(obs) for actor in actors])
    assert actors[0].act(obs).abs().max() <= 1


@each
def test_all_networks_standardise_observations_alike(algo):
    dataset = flat_dataset(n=60)
    for normalize, mean, std in ((True, dataset.obs.mean(0), dataset.obs.std(0) + 1e-3), (False, [0.0] * 3, [1.0] * 3)):
        run = FakeRun(dataset, seed=0)
        algo.train(quick(algo, updates=1, normalize_obs=normalize), run)
        for name in ("networks.actor", "networks.critic", "target", "target_actor"):
            assert run.objects[name].normalize.mean.numpy() == pytest.approx(np.array(mean), rel=1e-4), name
            assert run.objects[name].normalize.std.numpy() == pytest.approx(np.array(std), rel=1e-4), name


@each
def test_reloaded_policy_acts_identically_on_raw_observations(algo):
    first, second = (FakeRun(flat_dataset(n=60, seed=seed), seed=seed) for seed in (5, 6))
    for run in (first, second):
        algo.train(quick(algo, updates=4, normalize_obs=True), run)
    saved = copy.deepcopy(first.objects["networks.actor"].state_dict())
    second.objects["networks.actor"].load_state_dict(saved)
    obs = torch.as_tensor(first.dataset.obs)
    assert torch.equal(first.objects["networks.actor"].act(obs), second.objects["networks.actor"].act(obs))


# --- options ---


@each
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"policy_delay": 0}, "policy_delay 0: must be at least 1"),
        ({"policy_noise": -0.1}, "policy_noise -0.1: must not be negative"),
        ({"noise_clip": -1.0}, "noise_clip -1.0: must not be negative"),
        ({"target_tau": 2.0}, "target_tau 2.0"),
    ],
)
def test_unusable_options_are_refused(algo, option, message):
    with pytest.raises(BadInput, match=message):
        check(algo.Config(**option))


@plain
def test_a_negative_alpha_is_refused(algo):
    with pytest.raises(BadInput, match=r"alpha -2\.5: must not be negative"):
        check(algo.Config(alpha=-2.5))


@plain
def test_the_defaults_are_td3_bcs(algo):
    cfg = algo.Config()
    assert (cfg.alpha, cfg.policy_noise, cfg.noise_clip, cfg.policy_delay) == (2.5, 0.2, 0.5, 2)
    assert (cfg.discount, cfg.target_tau, cfg.lr, cfg.batch_size, cfg.hidden) == (0.99, 0.005, 3e-4, 256, (256, 256))
    assert cfg.normalize_obs


@each
def test_presets_are_configs(algo):
    name = algo.__name__.rpartition(".")[2]
    assert algo.PRESETS[name] == {}
    for options in algo.PRESETS.values():
        check(algo.Config(**options))
