"""Statistics over a suite: mean, median, IQM, optimality gap, probability of improvement, performance profiles.

The unit is one training seed, as in `stats`. The scores of a method come as strata, an array of seeds for each dataset;
arrays may differ in length, and every dataset weighs the same. With as many seeds everywhere the numbers are those of
rliable 1.2 (Agarwal et al., Deep RL at the edge of the statistical precipice, NeurIPS 2021), for the IQM wherever four
divides the number of scores: rliable cuts whole values, `stats.iqm` exactly a quarter. A test compares both with golden
values of that package.

Intervals resample the seeds within each dataset (`scipy.stats.bootstrap`), so they speak about these datasets and other
seeds, not about other datasets. A dataset with one seed leaves the interval unknown: NaN.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from hoard.analysis import stats
from hoard.analysis.stats import Estimate

Strata = Sequence[np.ndarray]
# Of the seeds of each dataset, shape (..., seeds), to one number, shape (...).
Statistic = Callable[..., np.ndarray]

OPTIMAL = {"score": 100.0, "success": 1.0}  # the optimality gap is the mean distance to this
BCA_SEEDS = 10  # with fewer the acceleration of BCa rests on too few values to correct anything


def mean(*strata: np.ndarray) -> np.ndarray:
    """Mean over datasets of the means over seeds."""
    return np.mean([values.mean(axis=-1) for values in strata], axis=0)


def median(*strata: np.ndarray) -> np.ndarray:
    """Median over datasets of the means over seeds; it ignores up to half of the datasets altogether."""
    return np.median([values.mean(axis=-1) for values in strata], axis=0)


def iqm(*strata: np.ndarray) -> np.ndarray:
    """Interquartile mean over all seeds of all datasets, every dataset with the same weight."""
    sizes = np.array([values.shape[-1] for values in strata])
    weights = None if (sizes == sizes[0]).all() else np.repeat(1 / sizes, sizes)
    return stats.iqm(np.concatenate(strata, axis=-1), weights)


def optimality_gap(optimal: float) -> Statistic:
    """Mean distance to `optimal` of the seeds below it; what is above counts as `optimal`."""

    def gap(*strata: np.ndarray) -> np.ndarray:
        return optimal - np.mean([np.minimum(values, optimal).mean(axis=-1) for values in strata], axis=0)

    return gap


def improvement(*strata: np.ndarray) -> np.ndarray:
    """Probability of improvement: that a seed of X beats one of Y, a tie as half, mean over datasets. NaN if a seed is.

    `strata` are the seeds of X on each dataset, then those of Y in the same order.
    """
    half = len(strata) // 2
    shares = []
    for x, y in zip(strata[:half], strata[half:], strict=True):
        pairs = x[..., :, None] - y[..., None, :]
        wins = (pairs > 0) + 0.5 * (pairs == 0)
        shares.append(np.where(np.isnan(pairs), np.nan, wins).mean(axis=(-2, -1)))
    return np.mean(shares, axis=0)


def interval(
    statistic: Statistic,
    strata: Strata,
    rng: np.random.Generator,
    *,
    method: str = "percentile",
    level: float = stats.LEVEL,
    resamples: int = stats.MIN_RESAMPLES,
) -> Estimate:
    """A statistic with its stratified bootstrap interval, `method` being "percentile" or "BCa".

    No interval (NaN) where a dataset has one seed, where all seeds of each dataset are equal, where no resample moves
    the statistic (as where every seed of X beats every one of Y), or where a value is not finite. BCa needs BCA_SEEDS
    seeds on every dataset. Raises ValueError on other methods and too few resamples.
    """
    if method not in ("percentile", "BCa"):
        raise ValueError(f"unknown bootstrap {method!r}; choose percentile or BCa")
    if resamples < stats.MIN_RESAMPLES:
        raise ValueError(f"{resamples} bootstrap resamples are too few; use {stats.MIN_RESAMPLES} or more")
    strata = [np.sort(np.asarray(values, dtype=np.float64)) for values in strata]
    fewest = min((len(values) for values in strata), default=0)
    if fewest == 0:
        return Estimate(np.nan, np.nan, np.nan)
    if method == "BCa" and fewest < BCA_SEEDS:
        raise ValueError(f"BCa needs {BCA_SEEDS} seeds on every dataset, one has {fewest}; use percentile")
    point = float(statistic(*strata))
    spread = any(np.ptp(values) > 0 for values in strata)
    if fewest < 2 or not spread or not all(np.isfinite(values).all() for values in strata):
        return Estimate(point, np.nan, np.nan)
    with warnings.catch_warnings():  # BCa of a statistic that no resample moves is NaN, which is what we return
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        found = scipy.stats.bootstrap(
            strata, lambda *samples, axis=-1: statistic(*samples), vectorized=True, paired=False, method=method,
            n_resamples=resamples, confidence_level=level, rng=rng,
        ).confidence_interval  # fmt: skip
    if math.isclose(found.low, found.high, rel_tol=1e-9, abs_tol=1e-12):  # no resample moves it: not a certainty
        return Estimate(point, np.nan, np.nan)
    return Estimate(point, float(found.low), float(found.high))


def aggregates(
    strata: Strata,
    optimal: float | None = None,
    *,
    seed: int = 0,
    level: float = stats.LEVEL,
    resamples: int = stats.MIN_RESAMPLES,
) -> dict[str, Estimate]:
    """IQM, mean, median and, with an `optimal` value, the optimality gap, each with its percentile interval."""
    named: dict[str, Statistic] = {"IQM": iqm, "mean": mean, "median": median}
    if optimal is not None:
        named["optimality gap"] = optimality_gap(optimal)
    return {
        name: interval(statistic, strata, np.random.default_rng([seed, n]), level=level, resamples=resamples)
        for n, (name, statistic) in enumerate(named.items())
    }


def improvement_matrix(
    strata: Mapping[str, Strata], *, seed: int = 0, level: float = stats.LEVEL, resamples: int = stats.MIN_RESAMPLES
) -> pd.DataFrame:
    """Probability of improvement of each ordered pair of methods: columns x, y, point, low, high.

    One bootstrap serves both directions: the probability of Y over X is one less that of X over Y.
    """
    rows: list[tuple[Any, ...]] = []
    for n, x in enumerate(strata):
        for y in list(strata)[:n]:
            found = improvement_over(strata, x, y, seed=seed, level=level, resamples=resamples)
            rows.append((x, y, *found))
            rows.append((y, x, *_other_way(found)))
    return pd.DataFrame(rows, columns=["x", "y", "point", "low", "high"])


def improvement_over(
    strata: Mapping[str, Strata],
    x: str,
    y: str,
    *,
    seed: int = 0,
    level: float = stats.LEVEL,
    resamples: int = stats.MIN_RESAMPLES,
) -> Estimate:
    """Probability of improvement of `x` over `y`, as in the matrix."""
    names = list(strata)
    n, m = names.index(x), names.index(y)
    if n < m:
        return _other_way(improvement_over(strata, y, x, seed=seed, level=level, resamples=resamples))
    rng = np.random.default_rng([seed, n, m])
    return interval(improvement, [*strata[x], *strata[y]], rng, level=level, resamples=resamples)


def _other_way(found: Estimate) -> Estimate:
    return Estimate(1 - found.point, 1 - found.high, 1 - found.low)


def profile(
    strata: Strata,
    thresholds: np.ndarray,
    *,
    seed: int = 0,
    level: float = stats.LEVEL,
    resamples: int = stats.MIN_RESAMPLES,
) -> pd.DataFrame:
    """Performance profile: the share of seeds above each threshold, mean over datasets, with a pointwise band.

    Columns point, low, high, indexed by threshold. A resample is a count of each seed, so that all thresholds of one
    method cost one matrix product a dataset.
    """
    thresholds = np.asarray(thresholds, dtype=np.float64)
    rng = np.random.default_rng(seed)
    point, draws = np.zeros(len(thresholds)), np.zeros((resamples, len(thresholds)))
    for values in strata:
        values = np.sort(np.asarray(values, dtype=np.float64))
        above = (values[:, None] > thresholds).astype(np.float64)
        counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
        point += above.mean(axis=0) / len(strata)
        draws += counts @ above / (len(values) * len(strata))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    if min(len(values) for values in strata) < 2:
        low = high = np.full(len(thresholds), np.nan)
    return pd.DataFrame({"point": point, "low": low, "high": high}, index=pd.Index(thresholds, name="threshold"))
