"""Score after k steps, steps to a level and regret, against values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from hoard.analysis import online, plots, report, results, tables


def curve(*points):
    steps, values = zip(*points)
    return pd.Series(values, index=steps)


def test_value_at_is_the_latest_evaluation_so_far():
    one = curve((0, 5.0), (100, 20.0), (200, 70.0))
    assert [online.value_at(one, k) for k in (0, 99, 100, 150, 1000)] == [5, 5, 20, 20, 70]
    assert math.isnan(online.value_at(curve((100, 20.0)), 99))


def test_steps_to_is_the_first_time():
    one = curve((0, 5.0), (100, 80.0), (200, 70.0), (300, 90.0))
    assert online.steps_to(one, 80) == 100
    assert online.steps_to(one, 81) == 300
    assert online.steps_to(one, 91) == math.inf


def test_regret():
    assert online.regret(curve((0, 0.0), (100, 100.0)), 100) == pytest.approx(0.5)
    # Without an evaluation at step 0 the first one stands for what came before it: (0.5 * 100 + 0.25 * 100) / 200.
    assert online.regret(curve((100, 50.0), (200, 100.0)), 100) == pytest.approx(0.375)
    assert online.regret(curve((0, 100.0), (50, 100.0)), 100) == 0
    assert online.regret(curve((100, 120.0)), 100) == pytest.approx(-0.2)
    assert math.isnan(online.regret(curve((0, 40.0)), 100))
    assert math.isnan(online.regret(curve((100, 40.0), (200, math.nan)), 100))


def test_table(sweep):
    for seed, last in enumerate((84.0, 60.0, 90.0)):
        sweep.cell("sac", "hoard/pendulum/mixed-v0", seed, curve=[20.0, 40.0, 60.0, last], env_steps=500)
        sweep.cell("iql", "hoard/pendulum/mixed-v0", seed, curve=[70.0])
    loaded = results.load(sweep.write())
    table = online.online_table(loaded)
    (row,) = table.frame.to_dict("records")
    assert (row["method"], row["seeds"], row["reached"]) == ("sac", 3, 2)
    assert row["steps_to_level"] == 2000
    assert row["mean_0.25"] == pytest.approx(20)
    assert row["mean_0.5"] == pytest.approx(40)
    assert row["mean_1"] == pytest.approx(78)
    # Per seed: 80 until 500, then trapezoids over three quarters of 2000 steps.
    by_hand = [(80 + (80 + 60) / 2 + (60 + 40) / 2 + (40 + 100 - last) / 2) / 400 for last in (84.0, 60.0, 90.0)]
    assert row["regret"] == pytest.approx(np.mean(by_hand))
    (shown,) = table.display.to_dict("records")
    assert shown["steps to level"] == "2,000 (2/3)"
    assert shown["100% of steps"] == "78.0 at 2,000"


def test_a_method_that_stopped_earlier_shows_its_last(sweep):
    for seed in range(2):
        sweep.cell("sac", "hoard/pendulum/mixed-v0", seed, curve=[10.0, 20.0, 30.0, 40.0], env_steps=500)
        sweep.cell("rlpd", "hoard/pendulum/mixed-v0", seed, curve=[50.0, 90.0], env_steps=200)
    table = online.online_table(results.load(sweep.write()))
    long, short = table.frame.to_dict("records")
    assert [long[f"mean_{share:g}"] for share in online.SHARES] == [10, 20, 40]
    assert [short[f"mean_{share:g}"] for share in online.SHARES] == [90, 90, 90]
    assert [short[f"steps_{share:g}"] for share in online.SHARES] == [400, 400, 400]
    assert table.display["100% of steps"].tolist() == ["40.0 at 2,000", "90.0 at 400"]


def test_never_reached_prints_a_dash(sweep):
    for seed in range(2):
        sweep.cell("sac", "hoard/pendulum/mixed-v0", seed, curve=[10.0, 20.0], env_steps=500)
    table = online.online_table(results.load(sweep.write()))
    assert table.display["steps to level"].tolist() == [f"{tables.DASH} (0/2)"]
    assert table.frame["steps_to_level"].tolist() == [math.inf]


def test_nothing_online_no_table(quick):
    assert online.online_table(results.load(quick.folder)) is None


def test_success_as_the_measure(sweep):
    for seed in range(3):
        sweep.cell("hnpg", "hoard/comblock/h5-v0", seed, curve=[10.0, 50.0], env_steps=1000, success=seed > 0)
    folder = sweep.write(metric="success")
    loaded = results.load(folder)
    assert tables.measures(loaded, "success") == {"hoard/comblock/h5-v0": "success"}
    (row,) = tables.score_table(loaded, "success").frame.to_dict("records")
    assert row["mean"] == pytest.approx(2 / 3)
    sweep.cell("hnpg", "hoard/comblock/h10-v0", 0, curve=[10.0, 30.0], env_steps=1000, success=False)
    both = tables.score_table(results.load(sweep.write(metric="success")), "success").frame.set_index("dataset")
    assert both.loc["all 2 datasets", ["measure", "mean"]].tolist() == ["success", pytest.approx(1 / 3)]
    (row,) = online.online_table(loaded, "success").frame.to_dict("records")
    assert (row["reached"], row["steps_to_level"], row["regret"]) == (2, 1000, pytest.approx(1 / 3))
    paths = report.build(folder, metric="success")
    assert "Over the online phase" in paths.markdown.read_text()
    assert "success rate" in {axes.get_ylabel() for axes in plots.curves(loaded, "success").axes}


def test_success_is_not_reported_everywhere(sweep):
    """A dataset without a success signal falls back to its score."""
    sweep.cell("sac", "hoard/pendulum/mixed-v0", 0, curve=[10.0, 90.0], env_steps=100)
    sweep.cell("sac", "hoard/comblock/h5-v0", 0, curve=[10.0, 90.0], env_steps=100, success=True)
    measure = tables.measures(results.load(sweep.write()), "success")
    assert measure == {"hoard/pendulum/mixed-v0": "score", "hoard/comblock/h5-v0": "success"}
