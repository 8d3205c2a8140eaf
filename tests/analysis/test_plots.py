"""Figures: right points, stable colours, no backend chosen."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from synthetic import Sweep

from hoard.analysis import aggregate, comparisons, plots, results, stats, tables, tuning

DATASET = "hoard/pendulum/mixed-v0"
FILE = "episodes.parquet"


def test_curve_points_are_the_statistics_of_each_evaluation(sweep):
    ends = [10.0, 30.0, 80.0, 40.0, 20.0]
    for seed, end in enumerate(ends):
        sweep.cell("iql", DATASET, seed, curve=[0.0, end])
    points = plots.curve_points(results.load(sweep.write()).evaluations, "update", "score")
    assert points.index.tolist() == [1000, 2000]
    expected = stats.bootstrap_interval([np.array(ends)], resamples=plots.BAND_RESAMPLES)
    assert points.loc[2000, "point"] == pytest.approx(expected.point)
    assert tuple(points.loc[2000])[1:] == pytest.approx(expected[1:], abs=3)  # other resamples
    assert tuple(points.loc[1000]) == pytest.approx((0, np.nan, np.nan), abs=1e-9, nan_ok=True)  # no spread, no band
    assert plots.BAND_RESAMPLES >= 2_000


def test_curve_has_no_point_that_only_some_seeds_reached(sweep):
    sweep.cell("iql", DATASET, 0, curve=[1.0, 2.0, 3.0])
    sweep.cell("iql", DATASET, 1, curve=[1.0, 2.0])
    points = plots.curve_points(results.load(sweep.write()).evaluations, "update", "score")
    assert points.index.tolist() == [1000, 2000]


def test_where_evaluations_share_a_step_the_last_one_stands(sweep):
    """An offline phase is many evaluations at environment step 0."""
    for seed in range(2):
        run = sweep.cell("hnpg", DATASET, seed, curve=[10.0, 20.0, 30.0], env_steps=500)
        table = sweep.episodes(seed=seed, curve=[10.0, 20.0, 30.0])
        steps = results.pa.array([0] * 8 + [500] * 4)
        table = table.set_column(table.schema.get_field_index("env_step"), "env_step", steps)
        results.pq.write_table(table, run / FILE)
    points = plots.curve_points(results.load(sweep.write()).evaluations, "env_step", "score")
    assert points["point"].to_dict() == pytest.approx({0: 20.0, 500: 30.0})


def test_a_diverged_evaluation_leaves_a_gap(sweep):
    sweep.cell("iql", DATASET, 0, curve=[1.0, float("nan"), 3.0])
    sweep.cell("iql", DATASET, 1, curve=[1.0, 2.0, 3.0])
    points = plots.curve_points(results.load(sweep.write()).evaluations, "update", "score")
    assert points["point"].isna().tolist() == [False, True, False]


def test_failed_runs_are_not_drawn_but_named(sweep):
    sweep.cell("iql", DATASET, 0, status="failed", curve=[50.0], final=False)
    loaded = results.load(sweep.write())
    for figure in (plots.curves(loaded), plots.comparison(loaded)):
        assert "no finished run" in [text.get_text() for text in figure.axes[0].texts]


def test_environment_steps_where_any_method_takes_them(sweep):
    for seed in range(2):
        sweep.cell("hnpg", DATASET, seed, curve=[10.0, 20.0, 30.0], env_steps=500)
        sweep.cell("iql", DATASET, seed, curve=[5.0, 15.0, 25.0])
    axes = plots.curves(results.load(sweep.write())).axes[0]
    assert axes.get_xlabel() == "environment steps"
    curve, level = axes.get_lines()[:2]
    assert curve.get_xdata().tolist() == [500, 1000, 1500]
    assert list(level.get_ydata()) == pytest.approx([25.0, 25.0])  # offline: its last score, all along


def test_a_method_keeps_its_colour(quick):
    loaded = results.load(quick.folder)
    styles = plots.method_styles(loaded)
    assert len({style["color"] for style in styles.values()}) == 3
    for axes in plots.curves(loaded).axes:
        drawn = [to_hex(line.get_color()) for line in axes.get_lines()[:3]]
        assert drawn == [styles[method]["color"] for method in loaded.methods]
    for axes in plots.comparison(loaded).axes:
        diamonds = [to_hex(line.get_color()) for line in axes.get_lines() if line.get_marker() == "D"]
        assert diamonds == [styles[method]["color"] for method in loaded.methods]


def test_more_methods_than_colours_differ_in_style(sweep):
    for number in range(12):
        sweep.cell(f"method_{number}", DATASET, 0)
    styles = plots.method_styles(results.load(sweep.write()))
    assert len({tuple(style.values()) for style in styles.values()}) == 12


def test_methods_differ_without_colour(sweep):
    for number in range(12):
        sweep.cell(f"method_{number}", DATASET, 0, curve=[1.0, 2.0])
    loaded = results.load(sweep.write())
    looks = [(style["marker"], style["linestyle"]) for style in plots.method_styles(loaded).values()]
    assert len(set(looks)) == 12
    drawn = plots.curves(loaded).axes[0].get_lines()[:12]
    assert [(line.get_marker(), line.get_linestyle()) for line in drawn] == looks


def test_the_ablations_of_one_algorithm_differ_in_colour(sweep):
    for name in ("moorl", "moorl_k1", "moorl_eta1"):
        sweep.cell(name, DATASET, 0, curve=[1.0, 2.0])
    assert len({style["color"] for style in plots.method_styles(results.load(sweep.write())).values()}) == 3


def test_an_algorithm_has_one_colour_everywhere(sweep, tmp_path):
    """Whatever else a suite compares, and in whatever order."""
    one, other = Sweep(tmp_path / "one"), Sweep(tmp_path / "other")
    for number, method in enumerate(("iql", "bc", "hnpg", "my_own")):
        one.cell(method, DATASET, 0)
        other.cell(("my_own", "hnpg", "iql_corl", "bc10")[number], DATASET, 0)
    styles = plots.method_styles(results.load(one.write()))
    others = plots.method_styles(results.load(other.write()))
    for method, twin in (("iql", "iql_corl"), ("bc", "bc10"), ("hnpg", "hnpg"), ("my_own", "my_own")):
        assert styles[method]["color"] == others[twin]["color"]
    # A method whose name says nothing has the colour of its algorithm file.
    assert plots.color_of("dm_coarse", "decision_mamba") == plots.color_of("decision_mamba", "decision_mamba")
    assert plots.color_of("bc", "rcsl") != plots.color_of("rcsl", "rcsl")


def test_comparison_shows_every_seed_and_the_tables_numbers(quick):
    loaded = results.load(quick.folder)
    table = tables.score_table(loaded)
    figure = plots.comparison(loaded, table=table)
    assert [axes.get_title() for axes in figure.axes] == [*loaded.datasets, "all 3 datasets"]
    for axes in figure.axes[:3]:
        own = table.frame[table.frame["dataset"] == axes.get_title()]
        lines = axes.get_lines()
        assert sum(len(line.get_xdata()) for line in lines if line.get_marker() == "o") == own["seeds"].sum()
        middles = [line.get_xdata()[0] for line in lines if line.get_marker() == "D"]
        np.testing.assert_allclose(middles, own["iqm"])
    assert "4/5" in [text.get_text() for text in figure.axes[1].texts]


@pytest.mark.parametrize("metric", ["score", "return"])
def test_reference_lines_belong_to_scores_only(quick, metric):
    axes = plots.curves(results.load(quick.folder), metric).axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words == (["random", "expert"] if metric == "score" else [])
    assert axes.get_ylabel() == ("normalised score" if metric == "score" else "return")


def test_png_is_reproducible(quick):
    loaded = results.load(quick.folder)
    assert plots.png(plots.comparison(loaded)) == plots.png(plots.comparison(loaded))


def test_importing_chooses_no_backend():
    program = "import matplotlib; import hoard.analysis.plots; print(dict.__getitem__(matplotlib.rcParams, 'backend'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env={})
    assert "object" in done.stdout  # still the sentinel that stands for "not yet chosen"


def test_figures_over_a_suite(sweep):
    for dataset in (DATASET, "hoard/maze2d/umaze-v0"):
        for method, scores in (("iql", (80, 81, 82, 83)), ("bc", (30, 31, 32, 33)), ("rcsl", (31.5, 34, 35, 36))):
            for seed, score in enumerate(scores):
                sweep.cell(method, dataset, seed, curve=[score])
    loaded = results.load(sweep.write())
    strata = comparisons.suite_strata(loaded, tables.seed_values(loaded), tables.measures(loaded))
    (axes,) = plots.profiles(loaded, strata, "score").axes
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["iql", "bc", "rcsl"]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 3
    assert to_hex(lines[0].get_color()) == plots.method_styles(loaded)["iql"]["color"]
    matrix = aggregate.improvement_matrix(strata)
    close = matrix.set_index(["x", "y"]).loc[("rcsl", "bc")]
    assert 0.5 < close["low"] < close["point"] < 1
    texts = [text.get_text() for text in plots.improvement(loaded, matrix).axes[0].texts]
    near, far = f"{close['point']:.2f}*", f"{1 - close['point']:.2f}*"
    assert texts == ["1.00", "1.00", "0.00", far, "0.00", near]  # row by row, nothing on the diagonal


def test_budget_curves():
    rng = np.random.default_rng(0)
    curves = {name: tuning.expected_best_curve(rng.normal(50, 9, 12), rng) for name in ("iql", "td3_bc")}
    styles = {"iql": {"color": "#0173b2", "marker": "o"}, "td3_bc": {"color": "#8b1a1a", "marker": "s"}}
    (axes,) = plots.budget(curves, styles, "a task", "score", "settings tried").axes
    assert [line.get_label() for line in axes.get_lines()] == ["iql", "td3_bc"]
    assert axes.get_lines()[0].get_ydata() == pytest.approx(curves["iql"]["point"].to_numpy())


def test_the_history_of_a_study():
    ended, nan = ["complete", "pruned", "complete", "diverged", "complete"], float("nan")
    trials = pd.DataFrame({"trial": range(5), "ended": ended, "value": [3.0, nan, 9.0, -np.inf, 5.0]})
    (axes,) = plots.history(trials, "#0173b2").axes
    (best,) = axes.get_lines()
    assert best.get_xydata().tolist() == [[0, 3], [2, 9], [4, 9]]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["trial", "best so far", "diverged", "pruned"]


def test_curves_over_time_have_the_pace_of_the_runs(sweep):
    for seed in range(2):
        sweep.cell("iql", DATASET, seed, curve=[1.0, 2.0, 3.0, 4.0])  # 75 s and 76 s
    loaded = results.load(sweep.write())
    (axes,) = plots.curves(loaded, over="time").axes
    assert axes.get_lines()[0].get_xdata() == pytest.approx(75.5 * np.arange(1, 5) / 4)
    assert axes.get_xlabel() == "seconds of the run"
    with pytest.raises(ValueError, match="choose steps or time"):
        plots.curves(loaded, over="tokens")


def test_curves_over_time_have_the_measured_times_where_every_run_has_them(sweep):
    sweep.cell("iql", DATASET, 0, curve=[1.0, 2.0, 3.0], training=[1.0, 10.0, 11.0])
    sweep.cell("iql", DATASET, 1, curve=[1.0, 2.0, 3.0], training=[3.0, 20.0, 23.0])
    (axes,) = plots.curves(results.load(sweep.write()), over="time").axes
    assert axes.get_lines()[0].get_xdata() == pytest.approx([2.0, 15.0, 17.0])
    assert axes.get_xlabel() == "seconds of training"
    sweep.cell("bc", DATASET, 0, curve=[1.0, 2.0, 3.0])  # from before they were recorded
    (axes,) = plots.curves(results.load(sweep.write()), over="time").axes
    assert axes.get_lines()[0].get_xdata() == pytest.approx(75.5 * np.arange(1, 4) / 3)
    assert axes.get_xlabel() == "seconds of the run"


def test_an_offline_method_beside_online_ones_has_its_time(sweep):
    sweep.cell("bc", DATASET, 0, curve=[1.0, 2.0], training=[4.0, 8.0])
    sweep.cell("rlpd", DATASET, 0, curve=[1.0, 2.0, 3.0], env_steps=100, offline=1, training=[5.0, 6.0, 9.0])
    loaded = results.load(sweep.write())
    clock, seconds = plots.seconds_of(loaded, DATASET, plots.all_curves(loaded)[DATASET])
    assert clock == "training"
    assert seconds["bc"] == pytest.approx([8.0])  # its last evaluation stands for step 0
    assert seconds["rlpd"] == pytest.approx([5.0, 6.0, 9.0])


def test_every_last_episode_is_a_dot(quick):
    loaded = results.load(quick.folder)
    figure = plots.returns(loaded)
    rows = loaded.finished
    own = rows[rows["final"] & (rows["variant"] == "") & (rows["dataset"] == DATASET)]
    drawn = np.concatenate([dots.get_xdata() for dots in figure.axes[0].get_lines()])
    assert sorted(drawn) == pytest.approx(sorted(own["score"]))
    assert plots.png(figure) == plots.png(plots.returns(loaded))


def test_asked_against_achieved(quick, sweep):
    figure = plots.targets(results.load(quick.folder))
    assert len(figure.axes) == 3
    means = figure.axes[0].get_lines()[1]
    assert means.get_xdata().tolist() == [0.5, 0.9]
    assert means.get_ydata()[1] - means.get_ydata()[0] == pytest.approx(8)


def test_without_targets_there_is_no_such_figure(sweep):
    sweep.cell("iql", DATASET, 0, variants={"uniform": 3.0})
    assert plots.targets(results.load(sweep.write())) is None
