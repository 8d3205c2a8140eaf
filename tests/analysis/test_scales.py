"""Minari's expert returns as a second scale."""

from __future__ import annotations

import pandas as pd
import pytest

from hoard.analysis import report, results, scales
from hoard.datasets.minari.references import PUBLISHED


def test_the_ends_of_the_scale_are_random_and_the_expert_sets_mean():
    """Minari publishes 16.856 and 3857.804 for Hopper-v5."""
    scaled = scales.on_expert_scale("mujoco/hopper/medium-v0", pd.Series([16.856, 3857.804, 1937.33]))
    assert scaled.tolist() == pytest.approx([0, 100, 50])
    for other in ("mujoco/humanoidstandup/expert-v0", "D4RL/hopper/medium-v0", "hoard/hopper/medium-v0", "hopper"):
        assert scales.on_expert_scale(other, pd.Series([1.0])) is None


def test_the_numbers_are_those_of_the_references():
    assert {name.removesuffix("-v5").lower(): ends for name, ends in PUBLISHED.items()} == scales.ENDS


def test_a_report_has_the_scale_where_a_set_has_it(sweep):
    for seed in range(3):
        sweep.cell("bc", "mujoco/hopper/medium-v0", seed, curve=[300.0 + seed])
        sweep.cell("bc", "hoard/pendulum/mixed-v0", seed)
    table = scales.expert_table(results.load(sweep.write()))
    (row,) = table.display.to_dict("records")
    # return = -1000 + 9 score: 1700, 1709 and 1718
    assert (row["dataset"], row["n"], row["random"], row["expert"]) == (
        "mujoco/hopper/medium-v0",
        "3",
        "16.9",
        "3857.8",
    )
    assert row["mean [95 % Student t]"] == "44.1 [43.5, 44.6]"
    text = report.build(sweep.folder).markdown.read_text()
    assert "## On the scale of Minari's expert sets" in text


def test_other_reports_do_not(sweep):
    sweep.cell("bc", "hoard/pendulum/mixed-v0", 0)
    assert scales.expert_table(results.load(sweep.write())) is None
