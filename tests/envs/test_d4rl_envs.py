"""The evaluation environments of D4RL's sets: rewards, limits, ends, and what recorded data says about them."""

from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import h5py
import mujoco
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium_robotics.envs.maze.point import PointEnv

from hoard.envs import d4rl, make_env

DOOR = Path(__file__).resolve().parents[3] / "shared" / "data" / "d4rl_door_human_replayed.hdf5"
IDS = sorted(name for name in gym.registry if name.startswith("hoard/D4RL-"))
SHAPES = {"Door": (39, 28), "Hammer": (46, 26), "Pen": (45, 24), "Relocate": (39, 30), "Ant": (111, 8)}
SHAPES |= {"Maze2d": (4, 2), "AntMaze": (29, 8)}
pytestmark = pytest.mark.filterwarnings("ignore:.*Ant-v4 is out of date")


def rollout(env, steps, seed):
    """(observations, rewards, ends) of random actions."""
    env.action_space.seed(seed)
    out = [(env.reset(seed=seed)[0], 0.0, False, False)]
    for _ in range(steps):
        out.append(env.step(env.action_space.sample())[:4])
        if out[-1][2] or out[-1][3]:
            break
    return out


@pytest.mark.parametrize("env_id", IDS)
def test_spaces_limit_seed_and_specification(env_id):
    env, again = make_env(env_id), make_env(EnvSpec.from_json(gym.spec(env_id).to_json()))
    task = env_id.removeprefix("hoard/D4RL-").split("-")[0]
    assert (env.observation_space.shape[0], env.action_space.shape[0]) == SHAPES[task]
    assert (env.action_space.low == -1).all()
    assert (env.action_space.high == 1).all()
    one, two, other = rollout(env, 15, 3), rollout(again, 15, 3), rollout(env, 15, 4)
    for (obs, reward, *_), (obs2, reward2, *_) in zip(one, two, strict=True):
        np.testing.assert_array_equal(obs, obs2)
        assert reward == reward2
    assert obs.dtype == np.float32
    assert not np.array_equal(one[0][0], other[0][0])
    env.close()
    again.close()


def test_saving_the_generator_saves_the_reset():
    """As the runner does to resume: every draw of a reset comes from env.np_random."""
    for env_id in ("hoard/D4RL-Door-v1", "hoard/D4RL-AntMaze-UMaze-v2", "hoard/D4RL-Maze2d-UMaze-v1"):
        env = make_env(env_id)
        env.reset(seed=0)
        state = env.unwrapped.np_random.bit_generator.state
        first = env.reset()[0]
        env.unwrapped.np_random.bit_generator.state = state
        np.testing.assert_array_equal(env.reset()[0], first)
        env.close()


# --- Adroit ---


def adroit_reward(hand, adroit):
    """D4RL's reward from the simulator's state, term by term; hinge, nail and object as each task calls them."""
    data, names = adroit.data, adroit._model_names
    site = lambda name: data.site_xpos[names.site_name2id[name]]  # noqa: E731
    palm = site("S_grasp")
    if hand == "Door":
        hinge = data.qpos[adroit.door_hinge_addrs]
        bonus = 2 * (hinge > 0.2) + 8 * (hinge > 1.0) + 10 * (hinge > 1.35)
        pull = 0.1 * (hinge - 1.57) ** 2
        return -0.1 * np.linalg.norm(palm - site("S_handle")) - pull - 1e-5 * (data.qvel**2).sum() + bonus
    thing = data.xpos[names.body_name2id["Object"]]
    if hand == "Relocate":
        target = site("target")
        reward = -0.1 * np.linalg.norm(palm - thing)
        if thing[2] > 0.04:
            reward += 1.0 - 0.5 * np.linalg.norm(palm - target) - 0.5 * np.linalg.norm(thing - target)
        away = np.linalg.norm(thing - target)
        return reward + 10 * (away < 0.1) + 20 * (away < 0.05)
    tool, nail, goal = site("tool"), site("S_target"), site("nail_goal")
    away = np.linalg.norm(nail - goal)
    reward = -0.1 * np.linalg.norm(palm - thing) - np.linalg.norm(tool - nail) - 10 * away
    reward -= 1e-2 * np.linalg.norm(data.qvel)
    return reward + 2 * (thing[2] > 0.04 and tool[2] > 0.04) + 25 * (away < 0.020) + 75 * (away < 0.010)


@pytest.mark.parametrize("hand", ["Door", "Hammer", "Relocate"])
def test_the_adroit_rewards_are_d4rls(hand):
    env = d4rl.AdroitHand(hand)
    rng = np.random.default_rng(0)
    for episode in range(2):
        env.reset(seed=episode)
        for _ in range(60):
            *_, reward, terminated, truncated, _ = env.step(rng.uniform(-1, 1, env.action_space.shape))
            assert reward == pytest.approx(float(adroit_reward(hand, env.adroit)), abs=1e-9)
            assert (terminated, truncated) == (False, False)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "version", "wrong"),
    [
        ("AdroitHandDoor-v1", "1.4.2", True),
        ("AdroitHandHammer-v1", "1.2.1", True),
        ("AdroitHandRelocate-v1", "1.4.3", True),
        ("AdroitHandDoor-v1", "1.2.0", False),
        ("AdroitHandDoor-v2", "1.4.3", False),
        ("AdroitHandPen-v1", "1.4.2", False),
        ("AdroitHandDoorSparse-v1", "1.4.2", False),
        ("AdroitHandRelocate-v1", "1.5.0a1", True),
    ],
)
def test_the_sign_is_put_right_by_id_and_version(env_id, version, wrong):
    assert d4rl.reward_sign_is_wrong(env_id, version) is wrong


def test_an_environment_without_the_error_is_not_corrected(monkeypatch):
    monkeypatch.setattr(gymnasium_robotics, "__version__", "1.2.0")
    env, package = d4rl.AdroitHand("Door"), gym.make("AdroitHandDoor-v1").unwrapped
    action = np.zeros(28)
    env.reset(seed=0)
    package.reset(seed=0)
    assert env.step(action)[1] == pytest.approx(package.step(action)[1], abs=1e-12)
    env.close()
    package.close()


def test_the_pen_ends_when_it_drops():
    env = make_env("hoard/D4RL-Pen-v1")
    assert env.spec.max_episode_steps == 100
    lengths = []
    for seed in range(8):
        steps = rollout(env, 100, seed)
        for obs, _, terminated, _ in steps[1:]:
            assert terminated == (obs[26] < 0.075)
        lengths.append(len(steps) - 1)
        assert steps[-1][2] or steps[-1][3]
    assert min(lengths) < 100
    env.close()


def test_unknown_arguments_are_refused():
    with pytest.raises(ValueError, match="hand 'Foot'"):
        d4rl.AdroitHand("Foot")
    with pytest.raises(ValueError, match="reward_type 'none'"):
        d4rl.Maze2d(reward_type="none")


# D4RL's ref_min; the tolerance is about four standard errors of 30 episodes.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("hand", "reference", "tolerance"),
    [("Door", -56.51, 0.8), ("Hammer", -274.86, 5.0), ("Relocate", -6.43, 3.5), ("Pen", 96.26, 130.0)],
)
def test_a_random_policy_gets_the_reference_return(hand, reference, tolerance):
    env = make_env(f"hoard/D4RL-{hand}-v1")
    returns = [sum(step[1] for step in rollout(env, 200, seed)) for seed in range(30)]
    assert np.mean(returns) == pytest.approx(reference, abs=tolerance)
    env.close()


@pytest.mark.skipif(not DOOR.is_file(), reason="the sample file is not beside this repository")
def test_one_step_from_recorded_states_gives_the_recorded_reward_and_observation():
    env = d4rl.AdroitHand("Door")
    env.reset(seed=0)
    with h5py.File(DOOR) as file:
        data = {name: file[name][()] for name in ("observations", "actions", "rewards", "timeouts")}
        state = {name: file[f"infos/{name}"][()].astype(np.float64) for name in ("qpos", "qvel", "door_body_pos")}
    rows = np.flatnonzero(~data["timeouts"][:-1])[::20]
    apart, unpaid = [], []
    for i in rows:
        env.adroit.set_env_state({name: values[i] for name, values in state.items()})
        env.adroit.data.qacc_warmstart[:] = 0
        obs, reward, *_ = env.step(data["actions"][i])
        apart.append(np.abs(obs - data["observations"][i + 1]).max())
        unpaid.append(abs(reward - data["rewards"][i]))
    assert len(rows) > 300
    assert np.median(apart) < 1e-6
    assert max(apart) < 1e-5
    assert max(unpaid) < 1e-5
    env.close()


# --- maze2d ---


def test_the_ball_moves_as_the_ball_of_gymnasium_robotics():
    ours, theirs = d4rl.Maze2d("Open"), PointEnv()
    rng = np.random.default_rng(0)
    for env in (ours, theirs):
        env.reset(seed=0)
        env.set_state(np.array([2.0, 3.0]), np.array([0.3, -4.0]))
    for _ in range(30):
        action = rng.uniform(-1.5, 1.5, 2)
        np.testing.assert_allclose(ours.step(action)[0], theirs.step(action)[0], atol=1e-12)
    theirs.close()


@pytest.mark.parametrize("maze", d4rl.MAPS)
def test_walls_stand_where_d4rl_draws_them(maze):
    """The ball's centre stops 0.6 below and 0.2 above a cell's whole number: D4RL's frame is 0.2 off its cells."""
    env = d4rl.Maze2d(maze)
    cells = np.array(d4rl.MAPS[maze])
    assert cells[d4rl.MAZE2D_GOALS[maze]] == 0
    for i, j in env.free_cells:
        for axis, direction in ((0, 1), (0, -1), (1, 1), (1, -1)):
            ahead = np.array([i, j])
            ahead[axis] += direction
            env.reset(seed=0)
            env.set_state(np.array([i, j], float), np.zeros(2))
            action = np.zeros(2)
            action[axis] = direction
            for _ in range(60):
                place = env.step(action)[0][axis] - (i, j)[axis]
            if cells[tuple(ahead)]:
                assert place == pytest.approx(0.2 if direction > 0 else -0.6, abs=0.03)
            else:
                assert abs(place) > 0.65


def test_maze2d_pays_within_half_a_metre_and_never_ends():
    sparse, dense = d4rl.Maze2d("Medium"), d4rl.Maze2d("Medium", "dense")
    for x, paid in ((5.51, 1.0), (5.45, 0.0), (6.0, 1.0)):
        for env in (sparse, dense):
            env.reset(seed=0)
            env.set_state(np.array([x, 6.0]), np.zeros(2))
            obs, reward, terminated, truncated, info = env.step(np.zeros(2))
            expected = paid if env is sparse else np.exp(-np.linalg.norm(obs[:2] - [6, 6]))
            assert reward == pytest.approx(expected)
            assert (terminated, truncated, info["success"]) == (False, False, paid == 1.0)
    sparse.set_state(np.array([6.0, 6.0]), np.zeros(2))
    assert sparse.step(np.zeros(2))[-1]["success"]
    sparse.set_state(np.array([1.0, 1.0]), np.zeros(2))
    _, reward, *_, info = sparse.step(np.zeros(2))
    assert (reward, info["success"]) == (0.0, True)  # who has been there has succeeded
    env = make_env("hoard/D4RL-Maze2d-UMaze-v1")
    assert len(rollout(env, 1000, 0)) - 1 == 300


def test_maze2d_starts_in_every_free_cell():
    env = d4rl.Maze2d("UMaze")
    starts = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    cells = np.round(starts[:, :2]).astype(int)
    assert {tuple(cell) for cell in cells} == {tuple(cell) for cell in env.free_cells}
    assert np.abs(starts[:, :2] - cells).max() <= 0.1
    assert 0.05 < starts[:, 2:].std() < 0.15


# --- ants ---


def test_the_ant_has_d4rls_motors_and_contacts():
    model = d4rl.AntMaze("UMaze").model
    assert (model.opt.timestep, model.opt.integrator) == (0.02, mujoco.mjtIntegrator.mjINT_RK4)
    np.testing.assert_array_equal(model.actuator_ctrlrange, [[-30, 30]] * 8)
    np.testing.assert_array_equal(model.actuator_gear[:, 0], 1)
    np.testing.assert_allclose(model.geom_solimp[:, :3], [[0.8, 0.8, 0.01]] * model.ngeom)
    walls = model.geom_pos[model.geom_type == mujoco.mjtGeom.mjGEOM_BOX]
    expected = [(4 * j - 4, 4 * i - 4, 1) for i in range(5) for j in range(5) if d4rl.MAPS["UMaze"][i][j] == 1]
    assert {tuple(wall) for wall in walls} == set(expected)


@pytest.mark.parametrize(("maze", "centre"), [("UMaze", (0, 8)), ("Medium", (20, 20)), ("Large", (32, 24))])
def test_antmaze_starts_at_the_origin_and_ends_at_a_new_goal_each_time(maze, centre):
    env = d4rl.AntMaze(maze)
    goals = []
    for seed in range(30):
        obs, _ = env.reset(seed=seed)
        assert np.abs(obs[:2]).max() <= 0.1
        assert obs[2] == pytest.approx(0.75, abs=0.1)
        goals.append(env.goal - centre)
    assert np.min(goals) >= 0
    assert np.max(goals) <= 1.5
    assert len(np.unique(goals)) == 60
    for distance, reached in ((0.3, True), (0.9, False)):
        env.reset(seed=1)
        qpos = env.init_qpos.copy()
        qpos[:2] = env.goal + np.array([distance, 0.0])
        env.set_state(qpos, env.init_qvel)
        _, reward, terminated, truncated, info = env.step(np.zeros(8))
        assert (reward, terminated, truncated, info["success"]) == (float(reached), reached, False, reached)


def test_the_contact_forces_of_ant():
    with_forces = d4rl.Ant(contact_forces=True)
    without = d4rl.Ant(contact_forces=False)
    one, two = rollout(with_forces, 40, 0), rollout(without, 40, 0)
    for (obs, *_), (zeros, *_) in zip(one, two, strict=True):
        np.testing.assert_array_equal(obs[:27], zeros[:27])
        assert not zeros[27:].any()
    assert any(obs[27:].any() for obs, *_ in one)
    for (obs, reward, *_), (_, free, *_) in zip(one[1:], two[1:], strict=True):
        assert reward == pytest.approx(free - 5e-4 * (obs[27:] ** 2).sum(), abs=1e-9)
    with_forces.close()
    without.close()
