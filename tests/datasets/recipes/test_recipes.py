"""Generated datasets: what holds for all of them, on short versions."""

import json
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from hoard.datasets import recipes
from hoard.datasets.recipes import maze2d, pendulum, pointmaze, stitch
from hoard.envs import flatten_obs, flatten_space, make_env

SHORT = {
    "pointmaze/umaze": lambda **kw: pointmaze.record("umaze", 3000, reference_episodes=2, **kw),
    "pointmaze/medium": lambda **kw: pointmaze.record("medium", 3000, reference_episodes=2, **kw),
    "maze2d/umaze": lambda **kw: maze2d.record("umaze", 3000, reference_episodes=2, **kw),
    "maze2d/medium": lambda **kw: maze2d.record("medium", 20_000, reference_episodes=2, **kw),
    "stitch": lambda **kw: stitch.record(trajectories=3, reference_episodes=2, **kw),
    "pendulum": lambda **kw: pendulum.record(episodes=20, reference_episodes=2, **kw),
}


@cache
def short(name):
    return SHORT[name]()


@pytest.fixture(params=SHORT)
def name(request):
    return request.param


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    return [tree]


def contents(episode):
    parts = (episode.observations, episode.actions, episode.rewards, episode.terminations, episode.truncations)
    return [leaf for part in (*parts, episode.infos) for leaf in leaves(part)]


def test_two_generations_are_identical(name):
    np.random.seed(1)  # noqa: NPY002  the global generator is neither read ...
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = short(name), SHORT[name]()
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002  ... nor moved
    assert len(one.episodes) == len(two.episodes)
    for a, b in zip(one.episodes, two.episodes):
        assert (a.id, a.seed) == (b.id, b.seed)
        for x, y in zip(contents(a), contents(b)):
            np.testing.assert_array_equal(x, y)
            assert x.dtype == y.dtype
    assert (one.ref_min_score, one.ref_max_score) == (two.ref_min_score, two.ref_max_score)
    assert one.description == two.description


def test_episodes_have_t_plus_one_observations_and_end_truncated(name):
    recording = short(name)
    assert [episode.id for episode in recording.episodes] == list(range(len(recording.episodes)))
    for episode in recording.episodes:
        steps = len(episode)
        assert steps > 0
        assert all(len(leaf) == steps + 1 for leaf in leaves(episode.observations) + leaves(episode.infos))
        assert not episode.terminations.any()
        assert episode.truncations[-1]
        assert not episode.truncations[:-1].any()
        assert episode.actions.shape == (steps, *recording.action_space.shape)
        assert episode.actions.dtype == recording.action_space.dtype
        assert recording.action_space.contains(episode.actions[0])
        assert np.abs(episode.actions).max() <= recording.action_space.high.max()
        assert episode.seed is None or 0 <= episode.seed < 2**31


def test_spaces_match_data_and_evaluation_environment(name):
    recording = short(name)
    env = make_env(EnvSpec.from_json(recording.eval_env_spec.to_json()))
    assert env.action_space == recording.action_space
    assert env.observation_space == flatten_space(recording.observation_space)
    flat = flatten_obs(recording.observation_space, recording.episodes[0].observations, batch=True)
    assert env.observation_space.contains(flat[0])
    assert env.spec.max_episode_steps == recording.eval_env_spec.max_episode_steps
    json.loads(recording.env_spec.to_json())
    env.close()


def test_progress_ends_at_the_total_and_counts_every_step(name):
    calls = []
    SHORT[name](progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls)
    assert len(set(totals)) == 1
    assert done[-1] == totals[0]
    assert max(np.diff((0, *done))) <= 2000
    recording = short(name)
    references = 2 * 2 * recording.eval_env_spec.max_episode_steps
    assert totals[0] == sum(map(len, recording.episodes)) + references


def test_description_is_one_line_and_says_how_scores_were_referenced(name):
    recording = short(name)
    assert "\n" not in recording.description
    assert "  " not in recording.description
    assert "Reference scores" in recording.description
    assert "over 2 episodes" in recording.description
    assert recording.ref_min_score < recording.ref_max_score


def replay(env, episode, t):
    """(next observation, reward) of row t in the evaluation environment."""
    env.reset(seed=0)
    base = env.unwrapped
    if "state" in episode.infos:
        base.state = episode.infos["state"][t].copy()
    else:
        base.goal = episode.infos["goal"][t] if base.goal_noise else base.goal
        base.point_env.set_state(episode.observations[t, :2], episode.observations[t, 2:])
    obs, reward, *_ = env.step(episode.actions[t])
    return obs, reward


@pytest.mark.parametrize("kind", ["stitch", "pendulum", "maze2d/umaze", "maze2d/medium"])
def test_a_row_replayed_in_the_evaluation_environment_earns_what_it_says(kind):
    recording = short(kind)
    env = gym.make(recording.eval_env_spec)
    rng = np.random.default_rng(0)
    rows = [(k, t) for k, episode in enumerate(recording.episodes) for t in range(len(episode))]
    paid = [(k, t) for k, t in rows if recording.episodes[k].rewards[t] == 1.0]
    edges = [(k, t) for k, t in rows if t > 0 and np.ptp(recording.episodes[k].rewards[t - 1 : t + 1]) == 1.0]
    sample = [rows[i] for i in rng.choice(len(rows), 40, replace=False)] + paid[:20] + edges[:20]
    if kind.startswith("maze2d"):
        assert paid
        assert edges
    for k, t in sample:
        episode = recording.episodes[k]
        obs, reward = replay(env, episode, t)
        np.testing.assert_allclose(obs, episode.observations[t + 1], atol=1e-6)
        assert reward == pytest.approx(episode.rewards[t], abs=1e-6)
    env.close()


def test_pendulum_rows_replay_to_the_bit():
    recording = short("pendulum")
    env = gym.make(recording.eval_env_spec)
    for episode in recording.episodes[:4]:
        for t in (0, 57, 199):
            obs, reward = replay(env, episode, t)
            np.testing.assert_array_equal(obs, episode.observations[t + 1])
            assert reward == episode.rewards[t]
    env.close()


ROBOT_LEVELS = ("random", "medium", "medium-replay", "medium-expert")


def test_ids():
    ids = recipes.known_ids()
    assert ids == sorted(ids)
    assert set(ids) == {
        "hoard/pointmaze/stitch-v0",
        "hoard/pointmaze/umaze-v0",
        "hoard/pointmaze/medium-v0",
        "hoard/maze2d/umaze-v0",
        "hoard/maze2d/medium-v0",
        "hoard/pendulum/mixed-v0",
        *(f"hoard/comblock/h{h}-v0" for h in (5, 10, 15, 30, 50)),
        *(f"hoard/comblock/h10-{variant}-v0" for variant in ("paper", "rich", "forced", "unit")),
        "hoard/gridworld/expert-v0",
        "hoard/doublechain/expert-v0",
        *(
            f"hoard/{robot}/{level}-v{version}"
            for robot in ("hopper", "halfcheetah", "walker2d")
            for version, levels in enumerate((ROBOT_LEVELS, (*ROBOT_LEVELS, "expert")))
            for level in levels
        ),
    }
    assert all(map(recipes.is_known, ids))
    assert recipes.is_known("hoard/pointmaze/umaze-1000k-v0")
    assert recipes.is_known("hoard/maze2d/medium-5k-v0")


@pytest.mark.parametrize(
    "bad",
    [
        "hoard/pointmaze/umaze-0k-v0",
        "hoard/pointmaze/umaze-1000-v0",
        "hoard/pointmaze/umaze",
        "hoard/pointmaze/stitch-10k-v0",
        "hoard/pointmaze/large-v0",
        "D4RL/pointmaze/umaze-v2",
        "hoard/pointmaze/umaze-v0\n",
    ],
)
def test_unknown_ids_name_the_nearest(bad):
    assert not recipes.is_known(bad)
    with pytest.raises(ValueError, match=r"nearest: .*hoard/"):
        recipes.generate(bad)


def test_the_length_is_read_from_the_id(monkeypatch):
    seen = []
    for family, module in (("pointmaze", pointmaze), ("maze2d", maze2d)):
        monkeypatch.setattr(module, "record", lambda maze, steps, progress, f=family: seen.append((f, maze, steps)))
    for dataset_id in ("pointmaze/umaze-v0", "pointmaze/medium-v0", "maze2d/umaze-1000k-v0", "maze2d/medium-7k-v0"):
        recipes.generate(f"hoard/{dataset_id}")
    assert seen == [
        ("pointmaze", "umaze", 200_000),
        ("pointmaze", "medium", 400_000),
        ("maze2d", "umaze", 1_000_000),
        ("maze2d", "medium", 7_000),
    ]
