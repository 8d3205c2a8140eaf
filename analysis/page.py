"""What a report shows: its sections, as Markdown, HTML and text for a terminal, and its figures."""

from __future__ import annotations

import base64
import textwrap
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from hoard.analysis import (
    aggregate,
    comparisons,
    interactive,
    online,
    plots,
    published,
    results,
    run_files,
    scales,
    tables,
)
from hoard.analysis.results import Results

HERE = Path(__file__).parent
WRITTEN_ONLY = ("Who is better", "Over the suite")  # the terminal has sentences and the rows over all datasets instead
VERDICT_NOTE = (
    "By means over seeds after the last update. Better: the 95 % Student-t interval of the difference excludes zero, "
    "also after Holm's correction for the comparisons on a dataset. Three seeds can tell only large differences apart."
)


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
    values = tables.seed_values(loaded)
    ranked = comparisons.rankings(loaded, metric, values)
    sections = _sections(loaded, metric, ranked)
    main = sections[0].table
    curves = plots.all_curves(loaded, metric)
    figures = {
        "comparison": Figure(
            "Comparison", plots.png(plots.comparison(loaded, metric, main, values)), _says_comparison(main)
        ),
        "curves": Figure(
            "Learning curves",
            plots.png(plots.curves(loaded, metric, computed=curves)),
            _says_curves(loaded, metric),
        ),
    } | _suite_figures(loaded, metric, values)
    if (asked := plots.targets(loaded, metric)) is not None:
        figures["targets"] = Figure("Asked and achieved", plots.png(asked), _says_targets(loaded, metric))
    runs = run_files.folders(loaded, folder)
    made = run_files.provenance(runs)
    shown, left_out = run_files.pictures(loaded, runs)
    known = run_files.data_returns(loaded, made)
    if (drawn := plots.return_histograms(loaded, known)) is not None:
        figures["returns"] = Figure("Returns of data and policies", plots.png(drawn), _says_returns(loaded, known))
    if whole.kind == "suite":  # an archive is the source itself, and a run's folder has its own episodes
        results.write_table(whole.table, folder)
        results.write_times(whole, folder)
    settings = Section("Settings", tables.settings_table(loaded))
    results.write(folder / "table.md", _markdown([*sections, settings]))
    results.write(folder / "table.csv", main.csv())
    results.write(folder / "table.tex", main.latex(f"Last scores of {loaded.meta['suite']}", "tab:scores"))
    for name, figure in figures.items():
        results.write(folder / "figures" / f"{name}.png", figure.png)
    measure = tables.measures(loaded, metric)
    panels = interactive.panels(loaded, measure, curves, ranked, made, shown)
    html = _html(loaded, whole, [*sections, settings], list(figures.values()), ranked, panels, left_out)
    results.write(folder / "report.html", html)
    return _text(sections, ranked, _selection_note(loaded, whole))


def metric_of(loaded: Results, metric: str | None) -> str:
    """What to compare: as asked, else as the suite says, else the score."""
    return metric or loaded.metric


def _sections(loaded: Results, metric: str, ranked: list[comparisons.Ranking]) -> list[Section]:
    """The table of last scores, then the others where they have anything to say."""
    values, measure = tables.seed_values(loaded), tables.measures(loaded, metric)
    optional = [
        ("Who is better", comparisons.verdict_table(ranked)),
        ("Over the suite", comparisons.suite_table(loaded, values, measure)),
        ("Missing cells", tables.missing_table(loaded)),
        ("Over the online phase", online.online_table(loaded, metric)),
        ("On the scale of Minari's expert sets", scales.expert_table(loaded)),
        ("Beside published numbers", published.published_table(loaded)),
        ("Variants", tables.variant_table(loaded, metric)),
    ]
    main = Section("Last scores", tables.score_table(loaded, metric))
    return [main, *(Section(title, table) for title, table in optional if table)]


def _suite_figures(loaded: Results, metric: str, values: pd.DataFrame) -> dict[str, Figure]:
    """Figures over all datasets, where at least two methods have a value on every one."""
    measure = tables.measures(loaded, metric)
    strata = comparisons.suite_strata(loaded, values, measure)
    if len(strata) < 2:
        return {}
    matrix = aggregate.improvement_matrix(strata)
    best = matrix.loc[matrix["point"].idxmax()] if matrix["point"].notna().any() else None
    figures = {
        "improvement": Figure(
            "Probability of improvement",
            plots.png(plots.improvement(loaded, matrix)),
            f"Matrix of the probability that a seed of one method beats a seed of another, {len(strata)} methods, mean "
            "over datasets."
            + (f" The highest is {best['point']:.2f}, of {best['x']} over {best['y']}." if best is not None else ""),
        )
    }
    common = set(measure.values())
    finite = all(np.isfinite(one).all() for own in strata.values() for one in own)
    if common in ({"score"}, {"success"}) and finite:
        name = common.pop()
        level = 0.5 if name == "success" else 50.0
        shares = {method: np.mean([(one > level).mean() for one in own]) for method, own in strata.items()}
        words = ", ".join(f"{method} {share:.2f}" for method, share in shares.items())
        figures["profiles"] = Figure(
            "Performance profiles",
            plots.png(plots.profiles(loaded, strata, name)),
            f"Lines that fall from left to right, one a method: the share of seeds above a {plots.label(name)}. Above "
            f"{level:g}: {words}.",
        )
    return figures


def _text(sections: list[Section], ranked: list[comparisons.Ranking], remark: str) -> str:
    wins = [f"{short}: {ranking.sentence}" for short, ranking in _short(ranked)]
    head = [textwrap.fill(line, tables.TERMINAL, subsequent_indent="  ") for line in wins]
    shown = [section for section in sections if section.title not in WRITTEN_ONLY]
    parts = [f"{section.title}\n\n{section.table.text(tables.TERMINAL)}" for section in shown]
    if head:
        parts.insert(1, "Who wins where\n\n" + "\n".join(head) + "\n")
    notes = [*([remark] if remark else []), *sections[0].table.notes, "All columns are in table.md and report.html."]
    wrapped = [textwrap.fill(note, tables.TERMINAL, initial_indent="* ", subsequent_indent="  ") for note in notes]
    return "\n".join([*parts, *wrapped]) + "\n"


def _short(ranked: list[comparisons.Ranking]) -> list[tuple[str, comparisons.Ranking]]:
    short = tables.short_names(ranking.dataset for ranking in ranked)
    return [(short[ranking.dataset], ranking) for ranking in ranked]


def _markdown(sections: list[Section]) -> str:
    parts = []
    for section in sections:
        notes = "".join(f"- {note}\n" for note in section.table.notes)
        parts.append(f"## {section.title}\n\n{section.table.markdown()}" + (f"\n{notes}" if notes else ""))
    return "\n".join(parts)


def _html(
    loaded: Results,
    whole: Results,
    sections: list[Section],
    figures: list[Figure],
    ranked: list[comparisons.Ranking],
    panels: list[interactive.Panel],
    left_out: list[str],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    inlined = {
        name: Markup((HERE / path).read_text(encoding="utf-8"))  # our own files and a library's: no input
        for name, path in {
            "chart_css": "vendor/uPlot.min.css", "chart_js": "vendor/uPlot.iife.min.js", "script": "report.js"
        }.items()
    }  # fmt: skip
    frame = sections[0].table.frame
    return environment.get_template("report.html.j2").render(
        suite=loaded.meta["suite"],
        facts=_facts(loaded),
        remarks=[note for note in (_selection_note(loaded, whole), *left_out) if note],
        sections=sections,
        figures=figures,
        rankings=ranked,
        verdict_note=VERDICT_NOTE,
        panels=panels,
        curves=[panel.curves for panel in panels],
        methods=interactive.methods(loaded),
        labels=list(dict.fromkeys(frame["dataset"])),
        keys=interactive.row_keys(loaded, frame),
        **inlined,
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


def _says_returns(loaded: Results, known: dict[str, list[float]]) -> str:
    """The histograms in words: medians of the data and of each method."""
    rows = loaded.finished
    rows = rows[rows["final"] & (rows["variant"] == "")]
    parts = []
    for dataset, quantiles in known.items():
        medians = rows[rows["dataset"] == dataset].groupby("method", sort=False)["return"].median()
        words = [f"data {np.median(quantiles):.4g}", *(f"{method} {value:.4g}" for method, value in medians.items())]
        parts.append(f"Medians on {dataset}: {', '.join(words)}.")
    return " ".join(["Histograms of episode returns, of the data and of each method's last episodes.", *parts])


def _says_targets(loaded: Results, metric: str) -> str:
    """The targets in words: what each method achieved for the lowest and the highest."""
    rows, measure = plots.target_rows(loaded), tables.measures(loaded, metric)
    parts = []
    for (dataset, method), own in rows.groupby(["dataset", "method"], sort=False):
        means = own.groupby("asked")[measure[str(dataset)]].mean()
        parts.append(
            f"{method} on {dataset}: {means.iloc[0]:.3g} when asked for {means.index[0]:g}, {means.iloc[-1]:.3g} for "
            f"{means.index[-1]:g}."
        )
    return " ".join(["Achieved over asked return, a panel per dataset, a line per method.", *parts])
