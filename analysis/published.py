"""Our scores beside published ones: `python -m hoard.analysis.published FOLDER` prints the table of a suite's folder.

The published numbers stand in `published.toml`, each set with its source and with how sure we are of it. Conditions
differ (budgets, networks, episodes of an evaluation), so the table sets numbers side by side and tests nothing.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hoard.analysis import results, stats, tables
from hoard.analysis.results import Results

FILE = Path(__file__).with_name("published.toml")


def published_table(loaded: Results) -> tables.Table | None:
    """Every method of the suite or of the published table, ours and theirs in one row; None if nothing is published.

    A dataset has rows if there are published numbers for it, or for the one that it is evaluated like (``+as=NAME``).
    """
    entry = tomllib.loads(FILE.read_text()).get(loaded.meta["suite"], {"scores": {}})
    pairs = [(ours, theirs) for ours in loaded.datasets for theirs in entry["scores"] if _stands_for(ours, theirs)]
    if not pairs:
        return None
    values = tables.seed_values(loaded)
    rows = [
        row for ours, theirs in pairs for row in _rows(ours, entry, entry["scores"][theirs], loaded.methods, values)
    ]
    frame = pd.DataFrame(rows)
    display = pd.DataFrame(
        {
            "dataset": [row["dataset"] for row in rows],
            "method": [row["method"] or tables.DASH for row in rows],
            "n": [str(row["seeds"]) if row["method"] else tables.DASH for row in rows],
            "ours: mean ± std": [_spread(row["mean"], row["std"]) for row in rows],
            "95 % Student t": [
                tables.DASH if np.isnan(row["t_low"]) else f"[{row['t_low']:.1f}, {row['t_high']:.1f}]" for row in rows
            ],
            "published as": [row["published_as"] or tables.DASH for row in rows],
            "published: mean ± std": [_spread(row["published_mean"], row["published_std"]) for row in rows],
        }
    )
    if len(pairs) == 1:
        display = display.drop(columns="dataset")
    where = "recalled from memory and not re-read: check before quoting" if entry["sure"] == "memory" else "as printed"
    what = {"return": "Raw return", "score": "Normalised score"}[entry["measure"]]
    on = f" on {pairs[0][1]}" if len(pairs) == 1 else ""
    notes = [f"Published: {entry['source']} ({where}). {what}{on}."]
    notes += [
        f"Ours is on {ours}: other data than {theirs}, of that layout and scored on its scale."
        for ours, theirs in pairs
        if ours != theirs
    ]
    return tables.Table(frame, display, tuple(notes))


def _stands_for(ours: str, theirs: str) -> bool:
    """Whether the id is the one of the published numbers, or a file of the user's that is evaluated like it."""
    return ours == theirs or ours.endswith(f"+as={theirs.removeprefix('d4rl:')}")


def _rows(
    dataset: str, entry: dict[str, Any], scores: dict[str, list[float]], methods: Sequence[str], values: pd.DataFrame
) -> list[dict[str, Any]]:
    """The rows of a dataset: our methods, each with its published name if it has one, then the published others."""
    values = values[values["dataset"] == dataset]
    named = {method: name for name, method in entry["methods"].items() if name in scores}
    rows = [_row(dataset, method, named.get(method, ""), values, scores, entry["measure"]) for method in methods]
    others = [name for name in scores if entry["methods"].get(name) not in methods]
    return rows + [_row(dataset, "", name, values, scores, entry["measure"]) for name in others]


def _row(
    dataset: str, method: str, name: str, values: pd.DataFrame, scores: dict[str, list[float]], measure: str
) -> dict[str, Any]:
    own = values.loc[values["method"] == method, measure].to_numpy()
    interval = stats.mean_interval([own])
    mean, std = scores.get(name, (np.nan, np.nan))
    return {
        "dataset": dataset,
        "method": method,
        "seeds": len(own),
        "mean": interval.point,
        "std": stats.std(own),
        "t_low": interval.low,
        "t_high": interval.high,
        "published_as": name,
        "published_mean": mean,
        "published_std": std,
    }


def _spread(mean: float, std: float) -> str:
    if np.isnan(mean):
        return tables.DASH
    return f"{mean:.1f}" if np.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hoard.analysis.published", description="Print a suite's scores beside published ones."
    )
    parser.add_argument("folder", type=Path, help="suite folder, the one that holds cells.json")
    options = parser.parse_args(arguments)
    try:
        table = published_table(results.load(options.folder))
    except results.ResultsError as error:
        parser.exit(1, f"error: {error}\n")
    if table is None:
        parser.exit(1, f"error: no published numbers for this suite in {FILE.name}\n")
    print(table.markdown(), *(f"- {note}" for note in table.notes), sep="\n")


if __name__ == "__main__":
    main()
