"""What an online phase cost and brought: score after k environment steps, steps to reach a level, regret.

A seed's curve is the mean over the episodes of each of its evaluations, placed on the environment-step axis. Where
several evaluations share a step (an offline phase at step 0) the last one stands for it. Between evaluations a seed's
value is that of the latest one, so seeds need not be evaluated at the same steps.

All methods of a dataset are compared over the same steps, from 0 to the smallest budget among them: a share of a
budget, or a mean over it, says nothing beside that of another budget. Offline methods have no curve here: they are
level lines in the figure and rows of the table of last scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from hoard.analysis import stats, tables
from hoard.analysis.results import Results

LEVELS = {"score": 80.0, "success": 0.5}  # what counts as reached; a raw return has no such level
BEST = {"score": 100.0, "success": 1.0}  # regret is the distance to this
SHARES = (0.25, 0.5, 1.0)  # of the common budget on a dataset: where scores are read off
# Seeds of one budget end within an episode of each other. A last evaluation stands for so much more than its own steps.
SLACK = 0.05


def _seed_curves(results: Results, own: pd.DataFrame, measure: str) -> dict[int, pd.Series]:
    """A curve per seed of `own`, one method's rows on one dataset: values by environment step, NaN where not finite.

    A seed that diverged has its own evaluations, then its floor (see `tables.floors`) to the end.
    """
    out = {}
    for (seed, status), rows in own.groupby(["seed", "status"], sort=False):
        if status == "finished":
            out[int(seed)] = by_step(rows, "env_step", measure)
    if own.empty or not results.cells["diverged"].any():
        return out
    dataset, method = own.iloc[0][["dataset", "method"]]
    cells = results.cells
    lost = cells.loc[cells["diverged"] & (cells["dataset"] == dataset) & (cells["method"] == method), "seed"]
    end = max((curve.index.max() for curve in out.values()), default=0)
    for seed in lost:
        curve = by_step(own[own["seed"] == seed], "env_step", measure)
        floor = float(tables.floors(results).loc[dataset, measure])
        after = curve.index.max() + 1 if len(curve) else 0
        out[int(seed)] = pd.concat([curve, pd.Series(floor, index=sorted({after, max(end, after)}))])
    return out


def by_step(rows: pd.DataFrame, x: str, measure: str) -> pd.Series:
    """The evaluations of one seed by `x`, the last one of each."""
    steps, values = rows[x].to_numpy(), rows[measure].to_numpy(float)
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    last = np.append(steps[1:] != steps[:-1], True)[: len(steps)]
    return pd.Series(values[last], index=steps[last])


def on_grid(curves: Iterable[pd.Series]) -> pd.DataFrame:
    """Several seeds' curves as step functions on all their steps: rows are steps, a column per seed.

    From the first step at which every seed has been evaluated to the last that every seed reached, give or take SLACK.
    """
    curves = list(curves)
    if not curves or any(curve.empty for curve in curves):
        return pd.DataFrame(columns=range(len(curves)), dtype=float)
    if all(curve.index.equals(curves[0].index) for curve in curves[1:]):
        return pd.DataFrame({n: curve.to_numpy() for n, curve in enumerate(curves)}, index=curves[0].index)
    grid = np.unique(np.concatenate([curve.index.to_numpy() for curve in curves]))
    first = max(curve.index[0] for curve in curves)
    grid = grid[(grid >= first) & (grid <= reach(curves))]
    wide = {n: curve.to_numpy()[np.searchsorted(curve.index, grid, side="right") - 1] for n, curve in enumerate(curves)}
    return pd.DataFrame(wide, index=grid)


def reach(curves: Iterable[pd.Series]) -> float:
    """The last step that every one of the curves reached, give or take SLACK."""
    lasts = [float(curve.index[-1]) for curve in curves]
    return max(last for last in lasts if last <= min(lasts) * (1 + SLACK))


def value_at(curve: pd.Series, step: float) -> float:
    """The latest evaluation of one seed at or before `step`; NaN if there is none, or if it was not finite."""
    known = curve[curve.index <= step]
    return float(known.iloc[-1]) if len(known) else math.nan


def steps_to(curve: pd.Series, level: float) -> float:
    """Environment steps until the first evaluation at or above `level`; infinite if there is none."""
    reached = curve[curve >= level]
    return float(reached.index[0]) if len(reached) else math.inf


def steps_to_stay(curve: pd.Series, level: float) -> float:
    """Environment steps until the first evaluation from which on all are at or above `level`; infinite if none is."""
    below = np.flatnonzero(~(curve >= level).to_numpy())
    first = int(below[-1]) + 1 if len(below) else 0
    return float(curve.index[first]) if first < len(curve) else math.inf


def regret(curve: pd.Series, best: float, horizon: float | None = None) -> float:
    """Mean over the steps from 0 to `horizon` of (best - value) / best, by the trapezoidal rule between evaluations.

    Without a horizon, to the last evaluation. Before the first evaluation its value stands, after the last one that.
    NaN if an evaluation is, or if the first one lies behind the horizon: it says nothing of the steps before.
    """
    known = curve.sort_index()
    if horizon is not None and len(known) and known.index[0] > horizon:
        return math.nan
    steps = np.concatenate([[0.0], known.index.to_numpy(float)])
    values = np.concatenate([known.to_numpy(float)[:1], known.to_numpy(float)])
    if horizon is not None and len(known):
        end = np.interp(horizon, steps, values)
        before = steps < horizon
        steps, values = np.append(steps[before], horizon), np.append(values[before], end)
    if steps[-1] == 0:
        return math.nan
    return float(np.trapezoid((best - values) / best, steps) / steps[-1])


def before(curve: pd.Series) -> float:
    """The last evaluation before any environment step: what an offline phase left; NaN if there was none."""
    return float(curve.iloc[0]) if len(curve) and curve.index[0] == 0 else math.nan


def dip(curve: pd.Series, horizon: float) -> float:
    """How far the curve falls below `before` up to `horizon`; 0 if it never does, NaN without a value before."""
    known = curve[curve.index <= horizon]
    fall = before(curve) - float(known.min()) if len(known) else math.nan
    return fall if math.isnan(fall) else max(fall, 0.0)


def online_curves(results: Results, dataset: str, measure: str) -> dict[str, dict[int, pd.Series]]:
    """By method, of those that took environment steps on a dataset, and seed: the evaluations by environment step."""
    rows = results.evaluations
    own = dict(iter(rows[(rows["variant"] == "") & (rows["dataset"] == dataset)].groupby("method", sort=False)))
    online = set(rows.loc[(rows["env_step"] > 0) & (rows["dataset"] == dataset), "method"])
    return {
        method: found
        for method in results.methods
        if method in online and (found := _seed_curves(results, own[method], measure))
    }


def online_table(results: Results, metric: str = "score", level: float = stats.LEVEL) -> tables.Table | None:
    """A row per dataset and method that took environment steps; None if none did."""
    rows = results.evaluations
    if not (rows["env_step"] > 0).any():
        return None
    measure = tables.measures(results, metric)
    planned = results.cells.groupby(["dataset", "method"]).size()
    headline = dict(iter(rows[rows["variant"] == ""].groupby(["dataset", "method"], sort=False)))
    out, cut = [], False
    for dataset in results.datasets:
        curves = online_curves(results, dataset, measure[dataset])
        if not curves:
            continue
        ends = {method: reach(own.values()) for method, own in curves.items()}
        horizon = min(ends.values())
        cut |= any(end > horizon * (1 + SLACK) for end in ends.values())
        for method, own in curves.items():
            counts = {"seeds": len(own), "planned": int(planned[dataset, method]), "horizon": horizon}
            row: dict[str, Any] = {"dataset": dataset, "method": method, "measure": measure[dataset]} | counts
            episodes = int(headline[dataset, method].groupby("seed")["episodes"].min().sum())
            out.append(row | _row(list(own.values()), measure[dataset], horizon, ends[method], episodes, level))
    if not out:
        return None
    frame = pd.DataFrame(out)
    return tables.Table(frame, _display(frame, level), tuple(_notes(frame, cut, level)), SPARE)


def regrets(results: Results, dataset: str, measure: str) -> dict[str, pd.Series]:
    """Of each method that took environment steps on a dataset: the regret of its seeds over the steps that all took."""
    best, curves = BEST.get(measure), online_curves(results, dataset, measure)
    if best is None or not curves:
        return {}
    horizon = min(reach(found.values()) for found in curves.values())
    return {
        name: pd.Series({seed: regret(curve, best, horizon) for seed, curve in found.items()})
        for name, found in curves.items()
    }


SPARE = ("dip", "25 %", "own end", "50 %", "before", "regret", "first")  # as in `tables`


def _row(
    curves: list[pd.Series], measure: str, horizon: float, end: float, episodes: int, level: float
) -> dict[str, float]:
    """The numbers of a method on a dataset, from the curves of its seeds."""
    row: dict[str, float] = {}
    for name, step in [*((f"{share:g}", int(share * horizon)) for share in SHARES), ("end", int(end))]:
        values = [np.array([value_at(curve, step) for curve in curves])]
        mean = stats.mean_of(values, measure, episodes, level=level)
        row |= {f"steps_{name}": step, f"mean_{name}": mean.point, f"low_{name}": mean.low, f"high_{name}": mean.high}
    starts = np.array([before(curve) for curve in curves])
    row |= {"before": float(starts.mean()), "dip": float(np.mean([dip(curve, horizon) for curve in curves]))}
    target, best = LEVELS.get(measure), BEST.get(measure)
    if target is None or best is None:
        return row
    for name, steps in (("first", steps_to), ("stays", steps_to_stay)):
        reached = np.array([steps(curve, target) for curve in curves])
        row |= {f"{name}_at_level": float(np.median(reached)), f"{name}_reached": int(np.isfinite(reached).sum())}
    losses = stats.mean_of(
        [np.array([regret(curve, best, horizon) for curve in curves])], measure, episodes, level=level
    )
    return row | {"level": target, "regret": losses.point, "regret_low": losses.low, "regret_high": losses.high}


def _display(frame: pd.DataFrame, level: float) -> pd.DataFrame:
    shown = []
    for row in frame.to_dict("records"):
        decimals = 2 if row["measure"] == "success" else 1
        n = f"{row['seeds']}" if row["seeds"] == row["planned"] else f"{row['seeds']}/{row['planned']}"
        cells = {"dataset": row["dataset"], "method": row["method"], "n": n, "steps": f"{int(row['horizon']):,}"}
        if frame["before"].notna().any():
            cells["before"] = tables.number(row["before"], decimals)
            cells["dip"] = tables.number(row["dip"], decimals)
        for share in SHARES:
            cells[f"{100 * share:g} % of steps"] = _interval(row, f"mean_{share:g}", f"{share:g}", decimals)
        if (frame["steps_end"] > frame["horizon"] * (1 + SLACK)).any():
            own = row["steps_end"] > row["horizon"] * (1 + SLACK)
            text = f"{tables.number(row['mean_end'], decimals)} at {row['steps_end']:,}"
            cells["own end"] = text if own else tables.DASH
        if not math.isnan(row.get("level", math.nan)):
            for name in ("first", "stays"):
                steps, seeds = row[f"{name}_at_level"], row[f"{name}_reached"]
                text = f"{steps:,.0f}" if math.isfinite(steps) else tables.DASH
                cells["first at level" if name == "first" else "stays at level"] = (
                    f"{text} ({seeds:.0f}/{row['seeds']})"
                )
            cells["regret"] = _interval(row, "regret", "", 2)
        shown.append(cells)
    return pd.DataFrame(shown).fillna(tables.DASH)


def _interval(row: dict[str, float], point: str, name: str, decimals: int) -> str:
    low, high = (row[f"{end}_{name}"] if name else row[f"{point}_{end}"] for end in ("low", "high"))
    return tables.interval(row[point], low, high, decimals)


def _notes(frame: pd.DataFrame, cut: bool, level: float) -> list[str]:
    kind = "Wilson" if set(frame["measure"]) == {"success"} else "Student-t"
    notes = [
        f"Means over seeds with their {100 * level:g} % {kind} interval, after shares of the given number of steps. A "
        "seed's value is its latest evaluation at or before that step, so seeds may be evaluated at different steps. "
        "Data that a method starts from are not counted as steps.",
    ]
    if cut:
        notes.append(
            "Methods had different budgets: shares and regret are of the steps that all methods of a dataset took, the "
            "smallest budget among them. “Own end” and the steps to the level are of a method's whole run; one that "
            "stopped earlier might have got there later. Nothing is extended beyond a method's own steps."
        )
    if frame["before"].notna().any():
        notes.append(
            "Before: the last evaluation before the first environment step, of methods that learn from data first. "
            "Dip: how far a seed falls below it within the given number of steps, mean over seeds."
        )
    if "level" in frame:
        notes.append(
            f"Level: {LEVELS['score']:g} (normalised score) or {LEVELS['success']:g} (success rate). First: the first "
            "evaluation there, which one lucky evaluation can make. Stays: the first from which on all evaluations are "
            "there. Medians over seeds (– if half of them never get there), in brackets how many did. Regret: mean "
            "distance to 100 (or to success 1) over the steps, as a share of it, by the trapezoidal rule between "
            "evaluations."
        )
    if (frame["seeds"] < frame["planned"]).any():
        notes.append("n: seeds that count, of those planned. A diverged seed counts with its floor from then on.")
    return notes
