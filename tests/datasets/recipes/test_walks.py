"""The pointmaze and maze2d walks against measured facts about Minari's recipe."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

from hoard.datasets.recipes import maze2d, pointmaze
from hoard.datasets.recipes._common import Meter
from hoard.datasets.recipes._waypoints import WaypointController, find_path

RESETS = {  # start and goal after reset(seed=123), measured with the public packages
    "umaze": ((-1.1578, -1.1620), (-1.2231, 0.8602)),
    "medium": ((-2.6578, -1.6620), (-2.7231, 2.3602)),
}
# Episodes in 1,000,000 steps: an independent implementation measured the same numbers under the same versions.
EPISODES = {"umaze": 13_287, "medium": 4_756}
STEPS = 20_000
OPEN = ((True,) * 5, *((True, False, False, False, True),) * 3, (True,) * 5)


@pytest.fixture(scope="module", params=["umaze", "medium"])
def maze(request):
    return request.param


@pytest.fixture(scope="module")
def recordings(maze):
    return tuple(module.record(maze, STEPS, reference_episodes=3) for module in (pointmaze, maze2d))


def test_reset_is_the_published_one(maze, recordings):
    first = recordings[0].episodes[0]
    np.testing.assert_allclose(first.observations["achieved_goal"][0], RESETS[maze][0], atol=5e-5)
    np.testing.assert_allclose(first.observations["desired_goal"][0], RESETS[maze][1], atol=5e-5)


def test_the_walk_is_never_reset_and_cut_at_success(recordings):
    episodes = recordings[0].episodes
    assert sum(map(len, episodes)) == STEPS
    for one, two in itertools.pairwise(episodes):
        for key in one.observations:
            np.testing.assert_array_equal(one.observations[key][-1], two.observations[key][0])
        assert one.infos["success"][-1]
        assert two.infos["success"][0]
        assert not one.infos["success"][1:-1].any()
        # The last observation still shows the goal that was reached, the second of the next episode the new one.
        if len(one) > 1:
            np.testing.assert_array_equal(one.observations["desired_goal"][-1], one.observations["desired_goal"][-2])
        assert np.linalg.norm(two.observations["desired_goal"][1] - two.observations["desired_goal"][0]) > 1e-3
    assert not episodes[-1].infos["success"][1:-1].any()  # the tail


def test_pointmaze_reward_is_success_at_the_goal_in_force(recordings):
    for episode in recordings[0].episodes:
        np.testing.assert_array_equal(episode.rewards, episode.infos["success"][1:].astype(float))
        np.testing.assert_array_equal(episode.infos["goal"], episode.observations["desired_goal"])
        np.testing.assert_array_equal(episode.infos["qpos"], episode.observations["observation"][:, :2])
        np.testing.assert_array_equal(episode.infos["qvel"], episode.observations["observation"][:, 2:])


def test_maze2d_is_the_same_walk_with_the_goal_hidden(recordings):
    seen, hidden = recordings
    assert len(seen.episodes) == len(hidden.episodes)
    for one, two in zip(seen.episodes, hidden.episodes):
        np.testing.assert_array_equal(one.observations["observation"], two.observations)
        np.testing.assert_array_equal(one.observations["desired_goal"], two.infos["goal"])
        np.testing.assert_array_equal(one.actions, two.actions)
        np.testing.assert_array_equal(one.truncations, two.truncations)


def test_maze2d_pays_for_the_state_that_the_action_leads_to(maze, recordings):
    goal = {"umaze": (-1.0, 1.0), "medium": (2.5, -2.5)}[maze]
    rewards = np.concatenate([episode.rewards for episode in recordings[1].episodes])
    reached = np.concatenate([episode.observations[1:, :2] for episode in recordings[1].episodes])
    np.testing.assert_array_equal(rewards, np.linalg.norm(reached - goal, axis=1) <= 0.45)
    assert 0 < rewards.mean() < 0.5


def test_a_longer_walk_starts_with_the_shorter_one(maze):
    (short, env), (long, env2) = (pointmaze.walk(maze, steps, Meter(None, steps)) for steps in (500, 900))
    np.testing.assert_array_equal(short.states, long.states[:501])
    np.testing.assert_array_equal(short.actions, long.actions[:500])
    env.close()
    env2.close()


def test_recorded_forces_replay_although_float32(recordings):
    """The recipe drives the simulator in float64; the recorded action must lead to the same place."""
    env = gym.make(recordings[0].env_spec)
    base = env.unwrapped
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for episode in recordings[0].episodes[:30]:
        t = int(rng.integers(len(episode)))
        base.point_env.set_state(episode.infos["qpos"][t], episode.infos["qvel"][t])
        obs, *_ = base.step(episode.actions[t])
        np.testing.assert_allclose(obs["observation"], episode.observations["observation"][t + 1], atol=1e-6)
    env.close()


def test_depth_first_order_and_shortest_paths():
    # Last pushed, first popped: from (1, 1) the search goes down the first column before anything else.
    assert find_path(OPEN, (1, 1), (3, 3), depth_first=True) == ((2, 1), (3, 1), (3, 2), (3, 3))
    assert find_path(OPEN, (3, 3), (3, 1), depth_first=True) == ((2, 3), (1, 3), (1, 2), (1, 1), (2, 1), (3, 1))
    assert find_path(OPEN, (3, 3), (3, 1), depth_first=False) == ((3, 2), (3, 1))
    assert find_path(OPEN, (2, 2), (2, 2), depth_first=True) == ()


class Maze3:
    maze_map = (*((1, 1, 1, 1, 1),), (1, 0, 0, 0, 1), (1, 1, 1, 1, 1))
    x_map_center, y_map_center = 2.5, 1.5


def test_controller_follows_the_published_quirks():
    control = WaypointController(Maze3, depth_first=True)
    state = np.array([-1.0, 0.0, 0.5, -0.25])
    np.testing.assert_allclose(control(state, np.array([1.2, 0.1])), [10 * 1.0 - 0.5, 0.25])  # first cell's centre
    near = np.array([-0.05, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(control(near, np.array([1.2, 0.1])), [12.5, 1.0])  # then the goal itself
    np.testing.assert_allclose(control(near, np.array([0.8, 0.2])), [10.5, 0.0])  # one cell away: its centre ...
    np.testing.assert_allclose(control(np.array([0.95, 0, 0, 0.0]), np.array([0.8, 0.2])), [0.5, 0.0])  # ... for good
    np.testing.assert_allclose(control(np.array([0.95, 0, 0, 0.0]), np.array([0.7, 0.3])), [-2.5, 3.0])  # own cell


def test_references_are_sane(maze, recordings):
    limit = {"umaze": 300, "medium": 600}[maze]
    for recording in recordings:
        assert 0 <= recording.ref_min_score < 0.2 * limit
        assert 0.5 * limit < recording.ref_max_score < limit


@pytest.mark.slow
def test_episodes_in_a_million_steps(maze):
    walk, env = pointmaze.walk(maze, 1_000_000, Meter(None, 1_000_000))
    env.close()
    assert len(walk.episodes()) == pytest.approx(EPISODES[maze], rel=0.03)
