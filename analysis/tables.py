"""Tables of last scores, extra policies, settings and missing cells, each with the notes it must be read with.

A `Table` keeps numbers (`frame`, for CSV and further work) apart from their printed form (`display`, for Markdown,
HTML and the terminal). A missing value prints as a dash; a cell that did not finish is counted in its row, never
dropped. Scores come from the evaluation after the last update: no function here looks for a better one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from hoard.analysis import stats
from hoard.analysis.results import Results

METRICS = ("score", "return", "success")
DASH = "–"


@dataclass(frozen=True)
class Table:
    """Numbers, the same as text, and the notes without which neither should be quoted."""

    frame: pd.DataFrame
    display: pd.DataFrame
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Each column's header and whether it holds words, which stand flush left, or numbers."""
        cells = {name: self.display[name].astype(str) for name in self.display.columns}
        return [(name, texts.str[:1].str.isalpha().any() or texts.eq(DASH).all()) for name, texts in cells.items()]

    @property
    def rows(self) -> list[list[str]]:
        return self.display.astype(str).to_numpy().tolist()

    def markdown(self) -> str:
        header, *rows = [[_escape(text) for text in row] for row in self._grid()]
        rule = [":--" if word else "--:" for _, word in self.columns]
        return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *rows])

    def csv(self) -> str:
        return self.frame.to_csv(index=False)

    def text(self, omit: tuple[str, ...] = ()) -> str:
        """Plain aligned columns for a terminal, which may be too narrow for all of them."""
        if omit:
            return replace(self, display=self.display.drop(columns=list(omit), errors="ignore")).text()
        grid = self._grid()
        widths = [max(len(row[column]) for row in grid) for column in range(len(grid[0]))]
        words = [word for _, word in self.columns]
        lines = (
            "  ".join(cell.ljust(w) if word else cell.rjust(w) for cell, w, word in zip(row, widths, words)).rstrip()
            for row in grid
        )
        return "\n".join(lines) + "\n"

    def _grid(self) -> list[list[str]]:
        """Header and rows on one line each: of a traceback its last line, which names the error."""
        lines = [[(text.strip() or DASH).splitlines()[-1] for text in row] for row in self.rows]
        return [list(self.display.columns), *lines]


def measures(results: Results, metric: str = "score") -> dict[str, str]:
    """What is compared on each dataset: what was asked for where it is defined, else the score, else the raw return."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    wanted = {"score": ["score"], "return": [], "success": ["success", "score"]}[metric]
    defined = {name: set(results.episodes.dropna(subset=[name])["dataset"]) for name in wanted}
    return {d: next((name for name in wanted if d in defined[name]), "return") for d in results.datasets}


def measured(episodes: pd.DataFrame) -> pd.DataFrame:
    """Episodes with `success` as a number that can be averaged: 0, 1, or NaN where none was reported."""
    return episodes.assign(success=episodes["success"].astype("Float64").to_numpy(float, na_value=np.nan))


def seed_values(results: Results, variant: str = "") -> pd.DataFrame:
    """One row per finished seed: means over the episodes of its last evaluation, and how many there were."""
    rows = measured(results.finished)
    rows = rows[rows["final"] & (rows["variant"] == variant)]
    groups = rows.groupby(["method", "dataset", "seed"], sort=False)
    means = group_means(groups[["return", "score", "success"]])
    return means.assign(episodes=groups.size()).reset_index()


def group_means(groups: Any) -> pd.DataFrame:
    """Means of a pandas groupby, NaN where any value is: pandas skips NaN, and a diverged episode would go unseen."""
    return groups.mean().where(groups.count().eq(groups.size(), axis=0))


def score_table(
    results: Results, metric: str = "score", *, level: float = stats.LEVEL, resamples: int = stats.RESAMPLES
) -> Table:
    """Last scores: a row per dataset and method, then a row per method over all datasets where that is defined."""
    measure, values = measures(results, metric), seed_values(results)
    planned = results.cells.groupby(["dataset", "method"])
    rows = []
    for dataset in results.datasets:
        for method in results.methods:
            if (dataset, method) in planned.groups:
                own = values[(values["dataset"] == dataset) & (values["method"] == method)]
                cells = planned.get_group((dataset, method))
                rows.append(
                    {"dataset": dataset, "method": method}
                    | _summary([own], measure[dataset], level, resamples)
                    | _run_facts(cells)
                )
    notes = _reading_notes(level, resamples)
    aggregates, reasons = _aggregate_rows(results, values, measure, metric, level, resamples)
    frame = pd.DataFrame(rows + aggregates).assign(level=level, resamples=resamples, ddof=1)
    return Table(frame, _display(frame), (*notes, *_measure_notes(measure, metric), *reasons, *_data_notes(results)))


def variant_table(
    results: Results, metric: str = "score", *, level: float = stats.LEVEL, resamples: int = stats.RESAMPLES
) -> Table | None:
    """Last scores of the extra policies of a run (say, other target returns), the headline policy first; or None."""
    finished = results.finished
    variants = finished.loc[finished["variant"] != "", ["dataset", "method", "variant"]].drop_duplicates()
    if variants.empty:
        return None
    measure = measures(results, metric)
    values_of = {variant: seed_values(results, variant) for variant in ["", *variants["variant"].unique()]}
    rows = []
    for (dataset, method), names in variants.groupby(["dataset", "method"], sort=False)["variant"]:
        for variant in ("", *names):
            values = values_of[variant]
            own = values[(values["dataset"] == dataset) & (values["method"] == method)]
            summary = _summary([own], measure[dataset], level, resamples)
            rows.append({"dataset": dataset, "method": method, "variant": variant or "(headline)"} | summary)
    frame = pd.DataFrame(rows).assign(level=level, resamples=resamples, ddof=1)
    note = "Other policies of the same finished runs at their last evaluation; none is chosen by its score."
    return Table(frame, _display(frame), (note, *_reading_notes(level, resamples)))


def settings_table(results: Results) -> Table:
    """Every difference from the algorithm file's defaults; one row per group of cells with the same differences."""
    cells = results.cells.assign(
        differences=[
            ", ".join(f"{name} = {_setting(value)}" for name, value in sorted((overrides or {}).items()))
            for overrides in results.cells["overrides"]
        ]
    )
    rows = []
    for (method, algo, differences), group in cells.groupby(["method", "algo", "differences"], sort=False):
        everywhere = set(group["dataset"]) == set(cells.loc[cells["method"] == method, "dataset"])
        rows.append(
            {
                "method": method,
                "algorithm file": f"{algo}.py",
                "datasets": "all" if everywhere else ", ".join(dict.fromkeys(group["dataset"])),
                "seeds": ", ".join(str(seed) for seed in sorted(set(group["seed"]))),
                "differences from defaults": differences or "none",
            }
        )
    frame = pd.DataFrame(rows).sort_values("method", key=lambda names: names.map(results.methods.index), kind="stable")
    return Table(frame, frame)


def missing_table(results: Results) -> Table:
    """The cells that count in no statistic, with their status and error."""
    frame = results.cells.loc[results.cells["status"] != "finished", ["dataset", "method", "seed", "status", "error"]]
    display = frame.astype({"seed": str}).assign(error=[error or DASH for error in frame["error"].fillna("")])
    return Table(frame, display)


def _summary(strata: list[pd.DataFrame], measure: str, level: float, resamples: int) -> dict[str, Any]:
    values = [own[measure].to_numpy() for own in strata]
    everything = pd.concat(strata)
    middle = stats.bootstrap_interval(values, level=level, resamples=resamples)
    mean = stats.mean_interval(values, level=level)
    single = len(strata) == 1  # a spread over seeds, or a raw return, has no meaning across datasets
    return {
        "measure": measure,
        "seeds": len(everything),
        "episodes_min": everything["episodes"].min() if len(everything) else 0,
        "episodes_max": everything["episodes"].max() if len(everything) else 0,
        "iqm": middle.point,
        "iqm_low": middle.low,
        "iqm_high": middle.high,
        "mean": mean.point,
        "std": stats.std(values[0]) if single else np.nan,
        "t_low": mean.low,
        "t_high": mean.high,
        "return": everything["return"].to_numpy().mean() if single and len(everything) else np.nan,
        "success": everything["success"].mean() if single and len(everything) else np.nan,
    }


def _run_facts(cells: pd.DataFrame) -> dict[str, Any]:
    finished = cells["status"] == "finished"
    return {
        "planned": len(cells),
        "missing": " ".join(str(seed) for seed in sorted(cells.loc[~finished, "seed"])),
        "wall_time": cells.loc[finished, "wall_time"].mean(),
    }


def _aggregate_rows(
    results: Results, values: pd.DataFrame, measure: dict[str, str], metric: str, level: float, resamples: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows over all datasets, and for each one left out the reason."""
    if len(results.datasets) < 2:
        return [], []
    if metric == "return":
        return [], ["No row over all datasets: raw returns of different tasks have no common scale."]
    raw = [dataset for dataset, name in measure.items() if name == "return"]
    if raw:
        return [], [f"No row over all datasets: no normalised score on {', '.join(raw)}."]
    common = "success" if set(measure.values()) == {"success"} else "score"
    rows, reasons = [], []
    for method in results.methods:
        own = values[values["method"] == method]
        strata = [own[own["dataset"] == dataset] for dataset in results.datasets]
        absent = [dataset for dataset, stratum in zip(results.datasets, strata) if stratum.empty]
        if absent:
            reasons.append(f"No row over all datasets for {method}: no finished run on {', '.join(absent)}.")
            continue
        cells = results.cells[results.cells["method"] == method]
        rows.append(
            {"dataset": f"all {len(strata)} datasets", "method": method}
            | _summary(strata, common, level, resamples)
            | _run_facts(cells)
            | {"missing": ""}  # seeds of different datasets are not the same seeds; the count is planned - seeds
        )
    return rows, reasons


def _reading_notes(level: float, resamples: int) -> list[str]:
    percent = f"{100 * level:g} %"
    notes = [
        "A seed's value is the mean over the episodes of the evaluation after its last update; no checkpoint is "
        "selected. n is the number of finished seeds, written n/planned where "
        "some are missing.",
        f"IQM: interquartile mean over seeds with its {percent} percentile-bootstrap interval ({resamples:,} resamples "
        "of seeds; over several datasets seeds are resampled within each, and every dataset weighs the same). "
        f"Mean ± standard deviation over seeds (ddof = 1), and the {percent} Student-t interval of the mean. "
        "One seed gives no interval.",
    ]
    if level == stats.LEVEL:
        notes.append(
            "The level of the intervals is nominal. On simulated Gaussian seeds the bootstrap interval of one dataset "
            f"held the truth in {_coverage(stats.COVERAGE)} of cases at {' / '.join(map(str, stats.COVERAGE))} seeds "
            f"(over nine datasets {_coverage(stats.AGGREGATE_COVERAGE)}), the Student-t interval of the mean in 95 % "
            "at each: with few seeds, read the latter."
        )
    return notes


def _coverage(table: dict[int, float]) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in table.values()) + " %"


def _measure_notes(measure: dict[str, str], metric: str) -> list[str]:
    if metric == "return":
        return ["The measure is the raw, undiscounted return."]
    if set(measure.values()) == {"success"}:
        return ["The measure is the share of episodes that succeeded, 0 to 1."]
    raw = [dataset for dataset, name in measure.items() if name == "return"]
    notes = []
    if len(raw) < len(measure):
        notes.append("Score: 100 · (return − low) / (high − low) with the dataset's reference returns.")
    if raw:
        notes.append(f"Raw return, not normalised (no reference scores, or no evaluation yet): {', '.join(raw)}.")
    return notes


def _data_notes(results: Results) -> list[str]:
    notes = []
    unfinished = int((results.cells["status"] != "finished").sum())
    if unfinished:
        notes.append(f"{unfinished} of {len(results.cells)} cells did not finish and count nowhere.")
    for dataset, hashes in results.cells.dropna(subset=["data_hash"]).groupby("dataset", sort=False)["data_hash"]:
        if hashes.nunique() > 1:
            notes.append(f"Warning: the runs on {dataset} read {hashes.nunique()} different contents of the dataset.")
    return notes


def _display(frame: pd.DataFrame) -> pd.DataFrame:
    percent = f"{100 * frame['level'].iloc[0]:g} %"
    decimals = [_decimals(row.measure, row.iqm) for row in frame.itertuples()]
    planned = frame["planned"] if "planned" in frame else frame["seeds"]
    columns = {name: frame[name] for name in ("dataset", "method", "variant", "measure") if name in frame}
    columns["n"] = [f"{n}" if n == total else f"{n}/{total}" for n, total in zip(frame["seeds"], planned)]
    if "missing" in frame and frame["missing"].any():
        columns["missing"] = [
            seeds.replace(" ", ", ") or (f"{lacking} in all" if lacking else DASH)
            for seeds, lacking in zip(frame["missing"], frame["planned"] - frame["seeds"])
        ]
    columns["episodes/seed"] = [
        DASH if not most else f"{most}" if least == most else f"{least}-{most}"
        for least, most in zip(frame["episodes_min"], frame["episodes_max"])
    ]
    columns[f"IQM [{percent} bootstrap]"] = _with_interval(frame, "iqm", "iqm_low", "iqm_high", decimals)
    columns["mean ± std"] = [
        f"{number(mean, places)} ± {number(spread, places)}" if not math.isnan(spread) else number(mean, places)
        for mean, spread, places in zip(frame["mean"], frame["std"], decimals)
    ]
    columns[f"mean [{percent} Student t]"] = _with_interval(frame, "mean", "t_low", "t_high", decimals)
    if (frame["measure"] == "score").any():
        columns["return"] = [number(value, _decimals("return", value)) for value in frame["return"]]
    if frame["success"].notna().any():
        columns["success"] = [DASH if math.isnan(rate) else f"{100 * rate:.0f} %" for rate in frame["success"]]
    if "wall_time" in frame:
        columns["time/run"] = [duration(seconds) for seconds in frame["wall_time"]]
    return pd.DataFrame({name: list(values) for name, values in columns.items()})


def _with_interval(frame: pd.DataFrame, point: str, low: str, high: str, decimals: list[int]) -> list[str]:
    return [
        number(a, n) if math.isnan(b) else f"{number(a, n)} [{number(b, n)}, {number(c, n)}]"
        for a, b, c, n in zip(frame[point], frame[low], frame[high], decimals)
    ]


def number(value: float, decimals: int) -> str:
    return DASH if math.isnan(value) else f"{value:.{decimals}f}"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: 42 s, 3.5 min, 1.2 h."""
    if math.isnan(seconds):
        return DASH
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _decimals(measure: str, value: float) -> int:
    """One decimal for scores; for returns, which may be 0.35 or 3500, about three significant digits."""
    if measure == "score" or math.isnan(value) or abs(value) >= 100:
        return 1
    return 2 if abs(value) >= 1 else 3


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
