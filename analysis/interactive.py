"""What the report's own page needs beside its tables: curves as numbers, runs with their commands, keys of rows."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from hoard.analysis import comparisons, plots, run_files, tables
from hoard.analysis.results import Results
from hoard.records.folder import PACKED

POINTS = 200  # of a curve: more than a screen can show apart
DASHES: dict[str, list[int]] = {"-": [], "--": [8, 4], ":": [2, 4], "-.": [8, 4, 2, 4]}


@dataclass(frozen=True)
class Panel:
    """The section of one dataset."""

    id: str
    dataset: str
    measure: str
    sentence: str
    alt: str
    curves: dict[str, Any] | None  # what the script draws
    runs: list[dict[str, Any]]
    pictures: list[run_files.Shown]


def methods(loaded: Results) -> list[dict[str, Any]]:
    """Name, colour and dash of each method, as everywhere else."""
    return [
        {"name": name, "color": look["color"], "dash": DASHES[look["linestyle"]]}
        for name, look in plots.method_styles(loaded).items()
    ]


def panels(
    loaded: Results,
    measure: dict[str, str],
    curves: dict[str, dict[str, pd.DataFrame]],
    rankings: list[comparisons.Ranking],
    made: dict[int, dict[str, Any]],
    shown: dict[int, list[run_files.Shown]],
) -> list[Panel]:
    """A panel for each dataset; `curves` are those of `plots.all_curves`, `made` and `shown` those of `run_files`."""
    sentences = {ranking.dataset: ranking.sentence for ranking in rankings}
    last = loaded.evaluations
    last = last[last["variant"] == ""].drop_duplicates(["method", "dataset", "seed"], keep="last")
    facts = {tuple(row[:3]): row[3:] for row in last[["method", "dataset", "seed", "update", "env_step", "return",
                                                      "score", "success"]].itertuples(index=False)}  # fmt: skip
    out = []
    for number, dataset in enumerate(loaded.datasets):
        own = loaded.cells[loaded.cells["dataset"] == dataset]
        drawn = _drawn(loaded, dataset, measure[dataset], curves.get(dataset, {}))
        runs = [
            _run(cell, facts, measure[dataset])
            | {"made": run_files.in_words(made.get(number, {})), "pictures": shown.get(number, [])}
            for number, cell in zip(own.index, own.to_dict("records"))
        ]
        seen: set[str] = set()
        for run in runs:
            run["id"] = "" if run["method"] in seen else anchor(loaded, dataset, run["method"])
            seen.add(run["method"])
        out.append(
            Panel(f"dataset-{number + 1}", dataset, measure[dataset], sentences.get(dataset, ""),
                  _alt(dataset, drawn), drawn, runs, [one for run in runs for one in run["pictures"]])
        )  # fmt: skip
    return out


def anchor(loaded: Results, dataset: str, method: str) -> str:
    """The id of the first run of a method on a dataset."""
    return f"runs-{loaded.datasets.index(dataset) + 1}-{loaded.methods.index(method) + 1}"


def row_keys(loaded: Results, frame: pd.DataFrame) -> list[dict[str, str]]:
    """Of each row of the leaderboard: dataset, method, and where its runs are listed."""
    known = set(loaded.datasets)
    return [
        {"dataset": dataset, "method": method, "link": anchor(loaded, dataset, method) if dataset in known else ""}
        for dataset, method in zip(frame["dataset"], frame["method"])
    ]


def command(cell: dict[str, Any]) -> str:
    """The command line of one cell, with its options; that it was one of several in a process is said behind it."""
    algo = PurePath(cell.get("file") or cell["algo"]).name
    words = ["hoard", "train", algo, "--dataset", str(cell["dataset"]), "--seed", str(cell["seed"])]
    overrides = dict(cell["overrides"] or {})
    packed = overrides.pop(PACKED, None)
    for name, value in sorted(overrides.items()):
        words.append(f"--{name.replace('_', '-')}")
        words += [_word(one) for one in value] if isinstance(value, list) else [_word(value)]
    return shlex.join(words) + (f"  # here among {packed} seeds: hoard bench --pack" if packed else "")


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _run(cell: dict[str, Any], facts: dict[Any, Any], measure: str) -> dict[str, Any]:
    found = facts.get((cell["method"], cell["dataset"], cell["seed"]))
    row = dict(zip(("update", "env_step", "return", "score", "success"), found)) if found is not None else {}
    decimals = {"score": 1, "success": 3}.get(measure, 2)
    status = str(cell["status"])
    return {
        "method": cell["method"],
        "seed": cell["seed"],
        "status": f"{status}: {str(cell['error']).strip().splitlines()[-1]}" if cell["error"] else status,
        "value": tables.number(row[measure], decimals) if row else tables.DASH,
        "updates": f"{row['update']:,}" if row else tables.DASH,
        "steps": f"{row['env_step']:,}" if row else tables.DASH,
        "time": tables.duration(cell["wall_time"]),
        "folder": cell["run"] or tables.DASH,
        "command": command(cell),
    }


def _drawn(loaded: Results, dataset: str, measure: str, curves: dict[str, pd.DataFrame]) -> dict[str, Any] | None:
    """The curves of a dataset as plain numbers; a method without environment steps is a level line among ones with."""
    clock, timed = plots.seconds_of(loaded, dataset, curves)
    lines, end = [], max((float(points.index[-1]) for points in curves.values() if len(points)), default=0.0)
    x = "env_step" if any(points.attrs["x"] == "env_step" for points in curves.values()) else "update"
    for look in methods(loaded):
        points = curves.get(look["name"])
        if points is None or points.empty:
            continue
        chosen = np.unique(np.linspace(0, len(points) - 1, min(POINTS, len(points))).astype(int))
        points = points.iloc[chosen]
        steps = points.index.to_numpy(float)
        seconds = timed[look["name"]][chosen] if look["name"] in timed else None
        level = x == "env_step" and not steps.any()
        own = {name: [_plain(value) for value in points[name]] for name in ("point", "low", "high")}
        if level:
            own = {name: [values[-1], values[-1]] for name, values in own.items()}
            steps = np.array([0.0, end])
            seconds = None if seconds is None else np.array([0.0, seconds[-1]])
        shown = None if seconds is None else [_plain(one) for one in seconds]
        lines.append(look | {"x": steps.tolist(), "seconds": shown} | own)
    if not lines:
        return None
    name = {"score": "normalised score", "success": "success rate"}.get(measure, "return")
    even = " (evaluations at even pace)" if clock == "time" else ""
    return {"axis": plots.AXES[x], "clock": plots.AXES[clock] + even, "measure": name, "methods": lines}


def _plain(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _alt(dataset: str, drawn: dict[str, Any] | None) -> str:
    """The curves in words: from where to where each method went."""
    if drawn is None:
        return ""
    words = [
        f"{one['name']} {one['point'][0]:.3g} to {one['point'][-1]:.3g}"
        for one in drawn["methods"]
        if one["point"][0] is not None and one["point"][-1] is not None
    ]
    return (
        f"Learning curves on {dataset}, {drawn['measure']} over {drawn['axis']}, IQM over seeds, first to last "
        f"evaluation: {', '.join(words)}."
    )
