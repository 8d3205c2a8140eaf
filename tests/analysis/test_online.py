"""Score after k steps, steps to a level and regret, against values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from hoard.analysis import online, plots, report, results, stats, tables


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
    # What is first seen behind the horizon says nothing of the steps before it.
    assert math.isnan(online.regret(curve((100, 90.0), (200, 90.0)), 100, horizon=99))
    assert online.regret(curve((100, 90.0), (200, 90.0)), 100, horizon=100) == pytest.approx(0.1)


def test_table(sweep):
    for seed, last in enumerate((84.0, 60.0, 90.0)):
        sweep.cell("sac", "hoard/pendulum/mixed-v0", seed, curve=[20.0, 40.0, 60.0, last], env_steps=500)
        sweep.cell("iql", "hoard/pendulum/mixed-v0", seed, curve=[70.0])
    loaded = results.load(sweep.write())
    table = online.online_table(loaded)
    (row,) = table.frame.to_dict("records")
    assert (row["method"], row["seeds"], row["first_reached"], row["stays_reached"]) == ("sac", 3, 2, 2)
    assert row["first_at_level"] == row["stays_at_level"] == 2000
    assert row["mean_0.25"] == pytest.approx(20)
    assert row["mean_0.5"] == pytest.approx(40)
    assert row["mean_1"] == pytest.approx(78)
    # Per seed: 80 until 500, then trapezoids over three quarters of 2000 steps.
    by_hand = [(80 + (80 + 60) / 2 + (60 + 40) / 2 + (40 + 100 - last) / 2) / 400 for last in (84.0, 60.0, 90.0)]
    assert row["regret"] == pytest.approx(np.mean(by_hand))
    (shown,) = table.display.to_dict("records")
    assert shown["first at level"] == shown["stays at level"] == "2,000 (2/3)"
    low, high = stats.mean_interval([np.array([84.0, 60.0, 90.0])])[1:]
    assert shown["100 % of steps"] == f"78.0 [{low:.1f}, {high:.1f}]"
    assert shown["steps"] == "2,000"
    assert shown["regret"].startswith(f"{np.mean(by_hand):.2f} [")


def test_methods_of_different_budgets_are_compared_over_the_smallest(sweep):
    """Shares and regret of one method over 400 steps and of another over 2,000 say nothing side by side."""
    for seed in range(2):
        rise = [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 20.0, 30.0, 40.0, 90.0]
        sweep.cell("sac", "hoard/pendulum/mixed-v0", seed, curve=rise, env_steps=200)
        sweep.cell("rlpd", "hoard/pendulum/mixed-v0", seed, curve=[50.0, 90.0], env_steps=200)
    table = online.online_table(results.load(sweep.write()))
    long, short = table.frame.to_dict("records")
    assert long["horizon"] == short["horizon"] == 400
    assert [long[f"steps_{share:g}"] for share in online.SHARES] == [100, 200, 400]
    assert (long["mean_0.5"], long["mean_1"], short["mean_0.5"], short["mean_1"]) == (5, 6, 50, 90)
    assert (long["mean_end"], long["steps_end"]) == (90, 2000)
    assert long["regret"] == pytest.approx((95 * 200 + 94.5 * 200) / 400 / 100)
    assert short["regret"] == pytest.approx((50 * 200 + 30 * 200) / 400 / 100)
    assert table.display["own end"].tolist() == ["90.0 at 2,000", tables.DASH]
    assert (long["stays_at_level"], short["stays_at_level"]) == (2000, 400)  # of the whole run
    assert any("different budgets" in note for note in table.notes)


def test_equal_budgets_need_no_word_about_budgets(sweep):
    """Seeds that end within an episode of each other have one budget."""
    for seed in range(2):
        sweep.cell("sac", "hoard/pendulum/mixed-v0", seed, curve=[10.0, 20.0], env_steps=500 + seed)
    table = online.online_table(results.load(sweep.write()))
    assert "own end" not in table.display
    assert not any("different budgets" in note for note in table.notes)


def test_the_first_crossing_is_not_the_last_word(sweep):
    """A seed that is lucky once and falls back has not reached the level: both are shown."""
    for seed in range(3):
        sweep.cell("drbc", "hoard/pendulum/mixed-v0", seed, curve=[85.0, 20.0, 70.0, 90.0, 95.0], env_steps=500)
    sweep.cell("iql", "hoard/pendulum/mixed-v0", 0, curve=[85.0, 20.0, 85.0, 90.0, 20.0], env_steps=500)
    table = online.online_table(results.load(sweep.write()))
    drbc, iql = table.frame.to_dict("records")
    assert (drbc["first_at_level"], drbc["stays_at_level"], drbc["stays_reached"]) == (500, 2000, 3)
    assert (iql["first_at_level"], iql["first_reached"]) == (500, 1)
    assert (iql["stays_at_level"], iql["stays_reached"]) == (math.inf, 0)
    assert table.display["first at level"].tolist() == ["500 (3/3)", "500 (1/1)"]
    assert table.display["stays at level"].tolist() == ["2,000 (3/3)", f"{tables.DASH} (0/1)"]


def test_steps_to_stay():
    one = curve((0, 85.0), (100, 70.0), (200, 80.0), (300, 90.0))
    assert online.steps_to_stay(one, 80) == 200
    assert online.steps_to_stay(one, 60) == 0
    assert online.steps_to_stay(one, 95) == math.inf
    assert online.steps_to_stay(curve((0, 85.0), (100, math.nan)), 80) == math.inf  # nobody knows where it is


def test_seeds_evaluated_at_different_steps(sweep):
    """As where episodes end early: no two evaluations share a step, and there are no holes in the numbers."""
    for seed in range(2):
        sweep.cell("hnpg", "hoard/pendulum/mixed-v0", seed, curve=[0.0, 50.0, 100.0], env_steps=1003 + 8 * seed)
    folder = sweep.write()
    loaded = results.load(folder)
    (row,) = online.online_table(loaded).frame.to_dict("records")
    by_hand = [online.regret(curve((1003 + 8 * s, 0.0), (2006 + 16 * s, 50.0), (3009 + 24 * s, 100.0)), 100, 3033)
               for s in range(2)]  # fmt: skip
    assert row["regret"] == pytest.approx(np.mean(by_hand))
    assert row["mean_1"] == 100
    points = plots.curve_points(loaded.evaluations, "env_step", "score")
    assert points["point"].to_dict() == pytest.approx(
        {1011: 0.0, 2006: 25.0, 2022: 50.0, 3009: 75.0, 3033: 100.0})  # fmt: skip
    assert report.build(folder).html.is_file()


def test_one_evaluation_each_at_different_steps(sweep):
    for seed, steps in enumerate((1003, 1011)):
        sweep.cell("hnpg", "hoard/pendulum/mixed-v0", seed, curve=[40.0 + seed], env_steps=steps)
    folder = sweep.write()
    points = plots.curve_points(results.load(folder).evaluations, "env_step", "score")
    assert points["point"].to_dict() == pytest.approx({1011: 40.5})
    assert report.build(folder).curves.is_file()


def test_seeds_of_different_budgets_have_no_curve_together(sweep):
    for seed, steps in enumerate((1000, 2000)):
        sweep.cell("hnpg", "hoard/pendulum/mixed-v0", seed, curve=[40.0], env_steps=steps)
    folder = sweep.write()
    assert plots.curve_points(results.load(folder).evaluations, "env_step", "score").empty
    assert report.build(folder).curves.is_file()


def test_a_diverged_seed_counts_online_from_where_it_broke(sweep):
    for seed in range(2):
        sweep.cell("sac", "hoard/pendulum/mixed-v0", seed, curve=[85.0, 90.0, 90.0, 90.0], env_steps=500)
    lost = {"status": "failed", "error": "FloatingPointError: loss is nan at update 1200", "final": False}
    sweep.cell("sac", "hoard/pendulum/mixed-v0", 2, curve=[85.0, 90.0], env_steps=500, **lost)
    sweep.cell("sac", "hoard/pendulum/mixed-v0", 3, status="failed", error="MemoryError", curve=[85.0], env_steps=500)
    table = online.online_table(results.load(sweep.write()))
    (row,) = table.frame.to_dict("records")
    assert (row["seeds"], row["planned"]) == (3, 4)
    assert row["mean_0.5"] == 90
    assert row["mean_1"] == pytest.approx((90 + 90 + 0) / 3)
    assert (row["first_reached"], row["stays_reached"]) == (3, 2)
    assert table.display["n"].tolist() == ["3/4"]
    assert any("diverged" in note for note in table.notes)


def test_rates_over_an_online_phase_stay_rates(sweep):
    for seed in range(3):
        sweep.cell("hnpg", "hoard/comblock/h5-v0", seed, curve=[10.0, 50.0], env_steps=1000, success=True)
    (row,) = online.online_table(results.load(sweep.write()), "success").frame.to_dict("records")
    assert (row["mean_1"], row["high_1"]) == (1, 1)
    assert row["low_1"] == pytest.approx(0.05 ** (1 / 3))


def test_never_reached_prints_a_dash(sweep):
    for seed in range(2):
        sweep.cell("sac", "hoard/pendulum/mixed-v0", seed, curve=[10.0, 20.0], env_steps=500)
    table = online.online_table(results.load(sweep.write()))
    assert table.display["stays at level"].tolist() == [f"{tables.DASH} (0/2)"]
    assert table.frame["first_at_level"].tolist() == [math.inf]


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
    assert (row["first_reached"], row["first_at_level"], row["regret"]) == (2, 1000, pytest.approx(1 / 3))
    paths = report.build(folder, metric="success")
    assert "Over the online phase" in paths.markdown.read_text()
    assert "success rate" in {axes.get_ylabel() for axes in plots.curves(loaded, "success").axes}


def test_success_is_not_reported_everywhere(sweep):
    """A dataset without a success signal falls back to its score."""
    sweep.cell("sac", "hoard/pendulum/mixed-v0", 0, curve=[10.0, 90.0], env_steps=100)
    sweep.cell("sac", "hoard/comblock/h5-v0", 0, curve=[10.0, 90.0], env_steps=100, success=True)
    measure = tables.measures(results.load(sweep.write()), "success")
    assert measure == {"hoard/pendulum/mixed-v0": "score", "hoard/comblock/h5-v0": "success"}


def test_before_and_dip():
    curve = pd.Series([60.0, 40.0, 70.0, 10.0], index=[0, 100, 200, 300])
    assert online.before(curve) == 60
    assert online.dip(curve, 200) == 20
    assert online.dip(curve, 300) == 50
    assert online.dip(curve.clip(lower=60), 300) == 0
    scratch = curve.iloc[1:]
    assert np.isnan([online.before(scratch), online.dip(scratch, 300), online.dip(scratch, 50)]).all()
