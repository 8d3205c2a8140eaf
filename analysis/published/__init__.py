"""Our scores beside published ones: `python -m hoard.analysis.published FOLDER` prints the table of a results folder.

Each CSV file of this folder is one source: a row for each algorithm, dataset and statistic, with the number of seeds,
the kind of spread, the version, and how sure we are of it. `sources.toml` cites the sources and says which of our
methods an algorithm of theirs stands beside. A dataset of any suite finds its rows by name.

Published numbers are never mixed with ours: no mean, rank or figure has both. Where both sides have seeds and a spread,
Welch's test says whether they can be told apart. Budgets, networks and evaluation differ, so "not told apart" is no
proof of a faithful implementation, and a difference none of a faulty one.
"""

from __future__ import annotations

import argparse
import functools
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from hoard.analysis import results, stats, tables
from hoard.analysis.results import Results

HERE = Path(__file__).parent
SOURCES = HERE / "sources.toml"
COLUMNS = (
    "algorithm", "dataset", "phase", "measure", "mean", "spread", "spread_kind", "seeds", "statistic", "version",
    "source", "how_sure",
)  # fmt: skip
SPARE = ("95 %", "seeds", "source", "n", "told")  # as in `tables`
NAMES = {"return": "raw return", "score": "normalised score", "success": "success rate"}
_LENGTH = re.compile(r"-\d+k(?=-singletask)")  # of an OGBench set made here
HIGHER, LOWER, EVEN = "ours higher", "ours lower", "not told apart"


@functools.cache
def numbers() -> pd.DataFrame:
    """All published numbers, with the columns COLUMNS. `spread` is as printed; `spread_kind` says what it is."""
    return pd.concat([pd.read_csv(path) for path in sorted(HERE.glob("*.csv"))], ignore_index=True)[list(COLUMNS)]


@functools.cache
def sources() -> dict[str, Any]:
    """What `sources.toml` says: sources, how sure, and the methods of ours that an algorithm of theirs is."""
    return tomllib.loads(SOURCES.read_text(encoding="utf-8"))


def published_table(loaded: Results) -> tables.Table | None:
    """Every method of a dataset beside every published number on it; None if nothing is published on any.

    A dataset has rows if numbers were published on it, or on the one that it is evaluated like (``+as=NAME``), in the
    measure that ours has. Only last scores are shown: of the best evaluation along the way we have no counterpart. A
    method that took environment steps stands beside numbers from after an online phase, another beside offline ones.
    """
    known = numbers()
    known = known[(known["statistic"] == "last") & known["measure"].isin(results.VALUES)]
    values = tables.seed_values(loaded)
    measured = values.dropna(subset=["score"])["dataset"].unique()
    pairs = [(ours, theirs) for ours in loaded.datasets for theirs in known["dataset"].unique() if same(ours, theirs)]
    online = set(loaded.evaluations.loc[loaded.evaluations["env_step"] > 0, "method"])
    rows: list[dict[str, Any]] = []
    used: list[tuple[str, str]] = []
    for ours, theirs in pairs:
        own = known[known["dataset"] == theirs]
        if ours not in measured:
            own = own[own["measure"] != "score"]
        found = _rows(ours, own, loaded.methods, online, values[values["dataset"] == ours])
        if found:
            rows += found
            used.append((ours, theirs))
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    return tables.Table(frame, _display(frame, len(used) > 1), tuple(_notes(frame, used)), SPARE)


def same(ours: str, theirs: str) -> bool:
    """Whether the id is that of the published numbers, a file of the user's that is evaluated like it, or an OGBench
    set of the same kind that was made here."""
    if ours.startswith("ogbench:"):
        ours = _LENGTH.sub("", ours)
    return ours == theirs or ours.endswith(f"+as={theirs.removeprefix('d4rl:')}")


def _rows(
    dataset: str, known: pd.DataFrame, methods: Sequence[str], online: set[str], values: pd.DataFrame
) -> list[dict[str, Any]]:
    """Our methods, each with every number that it has a counterpart in, then the published others."""
    rows, shown = [], set()
    spare = "score" if values["score"].notna().any() else "return"
    if set(known["measure"]) == {"success"}:
        spare = "success"
    matches = sources()["methods"]
    present = [method for method in methods if method in set(values["method"])]
    phases = {"online" if method in online else "offline" for method in present}
    for method in present:
        phase = "online" if method in online else "offline"
        wanted = [name for name, ours in matches.items() if method in ours]
        own = known[known["algorithm"].isin(wanted) & (known["phase"] == phase)].to_dict("records")
        shown |= {(row["algorithm"], row["source"], row["phase"]) for row in own}
        rows += [_row(dataset, method, values, row, row["measure"]) for row in own] or [
            _row(dataset, method, values, None, spare)
        ]
    others = known[known["phase"].isin(phases)].to_dict("records")
    rows += [
        _row(dataset, "", values, row, row["measure"])
        for row in others
        if (row["algorithm"], row["source"], row["phase"]) not in shown
    ]
    return rows if any(row["published_as"] for row in rows) else []


def _row(
    dataset: str, method: str, values: pd.DataFrame, theirs: dict[str, Any] | None, measure: str
) -> dict[str, Any]:
    seeds = values[values["method"] == method]
    own = seeds[measure].to_numpy(float)
    interval = stats.mean_of([own], measure, seeds["episodes"].sum())
    row = {
        "dataset": dataset,
        "method": method,
        "measure": measure,
        "seeds": len(own),
        "mean": interval.point,
        "std": stats.std(own),
        "t_low": interval.low,
        "t_high": interval.high,
        "published_as": theirs["algorithm"] if theirs else "",
        "source": theirs["source"] if theirs else "",
        "phase": theirs["phase"] if theirs else "",
        "published_seeds": theirs["seeds"] if theirs else 0,
        "published_mean": theirs["mean"] if theirs else np.nan,
        "published_std": theirs["spread"] if theirs else np.nan,
        "how_sure": theirs["how_sure"] if theirs else "",
    }
    return row | {"overlap": overlap(own, theirs) if theirs else ""}


def overlap(own: np.ndarray, theirs: dict[str, Any], level: float = stats.LEVEL) -> str:
    """HIGHER, LOWER or EVEN by Welch's test of our seeds and their mean, spread and number of seeds; "" without one."""
    seeds, spread = int(theirs["seeds"]), float(theirs["spread"])
    if len(own) < 2 or seeds < 2 or not np.isfinite([*own, spread]).all() or (np.ptp(own) == 0 and spread == 0):
        return ""
    if theirs["spread_kind"] == "population std":
        spread *= np.sqrt(seeds / (seeds - 1))
    ours = own.mean(), own.std(ddof=1), len(own)
    found = scipy.stats.ttest_ind_from_stats(*ours, float(theirs["mean"]), spread, seeds, equal_var=False)
    if found.pvalue >= 1 - level:
        return EVEN
    return HIGHER if found.statistic > 0 else LOWER


def _display(frame: pd.DataFrame, several: bool) -> pd.DataFrame:
    rows = frame.to_dict("records")
    shown = {
        "dataset": [row["dataset"] for row in rows],
        "method": [row["method"] or tables.DASH for row in rows],
        "n": [str(row["seeds"]) if row["method"] else tables.DASH for row in rows],
        "ours: mean ± std": [_spread(row["mean"], row["std"], row["measure"]) for row in rows],
        "95 % Student t": [_interval(row) for row in rows],
        "published as": [row["published_as"] or tables.DASH for row in rows],
        "published: mean ± std": [_spread(row["published_mean"], row["published_std"], row["measure"]) for row in rows],
        "seeds": [str(row["published_seeds"] or tables.DASH) for row in rows],
        "source": [row["source"] or tables.DASH for row in rows],
        "told apart": [row["overlap"] or tables.DASH for row in rows],
    }
    return pd.DataFrame(shown) if several else pd.DataFrame(shown).drop(columns="dataset")


def _notes(frame: pd.DataFrame, used: Sequence[tuple[str, str]]) -> list[str]:
    known, notes = sources(), []
    measures = dict.fromkeys(frame.loc[frame["source"] != "", "measure"])
    what = " or ".join(NAMES[name] for name in measures)
    on = f" on {used[0][1]}" if len(used) == 1 else ""
    for name, own in frame[frame["source"] != ""].groupby("source", sort=False):
        sure = "; ".join(known["how_sure"][how] for how in own["how_sure"].unique())
        about = known["sources"][name]
        notes.append(f"{name}: {about['title']} ({sure}). Last scores. {about['note']}")
    notes.append(
        f"Compared is the {what}{on}. Told apart: Welch's test at 5 %, from their mean, spread and number of seeds. "
        "Published numbers enter no mean, rank or figure of ours."
    )
    notes += [
        f"Ours is on {ours}: other data than {theirs}, of that layout and measured as there."
        for ours, theirs in used
        if ours != theirs
    ]
    return notes


def _spread(mean: float, std: float, measure: str) -> str:
    shown = tables.number(mean, _decimals(measure))
    return shown if np.isnan([mean, std]).any() else f"{shown} ± {tables.number(std, _decimals(measure))}"


def _interval(row: dict[str, Any]) -> str:
    if np.isnan(row["t_low"]):
        return tables.DASH
    low, high = (tables.number(row[end], _decimals(row["measure"])) for end in ("t_low", "t_high"))
    return f"[{low}, {high}]"


def _decimals(measure: str) -> int:
    return 2 if measure == "success" else 1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hoard.analysis.published", description="Print scores beside published ones."
    )
    parser.add_argument("folder", type=Path, help="suite folder, the one that holds cells.json")
    options = parser.parse_args(arguments)
    try:
        table = published_table(results.load(options.folder))
    except results.ResultsError as error:
        parser.exit(1, f"error: {error}\n")
    if table is None:
        parser.exit(1, "error: no published numbers for these datasets\n")
    print(table.markdown(), *(f"- {note}" for note in table.notes), sep="\n")
