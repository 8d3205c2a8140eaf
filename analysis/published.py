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
    """Every method of the suite or of the published table, ours and theirs in one row; None if nothing is published."""
    entry = tomllib.loads(FILE.read_text()).get(loaded.meta["suite"])
    dataset = next((ours for ours in loaded.datasets if _stands_for(ours, entry["dataset"])), None) if entry else None
    if entry is None or dataset is None:
        return None
    measure = entry["measure"]
    values = tables.seed_values(loaded)
    values = values[values["dataset"] == dataset]
    theirs = {row["method"]: row for row in entry["rows"] if "method" in row}
    foreign = [row for row in entry["rows"] if "method" not in row]
    rows = [_row(method, values, theirs.get(method), measure) for method in loaded.methods]
    rows += [_row("", values, row, measure) for row in foreign]
    frame = pd.DataFrame(rows)
    display = pd.DataFrame(
        {
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
    where = "recalled from memory and not re-read: check before quoting" if entry["sure"] == "memory" else "as printed"
    what = {"return": "Raw return", "score": "Normalised score"}[measure]
    notes = [f"Published: {entry['source']} ({where}). {what} on {entry['dataset']}."]
    if dataset != entry["dataset"]:
        notes.append(f"Ours is on {dataset}: other data, of that layout and scored on its scale.")
    return tables.Table(frame, display, tuple(notes))


def _stands_for(ours: str, theirs: str) -> bool:
    """Whether the id is the one of the published numbers, or a file of the user's that is evaluated like it."""
    return ours == theirs or ours.endswith(f"+as={theirs.removeprefix('d4rl:')}")


def _row(method: str, values: pd.DataFrame, published: dict[str, Any] | None, measure: str) -> dict[str, Any]:
    own = values.loc[values["method"] == method, measure].to_numpy()
    interval = stats.mean_interval([own])
    return {
        "method": method,
        "seeds": len(own),
        "mean": interval.point,
        "std": stats.std(own),
        "t_low": interval.low,
        "t_high": interval.high,
        "published_as": published["name"] if published else "",
        "published_mean": published["mean"] if published else np.nan,
        "published_std": published["std"] if published else np.nan,
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
