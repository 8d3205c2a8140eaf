"""Figures: learning curves, last scores, performance profiles, probability of improvement, tuning budgets.

Figures are plain `matplotlib.figure.Figure` objects: importing this module chooses no backend and opens no window.
An algorithm has the same colour in every figure of every suite. Methods differ in marker and line style as well, which
follow their place in `cells.json`, so that nobody has to tell them apart by colour.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from hoard.analysis import aggregate, online, stats, tables
from hoard.analysis.results import Results

DPI = 130
WIDTH = 10.0  # inches; text stays readable when a README scales the image to its column
BAND_RESAMPLES = stats.MIN_RESAMPLES  # a curve has hundreds of points, each of which is an interval
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "*", "h", "p", "d", "8", "H")
TARGET = r"target=-?\d+(\.\d+)?"  # variants of a return-conditioned policy
MARKED = 8  # markers along a curve
# seaborn's "colorblind" palette, with violet and dark red for its yellow and light pink, which are too light for lines.
PALETTE = (
    "#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#8b1a1a", "#949494", "#5d3a9b", "#56b4e9",
)  # fmt: skip
# Algorithms by place in the palette; where a suite compares two of one colour, marker and line style tell them apart.
# Other algorithms get their place by their name.
COLORS = {
    "iql": 0, "bc": 1, "rcsl": 2, "mbrcsl": 3, "decision_transformer": 4, "decision_mamba": 5, "sac": 6, "rlpd": 7,
    "moorl": 8, "drbc": 9, "drbc_tabular": 9, "hnpg": 4, "trpo": 5, "ucbvi": 7, "td3_bc": 6, "cql": 9, "cal_ql": 2,
    "awac": 3, "edac": 4, "fql": 5, "rebrac": 8, "prdc": 7, "odice": 7,
}  # fmt: skip
AXES = {
    "env_step": "environment steps",
    "update": "gradient updates",
    "time": "seconds of the run",
    "training": "seconds of training",
}
INK, FAINT = "#222222", "#8a8a8a"


def curves(
    results: Results,
    metric: str = "score",
    *,
    resamples: int = BAND_RESAMPLES,
    computed: dict[str, dict[str, pd.DataFrame]] | None = None,
    over: str = "steps",
) -> Figure:
    """Learning curves: one panel per dataset, IQM over seeds with its bootstrap band; `computed` by `all_curves`.

    `over` "steps" takes environment steps where any were taken, else gradient updates; "time" the seconds of training
    until an evaluation, mean over seeds. On a dataset where a run has not recorded these, they are the seconds of the
    runs, as if evaluations had come at an even pace. Raises ValueError on anything else.
    """
    if over not in ("steps", "time"):
        raise ValueError(f"curves over {over!r}: choose steps or time")
    measure, styles = tables.measures(results, metric), method_styles(results)
    computed = all_curves(results, metric, resamples=resamples) if computed is None else computed
    if over == "time":
        computed = _over_time(results, computed)
    with style():
        figure, panels = _grid(len(results.datasets), height=2.9)
        for axes, dataset in zip(panels, results.datasets):
            own = computed[dataset]
            x = next((points.attrs["x"] for points in own.values()), "update")
            for method in results.methods:
                if method in own:
                    _curve(axes, own[method], x, styles[method])
            _reference_lines(axes, measure[dataset], horizontal=True)
            axes.set_title(textwrap.fill(dataset, 40))
            axes.set_xlabel(AXES[x])
            axes.set_ylabel(label(measure[dataset]))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.xaxis.set_major_locator(MaxNLocator(5))
            if not own:
                _remark(axes, "no finished run", 0.5)
        handles = [
            Line2D([], [], **styles[method], linewidth=2, markersize=5, label=method) for method in results.methods
        ]
        rows = math.ceil(len(handles) / (6 if len(results.datasets) > 1 else 3))  # one panel is a narrow figure
        figure.legend(handles=handles, loc="outside upper center", ncols=math.ceil(len(handles) / rows), frameon=False)
        caption = (
            f"line: IQM over finished seeds; band: {100 * stats.LEVEL:g} % bootstrap interval ({resamples:,} resamples)"
            "; between evaluations a seed keeps the value of its latest one"
        )
        if results.cells["diverged"].any():
            caption += f"; diverged seeds are not drawn: {int(results.cells['diverged'].sum())} in all"
        _caption(figure, caption)
    return figure


def comparison(
    results: Results,
    metric: str = "score",
    table: tables.Table | None = None,
    values: pd.DataFrame | None = None,
) -> Figure:
    """Last scores: IQM and interval per dataset and method, every seed as a dot, then all datasets together."""
    frame = (table or tables.score_table(results, metric)).frame
    values = tables.seed_values(results) if values is None else values
    styles = method_styles(results)
    labels = list(dict.fromkeys(frame["dataset"]))  # the datasets, then the aggregate where there is one
    with style():
        figure, panels = _grid(len(labels), height=0.9 + 0.3 * len(results.methods))
        for axes, title in zip(panels, labels):
            own = frame[frame["dataset"] == title].set_index("method")
            measure = own["measure"].iloc[0]
            _reference_lines(axes, measure, horizontal=False)
            for place, method in enumerate(results.methods):
                if method not in own.index:
                    continue
                row, color = own.loc[method], styles[method]["color"]
                seeds = values[(values["dataset"] == title) & (values["method"] == method)]
                lost, seeds = seeds.loc[seeds["diverged"], measure], seeds.loc[~seeds["diverged"], measure]
                axes.plot(seeds, np.full(len(seeds), place + 0.13), "o", color=color, alpha=0.45, ms=3.5, mew=0)
                axes.plot(lost, np.full(len(lost), place + 0.13), "x", color=color, ms=5, mew=1.2)
                axes.plot([row["iqm_low"], row["iqm_high"]], [place - 0.13] * 2, color=color, lw=2.4)
                axes.plot(row["iqm"], place - 0.13, "D", color=color, ms=5.5, mec="white", mew=0.7)
                if not row["seeds"] + row["diverged"]:
                    _remark(axes, "no finished run", 1 - (place + 0.6) / len(results.methods))
                elif row["seeds"] < row["planned"]:
                    right = np.nanmax([row["iqm_high"], row["iqm"], *seeds, *lost])
                    text = f"{row['seeds']}/{row['planned']}"
                    look: dict[str, Any] = {"color": FAINT, "fontsize": 8, "va": "center"}
                    axes.annotate(text, (right, place), xytext=(7, 0), textcoords="offset points", **look)
            spec = axes.get_subplotspec()
            named = spec is None or spec.is_first_col()  # the panels of a row share their rows' names
            axes.set_yticks(range(len(results.methods)), results.methods if named else [])
            axes.set_ylim(len(results.methods) - 0.4, -0.6)
            axes.grid(visible=False, axis="y")
            axes.set_title(title, fontweight="bold" if title not in results.datasets else "normal")
            axes.set_xlabel(label(measure))
            axes.xaxis.set_major_locator(MaxNLocator(5))
        level, resamples = 100 * frame["level"].iloc[0], frame["resamples"].iloc[0]
        _caption(
            figure,
            f"diamond and bar: IQM over seeds with its {level:g} % bootstrap interval ({resamples:,} resamples); "
            "dots: seeds"
            + ("; crosses: diverged seeds, at what they count with" if frame["diverged"].any() else "")
            + ("; m/n: m of n seeds finished" if (frame["seeds"] < frame["planned"]).any() else ""),
        )
    return figure


def profiles(results: Results, strata: Mapping[str, Sequence[np.ndarray]], measure: str) -> Figure:
    """Performance profiles: the share of seeds above each score, a line per method with its pointwise band.

    `strata`: the seeds of each method on each dataset, all in `measure` ("score" or "success").
    """
    styles = method_styles(results)
    every = np.concatenate([values for own in strata.values() for values in own])
    every = every[np.isfinite(every)]
    low, high = (0.0, 1.0) if measure == "success" else (min(0.0, np.quantile(every, 0.01)), max(every.max(), 1e-9))
    thresholds = np.linspace(low, high, 201)
    with style():
        figure = Figure(figsize=(0.65 * WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        for number, (method, own) in enumerate(strata.items()):
            found = aggregate.profile(own, thresholds, seed=number)
            look = styles[method]
            axes.plot(thresholds, found["point"], **look, markevery=(7 * number % 25, 25), markersize=4, linewidth=1.8,
                      label=method)  # fmt: skip
            axes.fill_between(thresholds, found["low"], found["high"], color=look["color"], alpha=0.15, linewidth=0)
        axes.set_xlabel(f"{label(measure)} τ")
        axes.set_ylabel("share of seeds above τ")
        axes.set_ylim(-0.02, 1.02)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        _caption(figure, f"every dataset weighs the same; bands: {100 * stats.LEVEL:g} % bootstrap interval at each τ")
    return figure


def improvement(results: Results, matrix: pd.DataFrame) -> Figure:
    """The matrix of `aggregate.improvement_matrix`: the probability that a seed of the row beats one of the column."""
    names = [method for method in results.methods if method in set(matrix["x"])]
    wide = matrix.pivot(index="x", columns="y", values="point").reindex(index=names, columns=names)
    clear = matrix[(matrix["low"] > 0.5) | (matrix["high"] < 0.5)]
    certain = set(zip(clear["x"], clear["y"]))
    text = [
        [
            "" if math.isnan(value) else f"{value:.2f}{'*' if (x, y) in certain else ''}"
            for y, value in zip(names, wide.loc[x])
        ]
        for x in names
    ]
    with style():
        side = 0.62 * len(names)
        figure = Figure(figsize=(side + 2.6, 0.8 * side + 1.6), layout="constrained")
        axes = figure.subplots()
        seaborn.heatmap(
            wide, ax=axes, vmin=0, vmax=1, center=0.5, cmap="vlag_r", annot=np.array(text), fmt="", linewidths=1,
            annot_kws={"fontsize": 9}, cbar_kws={"label": "P(row beats column)"},
        )  # fmt: skip
        axes.set(xlabel="", ylabel="")
        axes.grid(visible=False)
        axes.tick_params(axis="x", rotation=40)
        axes.tick_params(axis="y", rotation=0)
        level = f"{100 * stats.LEVEL:g} %"
        _caption(
            figure,
            f"mean over datasets, ties as half; *: {level} interval without 0.5 (none where all resamples agree)",
        )
    return figure


def budget(curves: dict[str, pd.DataFrame], styles: dict[str, dict[str, Any]], title: str, y: str, x: str) -> Figure:
    """Score against tuning budget: the curves of `tuning`, a line for each algorithm with its interval."""
    with style():
        figure = Figure(figsize=(0.65 * WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for name, points in curves.items():
            look = styles[name]
            every = max(1, len(points) // MARKED)
            axes.plot(points.index, points["point"], **look, markevery=every, markersize=4, linewidth=1.8, label=name)
            axes.fill_between(points.index, points["low"], points["high"], color=look["color"], alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.legend(frameon=False)
    return figure


def history(trials: pd.DataFrame, color: str, y: str = "objective") -> Figure:
    """The trials of a study in their order, the best so far as a line, and those without a value as marks below.

    `trials`: columns trial, ended (complete, pruned, diverged or failed) and value.
    """
    complete = trials[(trials["ended"] == "complete") & np.isfinite(trials["value"])]
    with style():
        figure = Figure(figsize=(0.65 * WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.scatter(complete["trial"], complete["value"], color=color, s=22, zorder=3, label="trial")
        best = complete["value"].cummax()
        axes.step(complete["trial"], best, where="post", color=color, linewidth=1.8, label="best so far")
        for place, (ended, own) in enumerate(trials[~trials.index.isin(complete.index)].groupby("ended")):
            height = np.full(len(own), 0.02)
            axes.scatter(
                own["trial"], height, marker=("x", "v", "+")[place % 3], color="0.35", s=26, label=str(ended),
                transform=axes.get_xaxis_transform(), zorder=3,
            )  # fmt: skip
        axes.set(xlabel="trial", ylabel=y, xlim=(-1, trials["trial"].max() + 1))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.legend(frameon=False, ncols=2)
    return figure


def _over_time(results: Results, computed: dict[str, dict[str, pd.DataFrame]]) -> dict[str, dict[str, pd.DataFrame]]:
    """The same curves over seconds, those of `seconds_of`."""
    out: dict[str, dict[str, pd.DataFrame]] = {}
    for dataset, own in computed.items():
        x, seconds = seconds_of(results, dataset, own)
        out[dataset] = {}
        for method, points in own.items():
            if method in seconds:
                timed = points.set_axis(seconds[method])
                timed.attrs["x"] = x
                out[dataset][method] = timed
    return out


def seconds_of(results: Results, dataset: str, curves: Mapping[str, pd.DataFrame]) -> tuple[str, dict[str, np.ndarray]]:
    """The seconds at the points of each method's curve, and which of `AXES` they are.

    "training" where every run has recorded them: the mean over seeds. Else "time", a method's points at the pace of its
    finished runs' mean wall time; a curve without a pace, all of it at step 0, is left out.
    """
    curves = {method: points for method, points in curves.items() if len(points)}
    rows = results.evaluations
    rows = rows[(rows["dataset"] == dataset) & (rows["status"] == "finished") & (rows["variant"] == "")]
    if len(rows) and rows["training_time"].notna().all():
        found = {}
        for method, points in curves.items():
            own = [
                online.by_step(one, points.attrs["x"], "training_time")
                for _, one in rows[rows["method"] == method].groupby("seed")
            ]
            steps = points.index.to_numpy(float)
            found[method] = np.mean([np.interp(steps, one.index, one.to_numpy()) for one in own], axis=0)
        return "training", found
    finished = results.cells[(results.cells["status"] == "finished") & (results.cells["dataset"] == dataset)]
    wall = finished.groupby("method")["wall_time"].mean()
    return "time", {
        method: points.index.to_numpy(float) * wall[method] / float(points.index[-1])
        for method, points in curves.items()
        if points.index[-1] and math.isfinite(wall.get(method, math.nan))
    }


def returns(results: Results, metric: str = "score") -> Figure:
    """Every episode of the last evaluations, a row per method: what a mean hides, such as all or nothing."""
    measure, styles = tables.measures(results, metric), method_styles(results)
    rows = results.finished
    rows = rows[rows["final"] & (rows["variant"] == "")]
    with style():
        figure, panels = _grid(len(results.datasets), height=0.9 + 0.34 * len(results.methods))
        for axes, dataset in zip(panels, results.datasets):
            own = rows[rows["dataset"] == dataset]
            rng = np.random.default_rng(0)
            for place, method in enumerate(results.methods):
                values = own.loc[own["method"] == method, measure[dataset]].to_numpy(float)
                heights = place + rng.uniform(-0.3, 0.3, len(values))
                axes.plot(values, heights, "o", color=styles[method]["color"], alpha=0.35, ms=2.4, mew=0)
            spec = axes.get_subplotspec()
            named = spec is None or spec.is_first_col()
            axes.set_yticks(range(len(results.methods)), results.methods if named else [])
            axes.set_ylim(len(results.methods) - 0.4, -0.6)
            axes.set(title=dataset, xlabel=label(measure[dataset]))
        _caption(figure, "a dot per episode of the last evaluation, all finished seeds together")
    return figure


def return_histograms(results: Results, data: Mapping[str, Sequence[float]]) -> Figure | None:
    """Returns of a dataset's episodes and, as outlines, of each method's last evaluations; None without any `data`.

    `data` has quantiles of the returns of each dataset that is drawn. Every histogram sums to 1.
    """
    rows, styles = results.finished, method_styles(results)
    rows = rows[rows["final"] & (rows["variant"] == "") & np.isfinite(rows["return"])]
    datasets = [
        dataset for dataset in results.datasets if len(data.get(dataset, ())) and dataset in set(rows["dataset"])
    ]
    if not datasets:
        return None
    with style():
        figure, panels = _grid(len(datasets), height=2.7)
        for axes, dataset in zip(panels, datasets):
            own = rows[rows["dataset"] == dataset]
            known = np.asarray(data[dataset], float)
            every = np.concatenate([known, own["return"]])
            bins = np.histogram_bin_edges(every, 24)
            look: dict[str, Any] = {"ax": axes, "bins": bins, "stat": "proportion"}
            seaborn.histplot(x=known, **look, color="#b9b9b9", edgecolor="white", linewidth=0.4)
            for method in results.methods:
                values = own.loc[own["method"] == method, "return"]
                if len(values):
                    line = {"color": styles[method]["color"], "linestyle": styles[method]["linestyle"]}
                    seaborn.histplot(x=values, **look, **line, element="step", fill=False, linewidth=1.7)
            axes.set(title=dataset, xlabel="return", ylabel="share of episodes")
            axes.xaxis.set_major_locator(MaxNLocator(5))
        handles: list[Any] = [Patch(facecolor="#b9b9b9", label="data")]
        handles += [
            Line2D([], [], color=styles[method]["color"], linestyle=styles[method]["linestyle"], lw=1.8, label=method)
            for method in results.methods
        ]
        columns = min(len(handles), 6 if len(datasets) > 1 else 3)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)
        _caption(figure, "grey: the data's episodes; outlines: all episodes of the last evaluations of finished seeds")
    return figure


def targets(results: Results, metric: str = "score") -> Figure | None:
    """Asked against achieved return of return-conditioned methods: their variants that name a target; None without any.

    Variants are named `target=FRACTION`, the fraction of its largest return that the algorithm file asks for. Mean over
    seeds, with every seed as a dot.
    """
    rows = target_rows(results)
    if rows.empty:
        return None
    styles, measure = method_styles(results), tables.measures(results, metric)
    datasets = [dataset for dataset in results.datasets if dataset in set(rows["dataset"])]
    with style():
        figure, panels = _grid(len(datasets), height=3.0)
        for axes, dataset in zip(panels, datasets):
            own = rows[rows["dataset"] == dataset]
            for method, points in own.groupby("method", sort=False):
                look = styles[str(method)]
                means = points.groupby("asked")[measure[dataset]].mean()
                axes.plot(points["asked"], points[measure[dataset]], "o", color=look["color"], alpha=0.4, ms=3.5, mew=0)
                axes.plot(means.index, means, **look, markersize=5, linewidth=1.6, label=method)
            axes.set(title=dataset, xlabel="fraction asked for", ylabel=label(measure[dataset]))
            axes.legend(frameon=False)
        _caption(figure, "line: mean over seeds; dots: seeds")
    return figure


def target_rows(results: Results) -> pd.DataFrame:
    """The last evaluations of variants that name a target, with the column `asked`."""
    rows = results.evaluations
    rows = rows[(rows["status"] == "finished") & rows["final"] & rows["variant"].str.fullmatch(TARGET)]
    return rows.assign(asked=rows["variant"].str.removeprefix("target=").astype(float))


def method_styles(results: Results) -> dict[str, dict[str, Any]]:
    """Colour, line style and marker of each method: the colour is its algorithm's, the others follow its place.

    Where all are of one algorithm, the colour follows the place, too.
    """
    algos = dict(zip(results.cells["method"], results.cells["algo"]))
    colors = {method: color_of(method, algos[method]) for method in results.methods}
    if len(set(colors.values())) == 1 < len(colors):
        colors = {method: PALETTE[place % len(PALETTE)] for place, method in enumerate(results.methods)}
    return {
        method: {
            "color": colors[method],
            "linestyle": LINE_STYLES[place // len(MARKERS) % 4 if len(results.methods) > len(MARKERS) else place % 4],
            "marker": MARKERS[place % len(MARKERS)],
        }
        for place, method in enumerate(results.methods)
    }


def color_of(method: str, algo: str) -> str:
    """The colour of an algorithm. A method is of the algorithm that its name begins with, else of its file's."""
    known = [name for name in COLORS if re.fullmatch(rf"{name}(\d.*|[_ ].*)?", method)]
    name = max(known, key=len) if known else algo
    return PALETTE[COLORS.get(name, zlib.crc32(name.encode()) % len(PALETTE))]


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure and library versions."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=DPI)
    return sink.getvalue()


def curve_points(rows: pd.DataFrame, x: str, measure: str, resamples: int = BAND_RESAMPLES) -> pd.DataFrame:
    """IQM over seeds and its interval at every x that all seeds reached: a point on fewer seeds would be another mix.

    `rows` are evaluations of one method on one dataset. Where several share one x (an offline phase at environment step
    0), the last one stands for it; between its evaluations a seed has the value of the latest.
    """
    wide = online.on_grid(online.by_step(own, x, measure) for _, own in rows.groupby("seed"))
    points = stats.bootstrap_bands(wide.to_numpy(), resamples=resamples)
    return pd.DataFrame(points, index=wide.index, columns=list(stats.Estimate._fields), dtype=float)


def all_curves(
    results: Results, metric: str = "score", *, resamples: int = BAND_RESAMPLES
) -> dict[str, dict[str, pd.DataFrame]]:
    """The `curve_points` of each method on each dataset; `attrs["x"]` names the axis that the dataset's curves have."""
    measure = tables.measures(results, metric)
    rows = results.evaluations
    rows = rows[(rows["status"] == "finished") & (rows["variant"] == "")]
    found: dict[str, dict[str, pd.DataFrame]] = {dataset: {} for dataset in results.datasets}
    online_sets = set(rows.loc[rows["env_step"] > 0, "dataset"])
    for (dataset, method), own in rows.groupby(["dataset", "method"], sort=False):
        x = "env_step" if dataset in online_sets else "update"
        points = curve_points(own, x, measure[dataset], resamples)
        points.attrs["x"] = x
        found[dataset][method] = points
    return found


def _curve(axes: Axes, points: pd.DataFrame, x: str, style: dict[str, Any]) -> None:
    if points.empty:  # no step that all seeds reached: seeds of different budgets
        return
    if x == "env_step" and not points.index.any():
        # A method that takes no environment steps has no curve over them: a level line at its last score.
        axes.axhline(points["point"].iloc[-1], **style | {"linestyle": (0, (4, 2))}, markersize=5, linewidth=1.4)
        return
    every = max(1, math.ceil(len(points) / MARKED))
    axes.plot(points.index, points["point"], **style, markevery=every, markersize=4, linewidth=1.8)
    axes.fill_between(points.index, points["low"], points["high"], color=style["color"], alpha=0.18, linewidth=0)


def _reference_lines(axes: Axes, measure: str, *, horizontal: bool) -> None:
    if measure != "score":
        return
    look: dict[str, Any] = {"color": FAINT, "linewidth": 0.9, "linestyle": (0, (2, 2)), "zorder": 1}
    for value, name in ((0, "random"), (100, "expert")):
        if horizontal:
            axes.axhline(value, **look)
            x, y, transform, rotation = 0.99, float(value), axes.get_yaxis_transform(), 0
        else:
            axes.axvline(value, **look)
            x, y, transform, rotation = float(value), 0.99, axes.get_xaxis_transform(), 90
        va = "bottom" if horizontal else "top"
        axes.text(x, y, name, color=FAINT, fontsize=8, ha="right", va=va, rotation=rotation, transform=transform)


def _remark(axes: Axes, text: str, height: float) -> None:
    axes.text(0.5, height, text, color=FAINT, fontsize=9, ha="center", va="center", transform=axes.transAxes)


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(textwrap.fill(text, int(15 * figure.get_figwidth())), fontsize=9, color=FAINT)


def label(measure: str) -> str:
    """What an axis says of a measure."""
    return {"score": "normalised score", "success": "success rate"}.get(measure, "return")


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = 1 if count == 1 else 2 if count in (2, 4) else 3
    rows = math.ceil(count / columns)
    width = WIDTH if columns > 1 else 0.65 * WIDTH
    figure = Figure(figsize=(width, height * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    return figure, panels[:count]


@contextmanager
def style() -> Iterator[None]:
    settings: dict[Any, Any] = {
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linestyle": "-",
        "xtick.bottom": False,
        "ytick.left": False,
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same figure on every machine
        "lines.solid_capstyle": "round",
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.labelsize": 9.5,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9.5,
        "axes.edgecolor": "#cccccc",
        "grid.color": "#ececec",
        "text.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings):
        yield
