"""HNPG: its numerical parts against dense algebra and exact values, its use of data, its resume, whole small runs."""

from __future__ import annotations

import math
from functools import cache

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from kept import assert_kept_policy_repeats_the_score
from resume import assert_same_run, dying_at, kill, only_run
from toys import FakeRun, make_dataset

from hoard.algos import hnpg
from hoard.datasets.minari import writer
from hoard.datasets.minari.store import is_stored
from hoard.datasets.recipes import comblock
from hoard.datasets.recipes.in_memory import dataset_of
from hoard.records.errors import BadInput
from hoard.runners import config
from hoard.runners.evaluate import History
from hoard.runners.task import task_of
from hoard.runners.training_env import training_batch

LOCK = "test/comblock-v0"


@pytest.fixture(autouse=True)
def _one_thread():
    """As runs have it: matrices this small only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


class OnlineRun(FakeRun):
    """A FakeRun with an online stage in batched environments."""

    def __init__(self, dataset, cfg, seed: int = 0) -> None:
        super().__init__(dataset, seed)
        self.cfg, self.env_step, self.update = cfg, 0, 0
        self.episode_limit = dataset.env_spec.max_episode_steps

    def training_batch(self, n):
        return training_batch(task_of(self.dataset), n, 0, self._spend)

    def _spend(self, steps):
        self.env_step += steps

    def online(self, steps):
        while self.env_step < steps:
            yield

    def log(self, metrics, updates=1):
        self.update += updates
        super().log(metrics)


def lock_data(horizon: int = 3, episodes: int = 200):
    return comblock.record(horizon, episodes=episodes, reference_episodes=2)


@pytest.fixture(scope="module")
def lock(tmp_path_factory) -> str:
    """Id of a small stored lock of three steps."""
    if not is_stored(LOCK):
        writer.write(LOCK, lock_data())
    return LOCK


# --- linear algebra ---


def test_conjugate_gradient_solves_every_row():
    """Rows of different condition and length; one starts converged. Against torch.linalg.solve."""
    groups, size = 4, 6
    root = randn(groups, size, size)
    matrix = root @ root.mT + torch.diag_embed(torch.tensor([0.1, 1.0, 10.0, 0.5])[:, None].expand(-1, size))
    b = randn(groups, size, seed=1)
    b[2] = 0
    product = lambda v: (matrix @ v[..., None])[..., 0]  # noqa: E731
    x = hnpg.conjugate_gradient(product, b, 50, 1e-20)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-6, atol=1e-9)
    assert (x[2] == 0).all()


def test_converged_rows_are_frozen_and_others_go_on():
    """A row that needs one step is not moved by the steps that its neighbour needs."""
    matrix = torch.stack([torch.eye(5, dtype=torch.float64), torch.diag(torch.tensor([1.0, 2, 3, 4, 5]).double())])
    b = randn(2, 5)
    x = hnpg.conjugate_gradient(lambda v: (matrix @ v[..., None])[..., 0], b, 8, 1e-16)
    assert torch.equal(x[0], b[0])
    torch.testing.assert_close(x[1], b[1] / torch.arange(1, 6), rtol=1e-6, atol=1e-9)
    alone = hnpg.conjugate_gradient(lambda v: v * torch.arange(1, 6), b[1:], 8, 1e-16)
    torch.testing.assert_close(x[1:], alone)


def new_actor(steps: int, obs: int, actions: int, hidden: tuple[int, ...] = (), **options) -> hnpg.Actor:
    return hnpg.Actor(hnpg.Config(policy_hidden=hidden, **options), obs, actions, generator(), steps)


def new_critic(steps: int, obs: int, actions: int, hidden: tuple[int, ...] = (4,), bound: float = 1.0, kind=None):
    cfg, bounds = hnpg.Config(critic_hidden=hidden), np.full(actions, bound)
    return (kind or hnpg.Critic)(cfg, obs, -bounds, bounds, generator(1), steps)


def small_actor(groups: int = 2, obs: int = 3, actions: int = 2, **options) -> hnpg.Actor:
    actor = new_actor(groups, obs, actions, (4,), **options)
    with torch.no_grad():
        actor.mean.weights[-1].mul_(10)
        actor.log_std.copy_(0.3 * randn(groups, 1, actions, seed=5))
    return actor


def one_policy(actor: hnpg.Actor, group: int):
    """theta -> (mean, std) of one group as a function of a flat vector, written without the stack."""
    shapes = [p[group].shape for p in actor.parameters()]
    names = [name for name, _ in actor.named_parameters()]

    def outputs(theta: torch.Tensor, obs: torch.Tensor):
        parts = dict(zip(names, (t.view(s) for t, s in zip(theta.split([s.numel() for s in shapes]), shapes))))
        hidden = torch.tanh(obs @ parts["mean.weights.0"] + parts["mean.biases.0"])
        mean = hidden @ parts["mean.weights.1"] + parts["mean.biases.1"]
        return mean, parts["log_std"].exp().expand_as(mean)

    return outputs


def dense_fisher(actor, group, obs, weight):
    """E[J' M J] with the Fisher matrix M of a diagonal Gaussian in (mean, std): diag(1/std^2, 2/std^2)."""
    outputs = one_policy(actor, group)
    theta = hnpg.flat(actor.parameters())[group].detach()
    total = 0
    for row, w in zip(obs, weight):
        flat = lambda t, row=row: torch.cat([x.flatten() for x in outputs(t, row[None])])  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(flat, theta)
        std = outputs(theta, row[None])[1].flatten()
        total = total + w * jacobian.mT @ torch.diag(torch.cat([std**-2, 2 * std**-2])) @ jacobian
    return total


def test_fisher_product_is_the_dense_matrix():
    actor, obs = small_actor(), randn(2, 7, 3, seed=1)
    weight = torch.softmax(randn(7, seed=2), dim=0)
    product = hnpg.fisher(actor, obs, weight, damping=0.1)
    v = randn(*hnpg.flat(actor.parameters()).shape, seed=3)
    for g in range(2):
        dense = dense_fisher(actor, g, obs[g], weight) + 0.1 * torch.eye(v.shape[1], dtype=torch.float64)
        torch.testing.assert_close(product(v)[g], dense @ v[g], rtol=1e-8, atol=1e-10)


def step_problem(groups: int = 2, n: int = 40):
    actor, obs = small_actor(groups), randn(groups, n, 3, seed=1)
    action = actor.explore(obs, generator(4))
    advantage = action[..., 0] - 0.5 * action[..., 1] * obs[..., 0] + 0.3 * randn(groups, n, seed=6)
    return actor, obs, action, advantage, torch.full((n,), 1 / n, dtype=torch.float64)


def test_the_step_is_the_dense_natural_gradient():
    """Policy gradient by the score function, dense Fisher solve, length by the trust region: equal to the step made."""
    actor, obs, action, advantage, weight = step_problem()
    before = hnpg.flat(actor.parameters()).detach().clone()
    wanted = []
    for g in range(2):
        outputs, theta = one_policy(actor, g), before[g].clone().requires_grad_()
        density = torch.distributions.Normal(*outputs(theta, obs[g])).log_prob(action[g]).sum(-1)
        (gradient,) = torch.autograd.grad((weight * advantage[g] * density).sum(), theta)
        matrix = dense_fisher(actor, g, obs[g], weight) + 0.1 * torch.eye(len(theta), dtype=torch.float64)
        natural = torch.linalg.solve(matrix, gradient)
        wanted.append(natural * math.sqrt(2 * 0.01 / (natural @ matrix @ natural)))
    cfg = hnpg.Config(cg_steps=100, cg_tolerance=1e-24)
    metrics = hnpg.trust_region_step(actor, obs, action, advantage, weight, cfg)
    assert metrics["policy/accepted"] == 1
    made = hnpg.flat(actor.parameters()).detach() - before
    torch.testing.assert_close(made, torch.stack(wanted), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("check", [True, False])
def test_kl_bound(check):
    """With the check no policy ends beyond max_kl, although the quadratic model, here badly wrong, says so."""
    actor, obs, action, advantage, weight = step_problem(groups=6)
    with torch.no_grad():
        before = tuple(t.clone() for t in actor(obs))
    cfg = hnpg.Config(max_kl=0.5, ls_kl_check=check, damping=1e-4, ls_accept=0.01, cg_steps=30)
    metrics = hnpg.trust_region_step(actor, obs, action, advantage, weight, cfg)
    with torch.no_grad():
        now = actor(obs)
    normal = lambda pair: torch.distributions.Normal(pair[0], pair[1].exp().expand_as(pair[0]))  # noqa: E731
    kl = torch.distributions.kl_divergence(normal(before), normal(now)).sum(-1).mean(-1)
    assert metrics["policy/kl"].item() == pytest.approx(kl.mean().item())
    assert kl.max() > 0.1
    assert (kl <= 0.5).all().item() == check


def test_a_step_that_cannot_improve_is_refused_for_its_policy_alone():
    actor, obs, action, advantage, weight = step_problem()
    advantage[1] = 0  # nothing to gain: gradient 0
    before = hnpg.flat(actor.parameters()).detach().clone()
    metrics = hnpg.trust_region_step(actor, obs, action, advantage, weight, hnpg.Config())
    after = hnpg.flat(actor.parameters()).detach()
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[0], before[0])
    assert metrics["policy/accepted"] == 0.5
    assert torch.isfinite(after).all()


def test_assign_is_the_inverse_of_flat():
    actor = small_actor()
    theta = randn(*hnpg.flat(actor.parameters()).shape, seed=9)
    hnpg.assign(actor, theta)
    assert torch.equal(hnpg.flat(actor.parameters()), theta)


def test_stacked_networks_are_separate_networks():
    stack = hnpg.Stack(3, [4, 5, 2], generator())
    x = randn(3, 6, 4)
    whole = stack(x)
    for g in range(3):
        torch.testing.assert_close(whole[g], stack.at(g, x[g]))
        layers = [torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)]
        one = torch.nn.Sequential(*layers).double()
        with torch.no_grad():
            for k, layer in enumerate((one[0], one[2])):
                layer.weight.copy_(stack.weights[k][g].T)
                layer.bias.copy_(stack.biases[k][g, 0])
        torch.testing.assert_close(whole[g], one(x[g]))
    assert stack.weights[0].abs().max() <= 0.5
    assert stack.weights[-1].abs().max() <= 0.1 / math.sqrt(5)
    assert (stack.biases[-1] == 0).all()


# --- returns and advantages ---


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.97), (0.9, 0.5), (0.99, 1.0), (0.95, 0.0)])
def test_gae_and_returns_in_closed_form(discount, decay):
    """Ragged episodes, some continued by a bootstrap: advantages are sums of discounted one-step errors."""
    lengths, longest = [5, 3, 1], 5
    reward, value, bootstrap = randn(longest, 3), randn(longest, 3, seed=1), torch.tensor([0.0, 2.0, -1.0]).double()
    alive = (torch.arange(longest)[:, None] < torch.tensor(lengths)).double()
    advantage = hnpg.gae(reward, value, alive, bootstrap, discount, decay)
    returns = hnpg.returns_to_go(reward, alive, bootstrap, discount)
    for i, length in enumerate(lengths):
        v = [*value[:length, i].tolist(), bootstrap[i].item()]
        delta = [reward[t, i].item() + discount * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            wanted = sum((discount * decay) ** (k - t) * delta[k] for k in range(t, length))
            assert advantage[t, i].item() == pytest.approx(wanted)
            tail = sum(discount ** (k - t) * reward[k, i].item() for k in range(t, length))
            assert returns[t, i].item() == pytest.approx(tail + discount ** (length - t) * bootstrap[i].item())
        assert (advantage[length:, i] == 0).all()
        assert (returns[length:, i] == 0).all()


# --- critic ---


def test_critic_loss_weighs_the_two_parts():
    q, online, offline = randn(7), randn(4, seed=1), randn(3, seed=2)
    a, b = (q[:4] - online).square().sum() / 4, (q[4:] - offline).square().sum() / 3
    loss, metrics = hnpg.critic_loss(q, online, offline, 2.5)
    torch.testing.assert_close(loss, 2.5 * a + b)
    assert metrics["losses/critic"] == loss
    torch.testing.assert_close(hnpg.critic_loss(q[:4], online, None, 1.0)[0], a)


def tabular(horizon: int, states: int, seed: int = 0):
    """A random finite-horizon problem with two actions, +-0.5, and a policy: the sign of a Gaussian's sample.

    Deterministic transitions and rewards, so that every sample is exact; the exact Q of the policy by dynamic
    programming.
    """
    rng = np.random.default_rng(seed)
    following = rng.integers(0, states, (horizon, states, 2))
    reward = rng.normal(size=(horizon, states, 2))
    p = rng.uniform(0.2, 0.8, (horizon, states))  # probability of the second action
    q = np.zeros((horizon + 1, states, 2))
    for h in reversed(range(horizon)):
        second = p[h + 1] if h + 1 < horizon else 0
        v = (1 - second) * q[h + 1, :, 0] + second * q[h + 1, :, 1]
        q[h] = reward[h] + v[following[h]]
    return following, reward, p, q[:horizon]


class SignCritic(hnpg.Critic):
    """Sees the pair (state, sign of the action) one-hot: with a linear network this is a table."""

    def inputs(self, obs, action):
        plus = (action > 0).double()
        return torch.cat([obs * (1 - plus), obs * plus], dim=-1)


def test_hybrid_critic_is_the_exact_q_of_the_policy():
    """Linear one-hot critics, fitted to the end on Monte-Carlo and bootstrapped pairs: dynamic programming's Q.

    States are split: online pairs visit the first half only, offline pairs all, so that wrong targets of either kind,
    or a wrong order of the sweep, would show.
    """
    horizon, states, n = 4, 4, 1500
    following, reward, p, exact = tabular(horizon, states)
    actor = new_actor(horizon, states, 1)
    with torch.no_grad():  # P(a > 0) = p: the mean is the normal quantile
        quantile = math.sqrt(2) * torch.erfinv(2 * torch.tensor(p) - 1)
        actor.mean.weights[0].copy_(quantile[..., None])
        actor.mean.biases[0].zero_()
    critic = new_critic(horizon, 2 * states - 1, 1, (), 9.0, SignCritic)

    rng = np.random.default_rng(1)
    eye = torch.eye(states, dtype=torch.float64)
    at = np.arange(horizon)[:, None]

    def pairs(some: int):
        state, action = rng.integers(0, some, (horizon, n)), rng.integers(0, 2, (horizon, n))
        number = lambda x: torch.as_tensor(x, dtype=torch.float64)  # noqa: E731
        return state, action, {"obs": eye[state], "action": number(action - 0.5)[..., None]}, number

    state, action, online, number = pairs(states // 2)
    online["target"] = number(exact[at, state, action] + rng.normal(size=state.shape))  # unbiased returns
    state, action, offline, number = pairs(states)
    offline |= {
        "reward": number(reward[at, state, action]),
        "next_obs": eye[following[at, state, action]],
        "terminated": torch.zeros(horizon, n, dtype=torch.float64),
    }
    offline["terminated"][-1] = 1
    cfg = hnpg.Config(critic_lr=0.05, critic_steps=300)
    hnpg.fit_critics(critic, actor, online, offline, cfg, True, 1.0, generator(3))
    learnt = critic.net.weights[0].detach()[..., 0] + critic.net.biases[0].detach()[:, 0]
    learnt = learnt.reshape(horizon, 2, states).mT  # (h, state, action)
    np.testing.assert_allclose(learnt, exact, atol=0.15)
    assert np.ptp(exact) > 3


def test_one_shared_critic_reaches_the_discounted_fixed_point():
    """One group: repeated sweeps on offline pairs and returns converge to Q of the policy in a two-state chain."""
    discount, swap = 0.8, torch.tensor([1, 0])
    eye = torch.eye(2, dtype=torch.float64)
    actor, critic = new_actor(1, 2, 1), new_critic(1, 3, 1, (), 9.0, SignCritic)
    with torch.no_grad():  # a > 0 always
        actor.mean.weights[0].zero_()
        actor.mean.biases[0].fill_(8.0)
    # a > 0 swaps the states, a < 0 ends the episode; reward 1 in state 0, and 3 for ending in state 1.
    v = np.linalg.solve(np.eye(2) - discount * np.array([[0, 1], [1, 0]]), [1.0, 0.0])
    exact = np.array([[1.0, v[0]], [3.0, v[1]]])  # (state, action)
    state, action = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 0, 1]])
    pair = {"obs": eye[state], "action": (action - 0.5).double()[..., None]}
    offline = pair | {
        "reward": torch.tensor([[1.0, 1.0, 3.0, 0.0]]).double(),
        "next_obs": eye[swap[state]],
        "terminated": (action == 0).double(),
    }
    online = {"obs": eye[state[:, 1::2]], "action": pair["action"][:, 1::2], "target": torch.tensor(v)[None]}
    cfg = hnpg.Config(critic_lr=0.05, critic_steps=100)
    for _ in range(40):
        hnpg.fit_critics(critic, actor, online, offline, cfg, False, discount, generator())
    np.testing.assert_allclose(critic(pair["obs"], pair["action"]).detach()[0], exact.flatten(), atol=0.02)


def test_value_is_the_mean_over_the_policys_actions():
    actor = small_actor()
    critic = new_critic(2, 3, 2)
    obs = randn(2, 3, 3, seed=2)
    value = hnpg.state_value(critic, actor, obs, 7, generator(3))
    mean, log_std = actor(obs)
    noise = torch.randn((2, 7, 3, 2), generator=generator(3), dtype=torch.float64)
    q = [critic(obs, mean + log_std.exp() * noise[:, k]) for k in range(7)]
    torch.testing.assert_close(value, torch.stack(q).mean(dim=0).detach())


def test_critic_sees_clipped_actions():
    critic = new_critic(1, 3, 2)
    obs = randn(1, 6, 3)
    torch.testing.assert_close(critic(obs, randn(1, 6, 2).sign() * 7), critic(obs, randn(1, 6, 2).sign()))


# --- training ---


def spoilt(dataset):
    """The same data with every number of its transitions destroyed."""
    for name in ("observations", "action", "reward"):
        getattr(dataset, name)[:] = np.nan
    return dataset


def trained(dataset, **options):
    cfg = hnpg.Config(**{"online_steps": 90, "batch_steps": 30, "critic_steps": 3, **options})
    run = OnlineRun(dataset, cfg)
    hnpg.train(cfg, run)
    return run


@cache
def shared_data():
    return dataset_of("test/a-v0", lock_data())


@cache
def baseline(**options):
    return trained(shared_data(), **options)


def weights_of(run):
    return [p.detach() for name in ("actor", "critic") for p in run.objects[name].parameters()]


def test_trpo_never_reads_the_data_and_hnpg_does():
    recording = lock_data()
    clean, broken = dataset_of("test/a-v0", recording), spoilt(dataset_of("test/b-v0", recording))
    one, two = trained(clean, hybrid=False), trained(broken, hybrid=False)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(one), weights_of(two)))
    assert all(torch.isfinite(p).all() for p in weights_of(two))
    hybrid = trained(clean)
    assert any(not torch.equal(a, b) for a, b in zip(weights_of(one), weights_of(hybrid)))
    assert not all(torch.isfinite(p).all() for p in weights_of(trained(broken)))


def test_steps_and_updates_are_counted():
    run = trained(dataset_of("test/a-v0", lock_data()), online_steps=100, batch_steps=31, critic_sweeps=2)
    assert run.env_step == 4 * 33  # 31 rounded up to whole episodes of 3, and on to the end of the round
    assert run.update == 4 * (2 * 3 + 1)
    assert run.objects["actor"].log_std.shape == (3, 1, 10)
    assert {"online/return", "online/optimal"} <= set(run.logged[0])


@pytest.mark.parametrize(
    "options",
    [
        {"batch_steps": 45},
        {"critic_steps": 4},
        {"critic_lr": 1e-2},
        {"policy_hidden": (4,)},
        {"critic_hidden": (4,)},
        {"damping": 1.0},
        {"cg_steps": 1},
        {"cg_tolerance": 1e3},
        {"ls_steps": 1},
        {"ls_accept": 0.9},
        {"offline_adv_action": "dataset"},
        {"online_weight": 5.0},
        {"reward_scale": 10.0},
        {"discount": 0.5},
        {"critic_sweeps": 2},
        {"per_step": "no"},
        {"value_samples": 3},
        {"gae_lambda": 0.1},
        {"max_kl": 1e-3},
        {"critic_batch": 8},
        {"critic_batch": 8, "per_step": "no", "critic_steps": 40, "critic_tolerance": 0.5},
        {"normalize": True, "per_step": "no"},
    ],
)
def test_no_option_is_ignored(options):
    # a trust region so wide that full steps fail: the line search has to work
    base = {"max_kl": 30.0} if {"ls_steps", "ls_accept"} & set(options) else {}
    if {"normalize", "critic_tolerance"} & set(options):
        base = {name: value for name, value in options.items() if name not in ("normalize", "critic_tolerance")}
    a, b = baseline(**base), trained(shared_data(), **{**base, **options})
    assert any(x.shape != y.shape or not torch.equal(x, y) for x, y in zip(weights_of(a), weights_of(b)))


def test_form_follows_the_data():
    dataset = dataset_of("test/a-v0", lock_data())
    run = OnlineRun(dataset, None)
    assert hnpg.has_step_networks(run, hnpg.Config())
    assert not hnpg.has_step_networks(run, hnpg.Config(per_step="no"))
    ragged = make_dataset(np.zeros((7, 2)), np.zeros((5, 1)), np.zeros(5), [0, 1, 0, 0, 1], [2, 3])
    object.__setattr__(ragged, "env_spec", gym.make("Pendulum-v1", max_episode_steps=3).spec)
    run = OnlineRun(ragged, None)
    assert not hnpg.has_step_networks(run, hnpg.Config())
    with pytest.raises(ValueError, match="not every episode"):
        hnpg.has_step_networks(run, hnpg.Config(per_step="yes"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"updates": 5}, "updates 5: HNPG has no offline phase"),
        ({"critic_sweeps": 0}, "critic_sweeps 0: must be at least 1"),
        ({"batch_steps": 0}, "batch_steps 0: must be at least 1"),
        ({"max_kl": 0.0}, "max_kl 0.0: must be above 0"),
        ({"hybrid": False, "online_weight": 2.0}, "without hybrid there are no offline terms"),
        ({"hybrid": False, "offline_adv_action": "dataset"}, "without hybrid there are no offline terms"),
        ({"gae_lambda": 1.2}, "gae_lambda 1.2: must be between 0 and 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, text):
    config.check(hnpg.Config())
    with pytest.raises(BadInput, match=text):
        config.check(hnpg.Config(**options))


def test_updates_before_going_online_are_refused(lock, run_file, tmp_path):
    done = run_file("hnpg", "--dataset", lock, "--updates", "5", "--online-steps", "30")
    assert done.returncode == 2
    assert "HNPG has no offline phase" in done.stderr
    assert not list(tmp_path.glob("results/runs"))


# --- the form for continuous control ---


def test_rescaling_the_critic_moves_no_prediction():
    cfg = hnpg.Config()
    critic = hnpg.Critic(cfg, 3, -np.ones(2), np.ones(2), generator(), steps=1)
    obs, action = randn(1, 50, 3, seed=1), randn(1, 50, 2, seed=2)
    for returns in (5 + 20 * randn(1, 400, seed=3), -300 + 0.1 * randn(1, 400, seed=4), torch.full((1, 9), 7.0)):
        before = critic(obs, action).detach()
        critic.rescale(returns.double())
        torch.testing.assert_close(critic(obs, action), before)
        torch.testing.assert_close(critic.at(0, obs[0], action[0]), before[0])
        assert critic.shift.item() == pytest.approx(returns.mean().item())
        assert critic.scale.item() == pytest.approx(max(returns.std(correction=0).item(), 1e-6))


def test_observation_statistics_are_those_of_all_batches():
    stats = hnpg.ObsStats(3, torch.device("cpu"))
    batches = [5 + 3 * randn(n, 3, seed=n) for n in (7, 1, 200)]
    for batch in batches:
        stats.add(batch)
    together = torch.cat(batches)
    torch.testing.assert_close(stats.mean, together.mean(dim=0))
    torch.testing.assert_close(stats.var, together.var(dim=0, correction=0))
    actor = small_actor(1)
    stats.fit(actor)
    scaled = (together - together.mean(dim=0)) / (together.std(dim=0, correction=0) + 1e-3)
    torch.testing.assert_close(actor(together[None])[0], actor.mean(scaled[None]))


def test_each_source_of_advantages_is_standardised_alone():
    advantage = torch.stack([3 + 100 * randn(500, seed=1), 1e-3 * randn(500, seed=2)])
    scaled = hnpg.standardized(advantage)
    torch.testing.assert_close(scaled.mean(dim=1), torch.zeros(2).double())
    torch.testing.assert_close(scaled.square().mean(dim=1), torch.ones(2).double(), rtol=1e-4, atol=0)
    assert torch.equal(hnpg.standardized(torch.full((1, 5), 2.0)), torch.zeros(1, 5))


@pytest.mark.parametrize(
    ("losses", "ended"),
    [
        ([1.0], False),
        ([1.0, 0.999], False),
        ([1.0, 0.5, 0.25], False),
        ([1.0, 0.995, 0.992], True),
        ([1.0, 1.2, 0.9], False),
        ([1.0, 0.5, 0.6, 0.7], True),
        ([1.0, 0.5, 0.6, 0.4], False),
    ],
)
def test_a_fit_ends_on_a_plateau_of_two_epochs(losses, ended):
    assert hnpg.plateau(losses, 0.01) == ended


@pytest.mark.parametrize("tolerance", [0.01, 0.2])
def test_a_fit_in_batches_finds_the_least_squares_and_stops_by_itself(tolerance):
    """A linear target that the network can express nearly; a looser tolerance needs fewer epochs."""
    cfg = hnpg.Config(critic_batch=64, critic_steps=500, critic_lr=1e-2, critic_tolerance=tolerance)
    critic = hnpg.Critic(cfg, 2, -np.ones(1), np.ones(1), generator(), steps=1)
    inputs = randn(640, 3, seed=5)
    target = inputs @ torch.tensor([0.5, -0.3, 0.2]).double()
    metrics, steps = hnpg.fit(critic, 0, inputs, target[:320], target[320:], cfg, generator(1))
    assert metrics["losses/critic_epochs"] < 500
    assert steps == 5 * metrics["losses/critic_epochs"]  # 320 rows in batches of 64
    if tolerance == 0.01:
        q = critic.net.at(0, inputs)[:, 0]
        assert (q - target).square().mean() < 0.02 * target.var()
    else:
        assert metrics["losses/critic_epochs"] < 30


def test_explained_variance():
    target = randn(1000, seed=6)
    assert hnpg.explained_variance(target, target) == 1
    assert hnpg.explained_variance(torch.zeros(1000).double(), target) == pytest.approx(0)
    assert hnpg.explained_variance(-target, target) == pytest.approx(-3)
    assert hnpg.explained_variance(target + 5, target) == pytest.approx(1)


def test_values_far_from_the_returns_are_warned_of(monkeypatch):
    monkeypatch.setattr(hnpg, "FAR_OFF", 2)
    monkeypatch.setattr(hnpg, "explained_variance", lambda value, target: torch.tensor(-0.5))
    with pytest.warns(UserWarning, match=r"for 2 rounds V has told the returns no better .* preset continuous"):
        trained(shared_data())


def test_what_the_continuous_form_logs():
    run = trained(shared_data(), per_step="no", normalize=True, critic_batch=16)
    assert {"values/explained_variance", "values/return", "advantages/online", "advantages/offline"} <= set(
        run.logged[0]
    )
    assert "advantages/offline" not in trained(shared_data(), hybrid=False).logged[0]


# --- acting ---


def at(t: int, seed: int = 0) -> History:
    return History(t, torch.zeros(4, 3, 3), torch.zeros(4, 2, 2), torch.zeros(4, 2), generator(seed))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_evaluated_action(steps):
    """That of the present step's network; sampled from the evaluation's generator, or the mean. It has no bounds."""
    obs = torch.randn(4, 3, generator=generator(8))
    sampling, mean = small_actor(steps), small_actor(steps, eval_actions="mean")
    for t in range(2):
        outputs = one_policy(mean, t if steps == 2 else 0)
        middle, std = outputs(hnpg.flat(mean.parameters())[t if steps == 2 else 0], obs.double())
        torch.testing.assert_close(mean.act(obs, at(t)), middle)
        noise = torch.randn(4, 2, generator=generator(7), dtype=torch.float64)
        torch.testing.assert_close(sampling.act(obs, at(t, seed=7)), middle + std * noise)
    assert torch.equal(mean.act(obs, at(0)), mean.act(obs, at(1))) == (steps == 1)
    many = sampling.explore(torch.zeros(steps, 1000, 3).double(), generator())
    assert many.abs().max() > 1.5


# --- whole runs ---


def options(dataset: str, **more: object) -> list[str]:
    values = {
        "dataset": dataset, "online_steps": 600, "batch_steps": 60, "critic_steps": 3, "log_every": 60,
        "eval_every": 300, "eval_episodes": 2, "final_eval_episodes": 3, "checkpoint_every": 120, **more,
    }  # fmt: skip
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize("preset", [name for name in hnpg.PRESETS if name != "continuous"])
def test_run_on_the_lock(lock, run_file, tmp_path, preset):
    done = run_file("hnpg", *options(lock), "--preset", preset)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pd.read_parquet(only_run(tmp_path / "results") / "episodes.parquet")
    assert rows.groupby(["env_step", "final"]).size().to_dict() == {(300, False): 2, (600, True): 3}
    assert (rows.length == 3).all()
    assert (rows.success == (rows["return"] == 1)).all()
    metrics = pd.read_parquet(only_run(tmp_path / "results") / "metrics.parquet")
    assert metrics["online/optimal"].notna().all()
    assert metrics["policy/kl"].max() < 0.02
    policy = assert_kept_policy_repeats_the_score(only_run(tmp_path / "results"))
    assert policy.actor.steps == 3


@pytest.mark.parametrize("more", [{}, {"hybrid": "false", "eval_actions": "mean"}])
def test_run_on_long_episodes(tiny, run_file, tmp_path, more):
    """Pendulum: one network, episodes cut by the time limit, the training environment one step at a time."""
    done = run_file("hnpg", *options(tiny, **more, batch_steps=250, online_steps=500, eval_every=500))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path / "results")
    rows = pd.read_parquet(folder / "episodes.parquet")
    assert rows.groupby(["env_step", "final"]).size().to_dict() == {(800, True): 3}  # two rounds of two episodes
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["objects"]["actor"]["log_std"].shape == (1, 1, 1)
    assert pd.read_parquet(folder / "metrics.parquet")["online/return"].notna().all()
    policy = assert_kept_policy_repeats_the_score(folder)
    with torch.no_grad():  # in environment units, up to 2 for pendulum
        policy.actor.mean.biases[-1].fill_(1.7)
        policy.actor.mean.weights[-1].zero_()
        policy.actor.log_std.fill_(-20)
    policy.reset()
    assert policy(np.zeros(3)).tolist() == pytest.approx([1.7])


def test_killed_and_resumed_equals_undisturbed(lock, run_file, tmp_path):
    """SIGKILL in the middle of the online stage, in batched environments."""
    args = options(lock, online_steps=2400, checkpoint_every=300)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("hnpg", *args, results=straight).returncode == 0
    kill("hnpg", args, broken, env_step=700)
    resumed = run_file("hnpg", *args, results=broken)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after environment step" in resumed.stdout
    assert_same_run(straight, broken)


@pytest.mark.parametrize("preset", ["released", "continuous"])
def test_a_death_among_single_episodes_loses_nothing(tiny, run_file, tmp_path, monkeypatch, preset):
    """The training environment steps one episode at a time; the process dies in the middle of one, twice."""
    args = options(tiny, online_steps=1600, batch_steps=200, checkpoint_every=400, eval_every=800, preset=preset)
    assert run_file("hnpg", *args, results=tmp_path / "straight").returncode == 0
    for step in (730, 510):
        with dying_at(monkeypatch, "_stepped", step):
            run_file("hnpg", *args, results=tmp_path / "broken")
    resumed = run_file("hnpg", *args, results=tmp_path / "broken")
    assert "resuming after environment step 800" in resumed.stdout
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.slow
def test_hnpg_opens_a_short_lock_and_trpo_does_not():
    """H = 4, 50,000 environment steps: P(optimal) of the last five rounds."""
    dataset = dataset_of("test/a-v0", comblock.record(4, episodes=10_000, reference_episodes=2))

    def share(**options):
        run = trained(dataset, online_steps=50_000, batch_steps=1000, critic_steps=30, **options)
        return float(torch.stack([m["online/optimal"] for m in run.logged if "online/optimal" in m])[-5:].mean())

    assert share() > 0.5
    assert share(hybrid=False) < 0.2
