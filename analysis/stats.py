"""Statistics over training seeds: interquartile mean, bootstrap and Student-t intervals, score normalisation.

The unit of every statistic is one training seed: its value is the mean over the episodes of its last evaluation.
Episodes of one seed share one policy, so counting them as independent samples would shrink every interval falsely.

How far the intervals can be trusted was measured with `interval_coverage` (standard normal seeds, nominal 95 %, 2,000
resamples; 20,000 simulated sweeps, 4,000 for nine datasets). `COVERAGE` and `AGGREGATE_COVERAGE` hold the numbers and a
test repeats them:

    seeds                                  3       5      10
    bootstrap, IQM of one dataset         75 %    90 %    93 %
    bootstrap, IQM over nine datasets     87 %    92 %    93 %
    Student t, mean of one dataset        95 %    95 %    95 %

No interval has width zero: seeds that agree to the last digit say nothing about how far others would be from them, so
there is no interval then, and for rates the bound of `rate_interval`.

A percentile bootstrap never leaves the range of the observed seeds, so no number of resamples repairs it at three
seeds. That is why every table prints the Student-t interval of the mean beside it. Seeds that fail now and then
(a bimodal sample) are harder than Gaussian ones for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special

LEVEL = 0.95
RESAMPLES = 10_000
MIN_RESAMPLES = 2_000  # below this the ends of a 95 % interval rest on fewer than fifty draws each

COVERAGE = {3: 0.75, 5: 0.90, 10: 0.93}
AGGREGATE_COVERAGE = {3: 0.87, 5: 0.92, 10: 0.93}  # nine datasets


class Estimate(NamedTuple):
    """A point estimate with its interval; `low` and `high` are NaN where no interval can be given."""

    point: float
    low: float
    high: float


def iqm(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Interquartile mean along the last axis: the mean of the middle half of the probability mass.

    Exactly one quarter of the mass is cut from each side. Where n is not divisible by 4, the value that straddles a
    quartile counts in part: the weights are (.3, .4, .3) on the middle three of n = 5 and (1/6, 2/3, 1/6) for n = 3.
    `scipy.stats.trim_mean(x, 0.25)` cuts floor(n / 4) whole values instead (nothing for n = 3, 40 % for n = 5, 40 %
    for n = 10); the two agree wherever 4 divides n. NaN stays NaN. `weights` need not be sorted or normalised.
    """
    values = np.asarray(values, dtype=np.float64)
    if weights is None:
        edges = np.arange(values.shape[-1] + 1) / values.shape[-1]
        return np.sort(values, axis=-1) @ (2 * np.diff(np.clip(edges, 0.25, 0.75)))
    order = np.argsort(values, axis=-1)
    values = np.take_along_axis(values, order, axis=-1)
    weights = np.take_along_axis(np.broadcast_to(weights, values.shape), order, axis=-1)
    upper = np.cumsum(weights / weights.sum(axis=-1, keepdims=True), axis=-1)
    lower = np.concatenate([np.zeros_like(upper[..., :1]), upper[..., :-1]], axis=-1)
    kept = np.clip(upper, 0.25, 0.75) - np.clip(lower, 0.25, 0.75)
    return (values * kept).sum(axis=-1) / kept.sum(axis=-1)


def bootstrap_interval(
    strata: Sequence[np.ndarray], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """IQM of all values with its percentile-bootstrap interval, resampling seeds within each stratum.

    One stratum is one dataset, so the set of datasets is fixed and each weighs the same however many of its seeds
    finished. A stratum with one seed says nothing about the spread over seeds: the interval is then NaN, not narrow.
    The result depends on the values alone, not on their order.
    """
    if resamples < MIN_RESAMPLES:
        raise ValueError(f"{resamples} bootstrap resamples are too few for an interval; use {MIN_RESAMPLES} or more")
    strata = [np.sort(np.asarray(values, dtype=np.float64)) for values in strata]
    sizes = np.array([len(values) for values in strata])
    if not sizes.size or sizes.min() == 0:
        return Estimate(np.nan, np.nan, np.nan)
    weights = None if (sizes == sizes[0]).all() else np.repeat(1 / sizes, sizes)
    point = float(iqm(np.concatenate(strata), weights))
    if sizes.min() < 2:
        return Estimate(point, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    draws = [values[rng.integers(len(values), size=(resamples, len(values)))] for values in strata]
    if all(np.ptp(values) == 0 for values in strata):
        return Estimate(point, np.nan, np.nan)
    low, high = np.quantile(iqm(np.concatenate(draws, axis=1), weights), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(point, float(low), float(high))


def bootstrap_bands(
    values: np.ndarray, *, level: float = LEVEL, resamples: int = MIN_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """IQM over the last axis with its percentile-bootstrap interval, for many points at once.

    `values`: shape (points, seeds). Returns shape (points, 3): point, low, high, as `bootstrap_interval` of each row,
    all with the same resamples of seeds. A resample says how often each seed counts, so its IQM is a weighted sum of
    the ordered seeds, and all of them together are one matrix product. Raises ValueError on too few resamples.
    """
    if resamples < MIN_RESAMPLES:
        raise ValueError(f"{resamples} bootstrap resamples are too few for an interval; use {MIN_RESAMPLES} or more")
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    points, seeds = ordered.shape
    out = np.full((points, 3), np.nan)
    if points == 0 or seeds == 0:
        return out
    out[:, 0] = iqm(ordered)
    if seeds < 2:
        return out
    counts = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    edges = np.concatenate([np.zeros((resamples, 1)), np.cumsum(counts, axis=1) / seeds], axis=1)
    weights = 2 * np.diff(np.clip(edges, 0.25, 0.75), axis=1)
    draws = ordered @ weights.T
    out[:, 1:] = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=1).T
    out[np.ptp(ordered, axis=1) == 0, 1:] = np.nan
    return out


def mean_interval(strata: Sequence[np.ndarray], *, level: float = LEVEL) -> Estimate:
    """Mean over strata of the stratum means with its Student-t interval (Welch-Satterthwaite degrees of freedom).

    For one stratum this is the textbook interval with n - 1 degrees of freedom, which keeps its level for Gaussian
    seeds at any n >= 2.
    """
    strata = [np.asarray(values, dtype=np.float64) for values in strata]
    if not strata or min(len(values) for values in strata) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    point = float(np.mean([values.mean() for values in strata]))
    if min(len(values) for values in strata) < 2:
        return Estimate(point, np.nan, np.nan)
    variance, freedom = variance_of_mean(strata)
    if variance == 0:  # equal seeds: their spread is not known to be zero
        return Estimate(point, np.nan, np.nan)
    half = scipy.special.stdtrit(freedom, (1 + level) / 2) * np.sqrt(variance)
    return Estimate(point, float(point - half), float(point + half))


def rate_interval(strata: Sequence[np.ndarray], episodes: float, *, level: float = LEVEL) -> Estimate:
    """Mean over strata of the mean rate (0 to 1) with an interval that stays in [0, 1] and never has width zero.

    Wilson's score interval with as many trials as the seeds are worth: p (1 - p) / (variance of the mean over seeds),
    at most `episodes`, and with Student's quantile, since that variance is an estimate (Korn and Graubard 1998 do so
    with the Clopper-Pearson interval). Where all seeds have one rate, their spread is unknown: a seed then counts as a
    single trial, the most that any spread could be. So three seeds that always succeed give [0.37, 1]: the lower end is
    the one-sided bound (1 - level)^(1 / seeds).
    """
    strata = [np.asarray(values, dtype=np.float64) for values in strata]
    if not strata or min(len(values) for values in strata) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    point = float(np.mean([values.mean() for values in strata]))
    if min(len(values) for values in strata) < 2 or np.isnan(point):
        return Estimate(point, np.nan, np.nan)
    seeds = len(strata) * min(len(values) for values in strata)
    if point in (0.0, 1.0):
        bound = (1 - level) ** (1 / seeds)
        return Estimate(point, bound, 1.0) if point else Estimate(point, 0.0, 1 - bound)
    variance, freedom = variance_of_mean(strata)
    if variance == 0:
        trials, quantile = float(seeds), float(scipy.special.ndtri((1 + level) / 2))
    else:
        trials = float(np.clip(point * (1 - point) / variance, 1.0, max(episodes, 1.0)))
        quantile = float(scipy.special.stdtrit(freedom, (1 + level) / 2))
    share = quantile**2 / trials
    centre = (point + share / 2) / (1 + share)
    half = quantile / (1 + share) * np.sqrt(point * (1 - point) / trials + share / (4 * trials))
    return Estimate(point, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def mean_of(strata: Sequence[np.ndarray], measure: str, episodes: float, *, level: float = LEVEL) -> Estimate:
    """The mean of a measure over strata: of success rates (or their distances to one), from `episodes` in
    all, by `rate_interval`, of anything else by `mean_interval`."""
    if measure == "success":
        return rate_interval(strata, episodes, level=level)
    return mean_interval(strata, level=level)


def variance_of_mean(strata: Sequence[np.ndarray]) -> tuple[float, float]:
    """Variance of the mean over strata of their means, and its Welch-Satterthwaite degrees of freedom."""
    variances = np.array([values.var(ddof=1) / len(values) for values in strata]) / len(strata) ** 2
    variance = float(variances.sum())
    if variance == 0 or all(np.ptp(values) == 0 for values in strata):  # rounding leaves 1e-33 of equal values
        return 0.0, np.nan
    return variance, float(variance**2 / np.sum(variances**2 / [len(values) - 1 for values in strata]))


def std(values: np.ndarray) -> float:
    """Standard deviation over seeds with ddof = 1; NaN for fewer than two seeds, whose spread is unknown."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def interval_coverage(
    interval: Callable[[list[np.ndarray]], Estimate], seeds: int, *, strata: int = 1, trials: int = 2_000, seed: int = 0
) -> float:
    """Share of simulated sweeps (standard normal seeds, true centre 0) whose interval contains the truth."""
    rng = np.random.default_rng(seed)
    estimates = [interval(list(rng.standard_normal((strata, seeds)))) for _ in range(trials)]
    return float(np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates]))
