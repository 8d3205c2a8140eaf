"""Films of policies: what the camera sees."""

from __future__ import annotations

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from PIL import Image

from hoard.records.errors import BadInput
from hoard.runners.watch import Rollout, _Film, _follow, _repeat


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


def test_an_episode_that_comes_out_otherwise_is_not_shown():
    env = gym.make("Pendulum-v1")
    actions = [np.zeros((5, 1), np.float32)]
    right = Rollout(0, [{"eval_seed": 7, "return": 0.0}], actions)
    with pytest.raises(BadInput, match="the episode from seed 7 returned"):
        list(_repeat(env, right))
    env.reset(seed=7)
    total = sum(float(env.step(action)[1]) for action in actions[0])
    assert len(list(_repeat(env, Rollout(0, [{"eval_seed": 7, "return": total}], actions)))) == 5
    env.close()


@pytest.mark.parametrize(("most", "frames", "milliseconds", "speed"), [(None, 100, 60, 1.0), (20, 20, 100, 10 / 3)])
def test_a_long_film_with_few_pictures_plays_quicker(tmp_path, most, frames, milliseconds, speed):
    film = _Film(fps=30, count=200, width=32, most=most)
    rng = np.random.default_rng(0)
    film.play(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(200))
    told = []
    film.save_gif(tmp_path / "a.gif", lambda by: told.append(by) or "{}")
    assert told == [pytest.approx(speed)]
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (frames, (32, 32), milliseconds)
