"""Tables of last scores, extra policies, settings and missing cells, each with the notes it must be read with.

A `Table` keeps numbers (`frame`, for CSV and further work) apart from their printed form (`display`, for Markdown,
HTML and the terminal). A missing value prints as a dash; a cell that did not finish is counted in its row, never
dropped. Scores come from the evaluation after the last update: no function here looks for a better one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from hoard.analysis import stats
from hoard.analysis.results import Results
from hoard.records.names import METRICS

DASH = "–"
MOST_DECIMALS = 6


TERMINAL = 80  # columns of the narrowest terminal in use
NARROWEST = 9  # characters that a shortened name keeps at least
# What a narrow terminal does without, the first first. The written tables have everything.
SPARE = (
    "measure", "episodes/seed", "mean ± std", "return", "IQM", "success", "time/run", "missing", "diverged",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Numbers, the same as text, and the notes without which neither should be quoted."""

    frame: pd.DataFrame
    display: pd.DataFrame
    notes: tuple[str, ...] = ()
    spare: tuple[str, ...] = SPARE  # columns, by the beginning of their names, that `text` leaves out where it must

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def columns(self) -> list[tuple[str, bool]]:
        """Each column's header and whether it holds words, which stand flush left, or numbers."""
        cells = {name: self.display[name].astype(str) for name in self.display.columns}
        return [(name, texts.str[:1].str.isalpha().any() or texts.eq(DASH).all()) for name, texts in cells.items()]

    @cached_property
    def rows(self) -> list[list[str]]:
        return self.display.astype(str).to_numpy().tolist()

    def markdown(self) -> str:
        header, *rows = [[_escape(text) for text in row] for row in self._grid()]
        rule = [":--" if word else "--:" for _, word in self.columns]
        return "".join(f"| {' | '.join(row)} |\n" for row in [header, rule, *rows])

    def latex(self, caption: str, label: str) -> str:
        """A booktabs table; needs the packages booktabs and inputenc (or a Unicode engine)."""
        frame = pd.DataFrame(self._grid()[1:], columns=self.display.columns)
        frame.columns = frame.columns.map(_latex)
        columns = "".join("l" if word else "r" for _, word in self.columns)
        return frame.map(_latex).to_latex(index=False, caption=_latex(caption), label=label, column_format=columns)

    def csv(self) -> str:
        return self.frame.to_csv(index=False)

    def text(self, width: int | None = None) -> str:
        """Plain aligned columns for a terminal; with a `width`, short dataset names and as many columns as fit."""
        grid, words = self._grid(), [word for _, word in self.columns]
        if width is not None:
            grid, words = self._fitted(grid, words, width)
        widths = _widths(grid)
        lines = (
            "  ".join(cell.ljust(w) if word else cell.rjust(w) for cell, w, word in zip(row, widths, words)).rstrip()
            for row in grid
        )
        return "\n".join(lines) + "\n"

    def _fitted(self, grid: list[list[str]], words: list[bool], width: int) -> tuple[list[list[str]], list[bool]]:
        if "dataset" in grid[0]:
            place = grid[0].index("dataset")
            short = short_names(row[place] for row in grid[1:])
            grid = [[short.get(cell, cell) if n == place else cell for n, cell in enumerate(row)] for row in grid]
        for spare in self.spare:
            if _total(grid) <= width:
                break
            kept = [n for n, name in enumerate(grid[0]) if not name.startswith(spare)]
            grid, words = [[row[n] for n in kept] for row in grid], [words[n] for n in kept]
        while (excess := _total(grid) - width) > 0:  # then shorten words, the longest first
            lengths = [length if word else 0 for length, word in zip(_widths(grid), words)]
            place = lengths.index(max(lengths))
            if lengths[place] <= NARROWEST:
                break
            most = max(lengths[place] - excess, NARROWEST, sorted(lengths)[-2] if len(lengths) > 1 else 0)
            most = most if most < lengths[place] else lengths[place] - 1
            grid = [grid[0]] + [
                [_shorten(cell, most) if n == place else cell for n, cell in enumerate(row)] for row in grid[1:]
            ]
            if max(len(row[place]) for row in grid) >= lengths[place]:
                break  # the header itself is the longest
        return grid, words

    def _grid(self) -> list[list[str]]:
        """Header and rows on one line each: of a traceback its last line, which names the error."""
        lines = [[(text.strip() or DASH).splitlines()[-1] for text in row] for row in self.rows]
        return [list(self.display.columns), *lines]


def short_names(datasets: Iterable[str]) -> dict[str, str]:
    """Dataset ids without source and version where they stay distinct: `hoard/maze2d/umaze-v0` -> `maze2d/umaze`."""
    ids = list(dict.fromkeys(datasets))
    short = {one: re.sub(r"-v\d+$", "", re.sub(r"^(hoard/|D4RL/|d4rl:)", "", one)) for one in ids}
    names = list(short.values())
    return {one: name if names.count(name) == 1 else one for one, name in short.items()}


def _widths(grid: list[list[str]]) -> list[int]:
    return [max(len(row[column]) for row in grid) for column in range(len(grid[0]))]


def _total(grid: list[list[str]]) -> int:
    return sum(_widths(grid)) + 2 * (len(grid[0]) - 1)


def _shorten(text: str, most: int) -> str:
    """Names keep their two ends, sentences their beginning."""
    if len(text) <= most:
        return text
    if " " in text:
        return text[: most - 1].rstrip() + "…"
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def measures(results: Results, metric: str = "score") -> dict[str, str]:
    """What is compared on each dataset: what was asked for where it is defined, else the score, else the raw return."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    wanted = {"score": ["score"], "return": [], "success": ["success", "score"]}[metric]
    return {d: next((name for name in wanted if d in results.measured[name]), "return") for d in results.datasets}


def seed_values(results: Results, variant: str = "") -> pd.DataFrame:
    """One row per seed that counts: means over the episodes of its last evaluation, and how many there were.

    A seed that diverged counts with `floors`, without episodes: it is marked in `diverged`. One that crashed or was
    stopped tells nothing about its method and has no row.
    """
    rows = results.evaluations
    rows = rows[(rows["status"] == "finished") & rows["final"] & (rows["variant"] == variant)]
    values = rows[["method", "dataset", "seed", "return", "score", "success", "episodes"]].assign(diverged=False)
    lost = results.cells.loc[results.cells["diverged"], ["method", "dataset", "seed"]]
    if variant:  # only of methods that have this policy
        lost = lost.merge(values[["method", "dataset"]].drop_duplicates())
    if len(lost):
        floor = floors(results)
        lost = lost.merge(floor, left_on="dataset", right_index=True).dropna(subset=["return"])
        values = pd.concat([values, lost.assign(episodes=0, diverged=True)])
    return values.reset_index(drop=True)


def floors(results: Results) -> pd.DataFrame:
    """What a diverged seed counts with, by dataset: the lowest evaluation seen there, and no more than a random policy.

    Its policy gives no action that the environment takes, so it has no value of its own. Leaving it out would reward
    methods that diverge.
    """
    rows = results.evaluations
    lowest = rows[rows["variant"] == ""].groupby("dataset")[["return", "score", "success"]].min()
    return lowest.assign(score=lowest["score"].clip(upper=0.0), success=lowest["success"].clip(upper=0.0))


def score_table(
    results: Results, metric: str = "score", *, level: float = stats.LEVEL, resamples: int = stats.RESAMPLES
) -> Table:
    """Last scores: a row per dataset and method, then a row per method over all datasets where that is defined."""
    measure, values = measures(results, metric), seed_values(results)
    planned = dict(iter(results.cells.groupby(["dataset", "method"], sort=False)))
    found, nothing = dict(iter(values.groupby(["dataset", "method"], sort=False))), values.iloc[:0]
    rows = []
    for dataset in results.datasets:
        for method in results.methods:
            if (dataset, method) in planned:
                own = found.get((dataset, method), nothing)
                cells = planned[dataset, method]
                rows.append(
                    {"dataset": dataset, "method": method}
                    | _summary([own], measure[dataset], level, resamples)
                    | _run_facts(cells)
                )
    notes = _reading_notes(level, resamples)
    aggregates, reasons = _aggregate_rows(results, values, measure, metric, level, resamples)
    frame = settled(pd.DataFrame(rows + aggregates)).assign(level=level, resamples=resamples, ddof=1)
    notes += [*_rate_notes(frame, level), *_measure_notes(measure, metric), *reasons, *_data_notes(results)]
    return Table(frame, _display(frame), tuple(notes))


def variant_table(
    results: Results, metric: str = "score", *, level: float = stats.LEVEL, resamples: int = stats.RESAMPLES
) -> Table | None:
    """Last scores of the extra policies of a run (say, other target returns), the headline policy first; or None."""
    rows = results.evaluations
    extra = (rows["status"] == "finished") & (rows["variant"] != "")
    variants = rows.loc[extra, ["dataset", "method", "variant"]].drop_duplicates()
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
    frame = settled(pd.DataFrame(rows)).assign(level=level, resamples=resamples, ddof=1)
    note = "Other policies of the same finished runs at their last evaluation; none is chosen by its score."
    return Table(frame, _display(frame), (note, *_reading_notes(level, resamples)))


def settings_table(results: Results) -> Table:
    """Every difference from the algorithm file's defaults; one row per group of cells with the same differences."""
    cells = results.cells.assign(differences=[setting_text(overrides) for overrides in results.cells["overrides"]])
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
    """The cells that did not finish, with their status and error."""
    frame = results.cells.loc[results.cells["status"] != "finished", ["dataset", "method", "seed", "status", "error"]]
    display = frame.astype({"seed": str}).assign(error=[error or DASH for error in frame["error"].fillna("")])
    return Table(frame, display)


def _summary(strata: list[pd.DataFrame], measure: str, level: float, resamples: int) -> dict[str, Any]:
    values = [own[measure].to_numpy() for own in strata]
    everything = pd.concat(strata)
    evaluated = everything[~everything["diverged"]]
    middle = stats.bootstrap_interval(values, level=level, resamples=resamples)
    mean = stats.mean_of(values, measure, everything["episodes"].sum(), level=level)
    single = len(strata) == 1  # a spread over seeds, or a raw return, has no meaning across datasets
    return {
        "measure": measure,
        "seeds": len(evaluated),
        "diverged": len(everything) - len(evaluated),
        "episodes_min": evaluated["episodes"].min() if len(evaluated) else 0,
        "episodes_max": evaluated["episodes"].max() if len(evaluated) else 0,
        "iqm": middle.point,
        "iqm_low": middle.low,
        "iqm_high": middle.high,
        "mean": mean.point,
        "std": stats.std(values[0]) if single else np.nan,
        "interval": "Wilson" if measure == "success" else "Student t",
        "mean_low": mean.low,
        "mean_high": mean.high,
        "return": everything["return"].to_numpy().mean() if single and len(everything) else np.nan,
        "success": everything["success"].mean() if single and len(everything) else np.nan,
    }


def _run_facts(cells: pd.DataFrame) -> dict[str, Any]:
    finished = cells["status"] == "finished"
    lacking = cells.loc[~finished & ~cells["diverged"], "seed"]
    return {
        "planned": len(cells),
        "missing": " ".join(str(seed) for seed in sorted(lacking)),
        "wall_time": cells.loc[finished, "wall_time"].mean(),
    }


def _aggregate_rows(
    results: Results, values: pd.DataFrame, measure: dict[str, str], metric: str, level: float, resamples: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows over all datasets, and why there is none for the other methods."""
    if len(results.datasets) < 2:
        return [], []
    if metric == "return":
        return [], ["No row over all datasets: raw returns of different tasks have no common scale."]
    raw = [dataset for dataset, name in measure.items() if name == "return"]
    if raw:
        return [], [f"No row over all datasets: no normalised score on {', '.join(raw)}."]
    common = "success" if set(measure.values()) == {"success"} else "score"
    rows, lacking = [], {}
    for method in results.methods:
        own = values[values["method"] == method]
        strata = [own[own["dataset"] == dataset] for dataset in results.datasets]
        absent = [dataset for dataset, stratum in zip(results.datasets, strata) if stratum.empty]
        if absent:
            lacking[method] = absent
            continue
        cells = results.cells[results.cells["method"] == method]
        rows.append(
            {"dataset": f"all {len(strata)} datasets", "method": method}
            | _summary(strata, common, level, resamples)
            | _run_facts(cells)
            | {"missing": ""}  # seeds of different datasets are not the same seeds; the count is planned - seeds
        )
    if not lacking:
        return rows, []
    if len(lacking) == 1:
        ((method, absent),) = lacking.items()
        return rows, [f"No row over all datasets for {method}: no finished run on {', '.join(absent)}."]
    return rows, [f"No row over all datasets for {', '.join(lacking)}: each has datasets without a finished run."]


def _reading_notes(level: float, resamples: int) -> list[str]:
    percent = f"{100 * level:g} %"
    notes = [
        "A seed's value is the mean over the episodes of the evaluation after its last update; no checkpoint is "
        "selected. n is the number of finished seeds, written n/planned where "
        "some are missing, over all datasets too.",
        f"IQM: interquartile mean over seeds with its {percent} percentile-bootstrap interval ({resamples:,} resamples "
        "of seeds; over several datasets seeds are resampled within each, and every dataset weighs the same). "
        f"Mean ± standard deviation over seeds (ddof = 1), and the {percent} Student-t interval of the mean. "
        "One seed gives no interval, nor do seeds that are all equal.",
    ]
    if level == stats.LEVEL:
        notes.append(
            "The level of the intervals is nominal. On simulated Gaussian seeds the bootstrap interval of one dataset "
            f"held the truth in {_coverage(stats.COVERAGE)} of cases at {' / '.join(map(str, stats.COVERAGE))} seeds "
            f"(over nine datasets {_coverage(stats.AGGREGATE_COVERAGE)}), the Student-t interval of the mean in 95 % "
            "at each: with few seeds, read the latter."
        )
    return notes


def _rate_notes(frame: pd.DataFrame, level: float) -> list[str]:
    if not (frame["interval"] == "Wilson").any():
        return []
    return [
        f"Success rates have a {100 * level:g} % Wilson interval instead, with as many trials as the spread over seeds "
        "allows. Where all seeds have the same rate, their spread is unknown and each counts as one trial: "
        f"three seeds that always succeed give [{(1 - level) ** (1 / 3):.2f}, 1], a one-sided bound."
    ]


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
    notes, cells = [], results.cells
    diverged = int(cells["diverged"].sum())
    lost = int((cells["status"] != "finished").sum()) - diverged
    if lost:
        notes.append(f"{lost} of {len(cells)} cells did not finish (crashed, stopped or not run) and count nowhere.")
    if diverged:
        notes.append(
            f"{diverged} of {len(cells)} cells diverged (nan or inf). Each counts with the lowest evaluation that any "
            "run here had on its dataset, at most a score of 0 or a success of 0: a convention, so read the row as "
            "what the method gives when a diverged seed is worthless. n counts finished seeds only."
        )
    for dataset, hashes in cells.dropna(subset=["data_hash"]).groupby("dataset", sort=False)["data_hash"]:
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
            for seeds, lacking in zip(frame["missing"], frame["planned"] - frame["seeds"] - frame["diverged"])
        ]
    if frame["diverged"].any():
        columns["diverged"] = [f"{count}" if count else DASH for count in frame["diverged"]]
    columns["episodes/seed"] = [
        DASH if not most else f"{most}" if least == most else f"{least}-{most}"
        for least, most in zip(frame["episodes_min"], frame["episodes_max"])
    ]
    columns[f"IQM [{percent} bootstrap]"] = _with_interval(frame, "iqm", "iqm_low", "iqm_high", decimals)
    columns["mean ± std"] = [
        f"{number(mean, places)} ± {number(spread, places)}" if not math.isnan(spread) else number(mean, places)
        for mean, spread, places in zip(frame["mean"], frame["std"], decimals)
    ]
    kinds = " or ".join(dict.fromkeys(frame["interval"]))
    columns[f"mean [{percent} {kinds}]"] = _with_interval(frame, "mean", "mean_low", "mean_high", decimals)
    if (frame["measure"] == "score").any():
        columns["return"] = [number(value, _decimals("return", value)) for value in frame["return"]]
    if frame["success"].notna().any():
        columns["success"] = [DASH if math.isnan(rate) else f"{100 * rate:.0f} %" for rate in frame["success"]]
    if "wall_time" in frame:
        columns["time/run"] = [duration(seconds) for seconds in frame["wall_time"]]
    return pd.DataFrame({name: list(values) for name, values in columns.items()})


def _with_interval(frame: pd.DataFrame, point: str, low: str, high: str, decimals: list[int]) -> list[str]:
    return [interval(a, b, c, n) for a, b, c, n in zip(frame[point], frame[low], frame[high], decimals)]


def interval(point: float, low: float, high: float, decimals: int) -> str:
    """`98.3 [97.2, 99.3]`; more decimals where the ends would look equal, since `1.00 [1.00, 1.00]` misleads."""
    if math.isnan(low):
        return number(point, decimals)
    while number(low, decimals) == number(high, decimals) and decimals < MOST_DECIMALS:
        decimals += 1
    return f"{number(point, decimals)} [{number(low, decimals)}, {number(high, decimals)}]"


def settled(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with twelve digits of each float. The last ones depend on the processor, and with them how 0.9965 is
    rounded; without them a table has the same bytes everywhere."""
    floats = frame.select_dtypes("float").columns
    return frame.assign(**{name: [float(f"{value:.12g}") for value in frame[name]] for name in floats})


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
    """One decimal for scores, three for rates; for returns, 0.35 or 3500 alike, about three significant digits."""
    if measure == "success":
        return 3
    if measure == "score" or math.isnan(value) or abs(value) >= 100:
        return 1
    return 2 if abs(value) >= 1 else 3


def setting_text(overrides: dict[str, Any] | None) -> str:
    """The options in which a run differs from its algorithm file's defaults, as text: `beta = 10.0, lr = 0.001`."""
    return ", ".join(f"{name} = {_setting(value)}" for name, value in sorted((overrides or {}).items()))


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    return "".join(special.get(one, f"\\{one}" if one in "&%$#_{}" else one) for one in text)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
