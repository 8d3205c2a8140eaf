"""The pendulum mixture: its levels are what they are called."""

import numpy as np
import pytest

from hoard.datasets import recipes
from hoard.datasets.recipes.pendulum import SCHEDULE, SKILLS, controller


@pytest.fixture(scope="module")
def full():
    return recipes.generate("hoard/pendulum/mixed-v0")


def test_levels_are_ordered_and_interleaved(full):
    levels = np.array([episode.infos["level"][0] for episode in full.episodes])
    np.testing.assert_array_equal(levels, np.resize(SCHEDULE, 500))
    returns = np.array([episode.rewards.sum() for episode in full.episodes])
    means = {skill.name: returns[levels == i].mean() for i, skill in enumerate(SKILLS)}
    assert means["expert"] > -170
    assert -800 < means["medium"] < -500
    assert means["poor"] < -1400
    assert -1400 < means["random"] < -1050
    for skill in SKILLS:
        assert f"{skill.name} (" in full.description
        assert f"{means[skill.name]:.1f}" in full.description


def test_references(full):
    assert -1350 < full.ref_min_score < -1150
    assert -165 < full.ref_max_score < -135


def test_controller_swings_towards_the_target_energy():
    hanging = np.array([-1.0, 0.0, 1.0], np.float32)  # slowly passing the bottom, counter-clockwise
    assert controller(hanging) > 2
    assert controller(hanging, energy=-30.0) < 0
    assert controller(hanging * (1, 1, -1)) < -2
    tilted = np.array([np.cos(0.1), np.sin(0.1), 0.0], np.float32)
    assert controller(tilted) == pytest.approx(-1.0, abs=1e-5)
