"""Finite MDPs: exact solutions against other computations, the environments against their arrays."""

from __future__ import annotations

import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.optimize import minimize

from hoard.envs import make_env, tabular


def some_policy(mdp, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(mdp.actions), size=mdp.reward.shape[:2])


# --- solutions ---


def test_value_iteration_is_the_best_of_all_deterministic_policies():
    mdp = tabular.random_mdp(states=2, actions=2, horizon=3, seed=0)
    best = max(
        mdp.start @ tabular.evaluate_policy(mdp, np.eye(2)[np.array(choice).reshape(3, 2)])[0]
        for choice in itertools.product((0, 1), repeat=6)
    )
    q, v, policy = tabular.value_iteration(mdp)
    assert mdp.start @ v[0] == pytest.approx(best, rel=1e-12)
    assert mdp.start @ tabular.evaluate_policy(mdp, policy)[0] == pytest.approx(best, rel=1e-12)
    np.testing.assert_allclose(q.max(axis=-1), v[:-1])


def test_ties_share_the_probability():
    value, policy = tabular.soft_backup(np.array([1.0, 3.0, 3.0]), np.ones(3) / 3, 0.0)
    assert value == 3
    np.testing.assert_array_equal(policy, [0, 0.5, 0.5])


def test_policy_evaluation_is_the_average_over_all_trajectories():
    mdp = tabular.random_mdp(states=3, actions=2, horizon=3, seed=1)
    policy, reference, weight = some_policy(mdp), some_policy(mdp, 1), 0.4
    total = plain = kl = 0.0
    for path in itertools.product(range(3), range(2), range(3), range(2), range(3), range(2)):
        states, actions = path[::2], path[1::2]
        p = mdp.start[states[0]] * np.prod([policy[h, states[h], actions[h]] for h in range(3)])
        p *= np.prod([mdp.transition[states[h], actions[h], states[h + 1]] for h in range(2)])
        reward = sum(mdp.reward[h, states[h], actions[h]] for h in range(3))
        ratio = sum(np.log(policy[h, s, a] / reference[h, s, a]) for h, (s, a) in enumerate(zip(states, actions)))
        plain += p * reward
        kl += p * ratio
        total += p * (reward - weight * ratio)
    assert mdp.start @ tabular.evaluate_policy(mdp, policy)[0] == pytest.approx(plain, rel=1e-12)
    assert tabular.trajectory_kl(mdp, policy, reference) == pytest.approx(kl, rel=1e-12)
    assert mdp.start @ tabular.evaluate_policy(mdp, policy, reference, weight)[0] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("weight", [0.3, 1.0, 5.0])
def test_soft_value_iteration_is_the_regularised_optimum(weight):
    """Its value is attained by its policy, and a numerical search over all policies finds nothing better."""
    mdp = tabular.random_mdp(states=2, actions=3, horizon=2, seed=2)
    reference = some_policy(mdp, 3)
    _, v, policy = tabular.soft_value_iteration(mdp, reference, weight)
    np.testing.assert_allclose(tabular.evaluate_policy(mdp, policy, reference, weight), v, atol=1e-12)

    def negative(logits):
        x = logits.reshape(mdp.reward.shape)
        x = np.exp(x - x.max(-1, keepdims=True))
        return -mdp.start @ tabular.evaluate_policy(mdp, x / x.sum(-1, keepdims=True), reference, weight)[0]

    found = minimize(negative, np.log(reference).flatten(), method="BFGS", options={"gtol": 1e-9})
    assert -found.fun == pytest.approx(mdp.start @ v[0], abs=1e-6)


def test_limits_of_the_weight():
    mdp = tabular.random_mdp(states=4, actions=3, horizon=5, seed=0)
    reference = some_policy(mdp)
    _, hard, best = tabular.value_iteration(mdp)
    _, soft, policy = tabular.soft_value_iteration(mdp, reference, 1e-4)
    np.testing.assert_allclose(soft, hard, atol=0.01)
    np.testing.assert_allclose(policy, best, atol=0.01)
    _, soft, policy = tabular.soft_value_iteration(mdp, reference, 1e6)
    np.testing.assert_allclose(policy, reference, atol=1e-4)
    np.testing.assert_allclose(soft, tabular.evaluate_policy(mdp, reference), atol=1e-4)


def test_what_the_penalty_may_cost():
    """V* - V(penalised optimum) <= weight * KL(optimum || reference), the bound demonstrations enter by."""
    mdp = tabular.random_mdp(states=4, actions=3, horizon=5, seed=4)
    expert, reference = tabular.soft_expert(mdp, 0.02), some_policy(mdp)
    for weight in (0.01, 0.1, 1.0):
        policy = tabular.soft_value_iteration(mdp, reference, weight)[2]
        lost = mdp.start @ (tabular.evaluate_policy(mdp, expert) - tabular.evaluate_policy(mdp, policy))[0]
        assert lost <= weight * tabular.trajectory_kl(mdp, expert, reference) + 1e-12


def test_kl_is_infinite_where_the_reference_has_no_mass_and_is_visited():
    mdp = tabular.double_chain(length=5, horizon=3)
    right = np.broadcast_to([0.0, 1.0], mdp.reward.shape)
    left = np.broadcast_to([1.0, 0.0], mdp.reward.shape)
    assert tabular.trajectory_kl(mdp, right, left) == np.inf
    never = np.array(right)
    never[0, 4] = [1.0, 0.0]  # the right end cannot be reached before step 2
    assert tabular.trajectory_kl(mdp, right, never) == 0
    assert tabular.trajectory_kl(mdp, right, right) == 0


def test_occupancy_and_samples_agree():
    mdp = tabular.random_mdp(states=4, actions=2, horizon=4, seed=5)
    policy = some_policy(mdp)
    expected = tabular.occupancy(mdp, policy)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    n = 40_000
    states, actions = tabular.sample_episodes(mdp, policy, n, np.random.default_rng(0))
    for h in range(5):
        seen = np.bincount(states[:, h], minlength=4) / n
        np.testing.assert_allclose(seen, expected[h], atol=5 * np.sqrt(0.25 / n))
    reward = sum(mdp.reward[h, states[:, h], actions[:, h]] for h in range(4))
    value = mdp.start @ tabular.evaluate_policy(mdp, policy)[0]
    assert abs(reward.mean() - value) < 5 * reward.std() / np.sqrt(n)


# --- the clone ---


def test_the_clone_is_the_barrier_regularised_maximum_likelihood():
    mdp = tabular.random_mdp(states=3, actions=3, horizon=2, seed=6)
    states, actions = tabular.sample_episodes(mdp, some_policy(mdp), 20, np.random.default_rng(0))
    clone = tabular.laplace_clone(states, actions, 3, 3)
    for h, s in itertools.product(range(2), range(3)):
        count = np.array([((states[:, h] == s) & (actions[:, h] == a)).sum() for a in range(3)])
        np.testing.assert_allclose(clone[h, s], (count + 1) / (count.sum() + 3), rtol=1e-12)

        def loss(logits, count=count):
            log_p = logits - np.log(np.exp(logits).sum())
            return -(count * log_p).sum() - log_p.sum()  # likelihood and log(1 / pi) summed over actions

        x = minimize(loss, np.zeros(3), options={"gtol": 1e-10}).x
        np.testing.assert_allclose(np.exp(x) / np.exp(x).sum(), clone[h, s], atol=1e-6)

    plain = tabular.laplace_clone(states[:1], actions[:1], 3, 3, pseudo_count=0.0)
    assert sorted(plain[0, states[0, 0]]) == [0, 0, 1]
    assert plain[0, (states[0, 0] + 1) % 3].tolist() == [1 / 3] * 3


def test_the_kl_to_the_clone_is_finite_and_falls_with_demonstrations():
    mdp = tabular.grid_world(size=5, start=(0, 0), goal=(4, 4), horizon=12)
    expert = tabular.soft_expert(mdp, 0.15)
    # Computed independently, before this module was written, with the same reading of a failed move.
    assert mdp.start @ tabular.value_iteration(mdp)[1][0] == pytest.approx(3.424, abs=5e-4)
    assert mdp.start @ tabular.evaluate_policy(mdp, expert)[0] == pytest.approx(3.378, abs=5e-4)
    kl = []
    for n in (1, 10, 100, 1000):
        states, actions = tabular.sample_episodes(mdp, expert, n, np.random.default_rng(n))
        kl.append(tabular.trajectory_kl(mdp, expert, tabular.laplace_clone(states, actions, 25, 4)))
    assert np.isfinite(kl).all()
    assert kl == sorted(kl, reverse=True)
    assert kl[2:] == pytest.approx([1.23, 0.20], rel=0.15)
    slope = np.log(kl[3] / kl[2]) / np.log(10)
    assert -1.05 < slope < -0.6  # 1 / n is approached from about a hundred episodes on


# --- the environments ---


@pytest.mark.parametrize("env_id", ["hoard/DoubleChain-v0", "hoard/GridWorld-v0"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_gymnasium_accepts_them(env_id, one_hot):
    env = gym.make(env_id, one_hot=one_hot)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()
    if one_hot:
        env = make_env(env_id, one_hot=True)
        obs, _ = env.reset(seed=0)
        assert obs.sum() == 1
        assert env.spec.max_episode_steps == 20
    else:
        with pytest.raises(TypeError, match="Discrete"):
            make_env(env_id)


@pytest.mark.parametrize("name", ["double_chain", "grid_world"])
def test_shapes_starts_and_reach(name):
    mdp = getattr(tabular, name)()
    assert (mdp.states, mdp.actions, mdp.horizon) == {"double_chain": (31, 2, 20), "grid_world": (441, 4, 20)}[name]
    assert mdp.start[{"double_chain": 15, "grid_world": 10 * 21 + 10}[name]] == 1
    goal = {"double_chain": 30, "grid_world": 16 * 21 + 16}[name]
    assert set(np.argwhere(mdp.reward)[:, 1]) == {goal}
    steps = {"double_chain": 15, "grid_world": 12}[name]
    reach = tabular.occupancy(mdp, tabular.uniform_policy(mdp))[:, goal] > 0
    assert reach.argmax() == steps
    best = mdp.start @ tabular.value_iteration(mdp)[1][0]
    assert 0 < best < 20 - steps  # every step after a flawless walk


def test_moves():
    chain = tabular.double_chain()
    assert chain.transition[3, 0, 2] == chain.transition[3, 1, 4] == pytest.approx(0.9)
    assert chain.transition[3, 0, 4] == chain.transition[3, 1, 2] == pytest.approx(0.1)
    assert chain.transition[0, 0, 0] == pytest.approx(0.9)
    grid = tabular.grid_world()
    here = 5 * 21 + 7
    for action, there in enumerate((4 * 21 + 7, 6 * 21 + 7, 5 * 21 + 6, 5 * 21 + 8)):
        assert grid.transition[here, action, there] == pytest.approx(0.95)
    assert grid.transition[here, 0, 5 * 21 + 8] == pytest.approx(0.05 / 3)
    assert grid.transition[0, 0, 0] == pytest.approx(0.95 + 0.05 / 3)  # into the corner, and once sideways


def test_the_environment_steps_as_its_arrays_say():
    env = gym.make("hoard/DoubleChain-v0", length=4, horizon=200_000, max_episode_steps=200_000)
    mdp = env.unwrapped.mdp
    state, _ = env.reset(seed=0)
    assert state == 2
    counts = np.zeros(mdp.transition.shape)
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        action = rng.integers(2)
        following, reward, terminated, _, info = env.step(action)
        assert reward == mdp.reward[0, state, action]
        assert not terminated
        assert info["state"] == following
        counts[state, action, following] += 1
        state = following
    n = counts.sum(-1, keepdims=True)
    assert n.min() > 1000
    np.testing.assert_allclose(counts / n, mdp.transition, atol=5 * np.sqrt(0.09 / n.min()))


def test_one_hot_is_the_same_walk():
    plain, coded = gym.make("hoard/GridWorld-v0"), gym.make("hoard/GridWorld-v0", one_hot=True)
    state, obs = plain.reset(seed=3)[0], coded.reset(seed=3)[0]
    rng = np.random.default_rng(0)
    for t in range(20):
        assert obs.argmax() == state
        action = rng.integers(4)
        noisy = 0.3 * np.eye(4)[action] + rng.random(4) * 0.2
        state, reward, _, ended, _ = plain.step(action)
        obs, again, _, over, _ = coded.step(noisy)
        assert reward == again
        assert ended == over == (t == 19)
    with pytest.raises(RuntimeError, match="reset"):
        plain.unwrapped.step(0)


def test_a_wrong_mdp_is_refused():
    good = tabular.random_mdp(2, 2, 2, 0)
    with pytest.raises(ValueError, match="transition"):
        tabular.FiniteMDP(good.transition * 0.9, good.reward, good.start)
    with pytest.raises(ValueError, match="start"):
        tabular.FiniteMDP(good.transition, good.reward, np.array([1.5, -0.5]))
    with pytest.raises(ValueError, match="shapes"):
        tabular.FiniteMDP(good.transition, good.reward[:, :, :1], good.start)
