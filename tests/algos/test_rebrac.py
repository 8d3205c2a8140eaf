"""ReBRAC's two penalties by hand, its whole update written a second way, the data it uses, and its resume.

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

from hoard.algos import rebrac
from hoard.records.errors import BadInput
from hoard.runners.config import check
from hoard.runners.evaluate import uses_history


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quick(**options) -> rebrac.Config:
    return rebrac.Config(**{"hidden": (8, 8), "batch_size": 16, "lr": 1e-2, **options})


def constant(*values: float):
    """A critic of two heads that answers with these numbers, (2, B), whatever it is asked."""
    return lambda obs, action: torch.tensor(values).reshape(2, -1)


# --- networks ---


@pytest.mark.parametrize("layer_norm", [False, True])
def test_both_heads_are_networks_of_their_own_with_layer_norm_behind_the_relu(layer_norm):
    dataset = flat_dataset()
    critic = rebrac.Critic(quick(hidden=(16, 8, 4), layer_norm=layer_norm), 3, 2, generator()).double()
    for p in critic.parameters():  # LayerNorm's parameters too, so that a shared one would show
        p.data += 0.3 * torch.randn(p.shape, generator=generator(1), dtype=p.dtype)
    obs, action = torch.as_tensor(dataset.obs).double(), torch.as_tensor(dataset.action).double()
    q = critic(obs, action)
    assert q.shape == (2, len(dataset))
    for i in range(2):
        modules: list[torch.nn.Module] = []
        for k, (w, b) in enumerate(zip(critic.weights, critic.biases)):
            layer = torch.nn.Linear(w.shape[1], w.shape[2]).double()
            layer.weight.data, layer.bias.data = w[i].T, b[i, 0]
            modules.append(layer)
            if k < 3:
                modules.append(torch.nn.ReLU())
                if layer_norm:
                    norm = torch.nn.LayerNorm(w.shape[2], eps=1e-6).double()
                    norm.weight.data, norm.bias.data = critic.scales[k][i, 0], critic.shifts[k][i, 0]
                    modules.append(norm)
        alone = torch.nn.Sequential(*modules)(torch.cat([obs, action], -1))[:, 0]
        torch.testing.assert_close(q[i], alone)


def test_weights_begin_as_the_authors_do():
    """Uniform in 1/sqrt(inputs), biases 0.1; the last layers within 1e-3 (actor) and 3e-3 (critic)."""
    actor = rebrac.Actor(quick(hidden=(64, 64)), 9, 2, generator())
    critic = rebrac.Critic(quick(hidden=(64, 64)), 7, 2, generator())
    nets = (
        ([layer.weight for layer in actor.layers], [layer.bias for layer in actor.layers], 1e-3),
        (critic.weights, critic.biases, 3e-3),
    )
    for weights, biases, last in nets:
        for inputs, weight, bias in zip((9, 64), weights, biases):
            assert 0.9 < weight.abs().max() * np.sqrt(inputs) <= 1
            assert torch.equal(bias, torch.full_like(bias, 0.1))
        assert 0.9 * last < weights[-1].abs().max() <= last
        assert 0 < biases[-1].abs().max() <= last
    assert rebrac.Actor(quick(), 9, 2, generator()).act(torch.ones(4, 9)).abs().max() < 0.05


# --- losses ---


def test_critic_loss_of_hand_computed_targets():
    """The policy's next action is (0.5, 0), the data's (0, 1): a squared distance of 1.25, and 2 * 1.25 = 2.5.

    The smaller target value loses it: 1 + 0.9 * (3 - 2.5) = 1.45; the second transition terminates: 2.
    """
    batch = {
        "obs": torch.zeros(2, 3), "action": torch.zeros(2, 2), "next_obs": torch.zeros(2, 3),
        "reward": torch.tensor([1.0, 2.0]), "terminated": torch.tensor([0.0, 1.0]),
        "next_action": torch.tensor([[0.0, 1.0], [9.0, 9.0]]),
    }  # fmt: skip
    q, target_q = constant(3.0, 2.5, 1.45, 0.0), constant(3.0, 5.0, 4.0, 1.0)
    actor = lambda obs: torch.tensor([[0.5, 0.0]] * len(obs))  # noqa: E731
    cfg = quick(discount=0.9, policy_noise=0.0, critic_bc_coef=2.0)
    loss, metrics = rebrac.critic_loss(q, target_q, actor, rebrac.with_noise(batch, generator()), cfg)
    assert loss.item() == pytest.approx((1.55**2 + 0.5**2) / 2 + 2.0**2 / 2)
    assert metrics["values/penalty"].item() == pytest.approx(2.5 / 2)  # what is behind a termination does not count
    assert metrics["values/q"].item() == pytest.approx((3.0 + 2.5 + 1.45) / 4)


def test_noise_of_the_target_counts_in_the_penalty():
    """The distance is measured from the blurred action, as the authors do."""
    batch = {
        "obs": torch.zeros(1, 3), "action": torch.zeros(1, 2), "next_obs": torch.zeros(1, 3),
        "reward": torch.zeros(1), "terminated": torch.zeros(1), "next_action": torch.zeros(1, 2),
    }  # fmt: skip
    still = lambda obs: torch.zeros(len(obs), 2)  # noqa: E731
    cfg, noisy = quick(critic_bc_coef=1.0), rebrac.with_noise(batch, generator(5))
    penalty = rebrac.critic_loss(constant(0.0, 0.0), constant(0.0, 0.0), still, noisy, cfg)[1]["values/penalty"]
    noise = (0.2 * torch.randn(1, 2, generator=generator(5))).clamp(-0.5, 0.5)
    assert penalty.item() == pytest.approx(noise.square().sum().item())


def test_actor_loss_and_its_gradient_by_hand():
    """The smaller head: (1, -4), mean size 2.5. The squared distance is summed over the action's dimensions."""
    q = torch.tensor([[2.0, -4.0], [1.0, 3.0]], requires_grad=True)
    action = torch.tensor([[0.5, 0.0], [0.0, 1.0]], requires_grad=True)
    data_action = torch.tensor([[0.0, 0.0], [0.0, -1.0]])
    loss, metrics = rebrac.actor_loss(q, action, data_action, quick(actor_bc_coef=0.1))
    assert loss.item() == pytest.approx(0.1 * (0.25 + 4.0) / 2 - (1.0 - 4.0) / 2 / 2.5)
    of_q, of_action = torch.autograd.grad(loss, (q, action))
    assert of_q.flatten().tolist() == pytest.approx([0, -0.2, -0.2, 0])
    assert of_action.flatten().tolist() == pytest.approx([0.1 * 0.5, 0, 0, 0.1 * 2.0])
    assert metrics["losses/distance"].item() == pytest.approx(4.25 / 2)
    assert metrics["policy/q_weight"].item() == pytest.approx(1 / 2.5)
    plain, metrics = rebrac.actor_loss(q, action, data_action, quick(actor_bc_coef=0.1, normalize_q=False))
    assert plain.item() == pytest.approx(0.1 * (0.25 + 4.0) / 2 + 1.5)
    assert metrics["policy/q_weight"].item() == 1
    assert not any(value.requires_grad for value in metrics.values())


# --- data ---


def test_steps_without_a_next_action_are_left_out():
    """Episodes of 3, 1 and 2 steps; the second terminates. The last steps of the others have no next action."""
    dataset = flat_dataset(n=6, lengths=[3, 1, 2])
    dataset.terminated[:] = [0, 0, 0, 1, 0, 0]
    assert rebrac.steps_followed(dataset).tolist() == [0, 1, 3, 4]


def test_data_of_which_no_next_action_is_known_is_refused():
    n = 5
    dataset = make_dataset(np.zeros((2 * n, 2)), np.zeros((n, 1)), np.zeros(n), np.zeros(n, bool), [1] * n)
    with pytest.raises(ValueError, match="no next action is known"):
        rebrac.train(quick(updates=1), FakeRun(dataset, seed=0))


def test_every_batch_has_the_action_that_followed(monkeypatch):
    """Rewards number the transitions, so that each sampled row can be looked up."""
    dataset = flat_dataset(rewards=np.arange(30.0), lengths=[10, 20])
    seen: list[dict[str, torch.Tensor]] = []
    loss = rebrac.critic_loss
    monkeypatch.setattr(rebrac, "critic_loss", lambda *args: (seen.append(args[3]), loss(*args))[1])
    rebrac.train(quick(updates=20, batch_size=32), FakeRun(dataset, seed=0))
    numbers = set()
    for batch in seen:
        for number, following, end in zip(batch["reward"].int().tolist(), batch["next_action"], batch["terminated"]):
            numbers.add(number)
            if not end:
                assert following.numpy() == pytest.approx(dataset.action[number + 1])
    assert numbers == set(range(30)) - {9}  # 9 is cut off; 29 terminates


def test_rewards_are_scaled(monkeypatch):
    seen = []
    loss = rebrac.critic_loss
    monkeypatch.setattr(rebrac, "critic_loss", lambda *args: (seen.append(args[3]["reward"]), loss(*args))[1])
    rebrac.train(quick(updates=1, batch_size=64, reward_scale=100.0), FakeRun(flat_dataset(rewards=np.ones(9)), seed=0))
    assert torch.equal(seen[0], torch.full((64,), 100.0))


# --- the whole update ---


@pytest.mark.parametrize("critic_lr", [None, 2e-3])
def test_updates_equal_a_second_writing(critic_lr):
    """Five updates: both penalties, targets, the order of the steps, the smaller head for the policy, step sizes."""
    dataset = flat_dataset(n=40, seed=3)
    cfg = quick(updates=5, target_tau=0.1, actor_bc_coef=0.3, critic_bc_coef=0.7, critic_lr=critic_lr)
    run = FakeRun(dataset, seed=1, remember_start=True)
    rebrac.train(cfg, run)

    nets, stream = run.start, run.start_generator
    actor, critic, slow, slow_actor = (nets[k] for k in ("networks.actor", "networks.critic", "target", "target_actor"))
    adam = [torch.optim.Adam(actor.parameters(), lr=1e-2), torch.optim.Adam(critic.parameters(), lr=critic_lr or 1e-2)]
    followed = torch.tensor([k for k in range(40) if k != 19])  # the first episode is cut off, the second terminates
    data = [
        torch.as_tensor(x) for x in (dataset.obs, dataset.action, dataset.reward, dataset.next_obs, dataset.terminated)
    ]
    for number in range(1, 6):
        index = followed[torch.randint(39, (16,), generator=stream)]
        s, a, r, n, end = (x[index] for x in data)
        b = data[1][(index + 1).clamp(max=39)]
        noise = (0.2 * torch.randn(16, 2, generator=stream)).clamp(-0.5, 0.5)
        c = (slow_actor(n) + noise).clamp(-1, 1)
        next_q = torch.minimum(*slow(n, c)).detach() - 0.7 * ((c - b) ** 2).sum(1).detach()
        y = torch.where(end, r, r + 0.99 * next_q)
        one, two = critic(s, a)
        adam[1].zero_grad()
        (torch.nn.functional.mse_loss(one, y) + torch.nn.functional.mse_loss(two, y)).backward()
        adam[1].step()
        if number % 2:
            continue
        pi = actor(s)
        q = torch.minimum(*critic(s, pi))
        adam[0].zero_grad()
        (0.3 * ((pi - a) ** 2).sum(1).mean() - q.mean() / q.abs().mean().item()).backward()
        adam[0].step()
        for behind, net in ((slow, critic), (slow_actor, actor)):
            for mine, theirs in zip(behind.parameters(), net.parameters()):
                mine.data = 0.9 * mine.data + 0.1 * theirs.data
    for name, net in nets.items():
        for mine, theirs in zip(net.parameters(), run.objects[name].parameters()):
            torch.testing.assert_close(theirs.detach(), mine.detach(), rtol=1e-4, atol=1e-6)


# --- what it prefers ---


def test_the_actors_coefficient_goes_from_the_best_action_to_cloning():
    """One step, action -0.8 returns 0 (nine in ten), +0.8 returns 1: the mean action is -0.64."""
    good = np.arange(200) % 10 == 0
    dataset = make_dataset(
        np.ones((400, 2)), np.where(good, 0.8, -0.8)[:, None], good.astype(float), np.ones(200, bool), [1] * 200
    )
    played = []
    for coefficient in (0.01, 1.0, 100.0):
        run = FakeRun(dataset, seed=0)
        cfg = rebrac.Config(updates=1000, hidden=(32, 32), batch_size=64, actor_bc_coef=coefficient)
        rebrac.train(cfg, run)
        played.append(run.objects["networks.actor"].act(torch.ones(1, 2)).item())
    assert played[0] > 0.7
    assert played[2] == pytest.approx(-0.64, abs=0.08)
    assert played[0] > played[1] > played[2]


@pytest.mark.parametrize("coefficient", [0.0, 0.3])
def test_the_critics_coefficient_lowers_values_by_the_distance_to_the_next_actions(coefficient):
    """Two steps, the second worth 1 whatever is done. Its actions are -1, 0, 0, 1, of variance 0.5, which is the mean
    squared distance of a policy held near their mean.
    """
    n = 400
    second = np.array([-1.0, 0.0, 0.0, 1.0])[np.arange(n) % 4]
    dataset = make_dataset(
        np.tile(np.eye(3), (n, 1)), np.stack([np.zeros(n), second], 1).reshape(-1, 1), np.tile([0.0, 1.0], n),
        np.tile([False, True], n), [2] * n,
    )  # fmt: skip
    run = FakeRun(dataset, seed=0)
    cfg = rebrac.Config(
        updates=1500, hidden=(32, 32), batch_size=128, target_tau=0.1, discount=0.9, actor_bc_coef=100.0,
        critic_bc_coef=coefficient, policy_noise=0.0,
    )  # fmt: skip
    rebrac.train(cfg, run)
    with torch.no_grad():
        assert run.objects["networks.actor"](torch.eye(3)[[1]]).item() == pytest.approx(0.0, abs=0.08)
        q = run.objects["networks.critic"](torch.eye(3)[[0, 1]], torch.zeros(2, 1)).mean(dim=0)
    assert q.tolist() == pytest.approx([0.9 * (1 - coefficient * 0.5), 1.0], abs=0.04)


# --- options ---


def test_the_defaults_are_the_authors_for_locomotion():
    cfg = rebrac.Config()
    assert (cfg.policy_noise, cfg.noise_clip, cfg.policy_delay, cfg.normalize_q, cfg.layer_norm) == (
        0.2,
        0.5,
        2,
        True,
        True,
    )
    assert (cfg.discount, cfg.target_tau, cfg.lr, cfg.critic_lr, cfg.batch_size) == (0.99, 0.005, 1e-3, None, 1024)
    assert cfg.hidden == (256, 256, 256)
    assert not cfg.normalize_obs


def test_the_antmaze_preset_is_the_authors():
    cfg = rebrac.Config(**rebrac.PRESETS["antmaze"])
    assert (cfg.discount, cfg.lr, cfg.critic_lr, cfg.batch_size) == (0.999, 3e-4, 5e-5, 256)
    assert cfg.reward_scale == 100.0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"actor_bc_coef": -1.0}, "actor_bc_coef -1.0: must not be negative"),
        ({"critic_bc_coef": -1.0}, "critic_bc_coef -1.0: must not be negative"),
        ({"critic_lr": 0.0}, "critic_lr 0.0: must be above 0"),
    ],
)
def test_unusable_options_are_refused(option, message):
    with pytest.raises(BadInput, match=message):
        check(rebrac.Config(**option))


# --- whole runs ---


def test_the_kept_policy_is_the_one_that_was_scored(tiny, run_file, tmp_path):
    done = run_file("rebrac", *small(tiny))
    assert done.returncode == 0, done.stderr + done.stdout
    assert not uses_history(rebrac.Actor(rebrac.Config(), 3, 1, generator()))
    assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    """Checkpoints fall between two steps of the policy: the delay goes on where it stood."""
    args = small(tiny, updates=2400, hidden="16 16", checkpoint_every=401, eval_every=800)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("rebrac", *args, results=straight).returncode == 0
    kill("rebrac", args, broken, update=700)
    assert "resuming after update" in run_file("rebrac", *args, results=broken).stdout
    assert_same_run(straight, broken)
