"""Films of policies: what the camera sees."""

from __future__ import annotations

import gymnasium as gym
import mujoco
import pytest

from hoard.runners.watch import _follow


@pytest.mark.parametrize("name", ["Hopper-v5", "Walker2d-v5", "HalfCheetah-v5"])
def test_the_camera_goes_along_with_a_robot(name):
    env = gym.make(name, render_mode="rgb_array").unwrapped
    _follow(env)
    camera = env.mujoco_renderer.camera_id
    assert mujoco.mj_id2name(env.model, mujoco.mjtObj.mjOBJ_CAMERA, camera) == "track"
    env.close()


def test_an_environment_without_such_a_camera_keeps_its_own():
    pendulum = gym.make("Pendulum-v1", render_mode="rgb_array").unwrapped
    _follow(pendulum)
    reacher = gym.make("Reacher-v5", render_mode="rgb_array").unwrapped
    before = reacher.mujoco_renderer.camera_id
    _follow(reacher)
    assert reacher.mujoco_renderer.camera_id == before
    reacher.close()
