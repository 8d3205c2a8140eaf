"""The report of one suite: `python -m hoard.analysis.report FOLDER` with the folder that holds `cells.json`.

Writes beside it `episodes.parquet` (the joined rows, enough to rebuild everything here), `table.md`, `table.csv`, two
figures and `report.html`, one file that opens anywhere without a network. Building twice writes the same content.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from hoard.analysis import online, plots, published, results, tables
from hoard.analysis.results import Results

HERE = Path(__file__).parent
WIDE = ("measure", "mean ± std", "return", "success")  # columns that only the written tables have room for


@dataclass(frozen=True)
class Paths:
    """What `build` wrote."""

    episodes: Path
    markdown: Path
    csv: Path
    curves: Path
    comparison: Path
    html: Path


@dataclass(frozen=True)
class Section:
    """One table of the report under its heading."""

    title: str
    table: tables.Table


def build(folder: str | Path, suite: str | None = None, metric: str = "score") -> Paths:
    """Write the report of a suite folder, or of `folder/suite`; `metric` is "score" or "return"."""
    folder = Path(folder) / suite if suite else Path(folder)
    loaded = results.load(folder)
    sections = [*_sections(loaded, metric), Section("Settings", tables.settings_table(loaded))]
    figures = {
        "curves": plots.png(plots.curves(loaded, metric)),
        "comparison": plots.png(plots.comparison(loaded, metric, sections[0].table)),
    }
    episodes = folder / "episodes.parquet"
    if not loaded.archived:  # an archive is the source itself: reading it must not change it
        results.write_table(loaded.episodes, folder)
    return Paths(
        episodes=episodes,
        markdown=results.write_atomic(folder / "table.md", _markdown(sections)),
        csv=results.write_atomic(folder / "table.csv", sections[0].table.csv()),
        curves=results.write_atomic(folder / "figures" / "curves.png", figures["curves"]),
        comparison=results.write_atomic(folder / "figures" / "comparison.png", figures["comparison"]),
        html=results.write_atomic(folder / "report.html", _html(loaded, sections, figures)),
    )


def summary_text(loaded: Results, metric: str = "score") -> str:
    """Last scores for the end of a sweep in the terminal, with the cells that are missing and how to read the rest."""
    sections = _sections(loaded, metric)
    parts = [f"{section.title}\n\n{section.table.text(omit=WIDE)}" for section in sections]
    return "\n".join([*parts, *(f"* {note}" for note in sections[0].table.notes)]) + "\n"


def _sections(loaded: Results, metric: str) -> list[Section]:
    """The table of last scores, then the others where they have anything to say."""
    optional = [
        ("Missing cells", tables.missing_table(loaded)),
        ("Over the online phase", online.online_table(loaded, metric)),
        ("Beside published numbers", published.published_table(loaded)),
        ("Variants", tables.variant_table(loaded, metric)),
    ]
    main = Section("Last scores", tables.score_table(loaded, metric))
    return [main, *(Section(title, table) for title, table in optional if table)]


def _markdown(sections: list[Section]) -> str:
    parts = []
    for section in sections:
        notes = "".join(f"- {note}\n" for note in section.table.notes)
        parts.append(f"## {section.title}\n\n{section.table.markdown()}" + (f"\n{notes}" if notes else ""))
    return "\n".join(parts)


def _html(loaded: Results, sections: list[Section], figures: dict[str, bytes]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        suite=loaded.meta["suite"],
        facts=_facts(loaded),
        sections=sections,
        figures={name: base64.b64encode(content).decode() for name, content in figures.items()},
    )


def _facts(loaded: Results) -> dict[str, str]:
    """Where the numbers come from, in the order of the report's head."""
    finished = int((loaded.cells["status"] == "finished").sum())
    facts = {
        "command": loaded.meta.get("command"),
        "created": loaded.meta.get("created"),
        "cells": f"{finished} of {len(loaded.cells)} finished",
    }
    for name, value in (loaded.meta.get("provenance") or {}).items():
        text = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        facts[name.replace("_", " ")] = text
    hashes = loaded.cells.dropna(subset=["data_hash"]).groupby("dataset", sort=False)["data_hash"].unique()
    for dataset, found in hashes.items():
        facts[f"data of {dataset}"] = ", ".join(str(one)[:16] for one in found)
    return {name: str(value) for name, value in facts.items() if value is not None}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m hoard.analysis.report", description="Write the report of a suite.")
    parser.add_argument("folder", type=Path, help="suite folder, the one that holds cells.json")
    parser.add_argument("--metric", choices=tables.METRICS, default="score", help="what to compare (default: score)")
    options = parser.parse_args(arguments)
    try:
        paths = build(options.folder, metric=options.metric)
    except results.ResultsError as error:
        parser.exit(1, f"error: {error}\n")
    print(paths.html)


if __name__ == "__main__":
    main()
