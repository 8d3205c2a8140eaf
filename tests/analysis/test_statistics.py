"""The statistics against hand values, scipy, simulation and published numbers."""

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from hoard.analysis import stats

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 3.0], 2.0),
        ([0.0, 3.0, 12.0], 0 / 6 + 2 / 3 * 3 + 12 / 6),
        ([0.0, 1.0, 2.0, 100.0], 1.5),
        ([-50.0, 0.0, 10.0, 40.0, 900.0], 0.3 * 0 + 0.4 * 10 + 0.3 * 40),
    ],
)
def test_iqm_by_hand(values, expected):
    assert stats.iqm(np.array(values)) == pytest.approx(expected)
    assert stats.iqm(np.array(values[::-1])) == pytest.approx(expected)


@pytest.mark.parametrize("n", [4, 8, 12, 40])
def test_iqm_is_the_trimmed_mean_where_four_divides_n(n):
    values = np.random.default_rng(n).standard_normal((3, n))
    np.testing.assert_allclose(stats.iqm(values), scipy.stats.trim_mean(values, 0.25, axis=-1))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.integers(1, 4))
def test_weighted_iqm_counts_a_weight_as_repetition(values, times):
    values = np.array(values)
    repeated = np.repeat(values, times)
    assert stats.iqm(values, np.full(len(values), 2.5)) == pytest.approx(stats.iqm(values), abs=1e-6)
    assert stats.iqm(repeated) == pytest.approx(stats.iqm(values), abs=1e-6)


def test_iqm_keeps_nan_visible():
    assert np.isnan(stats.iqm(np.array([1.0, 2.0, 3.0, np.nan])))


def test_bootstrap_is_deterministic_and_blind_to_order():
    values = np.random.default_rng(0).standard_normal(7)
    first = stats.bootstrap_interval([values])
    assert first == stats.bootstrap_interval([values])
    assert first == stats.bootstrap_interval([values[::-1]])
    assert first != stats.bootstrap_interval([values], seed=1)
    assert first.low < first.point < first.high


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(3).standard_normal(20)
    ours = stats.bootstrap_interval([values])
    theirs = scipy.stats.bootstrap((values,), stats.iqm, method="percentile", n_resamples=10_000, rng=1)
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.05)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.05)


def test_bands_are_bootstraps_of_each_point():
    values = np.random.default_rng(4).normal([[0.0], [10.0], [3.0]], [[1.0], [5.0], [0.0]], (3, 6))
    bands = stats.bootstrap_bands(values, resamples=20_000)
    for row, band in zip(values[:2], bands):
        one = stats.bootstrap_interval([row], resamples=20_000)
        assert band[0] == pytest.approx(one.point)
        assert band[1:] == pytest.approx(one[1:], abs=0.04 * np.ptp(row))
    assert bands[2] == pytest.approx([3, np.nan, np.nan], nan_ok=True)  # equal seeds
    assert np.isnan(stats.bootstrap_bands(values[:, :1])[:, 1:]).all()
    assert np.isnan(stats.bootstrap_bands(np.array([[1.0, np.nan]]))).all()
    assert stats.bootstrap_bands(np.empty((0, 3))).shape == (0, 3)
    with pytest.raises(ValueError, match="too few"):
        stats.bootstrap_bands(values, resamples=10)


def test_bootstrap_resamples_within_datasets():
    """Two datasets with little spread have a narrow aggregate; one pool of all seeds would not."""
    easy, hard = 90.0 + np.arange(5.0), 10.0 + np.arange(5.0)
    stratified = stats.bootstrap_interval([easy, hard])
    assert stratified.point == pytest.approx(52.0)
    assert 0 < stratified.high - stratified.low < 3
    pooled = stats.bootstrap_interval([np.concatenate([easy, hard])])
    assert pooled.high - pooled.low > 20


def test_every_dataset_weighs_the_same_whatever_seeds_it_lost():
    full = stats.bootstrap_interval([np.full(6, 0.0), np.full(6, 90.0)])
    lost = stats.bootstrap_interval([np.full(6, 0.0), np.full(2, 90.0)])
    assert lost.point == pytest.approx(full.point) == 45.0


def test_one_seed_gives_no_interval():
    for interval in (stats.bootstrap_interval, stats.mean_interval):
        for strata in ([np.array([3.0])], [np.array([3.0]), np.array([3.0, 3.0])]):
            point, low, high = interval(strata)
            assert point == pytest.approx(3.0)
            assert np.isnan([low, high]).all()
    assert np.isnan(stats.bootstrap_interval([np.array([])])).all()
    assert np.isnan(stats.std(np.array([3.0])))


def test_too_few_resamples_are_refused():
    """D18: an interval from ten resamples is noise."""
    assert stats.RESAMPLES >= stats.MIN_RESAMPLES >= 2_000
    with pytest.raises(ValueError, match="10 bootstrap resamples are too few"):
        stats.bootstrap_interval([np.arange(5.0)], resamples=10)


def test_mean_interval_is_students():
    values = np.random.default_rng(5).normal(10, 3, size=5)
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    ours = stats.mean_interval([values], level=0.9)
    assert ours == pytest.approx((values.mean(), theirs.low, theirs.high))
    assert stats.mean_interval([np.full(4, 2.0)]) == pytest.approx((2.0, np.nan, np.nan), nan_ok=True)


def test_mean_interval_over_datasets_is_welchs():
    a, b = np.random.default_rng(6).normal(0, [[1], [5]], size=(2, 6))
    theirs = scipy.stats.ttest_ind(a, -b, equal_var=False).confidence_interval()  # mean(a) + mean(b)
    ours = stats.mean_interval([a, b])
    assert (2 * ours.low, 2 * ours.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_stated_coverage_is_the_measured_one(seeds):
    """D18: what the report says about its intervals, repeated on fresh simulated sweeps (standard error under 1 %)."""
    bootstrap = partial(stats.bootstrap_interval, resamples=stats.MIN_RESAMPLES)
    assert stats.interval_coverage(bootstrap, seeds, seed=1) == pytest.approx(stats.COVERAGE[seeds], abs=0.03)
    assert stats.interval_coverage(stats.mean_interval, seeds, seed=1) == pytest.approx(0.95, abs=0.02)
    aggregate = stats.interval_coverage(bootstrap, seeds, strata=9, trials=600, seed=1)
    assert aggregate == pytest.approx(stats.AGGREGATE_COVERAGE[seeds], abs=0.04)


def test_the_spread_of_constant_scores_is_zero():
    """D17: spreads are taken of scores, so the shift of the normalisation cannot enter them."""
    assert stats.std(100 * (np.full(6, 900.0) + 325) / 2500) == 0


def test_std_has_ddof_one():
    assert stats.std(np.array([1.0, 3.0])) == pytest.approx(np.sqrt(2))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published score files are not here")
def test_published_fine_tuning_scores():
    """Mean and spread of the last values of every published curve give the published table (population std)."""
    curves = np.load(PUBLISHED / "finetune_scores.npz", allow_pickle=False)
    with (PUBLISHED / "corl_readme_tables.csv").open() as file:
        table = [row for row in csv.DictReader(file) if row["section"] == "Scores"]
    for row in table:
        for field, mean, spread in (("offline", "mean", "std"), ("online", "mean_after_online", "std_after_online")):
            last = np.array([curves[f"{row['algo']}|{row['dataset']}|{seed}|{field}"][-1] for seed in range(4)])
            point, low, high = stats.mean_interval([last])
            assert point == pytest.approx(float(row[mean]), abs=0.011)
            assert stats.std(last) * np.sqrt(3 / 4) == pytest.approx(float(row[spread]), abs=0.011)
            assert low <= point <= high or np.ptp(last) == 0  # seeds that agree have no interval
    assert len(table) == 60
