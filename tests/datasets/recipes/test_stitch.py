"""The stitching data against the statistics measured with MBRCSL's own sampler."""

import numpy as np
import pytest

from hoard.datasets import recipes
from hoard.datasets.recipes import stitch
from hoard.envs.mazes import STITCH_MAZE

MEANS = (26.81, 26.63, 57.36, 52.53)
SUCCESS = (0.0, 0.0, 0.988, 0.968)


@pytest.fixture(scope="module")
def full():
    return recipes.generate("hoard/pointmaze/stitch-v0")


def test_size(full):
    assert len(full.episodes) == 1000
    assert {len(episode) for episode in full.episodes} == {200}
    assert all(0 <= episode.seed < 1000 for episode in full.episodes)
    assert len({episode.seed for episode in full.episodes}) > 500


def test_group_returns(full):
    returns = np.array([episode.rewards.sum() for episode in full.episodes]).reshape(4, 250)
    np.testing.assert_allclose(returns.mean(axis=1), MEANS, atol=1.0)
    np.testing.assert_allclose(returns.std(axis=1), (3.85, 3.71, 5.31, 3.86), atol=0.4)
    assert returns.max() == pytest.approx(69.0, abs=1.5)


def test_group_success(full):
    success = np.array([episode.infos["success"][-1] for episode in full.episodes]).reshape(4, 250)
    np.testing.assert_allclose(success.mean(axis=1), SUCCESS, atol=0.02)


def test_only_the_last_group_ends_at_random(full):
    """Uniform random forces are nearly all well inside the bounds and independent from step to step."""
    for group, last in enumerate(np.array([episode.actions[-20:] for episode in full.episodes]).reshape(4, 250, 20, 2)):
        assert (np.std(last) > 0.5) == (group == 3)


def test_rewards_are_for_the_hidden_goal(full):
    for episode in full.episodes[::50]:
        distance = np.linalg.norm(episode.observations[1:, :2] - episode.infos["goal"][1:], axis=1)
        np.testing.assert_allclose(episode.rewards, np.exp(-distance), rtol=1e-12)
    goals = np.array([episode.infos["goal"][0] for episode in full.episodes])
    assert np.abs(goals - (1.5, -0.5)).max() <= 0.25


def test_no_trajectory_takes_the_short_way(full):
    """M, then G, without A or B: the path that has to be stitched."""
    for episode in full.episodes:
        cells = np.stack([np.floor(2.0 - episode.observations[:, 1]), np.floor(episode.observations[:, 0] + 3.0)], 1)
        visited = set(map(tuple, cells.astype(int)))
        assert (2, 4) not in visited or {(1, 1), (2, 1)} <= visited


def test_references(full):
    assert full.ref_min_score == pytest.approx(21.0, abs=3.0)
    assert full.ref_max_score == pytest.approx(136.3, abs=1.5)


@pytest.mark.parametrize("pair", ["SM", "SA", "AB", "BG", "SG"])
def test_the_shortest_paths_are_unique_so_any_planner_gives_the_same(pair):
    free = {(i, j) for i, row in enumerate(STITCH_MAZE) for j, cell in enumerate(row) if cell != 1}
    start, goal = (stitch.CELLS[name] for name in pair)
    paths = {start: 1}  # number of shortest paths to each cell of the current layer
    reached = {start}
    while goal not in paths:
        layer: dict = {}
        for (i, j), count in paths.items():
            for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if cell in free - reached:
                    layer[cell] = layer.get(cell, 0) + count
        reached |= set(layer)
        paths = layer
    assert paths[goal] == 1
