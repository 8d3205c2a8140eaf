"""How often the intervals of the analysis hold the truth: `python tools/coverage.py` simulates 1,000 experiments a row.

An experiment is made as a sweep makes one: datasets of different difficulty and spread, training seeds around each
dataset's mean, evaluation episodes around each seed's. The truth is known, so it can be counted how often a 95 %
interval holds it. Three kinds of seeds: Gaussian, skewed (a long tail of bad ones) and failing (one in five ends near
zero).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from hoard.analysis import aggregate, stats, verdicts

KINDS = ("Gaussian", "skewed", "failing")
SEEDS = (3, 5, 10, 20)
EPISODES = 10
EPISODE_SPREAD = 20.0
Interval = Callable[[list[np.ndarray], list[np.ndarray], np.random.Generator], tuple[float, float]]


class Suite:
    """Datasets with known means: 40 to 90, spread over seeds 3 to 15."""

    def __init__(self, datasets: int, kind: str) -> None:
        self.kind = kind
        self.means, self.spreads = np.linspace(40, 90, datasets), np.linspace(15, 3, datasets)

    def seeds(self, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """A method's seed values, an array for each dataset."""
        noise = {
            "Gaussian": lambda: rng.standard_normal((len(self.means), count)),
            "skewed": lambda: (2 - rng.gamma(2, size=(len(self.means), count))) / math.sqrt(2),
            "failing": lambda: np.where(rng.random((len(self.means), count)) < 0.2, -2.0, 0.5),
        }[self.kind]()
        values = self.means[:, None] + self.spreads[:, None] * noise
        return list(values + EPISODE_SPREAD * rng.standard_normal((*values.shape, EPISODES)).mean(axis=-1))


def _bootstrap(method: str, statistic: aggregate.Statistic) -> Interval:
    def interval(a: list[np.ndarray], b: list[np.ndarray], rng: np.random.Generator) -> tuple[float, float]:
        found = aggregate.interval(statistic, a, rng, method=method)
        return found.low, found.high

    return interval


def _student(a: list[np.ndarray], b: list[np.ndarray], rng: np.random.Generator) -> tuple[float, float]:
    found = stats.mean_interval(a)
    return found.low, found.high


def _difference(paired: bool) -> Interval:
    def interval(a: list[np.ndarray], b: list[np.ndarray], rng: np.random.Generator) -> tuple[float, float]:
        found = verdicts.compare(a, b, paired=paired).difference
        return found.low, found.high

    return interval


INTERVALS: dict[str, tuple[Interval, aggregate.Statistic | None]] = {
    "mean, Student t": (_student, aggregate.mean),
    "difference, paired t": (_difference(True), None),
    "difference, Welch": (_difference(False), None),
    "mean, bootstrap": (_bootstrap("percentile", aggregate.mean), aggregate.mean),
    "IQM, bootstrap": (_bootstrap("percentile", aggregate.iqm), aggregate.iqm),
    "IQM, BCa": (_bootstrap("BCa", aggregate.iqm), aggregate.iqm),
}


def coverage(name: str, kind: str, datasets: int, seeds: int, experiments: int, seed: int = 0) -> float:
    """Share of simulated experiments whose interval `name` holds the truth; NaN where it is not defined."""
    interval, statistic = INTERVALS[name]
    if "BCa" in name and seeds < aggregate.BCA_SEEDS:
        return math.nan
    suite = Suite(datasets, kind)
    truth = 0.0
    if statistic is not None:
        truth = float(statistic(*suite.seeds(200_000, np.random.default_rng(99))))
    held = 0
    for number in range(experiments):
        rng = np.random.default_rng([seed, number, seeds, datasets])
        low, high = interval(suite.seeds(seeds, rng), suite.seeds(seeds, rng), rng)
        held += low <= truth <= high
    return held / experiments


def table(experiments: int) -> pd.DataFrame:
    """A row for each interval, kind of seeds and number of datasets; a column for each number of seeds."""
    rows = []
    for name in INTERVALS:
        for kind in KINDS:
            for datasets in (1, 9):
                shares = {f"{n} seeds": coverage(name, kind, datasets, n, experiments) for n in SEEDS}
                rows.append({"interval": name, "seeds are": kind, "datasets": datasets} | shares)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tools/coverage.py", description="Measure the coverage of intervals.")
    parser.add_argument("--experiments", type=int, default=1_000, help="simulated experiments a number (default: 1000)")
    options = parser.parse_args()
    print(table(options.experiments).to_string(index=False, float_format=lambda share: f"{100 * share:.0f} %"))


if __name__ == "__main__":
    main()
