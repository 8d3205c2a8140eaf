"""Plans of mazes: where the simulator's walls are, and no ball can be."""

from __future__ import annotations

import numpy as np
import pytest

from hoard.envs import make_env
from hoard.envs.layout import goal_of, layout_of

MAZES = {
    "hoard/StitchMaze-v0": 18,
    "hoard/Maze2d-UMaze-v0": 18,
    "PointMaze_Medium-v3": 38,
    "AntMaze_UMaze-v5": 18,
    "hoard/D4RL-Maze2d-UMaze-v1": 18,
    "hoard/D4RL-Maze2d-Large-v1": 62,
    "hoard/D4RL-AntMaze-UMaze-v2": 18,
    "pointmaze-medium-singletask-v0": 38,
}


@pytest.fixture(params=MAZES)
def name(request):
    if request.param.startswith("pointmaze"):
        pytest.importorskip("ogbench")
        from hoard.envs import ogbench

        ogbench.register()
    return request.param


def test_walls_are_where_no_start_is_and_where_a_ball_stops(name):
    layout = layout_of(name)
    assert len(np.unique(layout.walls, axis=0)) == len(layout.walls) == MAZES[name]
    left, right, bottom, top = layout.box
    env = make_env(name)
    rng = np.random.default_rng(0)
    for seed in range(6):
        obs, _ = env.reset(seed=seed)
        push = rng.uniform(env.action_space.low, env.action_space.high)
        for _ in range(60):
            gap = np.abs(layout.walls - obs[:2]).max(axis=1).min()  # to the nearest wall's centre, along an axis
            assert gap > 0.47 * layout.cell
            assert left < obs[0] < right
            assert bottom < obs[1] < top
            obs, *_ = env.step(push)
        near = np.abs(layout.goals - goal_of(env)).max(axis=1).min()
        assert near <= 0.4 * layout.cell  # the goal's noise stays within its cell
        if layout.observed_goal:
            assert obs[2:4] == pytest.approx(goal_of(env))
    env.close()


def test_other_environments_have_no_plan():
    assert layout_of("Pendulum-v1") is None
