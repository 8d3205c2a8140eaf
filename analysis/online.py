"""What an online phase cost and brought: score after k environment steps, steps to reach a level, regret.

A seed's curve is the mean over the episodes of each of its evaluations, placed on the environment-step axis; where
several evaluations share a step (an offline phase at step 0) the last one stands for it. Offline methods have no curve
here: they are level lines in the figure and rows of the table of last scores.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from hoard.analysis import stats, tables
from hoard.analysis.results import Results

LEVELS = {"score": 80.0, "success": 0.5}  # what counts as reached; a raw return has no such level
BEST = {"score": 100.0, "success": 1.0}  # regret is the distance to this
SHARES = (0.25, 0.5, 1.0)  # of the largest online budget on a dataset: where scores are read off


def seed_curves(results: Results, dataset: str, method: str, measure: str) -> pd.DataFrame:
    """Rows: environment steps of evaluations; columns: finished seeds; NaN where a seed was not evaluated."""
    rows = tables.measured(results.finished)
    rows = rows[(rows["dataset"] == dataset) & (rows["method"] == method) & (rows["variant"] == "")]
    means = tables.group_means(rows.groupby(["seed", "update", "env_step"], sort=True)[[measure]]).reset_index()
    return means.drop_duplicates(["seed", "env_step"], keep="last").pivot(
        index="env_step", columns="seed", values=measure
    )


def value_at(curve: pd.Series, step: float) -> float:
    """The latest evaluation of one seed at or before `step`; NaN if there is none."""
    known = curve.dropna()
    known = known[known.index <= step]
    return float(known.iloc[-1]) if len(known) else math.nan


def steps_to(curve: pd.Series, level: float) -> float:
    """Environment steps until the first evaluation at or above `level`; infinite if there is none."""
    reached = curve.dropna()
    reached = reached[reached >= level]
    return float(reached.index[0]) if len(reached) else math.inf


def regret(curve: pd.Series, best: float) -> float:
    """Mean over the online phase of (best - value) / best, by the trapezoidal rule between evaluations, 0 to the last.

    Before the first evaluation its value stands. NaN if an evaluation is.
    """
    known = curve.sort_index()
    steps = np.concatenate([[0.0], known.index.to_numpy(float)])
    values = np.concatenate([known.to_numpy(float)[:1], known.to_numpy(float)])
    if steps[-1] == 0:
        return math.nan
    return float(np.trapezoid((best - values) / best, steps) / steps[-1])


def online_table(results: Results, metric: str = "score", level: float = stats.LEVEL) -> tables.Table | None:
    """A row per dataset and method that took environment steps; None if none did."""
    measure = tables.measures(results, metric)
    rows, display = [], []
    for dataset in results.datasets:
        curves = {m: seed_curves(results, dataset, m, measure[dataset]) for m in results.methods}
        curves = {m: curve for m, curve in curves.items() if len(curve) and curve.index.max() > 0}
        if not curves:
            continue
        budget = max(curve.index.max() for curve in curves.values())
        target, best = LEVELS.get(measure[dataset]), BEST.get(measure[dataset])
        for method, curve in curves.items():
            row = {"dataset": dataset, "method": method, "measure": measure[dataset], "seeds": curve.shape[1]}
            shown = {"dataset": dataset, "method": method, "n": str(curve.shape[1])}
            for share in SHARES:
                step = min(int(share * budget), int(curve.index.max()))  # a method that stopped earlier shows its last
                mean = stats.mean_interval([np.array([value_at(curve[seed], step) for seed in curve])], level=level)
                name = f"{share:.0%} of steps"
                row |= {f"steps_{share:g}": step, f"mean_{share:g}": mean.point}
                row |= {f"low_{share:g}": mean.low, f"high_{share:g}": mean.high}
                shown[name] = f"{_value(measure[dataset], mean.point)} at {step:,}"
            if target is not None and best is not None:
                reached = np.array([steps_to(curve[seed], target) for seed in curve])
                middle = float(np.median(reached)) if len(reached) else math.inf
                losses = np.array([regret(curve[seed], best) for seed in curve])
                row |= {"level": target, "steps_to_level": middle, "reached": int(np.isfinite(reached).sum())}
                row |= {"regret": float(losses.mean())}
                steps = f"{middle:,.0f}" if math.isfinite(middle) else tables.DASH
                shown["steps to level"] = f"{steps} ({row['reached']}/{len(reached)})"
                shown["regret"] = tables.number(float(losses.mean()), 2)
            rows.append(row)
            display.append(shown)
    if not rows:
        return None
    notes = (
        "Means over finished seeds of the latest evaluation at or before the given number of environment steps; shares "
        "are of the largest online budget on the dataset, and a method that stopped before shows its last evaluation. "
        "Data that a method starts from are not counted as steps.",
        f"Steps to level: median over seeds of the first evaluation at or above {LEVELS['score']:g} (normalised score) "
        f"or {LEVELS['success']:g} (success rate); in brackets how many seeds got there. Regret: mean distance to 100 "
        "(or to success 1) over the method's own online phase, as a share of it.",
    )
    return tables.Table(pd.DataFrame(rows), pd.DataFrame(display).fillna(tables.DASH), notes)


def _value(measure: str, value: float) -> str:
    return tables.number(value, 2 if measure == "success" else 1)
