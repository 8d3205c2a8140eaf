"""The hidden-goal mazes: maps, rewards, goals, seeding."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from hoard.envs.mazes import replay_open_loop  # importing it registers the ids

IDS = ["hoard/StitchMaze-v0", "hoard/Maze2d-UMaze-v0", "hoard/Maze2d-Medium-v0"]
GOALS = {"hoard/Maze2d-UMaze-v0": (-1.0, 1.0), "hoard/Maze2d-Medium-v0": (2.5, -2.5)}


@pytest.fixture(params=IDS)
def env(request):
    env = gym.make(request.param)
    yield env
    env.close()


def push(env, steps, seed=0):
    env.action_space.seed(seed)
    return [env.step(env.action_space.sample()) for _ in range(steps)]


@pytest.mark.filterwarnings("ignore:.*A Box observation space m")  # positions and velocities have no stated bounds
def test_gymnasium_checker_passes(env):
    check_env(env.unwrapped, skip_render_check=True)


def test_only_position_and_velocity_are_seen(env):
    obs, info = env.reset(seed=3)
    assert obs.shape == (4,)
    assert set(info) == {"success"}
    np.testing.assert_array_equal(obs[:2], env.unwrapped.point_env.data.qpos)
    assert (obs[2:] == 0).all()


def test_seeded_resets_repeat_and_one_generator_drives_all(env):
    first = [env.reset(seed=11)[0], env.reset()[0]]
    again = [env.reset(seed=11)[0], env.reset()[0]]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    state = env.unwrapped.np_random.bit_generator.state
    expected = env.reset()[0], env.unwrapped.goal.copy()
    env.unwrapped.np_random.bit_generator.state = state
    actual = env.reset()[0], env.unwrapped.goal.copy()
    np.testing.assert_array_equal(np.concatenate(actual), np.concatenate(expected))


def test_same_physics_and_stream_as_pointmaze():
    hidden = gym.make("hoard/StitchMaze-v0")
    kwargs = hidden.spec.kwargs
    plain = gym.make("PointMaze_UMazeDense-v3", maze_map=kwargs["maze_map"], continuing_task=False)
    obs, _ = hidden.reset(seed=17)
    expected, _ = plain.reset(seed=17)
    np.testing.assert_array_equal(obs, expected["observation"])
    np.testing.assert_array_equal(hidden.unwrapped.goal, expected["desired_goal"])
    for ours, theirs in zip(push(hidden, 60), push(plain, 60)):
        np.testing.assert_array_equal(ours[0], theirs[0]["observation"])
        assert ours[1] == theirs[1]
    hidden.close()
    plain.close()


@pytest.mark.parametrize(
    ("cell", "xy"),
    [
        ((1, 2), (-0.5, 0.5)),
        ((2, 4), (1.5, -0.5)),
        ((1, 1), (-1.5, 0.5)),
        ((2, 1), (-1.5, -0.5)),
        ((2, 2), (-0.5, -0.5)),
    ],
)
def test_stitch_map(cell, xy):
    maze = gym.make("hoard/StitchMaze-v0").unwrapped.maze
    np.testing.assert_array_equal(maze.cell_rowcol_to_xy(np.array(cell)), xy)
    assert maze.maze_map[cell[0]][cell[1]] != 1


def test_stitch_start_and_goal_move_within_a_quarter_metre():
    env = gym.make("hoard/StitchMaze-v0")
    starts, goals = [], []
    for seed in range(200):
        starts.append(env.reset(seed=seed)[0][:2])
        goals.append(env.unwrapped.goal.copy())
    for xy, centre in ((starts, (-0.5, 0.5)), (goals, (1.5, -0.5))):
        offset = np.abs(np.array(xy) - centre)
        assert 0.23 < offset.max() <= 0.25
        assert np.allclose(offset.mean(axis=0), 0.125, atol=0.02)
    env.close()


def test_stitch_reward_is_exp_of_minus_distance_after_the_step():
    env = gym.make("hoard/StitchMaze-v0")
    env.reset(seed=1)
    for obs, reward, *_ in push(env, 50):
        assert reward == np.exp(-np.linalg.norm(obs[:2] - env.unwrapped.goal))
    env.close()


@pytest.mark.parametrize(("env_id", "goal"), GOALS.items())
def test_maze2d_goal_is_fixed_exactly_and_starts_are_everywhere_else(env_id, goal):
    env = gym.make(env_id)
    base, cells = env.unwrapped, set()
    for seed in range(300):
        obs, info = env.reset(seed=seed)
        assert tuple(base.goal) == goal
        assert tuple(base.point_env.model.site("target").pos[:2]) == goal
        assert not info["success"]
        cells.add(tuple(base.maze.cell_xy_to_rowcol(obs[:2])))
    free = {(i, j) for i, row in enumerate(base.maze.maze_map) for j, cell in enumerate(row) if cell == 0}
    assert cells == free
    assert len(base.maze.unique_goal_locations) == 1
    env.close()


def place(env, distance):
    """Put the ball at rest beside the goal, on the side where no wall touches it, and let one step pass."""
    goal = env.unwrapped.goal
    env.unwrapped.point_env.set_state(goal - (np.sign(goal[0]) * distance, 0.0), np.zeros(2))
    return env.step(np.zeros(2, np.float32))


@pytest.mark.parametrize("env_id", GOALS)
def test_maze2d_reward_has_radius_045(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    assert place(env, 0.4499)[1] == 1.0
    assert place(env, 0.4501)[1] == 0.0
    env.close()


def test_reaching_the_goal_does_not_terminate_and_success_is_remembered(env):
    env.reset(seed=0)
    assert not place(env, 0.6)[4]["success"]
    _, _, terminated, truncated, info = place(env, 0.1)
    assert info["success"]
    assert not terminated
    assert not truncated
    assert place(env, 0.6)[4]["success"]
    assert not env.reset()[1]["success"]


@pytest.mark.parametrize("env_id", ["hoard/Maze2d-UMaze-v0", "hoard/StitchMaze-v0"])
def test_replays_return_what_the_environment_pays(env_id):
    env, rng, episodes = gym.make(env_id), np.random.default_rng(0), []
    for seed in range(3):
        actions = rng.uniform(-1.2, 1.2, size=(40, 2)).astype(np.float32)  # some beyond the bounds: they are clipped
        start = env.reset(seed=seed)[0]
        steps = [env.step(np.clip(action, -1, 1)) for action in actions]
        reward = np.array([step[1] for step in steps])
        if "Stitch" in env_id:  # the goal is hidden: the replay has it at the centre of its cell, (1.5, -0.5)
            after = np.array([step[0] for step in steps])
            reward = np.exp(-np.linalg.norm(after[:, :2] - [1.5, -0.5], axis=1))
        episodes.append((start, actions, reward.sum()))
    env.close()
    starts, actions, returns = (np.array(column) for column in zip(*episodes))
    for spec in (env_id, gym.spec(env_id)):
        assert replay_open_loop(spec, starts, actions) == pytest.approx(returns, abs=1e-4)
    if "Stitch" in env_id:
        assert np.ptp(returns) > 0.1


def test_elsewhere_nothing_is_replayed():
    with pytest.raises(ValueError, match="Pendulum-v1: only the mazes of"):
        replay_open_loop("Pendulum-v1", np.zeros((1, 3)), np.zeros((1, 5, 1)))
