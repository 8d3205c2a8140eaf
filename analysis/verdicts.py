"""Which of two methods is better, said plainly: better, worse, or not told apart, and how many seeds it would take.

Two methods are compared by the difference of their means over seeds, averaged over datasets, with its Student-t
interval. Where both have the same seeds, seed by seed: such runs meet the same evaluation episodes, and the test holds
whatever that makes them share. Where the seeds differ, by Welch's test.

`needed` answers the question that "not significant" leaves open: with how many seeds a difference as large as the one
observed would be told apart in four of five repetitions. It rests on the observed difference and spread, so with few
seeds it gives an order of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.special
import scipy.stats

from hoard.analysis import stats
from hoard.analysis.stats import Estimate

BETTER, WORSE, EVEN, NONE = "better", "worse", "not told apart", "no verdict"
POWER = 0.8
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Verdict:
    """How method A compares with B: the difference A - B and what may be said of it."""

    word: str  # BETTER, WORSE, EVEN or NONE
    difference: Estimate
    p: float  # two-sided; NaN where no test is possible
    seeds: int  # of the method and dataset that has fewest
    paired: bool
    needed: float = math.nan  # seeds on each dataset; infinite beyond MOST_SEEDS, NaN where the question is settled
    reason: str = ""  # why there is no verdict
    corrected: bool = False  # told apart alone, but not as one of several comparisons

    @property
    def text(self) -> str:
        if self.word == NONE:
            return f"{NONE}: {self.reason}"
        if self.word != EVEN:
            return self.word
        seeds = f"{self.seeds} seed{'s' if self.seeds != 1 else ''}"
        if self.corrected:
            return f"{EVEN} with {seeds} (as one of several comparisons)"
        if math.isnan(self.needed):
            return f"{EVEN} with {seeds}"
        needed = f"more than {MOST_SEEDS:,}" if math.isinf(self.needed) else f"about {self.needed:,.0f}"
        return f"{EVEN} with {seeds}; {needed} would be needed"


def compare(
    a: Sequence[np.ndarray],
    b: Sequence[np.ndarray],
    *,
    paired: bool,
    rates: bool = False,
    level: float = stats.LEVEL,
) -> Verdict:
    """Compare two methods: `a` and `b` hold an array of seeds for each dataset.

    `paired`: the n-th seed of `a` and of `b` is the same on every dataset. `rates`: values are shares of successes, for
    which the interval stays in [-1, 1], and Fisher's exact test takes over where the seeds show no spread, a seed being
    one trial. Raises ValueError where
    the lengths do not fit.
    """
    a, b = ([np.asarray(values, dtype=np.float64) for values in one] for one in (a, b))
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} datasets cannot be compared with {len(b)}")
    if paired and any(len(x) != len(y) for x, y in zip(a, b)):
        raise ValueError("paired methods need the same seeds on every dataset")
    seeds = min(len(values) for values in [*a, *b])
    if seeds == 0:
        return Verdict(NONE, Estimate(np.nan, np.nan, np.nan), np.nan, 0, paired, reason="no finished seed")
    point = float(np.mean([x.mean() - y.mean() for x, y in zip(a, b)]))
    if not math.isfinite(point):
        return Verdict(NONE, Estimate(point, np.nan, np.nan), np.nan, seeds, paired, reason="a value is not finite")
    if seeds < 2:
        return Verdict(NONE, Estimate(point, np.nan, np.nan), np.nan, seeds, paired, reason="one seed shows no spread")
    strata = [x - y for x, y in zip(a, b)] if paired else [*a, *(-y for y in b)]
    variance, freedom = stats.variance_of_mean(strata)
    variance *= 1 if paired else 4  # the mean over 2 D strata is half of the difference
    if variance == 0:
        return _without_spread(a, b, point, seeds, paired, rates, level)
    error = math.sqrt(variance)
    p = 2 * float(scipy.special.stdtr(freedom, -abs(point) / error))
    half = float(scipy.special.stdtrit(freedom, (1 + level) / 2)) * error
    difference = Estimate(point, point - half, point + half)
    if rates:  # no difference of rates is larger than one
        difference = Estimate(point, max(-1.0, point - half), min(1.0, point + half))
    if p < 1 - level:
        return Verdict(BETTER if point > 0 else WORSE, difference, p, seeds, paired)
    return Verdict(EVEN, difference, p, seeds, paired, _needed(abs(point), variance, freedom, seeds, level))


def _without_spread(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], point: float, seeds: int, paired: bool, rates: bool, level: float
) -> Verdict:
    """Every seed shows the same difference: equal methods, or rates that are all or nothing."""
    if not rates or any(np.ptp(values) > 0 for values in [*a, *b]):
        if point == 0:
            return Verdict(EVEN, Estimate(0.0, np.nan, np.nan), np.nan, seeds, paired)
        why = "the seeds agree to the last digit, so their spread is unknown"
        return Verdict(NONE, Estimate(point, np.nan, np.nan), np.nan, seeds, paired, reason=why)
    trials = [sum(len(values) for values in one) for one in (a, b)]
    wins = [round(sum(values.sum() for values in one)) for one in (a, b)]
    p = float(scipy.stats.fisher_exact([[won, n - won] for won, n in zip(wins, trials)]).pvalue)
    word = EVEN if p >= 1 - level else BETTER if point > 0 else WORSE
    return Verdict(word, Estimate(point, np.nan, np.nan), p, seeds, paired)


def _needed(difference: float, variance: float, freedom: float, seeds: int, level: float) -> float:
    """The smallest number of seeds with which the t test finds `difference` in POWER of all repetitions."""
    if difference == 0:
        return math.inf

    def power(n: int) -> float:
        freedom_n = freedom * (n - 1) / (seeds - 1)
        shift = difference / math.sqrt(variance * seeds / n)
        bound = float(scipy.special.stdtrit(freedom_n, (1 + level) / 2))
        return float(scipy.stats.nct.sf(bound, freedom_n, shift)) if shift < 30 else 1.0

    low, high = seeds, seeds + 1
    while power(high) < POWER:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return float(high)


def holm(p: Sequence[float]) -> np.ndarray:
    """p values adjusted for being several, by Holm's step-down procedure; NaN stays NaN and is not counted."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted


def adjust(found: Sequence[Verdict], level: float = stats.LEVEL) -> list[Verdict]:
    """The verdicts of several comparisons by their p values after Holm: better or worse only where that survives."""
    adjusted = holm([verdict.p for verdict in found])
    return [
        replace(verdict, word=EVEN, corrected=True) if verdict.word in (BETTER, WORSE) and p >= 1 - level else verdict
        for verdict, p in zip(found, adjusted)
    ]
