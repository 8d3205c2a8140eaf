"""What is in the file is what `load` gives, row by row."""

import tempfile
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from dataset_toys import SPACES, random_buffers, rows_by_h5py, rows_by_minari, store, tagged_buffers
from hypothesis import given, settings
from hypothesis import strategies as st

from hoard import datasets

FIELDS = ("obs", "action", "next_obs", "reward", "terminated", "truncated")
lengths = st.lists(st.integers(1, 6), min_size=1, max_size=13)
seeds = st.integers(0, 2**32 - 1)


def assert_rows_equal(data, rows):
    table = [getattr(data, name) for name in FIELDS]
    rows = list(rows)
    assert len(rows) == len(data)
    for i, row in enumerate(rows):
        for name, column, value in zip(FIELDS, table, row):
            np.testing.assert_array_equal(column[i], np.asarray(value).astype(column.dtype), err_msg=f"{name}[{i}]")


def assert_shapes(data, episode_lengths):
    steps = sum(episode_lengths)
    assert data.lengths.tolist() == list(episode_lengths)
    assert data.num_episodes == len(episode_lengths)
    assert {len(getattr(data, name)) for name in FIELDS} == {steps}
    for k, episode in enumerate(data.episodes()):
        assert len(episode.observations) == episode_lengths[k] + 1
        assert {len(getattr(episode, n)) for n in ("action", "reward", "terminated", "truncated")} == {
            episode_lengths[k]
        }
        assert np.shares_memory(episode.observations, data.observations)
        assert np.shares_memory(episode.action, data.action)


@settings(max_examples=40, deadline=None)
@given(lengths, st.sampled_from(sorted(SPACES)), seeds)
def test_every_row_of_an_hdf5_file_arrives(episode_lengths, kind, seed):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", folder)
        path = store("toys/random-v0", random_buffers(episode_lengths, SPACES[kind], seed), SPACES[kind])
        data = datasets.load("toys/random-v0")
        assert_shapes(data, episode_lengths)
        assert_rows_equal(data, rows_by_h5py(path, SPACES[kind]))
        assert data.observations.dtype == data.action.dtype == data.reward.dtype == np.float32
        assert datasets.load("toys/random-v0").content_hash == data.content_hash


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@settings(max_examples=5, deadline=None)
@given(episode_lengths=lengths, kind=st.sampled_from(sorted(SPACES)), seed=seeds)
def test_every_format_gives_what_minari_gives(data_format, episode_lengths, kind, seed):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", folder)
        buffers = random_buffers(episode_lengths, SPACES[kind], seed)
        store("toys/random-v0", buffers, SPACES[kind], data_format=data_format)
        data = datasets.load("toys/random-v0")
        assert_shapes(data, episode_lengths)
        assert_rows_equal(data, rows_by_minari("toys/random-v0", SPACES[kind]))


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_tags_stay_together(data_format):
    """Twelve episodes: episode_10 comes after episode_9, not after episode_1, and no pair is shifted (D1)."""
    episode_lengths = [3, 1, 5, 2, 1, 4, 2, 6, 1, 3, 7, 2]
    store("toys/tagged-v0", tagged_buffers(episode_lengths), data_format=data_format)
    data = datasets.load("toys/tagged-v0")
    k, t = data.episode_index, data.timestep
    assert list(zip(k, t)) == [(e, s) for e, steps in enumerate(episode_lengths) for s in range(steps)]
    np.testing.assert_array_equal(data.obs, np.stack([k, t], axis=1))
    np.testing.assert_array_equal(data.next_obs, np.stack([k, t + 1], axis=1))
    np.testing.assert_allclose(data.action, np.stack([k, t], axis=1) / 100, rtol=1e-6)
    np.testing.assert_allclose(data.reward, k + t / 1000, rtol=1e-6)
    np.testing.assert_array_equal(data.truncated, t == data.lengths[k] - 1)
    assert not data.terminated.any()


def test_the_same_dict_in_any_key_order_is_the_same_data(root):
    space = SPACES["dict"]
    buffers = random_buffers([4, 2], space, seed=0)
    store("toys/one-v0", buffers, space)
    turned = type(space)(list(reversed(space.spaces.items())))
    store("toys/two-v0", buffers, turned)
    one, two = datasets.load("toys/one-v0"), datasets.load("toys/two-v0")
    np.testing.assert_array_equal(one.observations, two.observations)
    np.testing.assert_array_equal(one.observations[:, 0], np.concatenate([b.observations["a"][:, 0] for b in buffers]))


def test_identical_border_observations_do_not_merge_episodes():
    """A walk cut without a reset: each episode starts where the one before ended (D6)."""
    buffers = tagged_buffers([3, 2, 4])
    for before, after in pairwise(buffers):
        after.observations[0] = before.observations[-1]
    buffers[2].observations[:] = buffers[1].observations[-1]  # standing still throughout
    store("toys/walk-v0", buffers)
    data = datasets.load("toys/walk-v0")
    assert data.lengths.tolist() == [3, 2, 4]
    np.testing.assert_array_equal(np.flatnonzero(data.truncated), [2, 4, 8])
    np.testing.assert_array_equal(data.observations, np.concatenate([b.observations for b in buffers]))


def test_rewards_kept_as_a_column_are_read_as_numbers():
    buffers = tagged_buffers([3, 1])
    columns = [type(b)(**vars(b) | {"rewards": b.rewards[:, None]}) for b in buffers]
    store("toys/column-v0", columns)
    np.testing.assert_allclose(datasets.load("toys/column-v0").reward, [0, 0.001, 0.002, 1], rtol=1e-6)


def test_metadata_reaches_the_dataset():
    old = '{"autoreset": false, "apply_api_compatibility": false, "order_enforce": true, '
    spec = gym.spec("Pendulum-v1").to_json()
    store(
        "toys/meta-v0",
        tagged_buffers([2]),
        env_spec=gym.spec("Pendulum-v1").to_json().replace("200", "10"),
        eval_env_spec=old + spec.lstrip("{"),
        ref_min_score=-1,
        ref_max_score=4.0,
    )
    data = datasets.load("toys/meta-v0")
    assert (data.env_spec.id, data.env_spec.max_episode_steps) == ("Pendulum-v1", 200)
    np.testing.assert_allclose(data.normalized_score([-1, 4, 1.5]), [0, 100, 50])
    assert "toys/meta-v0" in data.source


def test_without_reference_returns_scores_are_missing_not_wrong():
    store("toys/plain-v0", tagged_buffers([2]))
    data = datasets.load("toys/plain-v0")
    assert data.env_spec is None
    assert np.isnan(data.normalized_score([1.0, 2.0])).all()
