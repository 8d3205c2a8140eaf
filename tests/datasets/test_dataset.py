"""The `Dataset` itself: views, returns, hash, choice of episodes, and what it refuses."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
from dataset_toys import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from hoard.datasets import DatasetError
from hoard.runners.evaluate import Evaluator
from hoard.runners.task import task_of

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def with_rewards(episode_lengths, seed, **fields):
    reward = np.random.default_rng(seed).normal(size=sum(episode_lengths)).astype(np.float32)
    return toy(episode_lengths, reward=reward, **fields)


def test_episodes_are_views():
    data = toy([3, 1, 4])
    for k, episode in enumerate(data.episodes()):
        for name in ("action", "reward", "terminated", "truncated"):
            assert np.shares_memory(getattr(episode, name), getattr(data, name))
        assert np.shares_memory(episode.observations, data.observations)
        np.testing.assert_array_equal(episode.observations[:, 0], k)
        np.testing.assert_array_equal(episode.observations[:, 1], np.arange(data.lengths[k] + 1))
    for k in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            data.episode(k)


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.99, 1.0, 1.1]))
def test_returns_equal_a_double_loop(episode_lengths, seed, discount):
    data = with_rewards(episode_lengths, seed)
    expected, totals = [], []
    for k in range(data.num_episodes):
        rewards = data.reward[data.starts[k] : data.starts[k + 1]].astype(np.float64)
        totals.append(sum(rewards))
        for t in range(len(rewards)):
            expected.append(sum(discount**i * rewards[t + i] for i in range(len(rewards) - t)))
    np.testing.assert_allclose(data.returns_to_go(discount), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(data.returns, totals, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(data.returns_to_go()[data.starts[:-1]], data.returns, rtol=1e-9, atol=1e-12)


def test_returns_to_go_are_computed_once_and_cannot_be_changed():
    data = toy()
    first = data.returns_to_go(0.9)
    assert data.returns_to_go(0.9) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    changed = dataclasses.replace(data, reward=data.reward + 1)
    assert changed.returns_to_go(0.9)[0] != first[0]


def test_a_change_of_any_number_changes_the_hash():
    data = toy([3, 1, 4], terminated=[1])
    seen = {data.content_hash}
    assert toy([3, 1, 4], terminated=[1]).content_hash in seen

    def distinct(**fields):
        digest = dataclasses.replace(data, **fields).content_hash
        assert digest not in seen, fields
        seen.add(digest)

    for name in ("observations", "action", "reward"):
        array = getattr(data, name)
        for i in np.ndindex(array.shape):
            other = array.copy()
            other[i] = np.nextafter(other[i], np.float32(9))
            distinct(**{name: other})
    for name in ("terminated", "truncated"):
        for i in data.starts[1:] - 1:
            other = getattr(data, name).copy()
            other[i] ^= True
            distinct(**{name: other})
    distinct(starts=np.array([0, 3, 4, 6, 8]))
    distinct(rows=data.rows + np.array([0, 0, 0, 0, -1, -1, -1, -1]))
    for low, high in ((-1.0, 0.5), (-0.5, 1.0)):
        distinct(action_space=gym.spaces.Box(low, high, (2,), np.float32))
    distinct(env_spec=None)
    distinct(env_spec=gym.spec("Hopper-v4"))
    distinct(env_spec=gym.spec("Hopper-v5"))
    distinct(ref_min=0.5)
    distinct(ref_max=11.0)
    distinct(ref_min=None, ref_max=None)


def test_the_hash_does_not_depend_on_where_the_data_lies():
    data = toy()
    moved = dataclasses.replace(data, source="elsewhere", observations=np.asfortranarray(data.observations))
    assert moved.content_hash == data.content_hash


# --- top episodes ---


def test_top_episodes_ranks_whole_episodes():
    # Returns 3, 9, 0, 8; the single best step lies in the worst episode.
    reward = np.array([1, 1, 1, 4, 5, 50, -50, 8], np.float32)
    data = toy([3, 2, 2, 1], terminated=[1], reward=reward)
    top = data.top_episodes(0.5)
    assert top.lengths.tolist() == [2, 1]
    np.testing.assert_array_equal(top.reward, [4, 5, 8])
    np.testing.assert_array_equal(top.returns, [9, 8])
    np.testing.assert_array_equal(top.obs, [[1, 0], [1, 1], [3, 0]])
    np.testing.assert_array_equal(top.next_obs, [[1, 1], [1, 2], [3, 1]])
    np.testing.assert_array_equal(top.terminated, [False, True, False])
    np.testing.assert_array_equal(top.truncated, [False, False, True])
    assert (top.env_spec, top.ref_min, top.ref_max) == (data.env_spec, data.ref_min, data.ref_max)
    assert top.content_hash != data.content_hash


def test_top_episodes_keeps_the_earlier_of_equals_and_at_least_one():
    data = toy([1] * 6, reward=np.array([1, 2, 2, 2, 0, 2], np.float32))
    np.testing.assert_array_equal(data.top_episodes(0.5).obs[:, 0], [1, 2, 3])
    np.testing.assert_array_equal(data.top_episodes(1e-9).obs[:, 0], [1])
    assert data.top_episodes(1) is data
    for fraction in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(DatasetError, match="fraction"):
            data.top_episodes(fraction)


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(0, 2**32 - 1), st.floats(0.01, 1))
def test_no_dropped_episode_beats_a_kept_one(episode_lengths, seed, fraction):
    data = with_rewards(episode_lengths, seed)
    top = data.top_episodes(fraction)
    kept = {int(top.obs[i, 0]) for i in top.starts[:-1]}
    assert len(kept) == top.num_episodes == max(1, int(fraction * data.num_episodes))
    assert sorted(kept) == [int(top.obs[i, 0]) for i in top.starts[:-1]]
    dropped = set(range(data.num_episodes)) - kept
    assert not dropped or max(data.returns[list(dropped)]) <= min(data.returns[list(kept)])
    np.testing.assert_array_equal(top.lengths, data.lengths[sorted(kept)])


# --- what is refused ---


def flagged(steps, *at):
    flags = np.zeros(steps, bool)
    flags[list(at)] = True
    return flags


def poisoned(name, index, value):
    array = getattr(toy([3, 2]), name).copy()
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reward": np.zeros(4, np.float32)}, r"rows has 5 entries for 4 rewards"),
        ({"reward": np.zeros((5, 1), np.float32)}, r"reward has shape \(5, 1\)"),
        ({"action": np.zeros((4, 2), np.float32)}, r"action has 4 entries for 5"),
        ({"action": np.zeros((5, 3), np.float32)}, r"action has 3 columns, its space \(2,\)"),
        ({"action": np.zeros(5, np.float32)}, r"action has shape \(5,\)"),
        ({"observations": np.zeros(7, np.float32)}, r"observations has shape \(7,\)"),
        ({"observations": np.zeros((6, 2), np.float32)}, "rows point outside"),
        ({"terminated": flagged(6)}, "terminated has 6 entries"),
        ({"terminated": flagged(5, 1)}, "terminated is set at step 1, inside an episode"),
        ({"truncated": flagged(5, 3)}, "truncated is set at step 3, inside an episode"),
        ({"starts": np.array([0, 3, 3, 5])}, "starts must rise"),
        ({"starts": np.array([0, 3])}, "starts must rise"),
        ({"rows": np.array([0, 1, 3, 4, 5])}, "rows are not consecutive"),
        ({"rows": np.array([-1, 0, 1, 4, 5])}, "rows point outside"),
        (poisoned("observations", (6, 1), np.nan), "observations holds NaN or infinity, first at row 6"),
        (poisoned("action", (4, 0), np.inf), "action holds NaN or infinity, first at transition 4"),
        (poisoned("reward", [1, 2], [np.inf, -np.inf]), "reward holds NaN or infinity, first at transition 1"),
        ({"ref_min": 10.0}, "reference returns must be finite with min < max"),
        ({"ref_min": None}, "reference returns"),
        ({"ref_max": None}, "reference returns"),
        ({"ref_min": float("nan")}, "reference returns"),
        ({"ref_max": float("inf")}, "reference returns"),
    ],
)
def test_inconsistent_data_is_refused_by_name(fields, message):
    with pytest.raises(DatasetError, match=f"^toy-v0: {message}.*read from somewhere"):
        dataclasses.replace(toy([3, 2]), source="somewhere", **fields)


def test_no_transitions():
    empty = {name: getattr(toy(), name)[:0] for name in ("rows", "action", "reward", "terminated", "truncated")}
    with pytest.raises(DatasetError, match="no transitions"):
        toy(**empty, starts=np.array([0]))


def test_large_finite_numbers_are_accepted():
    big = np.full(5, np.finfo(np.float32).max)
    assert toy([3, 2], reward=big).returns[0] > big[0]


# --- the environment that the scores are measured in ---

TORQUE = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)


def test_the_evaluator_takes_data_that_fits():
    Evaluator(task_of(toy(obs_dim=3, actions=TORQUE))).close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"obs_dim": 4, "actions": TORQUE}, r"toy-v0: observations have 4 numbers, environment Pendulum-v1 gives 3"),
        (
            {"obs_dim": 3, "actions": gym.spaces.Box(-1.0, 1.0, (1,), np.float32)},
            r"toy-v0: actions from \[-1.\] to \[1.\] do not fit Box\(-2.0, 2.0.*Pendulum-v1",
        ),
        (
            {"obs_dim": 3, "actions": gym.spaces.Box(-2.0, 2.0, (2,), np.float32)},
            r"from \[-2. -2.\] to \[2. 2.\] do not fit Box\(-2.0, 2.0, \(1,\).*Pendulum-v1",
        ),
        ({"env_spec": None}, "toy-v0: no evaluation environment is known"),
    ],
)
def test_the_evaluator_refuses_data_of_another_environment(fields, message):
    with pytest.raises(DatasetError, match=message):
        Evaluator(task_of(toy(**fields)))
