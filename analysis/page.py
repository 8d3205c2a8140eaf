"""What a report shows: its sections, as Markdown, HTML and text for a terminal, and its figures."""

from __future__ import annotations

import base64
import textwrap
from dataclasses import dataclass
from pathlib import Path

import jinja2

from hoard.analysis import online, plots, published, results, tables
from hoard.analysis.results import Results

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """One table of the report under its heading."""

    title: str
    table: tables.Table


@dataclass(frozen=True)
class Figure:
    """A figure under its heading, with what it shows for those who do not see it."""

    title: str
    png: bytes
    alt: str

    @property
    def data(self) -> str:
        return base64.b64encode(self.png).decode()


def write(folder: Path, metric: str | None, everything: bool) -> str:
    """Read the results, write the files of the report, and return its text for the terminal."""
    whole = results.load(folder, everything=True)
    loaded = whole if everything else whole.selection()
    metric = metric_of(loaded, metric)
    sections = _sections(loaded, metric)
    main = sections[0].table
    comparison = Figure("Comparison", plots.png(plots.comparison(loaded, metric, main)), _says_comparison(main))
    curves = Figure("Learning curves", plots.png(plots.curves(loaded, metric)), _says_curves(loaded, metric))
    if whole.kind == "suite":  # an archive is the source itself, and a run's folder has its own episodes
        results.write_table(whole.table, folder)
    settings = Section("Settings", tables.settings_table(loaded))
    results.write(folder / "table.md", _markdown([*sections, settings]))
    results.write(folder / "table.csv", main.csv())
    results.write(folder / "figures" / "curves.png", curves.png)
    results.write(folder / "figures" / "comparison.png", comparison.png)
    results.write(folder / "report.html", _html(loaded, whole, [*sections, settings], [comparison, curves]))
    return _text(sections, _selection_note(loaded, whole))


def text(loaded: Results, metric: str | None = None) -> str:
    """The tables for the terminal, with the cells that are missing and how to read the rest."""
    return _text(_sections(loaded, metric_of(loaded, metric)), "")


def metric_of(loaded: Results, metric: str | None) -> str:
    """What to compare: as asked, else as the suite says, else the score."""
    return metric or loaded.meta.get("metric") or "score"


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


def _text(sections: list[Section], remark: str) -> str:
    parts = [f"{section.title}\n\n{section.table.text(tables.TERMINAL)}" for section in sections]
    notes = [*([remark] if remark else []), *sections[0].table.notes, "All columns are in table.md and report.html."]
    wrapped = [textwrap.fill(note, tables.TERMINAL, initial_indent="* ", subsequent_indent="  ") for note in notes]
    return "\n".join([*parts, *wrapped]) + "\n"


def _markdown(sections: list[Section]) -> str:
    parts = []
    for section in sections:
        notes = "".join(f"- {note}\n" for note in section.table.notes)
        parts.append(f"## {section.title}\n\n{section.table.markdown()}" + (f"\n{notes}" if notes else ""))
    return "\n".join(parts)


def _html(loaded: Results, whole: Results, sections: list[Section], figures: list[Figure]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        suite=loaded.meta["suite"],
        facts=_facts(loaded),
        remark=_selection_note(loaded, whole),
        sections=sections,
        figures=figures,
    )


def _selection_note(loaded: Results, whole: Results) -> str:
    if len(loaded.cells) == len(whole.cells):
        return ""
    return (
        f"Shown are the {len(loaded.cells)} cells that the suite's last call asked for, of {len(whole.cells)} in all; "
        "--all shows every one."
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
        words = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, dict) else value
        facts[name.replace("_", " ")] = words
    hashes = loaded.cells.dropna(subset=["data_hash"]).groupby("dataset", sort=False)["data_hash"].unique()
    for dataset, found in hashes.items():
        facts[f"data of {dataset}"] = ", ".join(str(one)[:16] for one in found)
    return {name: str(value) for name, value in facts.items() if value is not None}


def _says_comparison(table: tables.Table) -> str:
    """The comparison in words: who is ahead and who is last, by their means, on each dataset."""
    parts = []
    for dataset, own in table.frame.dropna(subset=["mean"]).groupby("dataset", sort=False):
        own = own.sort_values("mean", ascending=False)
        first, last = own.iloc[0], own.iloc[-1]
        words = f"{first['method']} has the highest mean, {first['mean']:.3g}"
        if len(own) > 1:
            words += f", {last['method']} the lowest, {last['mean']:.3g}, of {len(own)} methods"
        parts.append(f"On {dataset} {words}.")
    what = (
        "Dot plot of last scores, a panel per dataset, a row per method: interquartile mean, its interval, every seed."
    )
    return " ".join([what, *(parts or ["No run finished."]), "The numbers are in the table above."])


def _says_curves(loaded: Results, metric: str) -> str:
    """The learning curves in words: their axes, and from where to where each dataset's methods went."""
    measure, rows = tables.measures(loaded, metric), loaded.evaluations
    rows = rows[(rows["status"] == "finished") & (rows["variant"] == "")]
    parts = []
    for dataset, own in rows.groupby("dataset", sort=False):
        x = "env_step" if (own["env_step"] > 0).any() else "update"
        axis = "environment steps" if x == "env_step" else "gradient updates"
        words = [
            f"{method} {curve.iloc[0]:.3g} to {curve.iloc[-1]:.3g}"
            for method, one in own.groupby("method", sort=False)
            if len(curve := one.groupby(x)[measure[str(dataset)]].mean())
        ]
        parts.append(f"{dataset}, over {own[x].max():,} {axis}, first to last evaluation: {', '.join(words)}.")
    return " ".join(["Line plot of learning curves, a panel per dataset, a line per method.", *parts])
