"""Who is better: the methods of one results folder against the best of them, and two folders against each other.

Both give plain verdicts (see `verdicts`), corrected by Holm's procedure for being several: the leader of a dataset was
chosen by its mean, and of thirty comparisons one or two would be "significant" by chance.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hoard.analysis import aggregate, stats, tables, verdicts
from hoard.analysis.results import Results, ResultsError
from hoard.analysis.verdicts import Verdict

IDENTICAL = "identical"


@dataclass(frozen=True)
class Ranking:
    """A dataset's methods against the one with the highest mean."""

    dataset: str  # or "all N datasets"
    measure: str
    leader: str
    mean: float  # the leader's
    others: dict[str, Verdict]  # the leader against each

    @property
    def sentence(self) -> str:
        """Who wins here, and who cannot be told apart from it."""
        even = [name for name, verdict in self.others.items() if verdict.word != verdicts.BETTER]
        ahead = len(self.others) - len(even)
        decimals = 2 if self.measure == "success" else 1
        lead = f"{self.leader} has the highest mean, {tables.number(self.mean, decimals)}"
        if not self.others:
            return f"{self.leader} is alone, with a mean of {tables.number(self.mean, decimals)}."
        if not even:
            return f"{lead}, and is better than {'every other method' if ahead > 1 else next(iter(self.others))}."
        better = f" It is better than the other {ahead}." if ahead > 1 else ""
        if ahead == 1:
            (name,) = (name for name in self.others if name not in even)
            better = f" It is better than {name}."
        return f"{lead}, but is not told apart from {_list(even)}.{better}"


def rankings(results: Results, metric: str = "score", values: pd.DataFrame | None = None) -> list[Ranking]:
    """A ranking for each dataset where a run finished, then one over all datasets where that is defined."""
    measure = tables.measures(results, metric)
    values = tables.seed_values(results) if values is None else values
    groups = dict(iter(values.groupby(["dataset", "method"], sort=False)))
    found = [
        _ranking(dataset, [dataset], _present(groups, [dataset], results.methods), groups, measure[dataset])
        for dataset in results.datasets
    ]
    common = set(measure.values())
    if len(results.datasets) > 1 and metric != "return" and common in ({"score"}, {"success"}):
        everywhere = _present(groups, results.datasets, results.methods)
        title = f"all {len(results.datasets)} datasets"
        found.append(_ranking(title, results.datasets, everywhere, groups, common.pop()))
    return [ranking for ranking in found if ranking is not None]


def verdict_table(found: Sequence[Ranking]) -> tables.Table | None:
    """The rankings as a table: every method's distance to the best of its dataset, and the verdict."""
    rows: list[dict[str, Any]] = []
    for one in found:
        for name, verdict in one.others.items():
            low, high = verdict.difference.low, verdict.difference.high
            rows.append(
                {
                    "dataset": one.dataset, "best": one.leader, "method": name, "measure": one.measure,
                    "difference": verdict.difference.point, "low": low, "high": high, "p": verdict.p,
                    "seeds": verdict.seeds, "paired": verdict.paired, "verdict": verdict.word, "text": verdict.text,
                }
            )  # fmt: skip
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    display = pd.DataFrame(
        {
            "dataset": frame["dataset"],
            "best": frame["best"],
            "compared with": frame["method"],
            "ahead by [95 %]": [
                tables.interval(row["difference"], row["low"], row["high"], _decimals(row["measure"])) for row in rows
            ],
            "verdict on the best": frame["text"],
        }
    )
    notes = (
        "Best: the highest mean over seeds. Ahead by: the difference of the means with its 95 % Student-t interval, "
        "seed by seed where both have the same seeds, else Welch's. The verdict is corrected by Holm's procedure for "
        "the number of comparisons on the dataset; the interval is not.",
        "Needed: seeds with which a difference like the one seen would be found in four of five repetitions; from few "
        "seeds it is an order of magnitude.",
    )
    return tables.Table(frame, display, notes, ("ahead",))


def suite_table(results: Results, values: pd.DataFrame, measure: dict[str, str]) -> tables.Table | None:
    """IQM, mean, median and optimality gap over all datasets, of methods with a value on every one; and how probably a
    seed of the one with the highest mean beats one of each.

    None with a single dataset, without a common scale, or without such a method.
    """
    common = set(measure.values())
    strata = suite_strata(results, values, measure)
    if len(results.datasets) < 2 or common not in ({"score"}, {"success"}) or not strata:
        return None
    name = common.pop()
    episodes = values.groupby("method")["episodes"].sum()
    found = {
        method: aggregate.aggregates(own, aggregate.OPTIMAL[name])
        | {"mean": stats.mean_of(own, name, episodes[method])}
        for method, own in strata.items()
    }
    leader = max(found, key=lambda method: found[method]["mean"].point)
    beats = _beats(leader, strata)
    unknown = aggregate.Estimate(math.nan, math.nan, math.nan)
    rows = [
        {"method": method, "measure": name, "datasets": len(results.datasets)}
        | {
            f"{statistic}{end}": value
            for statistic, estimate in (own | {"beaten": beats.get(method, unknown)}).items()
            for end, value in zip(("", "_low", "_high"), estimate)
        }
        for method, own in found.items()
    ]
    titles = {"mean": f"mean [95 % {'Wilson' if name == 'success' else 'Student t'}]"}
    display = {"method": list(found)} | {
        titles.get(statistic, f"{statistic} [95 %]"): [
            tables.interval(*own[statistic], _decimals(name)) for own in found.values()
        ]
        for statistic in next(iter(found.values()))
    }
    if beats:
        display[f"{leader} beats it [95 %]"] = [
            tables.interval(*beats[method], 2) if method in beats else tables.DASH for method in found
        ]
    notes = (
        f"Over all {len(results.datasets)} datasets, every one with the same weight; methods without a value on some "
        "are left out. Intervals speak of other seeds, not of other datasets. But for the mean's they come from "
        f"{stats.MIN_RESAMPLES:,} bootstrap resamples of seeds within each dataset and are too short with few seeds. "
        "Median: of the datasets' means. Optimality gap: mean distance of the seeds below "
        f"{aggregate.OPTIMAL[name]:g} to it, lower is better.",
        f"{leader} has the highest mean. That it beats a method: the probability that one of its seeds is above one of "
        "the method's on the same dataset, mean over datasets. No interval: every resample says the same, or a "
        "dataset has one seed.",
    )
    return tables.Table(pd.DataFrame(rows), pd.DataFrame(display), notes, ("optimality", "median"))


def _beats(leader: str, strata: dict[str, list[np.ndarray]]) -> dict[str, aggregate.Estimate]:
    """The probability of improvement of `leader` over each other method, as in the figure."""
    if len(strata) < 2 or not all(np.isfinite(one).all() for own in strata.values() for one in own):
        return {}
    return {other: aggregate.improvement_over(strata, leader, other) for other in strata if other != leader}


def suite_strata(results: Results, values: pd.DataFrame, measure: dict[str, str]) -> dict[str, list[np.ndarray]]:
    """Of each method with a value on every dataset: its seeds on each, in that dataset's measure."""
    groups = dict(iter(values.groupby(["dataset", "method"], sort=False)))
    return {
        method: [groups[dataset, method][measure[dataset]].to_numpy(float) for dataset in results.datasets]
        for method in _present(groups, results.datasets, results.methods)
    }


def _present(groups: dict[Any, pd.DataFrame], datasets: Sequence[str], methods: Sequence[str]) -> list[str]:
    return [method for method in methods if all((dataset, method) in groups for dataset in datasets)]


def _ranking(
    title: str, datasets: Sequence[str], methods: Sequence[str], groups: dict[Any, pd.DataFrame], measure: str
) -> Ranking | None:
    means = {
        method: float(np.mean([groups[dataset, method][measure].mean() for dataset in datasets])) for method in methods
    }
    means = {method: mean for method, mean in means.items() if math.isfinite(mean)}
    if not means:
        return None
    order = sorted(means, key=lambda method: -means[method])
    leader, *others = order
    own = {name: [groups[dataset, name] for dataset in datasets] for name in order}
    found = [against(own[leader], own[other], measure) for other in others]
    return Ranking(title, measure, leader, means[leader], dict(zip(others, verdicts.adjust(found))))


def against(a: Sequence[pd.DataFrame], b: Sequence[pd.DataFrame], measure: str) -> Verdict:
    """Compare seed values (rows of `tables.seed_values`) of two methods, a frame for each dataset."""
    a, b = ([own.sort_values("seed") for own in one] for one in (a, b))
    paired = all(x["seed"].tolist() == y["seed"].tolist() for x, y in zip(a, b))
    one, other = ([own[measure].to_numpy(float) for own in side] for side in (a, b))
    return verdicts.compare(one, other, paired=paired, rates=measure == "success")


# --- two folders ---


@dataclass(frozen=True)
class Comparison:
    """Two results folders: a table of methods on datasets, one of cells, and what only one of them has."""

    summary: str
    pairs: tables.Table
    cells: tables.Table
    worse: int  # methods on datasets where B is worse

    def text(self) -> str:
        notes = [
            textwrap.fill(note, tables.TERMINAL, initial_indent="* ", subsequent_indent="  ") for note in self.notes
        ]
        parts = [self.pairs.text(tables.TERMINAL), self.cells.text(tables.TERMINAL), *notes]
        return "\n".join([self.summary, "", *parts]) + "\n"

    def markdown(self) -> str:
        notes = "".join(f"- {note}\n" for note in self.notes)
        return (
            f"{self.summary}\n\n## Methods on datasets\n\n{self.pairs.markdown()}\n## Cells\n\n"
            f"{self.cells.markdown()}\n{notes}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.pairs.notes, *self.cells.notes)


def compare(a: Results, b: Results, metric: str = "score") -> Comparison:
    """B, the newer, against A: verdicts for each method on each dataset, and every cell. Raises ResultsError where
    they share no method on any dataset."""
    values = [tables.seed_values(one) for one in (a, b)]
    groups = [dict(iter(own.groupby(["dataset", "method"], sort=False))) for own in values]
    shared = [
        (dataset, method)
        for dataset in a.datasets
        for method in a.methods
        if (dataset, method) in groups[0] and (dataset, method) in groups[1]
    ]
    if not shared:
        raise ResultsError("the two folders share no method on any dataset with finished runs")
    other = _other_options(a, b, shared)
    of_a, of_b = tables.measures(a, metric), tables.measures(b, metric)
    measure = {d: of_a[d] if of_a[d] == of_b[d] else "return" for d, _ in shared}
    found = verdicts.adjust([against([groups[1][key]], [groups[0][key]], measure[key[0]]) for key in shared])
    pairs = [_pair(key, groups, verdict, measure[key[0]], (a, b)) for key, verdict in zip(shared, found)]
    frame = pd.DataFrame(pairs)
    words = frame["verdict"].value_counts()
    order = (verdicts.WORSE, verdicts.BETTER, IDENTICAL, verdicts.EVEN, verdicts.NONE)
    counts = ", ".join(f"{words[word]} {word}" for word in order if word in words)
    summary = f"B against A, {len(pairs)} methods on datasets: {counts}."
    notes = [
        "Verdicts on B: the difference of means over seeds with its 95 % Student-t interval, seed by seed where both "
        "have the same seeds; corrected by Holm's procedure for the number of rows. Identical: every seed has the same "
        "value to the last bit."
    ]
    for title, here, there in (("A", 0, 1), ("B", 1, 0)):
        alone = [f"{method} on {dataset}" for dataset, method in groups[here] if (dataset, method) not in groups[there]]
        if alone:
            notes.append(f"Only in {title}: {', '.join(alone)}.")
    notes += [f"Other options in A and B: {text}." for text in other]
    cells = _cells(a, b, values, measure)
    worse = int((frame["verdict"] == verdicts.WORSE).sum())
    return Comparison(summary, tables.Table(frame, _display(frame), tuple(notes), ("seeds", "time")), cells, worse)


def _other_options(a: Results, b: Results, shared: Sequence[tuple[str, str]]) -> list[str]:
    """Methods whose options differ in the two folders. Raises ResultsError where that is a method's whole identity."""
    found = []
    for dataset, method in shared:
        texts = []
        for one in (a, b):
            cells = one.cells[(one.cells["dataset"] == dataset) & (one.cells["method"] == method)]
            texts.append("; ".join(dict.fromkeys(tables.setting_text(own) for own in cells["overrides"])) or "defaults")
        if texts[0] == texts[1]:
            continue
        told = f"{method} on {dataset} ({texts[0]}, now {texts[1]})"
        if "#" in method:  # several settings of one algorithm, told apart by a number that each folder gives anew
            raise ResultsError(f"{told}: not the same settings; compare suites, or folders with one setting each")
        found.append(told)
    return found


def _pair(
    key: tuple[str, str], groups: Sequence[dict[Any, pd.DataFrame]], verdict: Verdict, measure: str, both: Sequence[Any]
) -> dict[str, Any]:
    own = [group[key].set_index("seed")[measure] for group in groups]
    same = own[0].sort_index().equals(own[1].sort_index())
    walls = []
    for one in both:
        cells = one.cells
        walls.append(cells.loc[(cells["dataset"] == key[0]) & (cells["method"] == key[1]), "wall_time"].mean())
    return {
        "dataset": key[0], "method": key[1], "measure": measure, "seeds_a": len(own[0]), "seeds_b": len(own[1]),
        "mean_a": own[0].mean(), "mean_b": own[1].mean(), "difference": verdict.difference.point,
        "low": verdict.difference.low, "high": verdict.difference.high, "p": verdict.p,
        "verdict": IDENTICAL if same else verdict.word, "text": IDENTICAL if same else verdict.text,
        "time_ratio": walls[1] / walls[0] if walls[0] else math.nan,
    }  # fmt: skip


def _display(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame.to_dict("records")
    return pd.DataFrame(
        {
            "dataset": frame["dataset"],
            "method": frame["method"],
            "seeds": [f"{row['seeds_a']}, {row['seeds_b']}" for row in rows],
            "A": [tables.number(row["mean_a"], _decimals(row["measure"])) for row in rows],
            "B": [tables.number(row["mean_b"], _decimals(row["measure"])) for row in rows],
            "B - A [95 %]": [
                tables.interval(row["difference"], row["low"], row["high"], _decimals(row["measure"])) for row in rows
            ],
            "time B/A": [tables.number(row["time_ratio"], 2) for row in rows],
            "B is": frame["text"],
        }
    )


def _cells(a: Results, b: Results, values: Sequence[pd.DataFrame], measure: dict[str, str]) -> tables.Table:
    """Every cell of either: its status and last value on both sides."""
    key = ["dataset", "method", "seed"]
    sides = []
    for one, own in zip((a, b), values):
        last = one.cells[[*key, "status", "data_hash"]].merge(own[[*key, "return", "score", "success"]], how="left")
        sides.append(last)
    both = sides[0].merge(sides[1], on=key, how="outer", suffixes=("_a", "_b"), sort=True)
    rows = []
    for cell in both.to_dict("records"):
        name = measure.get(cell["dataset"], "return")
        old, new = cell[f"{name}_a"], cell[f"{name}_b"]
        remark = [IDENTICAL] if old == new else []
        hashes = cell["data_hash_a"], cell["data_hash_b"]
        if all(isinstance(one, str) for one in hashes) and hashes[0] != hashes[1]:
            remark.append("other data")
        statuses = [cell[f"status_{side}"] if isinstance(cell[f"status_{side}"], str) else "absent" for side in "ab"]
        remark += [f"{side} {status}" for side, status in zip("AB", statuses) if status != "finished"]
        rows.append(
            {name: cell[name] for name in key}
            | {"a": old, "b": new, "difference": new - old, "remark": ", ".join(remark), "measure": name}
        )
    frame = pd.DataFrame(rows)
    display = frame[key].astype({"seed": str})
    for title, column in (("A", "a"), ("B", "b"), ("B - A", "difference")):
        display[title] = [tables.number(row[column], _decimals(row["measure"])) for row in rows]
    display["remark"] = [row["remark"] or tables.DASH for row in rows]
    return tables.Table(frame, display, ())


def _decimals(measure: str) -> int:
    return {"score": 1, "success": 3}.get(measure, 2)


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
