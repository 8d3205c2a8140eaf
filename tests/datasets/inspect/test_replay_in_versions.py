"""Recorded steps replayed in other versions: exact where nothing changed, told where something did."""

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from hoard.datasets.inspect.replay import replay
from hoard.envs import mujoco_recording, mujoco_versions
from hoard.envs.mujoco_recording import ENV_IDS, ROBOTS, Steps

STEPS = 200
# 18 random steps under MuJoCo 2.2.0 and gymnasium 0.28.1: those that MuJoCo 4.0.0 gets worst, exactly, and between.
OLD = Path(__file__).with_name("hopper_v4_mujoco_2.2.0.npz")
SUMS_MARGINS = tuple(map(int, mujoco.__version__.split(".")[:2])) >= (3, 5)


@pytest.fixture(scope="module")
def recorded():
    return {env_id: mujoco_recording.record(env_id, STEPS, seed=1) for env_id in ENV_IDS}


def without_states(steps):
    return replace(steps, qpos=None, qvel=None)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_steps_are_exact_in_the_version_they_were_recorded_in(recorded, env_id):
    errors = replay(recorded[env_id], env_id.split("-")[1])
    assert len(errors.rows) == errors.from_infos == STEPS
    assert errors.obs.max() < 1e-9
    assert np.abs(errors.reward).max() < 1e-6
    np.testing.assert_array_equal(errors.falls, recorded[env_id].terminated)


@pytest.mark.parametrize("robot", ["Hopper", "Walker2d", "Ant"])
def test_v5_withholds_the_healthy_reward_of_the_failing_step(recorded, robot):
    down = replay(recorded[f"{robot}-v4"], "v5").summary()["failing"]
    up = replay(recorded[f"{robot}-v5"], "v4").summary()["failing"]
    assert min(down["steps"], up["steps"]) > (1 if robot == "Ant" else 3)
    tolerance = 0.02 if robot == "Ant" else 1e-6  # Ant may pay for contacts as well
    assert down["reward_difference"] == pytest.approx(-1, abs=tolerance)
    assert up["reward_difference"] == pytest.approx(1, abs=tolerance)


def test_hopper_differs_between_v4_and_v5_in_nothing_else(recorded):
    errors = replay(recorded["Hopper-v4"], "v5")
    assert errors.obs.max() < 1e-9
    assert np.abs(errors.reward[~errors.fell]).max() < 1e-9
    assert errors.reward[errors.fell] == pytest.approx(-1, abs=1e-9)


def test_walker_has_another_friction_in_v5(recorded):
    there = replay(recorded["Walker2d-v4"], "v5").summary()["obs"]
    back = replay(recorded["Walker2d-v5"], "v4").summary()["obs"]
    for obs in (there, back):
        assert obs["max"] > 0.1
        assert 0.2 < obs["exact"] < 0.95


def test_ant_pays_for_contacts_in_v5(recorded):
    errors = replay(recorded["Ant-v4"], "v5")
    assert errors.contact_cost.max() > 1e-3
    np.testing.assert_allclose(errors.reward, -errors.contact_cost - errors.fell, atol=1e-6)


@pytest.mark.parametrize("robot", ROBOTS)
def test_where_the_robot_is_need_not_be_known(recorded, robot):
    errors = replay(without_states(recorded[f"{robot}-v4"]), "v4")
    assert errors.from_infos == 0
    assert len(errors.rows) > (20 if robot == "Walker2d" else STEPS / 2)  # flailing, it mostly moves faster than 10
    assert errors.obs.max() < 1e-8
    assert np.abs(errors.reward).max() < 1e-6


def test_chosen_steps_give_what_all_give(recorded):
    steps = recorded["Ant-v4"]
    every, some = replay(steps, "v5"), replay(steps, "v5", np.array([0, 7, 150]))
    np.testing.assert_array_equal(some.rows, [0, 7, 150])
    np.testing.assert_array_equal(some.reward, every.reward[some.rows])


def test_a_wrong_next_observation_is_reported(recorded):
    steps = recorded["HalfCheetah-v4"]
    shifted = steps.next_observation.copy()
    shifted[5, 3] += 0.125
    errors = replay(replace(steps, next_observation=shifted), "v4")
    assert errors.obs[5] == pytest.approx(0.125, abs=1e-9)
    assert np.delete(errors.obs, 5).max() < 1e-9
    assert errors.summary()["obs"]["exact"] == pytest.approx(1 - 1 / STEPS)


def test_a_wrong_state_is_reported(recorded):
    steps = without_states(recorded["HalfCheetah-v4"])
    shifted = steps.observation.copy()
    shifted[5, 0] += 0.01
    errors = replay(replace(steps, observation=shifted), "v4")
    assert errors.obs[5] > 1e-3
    assert np.delete(errors.obs, 5).max() < 1e-8


def test_a_recorded_state_that_contradicts_the_observation_is_not_used(recorded):
    steps = recorded["HalfCheetah-v4"]
    stale = np.vstack([steps.qpos[1:], steps.qpos[-1:]])  # as in D4RL's files without a copy
    errors = replay(replace(steps, qpos=stale), "v4")
    assert errors.from_infos <= 1
    assert errors.obs[:-1].max() < 1e-8


def test_clipped_velocities_are_left_out_and_counted(recorded):
    steps = recorded["Walker2d-v4"]
    clipped = steps.observation.copy()
    clipped[[3, 9], [9, 16]] = [10.0, -10.0]
    errors = replay(replace(without_states(steps), observation=clipped), "v4")
    already = int((np.abs(steps.observation[:, 8:]) >= 10).any(axis=1).sum())
    left = set(range(STEPS)) - set(errors.rows.tolist())
    assert {3, 9} <= left
    assert errors.left_out == {"velocity clipped": len(left)}
    assert already <= len(left) <= already + 2
    assert errors.summary()["left_out"] == errors.left_out


def test_a_recorded_state_serves_where_the_velocity_is_clipped(recorded):
    steps = recorded["Walker2d-v4"]
    fast = np.flatnonzero((np.abs(steps.observation[:, 8:]) >= 10).any(axis=1))
    assert len(fast) > 20
    assert replay(steps, "v4", fast).obs.max() < 1e-9


def test_an_unknown_next_observation_leaves_the_reward(recorded):
    steps = recorded["HalfCheetah-v4"]
    unknown = steps.next_observation.copy()
    unknown[4] = np.nan
    summary = replay(replace(steps, next_observation=unknown), "v4").summary()
    assert (summary["steps"], summary["next_unknown"]) == (STEPS, 1)
    assert summary["obs"]["max"] < 1e-9
    assert summary["reward"]["exact"] == 1


def test_nothing_to_replay(recorded):
    steps = without_states(recorded["Hopper-v4"])
    summary = replay(replace(steps, observation=np.full_like(steps.observation, 10.0)), "v4").summary()
    assert (summary["steps"], summary["obs"], summary["reward"]) == (0, None, None)
    assert summary["left_out"] == {"velocity clipped": STEPS}


# --- what MuJoCo changed ---


def test_hopper_of_mujoco_2_is_the_one_with_old_margins():
    with np.load(OLD) as file:
        steps = Steps("Hopper", **{name: file[name] for name in file.files})
    assert replay(steps, "v4-margins").obs.max() < 1e-6
    today = replay(steps, "v4").obs
    if SUMS_MARGINS:
        assert (today > 1e-3).sum() == 12
    else:
        assert today.max() < 1e-6


def test_margins_stay_as_they_are_in_an_older_mujoco(monkeypatch):
    model = mujoco_versions.make("Hopper", "v4").model
    monkeypatch.setattr(mujoco, "__version__", "3.4.0")
    mujoco_versions.larger_margin_counts(model)
    assert model.geom_margin == pytest.approx(0.001)
    monkeypatch.setattr(mujoco, "__version__", "3.10.1")
    mujoco_versions.larger_margin_counts(model)
    assert model.geom_margin == pytest.approx(0.0005)
    model.geom_margin[1] = 0.1
    with pytest.raises(ValueError, match="different margins"):
        mujoco_versions.larger_margin_counts(model)


def tensors(model):
    """Mass, centre and inertia tensor of each body, whatever axes the model keeps it in."""
    out = []
    for body in range(1, model.nbody):
        axes = np.empty(9)
        mujoco.mju_quat2Mat(axes, model.body_iquat[body])
        axes = axes.reshape(3, 3)
        inertia = axes @ np.diag(model.body_inertia[body]) @ axes.T
        out.append(np.concatenate([[model.body_mass[body]], model.body_ipos[body], inertia.ravel()]))
    return np.array(out)


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_formula_of_capsules_is_that_of_mujoco(robot):
    model = mujoco_versions.make(robot, "v4").model
    before = tensors(model)
    mujoco_versions.weigh(model, as_cylinder=False)
    np.testing.assert_allclose(tensors(model), before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("robot", "masses"),  # as printed in public code that ran under mujoco-py
    [
        ("Hopper", [3.53429174, 3.92699082, 2.71433605, 5.0893801]),
        ("HalfCheetah", [6.36031332, 1.53524804, 1.58093995, 1.0691906, 1.42558747, 1.17885117, 0.84986945]),
    ],
)
def test_old_capsules_weigh_what_they_weighed_under_mujoco_py(robot, masses):
    model = mujoco_versions.make(robot, "v4-capsules").model
    np.testing.assert_allclose(model.body_mass[1:], masses, atol=5e-9)
    assert model.body_subtreemass[0] == pytest.approx(sum(masses), abs=1e-7)


def test_other_geoms_are_refused():
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body><freejoint/><geom type='box' size='1 1 1'/></body></worldbody></mujoco>"
    )
    with pytest.raises(ValueError, match="neither a sphere nor a capsule"):
        mujoco_versions.weigh(model, as_cylinder=True)


# --- names ---


@pytest.mark.parametrize(
    ("env_id", "robot"), [("Hopper-v5", "Hopper"), ("hoard/D4RL-Ant-v2", "Ant"), ("Walker2d-v4", "Walker2d")]
)
def test_robot_of_an_environment(env_id, robot):
    assert mujoco_recording.robot_of(env_id) == robot


@pytest.mark.parametrize("env_id", ["Swimmer-v4", "hoard/D4RL-AntMaze-UMaze-v2", "hoard/D4RL-Door-v1", "Hopper", ""])
def test_other_environments_are_refused_by_name(env_id):
    with pytest.raises(ValueError, match=f"{env_id}.*only steps of Hopper, HalfCheetah, Walker2d, Ant can"):
        mujoco_recording.robot_of(env_id)


def test_wrong_requests(recorded):
    with pytest.raises(ValueError, match=r"Swimmer-v4.*one of Hopper-v4, Hopper-v5"):
        mujoco_recording.record("Swimmer-v4", 10)
    with pytest.raises(ValueError, match="world 'v3': must be one of v4, v5, v4-margins, v4-capsules"):
        replay(recorded["Hopper-v4"], "v3")
    steps = recorded["Hopper-v4"]
    with pytest.raises(ValueError, match="Hopper is observed by 11 numbers, these steps have 12"):
        replace(steps, observation=np.zeros((STEPS, 12)))


def test_a_recording_is_determined_by_its_seed(recorded):
    again = mujoco_recording.record("Hopper-v4", STEPS, seed=1)
    np.testing.assert_array_equal(again.next_observation, recorded["Hopper-v4"].next_observation)
    ends = np.flatnonzero(again.first[1:])
    assert again.terminated[ends].all()
    assert len(ends) == again.terminated[:-1].sum()
    other = mujoco_recording.record("Hopper-v4", STEPS, seed=2)
    assert not np.array_equal(other.action, again.action)


def test_contact_forces_of_an_ant_are_seen_and_paid_for():
    """As in Gym's Ant-v2 with its 111 numbers; with 84 zeros there the forces cost nothing."""
    env = mujoco_versions.make("Ant", "v4", contact_forces=True)
    assert env.observation_space.shape == (111,)
    steps = mujoco_recording.record("Ant-v4", 60, seed=0)
    zeros, ones = np.zeros((60, 84)), np.ones((60, 84))
    padded = replace(steps, observation=np.hstack([steps.observation, zeros]))
    assert replay(padded, "v4").contact_cost.max() == 0
    forced = replace(steps, observation=np.hstack([steps.observation, ones]))
    assert replay(forced, "v4").contact_cost.max() > 0
    assert gym.spec("Ant-v4").kwargs == {}
