"""The one flattening order, for data and environments alike."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from hoard.envs import FlattenFloat32, flatten_obs, flatten_space, make_env

NESTED = spaces.Dict(
    {
        "b": spaces.Box(-1.0, 1.0, (2,), np.float64),
        "a": spaces.Tuple((spaces.Box(0.0, 9.0, (1,), np.float32), spaces.Box(0, 255, (2, 2), np.uint8))),
        "c": spaces.Dict({"z": spaces.Box(-np.inf, np.inf, (), np.float64), "y": spaces.Box(0.0, 1.0, (1,))}),
    }
)


def test_order_is_alphabetical_recursive_and_c():
    obs = {
        "c": {"z": 9.0, "y": np.array([8.0])},
        "b": np.array([6.0, 7.0]),
        "a": (np.array([1.0]), np.array([[2, 3], [4, 5]], np.uint8)),
    }
    flat = flatten_obs(NESTED, obs)
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(flat, [1, 2, 3, 4, 5, 6, 7, 8, 9])


def test_keys_are_sorted_even_where_the_space_is_not():
    space = spaces.Dict([("b", spaces.Box(0.0, 1.0, (1,))), ("a", spaces.Box(0.0, 2.0, (1,)))])
    np.testing.assert_array_equal(flatten_space(space).high, [2.0, 1.0])
    np.testing.assert_array_equal(flatten_obs(space, {"b": [0.5], "a": [1.5]}), [1.5, 0.5])


def test_space_bounds_follow_the_same_order():
    space = flatten_space(NESTED)
    assert space.dtype == np.float32
    np.testing.assert_array_equal(space.low, [0, 0, 0, 0, 0, -1, -1, 0, -np.inf])
    np.testing.assert_array_equal(space.high, [9, 255, 255, 255, 255, 1, 1, 1, np.inf])


def test_bounds_beyond_float32_become_infinite_without_a_warning(recwarn):
    limit = np.finfo(np.float64).max
    assert np.isinf(flatten_space(spaces.Box(-limit, limit, (3,), np.float64)).high).all()
    assert not recwarn.list


def test_batch_equals_single():
    NESTED.seed(0)
    rows = [NESTED.sample() for _ in range(7)]
    batch = {
        "a": tuple(np.array([row["a"][i] for row in rows]) for i in range(2)),
        "b": np.array([row["b"] for row in rows]),
        "c": {key: np.array([row["c"][key] for row in rows]) for key in "yz"},
    }
    flat = flatten_obs(NESTED, batch, batch=True)
    assert flat.shape == (7, 9)
    np.testing.assert_array_equal(flat, [flatten_obs(NESTED, row) for row in rows])
    assert flatten_obs(NESTED["b"], np.empty((0, 2)), batch=True).shape == (0, 2)


@pytest.mark.parametrize("bad", [spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.Text(4)])
def test_other_spaces_are_refused_by_name(bad):
    with pytest.raises(TypeError, match=type(bad).__name__):
        flatten_space(spaces.Dict({"x": bad}))
    with pytest.raises(TypeError, match=type(bad).__name__):
        flatten_obs(spaces.Tuple((bad,)), (bad.sample(),))


def test_data_and_environment_agree_on_a_real_dict_space():
    raw, env = gym.make("PointMaze_UMaze-v3"), make_env("PointMaze_UMaze-v3")
    assert isinstance(env, FlattenFloat32)
    raw.action_space.seed(0)
    rows, flat = [raw.reset(seed=5)[0]], [env.reset(seed=5)[0]]
    for _ in range(5):
        action = raw.action_space.sample()
        rows.append(raw.step(action)[0])
        flat.append(env.step(action)[0])
    stored = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    np.testing.assert_array_equal(flatten_obs(raw.observation_space, stored, batch=True), flat)
    assert all(env.observation_space.contains(row) for row in flat)
    raw.close()
    env.close()
