"""Statistics over a suite: rliable's golden values, hand values, and intervals that are honest about few seeds."""

import json
from pathlib import Path

import coverage
import numpy as np
import pytest
import scipy.stats

from hoard.analysis import aggregate, stats

GOLDEN = json.loads((Path(__file__).parent / "golden" / "rliable.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
STATISTICS = {
    "mean": aggregate.mean,
    "median": aggregate.median,
    "iqm": aggregate.iqm,
    "optimality gap": aggregate.optimality_gap(1.0),
}


def strata(case, name="x"):
    return list(np.array(case[name]).T)


def whole(case):
    return np.array(case["x"]).size % 4 == 0


@pytest.mark.parametrize("name", CASES)
def test_points_are_those_of_rliable(name):
    case = CASES[name]
    for statistic, function in STATISTICS.items():
        if statistic != "iqm" or whole(case):
            assert function(*strata(case)) == pytest.approx(case["points"][statistic], abs=1e-10), statistic
    found = aggregate.improvement(*strata(case), *strata(case, "y"))
    assert found == pytest.approx(case["points"]["improvement"], abs=1e-10)
    shares = aggregate.profile(strata(case), np.array(GOLDEN["thresholds"]))
    assert shares["point"].to_numpy() == pytest.approx(case["profile"], abs=1e-10)


def test_the_iqm_differs_from_rliables_only_where_four_does_not_divide_the_scores():
    assert {name for name, case in CASES.items() if not whole(case)} == {"odd"}
    case = CASES["odd"]
    pooled = np.array(case["x"])
    assert case["points"]["iqm"] == pytest.approx(scipy.stats.trim_mean(pooled, 0.25, axis=None), abs=1e-10)
    assert abs(aggregate.iqm(*strata(case)) - case["points"]["iqm"]) < 0.1


@pytest.mark.parametrize("name", ["four divides", "nine datasets", "many"])
def test_intervals_are_those_of_rliable_to_the_error_of_resampling(name):
    case = CASES[name]
    for n, (statistic, function) in enumerate(STATISTICS.items()):
        found = aggregate.interval(function, strata(case), np.random.default_rng(n), resamples=20_000)
        theirs = case["intervals"][statistic]
        assert (found.low, found.high) == pytest.approx(theirs, abs=0.05 * (theirs[1] - theirs[0])), statistic
    pair = [*strata(case), *strata(case, "y")]
    found = aggregate.interval(aggregate.improvement, pair, np.random.default_rng(0))
    theirs = case["intervals"]["improvement"]
    assert (found.low, found.high) == pytest.approx(theirs, abs=0.15 * (theirs[1] - theirs[0]))


def test_improvement_by_hand():
    ours, theirs = [np.array([1.0, 2.0]), np.array([5.0])], [np.array([0.0, 2.0]), np.array([5.0, 5.0, 6.0])]
    assert aggregate.improvement(*ours, *theirs) == pytest.approx(((2 + 1 * 0.5 + 0) / 4 / 1 * 1 + 0.5 * 2 / 3) / 2)
    matrix = aggregate.improvement_matrix({"a": ours, "b": theirs}).set_index(["x", "y"])
    assert matrix.loc[("a", "b"), "point"] == pytest.approx(1 - matrix.loc[("b", "a"), "point"])
    assert np.isnan(matrix.loc[("a", "b"), "low"])  # one dataset has a single seed


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_seed_that_is_no_number_wins_nothing(order):
    seeds = {"a": [np.array([50.0, 60.0])], "b": [np.array([np.nan, 2.0])]}
    matrix = aggregate.improvement_matrix({name: seeds[name] for name in order})
    assert matrix["point"].isna().all()


def test_what_no_resample_moves_has_no_interval():
    above, below = [np.array([3.0, 4.0, 5.0])] * 2, [np.array([0.0, 1.0, 2.0])] * 2
    matrix = aggregate.improvement_matrix({"a": above, "b": below}).set_index(["x", "y"])
    assert matrix.loc[("a", "b"), "point"] == 1.0
    assert matrix.loc[[("a", "b"), ("b", "a")], ["low", "high"]].isna().all(axis=None)


def test_unequal_seeds_weigh_a_dataset_no_more():
    few, many = np.array([0.0, 0.0]), np.full(8, 1.0)
    for statistic in (aggregate.mean, aggregate.median, aggregate.iqm):
        assert statistic(few, many) == pytest.approx(0.5)


def test_an_interval_is_reproducible_and_blind_to_the_order_of_seeds():
    values = np.random.default_rng(0).standard_normal((3, 6))
    one = aggregate.aggregates(list(values), 1.0, seed=4)
    assert one == aggregate.aggregates(list(values[:, ::-1]), 1.0, seed=4)
    assert one != aggregate.aggregates(list(values), 1.0, seed=5)
    assert set(one) == {"IQM", "mean", "median", "optimality gap"}


def test_bca_leans_towards_the_long_tail():
    values = [np.random.default_rng(1).exponential(size=20)]
    percentile = aggregate.interval(aggregate.mean, values, np.random.default_rng(0), resamples=5_000)
    bca = aggregate.interval(aggregate.mean, values, np.random.default_rng(0), method="BCa", resamples=5_000)
    assert bca.low > percentile.low
    assert bca.high > percentile.high


def test_what_has_no_interval_says_so():
    rng = np.random.default_rng(0)
    for values in ([np.array([3.0])], [np.array([1.0, 2.0]), np.array([3.0])], [np.full(5, 2.0)]):
        found = aggregate.interval(aggregate.mean, values, rng)
        assert np.isfinite(found.point)
        assert np.isnan([found.low, found.high]).all()
    lost = aggregate.interval(aggregate.mean, [np.array([1.0, np.nan])], rng)
    assert np.isnan(lost).all()
    assert np.isnan(aggregate.interval(aggregate.mean, [np.array([])], rng)).all()
    assert np.isnan(aggregate.profile([np.array([1.0])], np.array([0.0]))["low"]).all()


def test_refusals():
    rng, values = np.random.default_rng(0), [np.arange(5.0)]
    with pytest.raises(ValueError, match="unknown bootstrap 'basic'"):
        aggregate.interval(aggregate.mean, values, rng, method="basic")
    with pytest.raises(ValueError, match="too few"):
        aggregate.interval(aggregate.mean, values, rng, resamples=10)
    with pytest.raises(ValueError, match="BCa needs 10 seeds on every dataset, one has 5"):
        aggregate.interval(aggregate.mean, values, rng, method="BCa")


def test_a_profile_falls_from_one_to_zero_and_lies_in_its_band():
    values = list(np.random.default_rng(2).standard_normal((4, 9)))
    found = aggregate.profile(values, np.linspace(-5, 5, 41))
    assert (found["point"].iloc[0], found["point"].iloc[-1]) == (1.0, 0.0)
    assert (found["point"].diff().dropna() <= 1e-12).all()
    assert ((found["low"] <= found["point"]) & (found["point"] <= found["high"])).all()


@pytest.mark.parametrize(
    ("name", "datasets", "seeds"),
    [
        ("mean, Student t", 1, 3),
        ("mean, Student t", 1, 10),
        ("mean, Student t", 9, 5),
        ("difference, paired t", 1, 3),
        ("difference, paired t", 9, 5),
        ("difference, Welch", 1, 5),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_claim(name, datasets, seeds):
    """The fast form of tools/coverage.py: 93 to 97 % of Gaussian experiments, give or take the error of 600."""
    share = coverage.coverage(name, "Gaussian", datasets, seeds, experiments=600, seed=1)
    assert 0.93 - 0.018 <= share <= 0.97 + 0.015


def test_where_they_cannot_the_module_says_so():
    """A bootstrap of three seeds cannot hold the truth in 95 % of cases, however many resamples it has."""
    share = coverage.coverage("IQM, bootstrap", "Gaussian", 1, 3, experiments=300)
    assert share < 0.85
    assert stats.COVERAGE[3] < 0.85
