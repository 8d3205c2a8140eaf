"""What demonstrations are worth in a finite MDP: `python experiments/paper-drbc/figure.py [FOLDER]`, a suite's folder.

Runs of `drbc_tabular` log exact numbers at every evaluation: how far the expert is from the policy they are held to,
KL(expert || prior) over a trajectory, and what their own policy lacks, V* - V. This joins those of a suite's finished
runs into `FOLDER/demonstrations.parquet` and draws `FOLDER/figures/demonstrations.png`, a row of panels per dataset:

1. the KL against N_E, the number of demonstrations, which theory has fall as 1 / N_E (slope -1) once they are many;
2. episodes until the learner's own, optimistic policy lacks at most a quarter of V*, and does so at every evaluation
   that follows; a run that has not got there by its last evaluation is marked at the upper edge;
3. the same for the plan without a bonus on the same estimated model.

Runs without demonstrations are lines. Where the run folders are gone, the joined file is read instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from hoard.analysis import extra_files, plots, results

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        ("demonstrations", pa.int64()),  # 0: held to the uniform policy, or to none
        ("kl_weight", pa.float64()),  # null: the theory's
        ("env_step", pa.int64()),
        ("episodes", pa.int64()),  # begun, of training
        ("optimum", pa.float64()),
        ("suboptimality", pa.float64()),
        ("model_suboptimality", pa.float64()),
        ("expert_kl", pa.float64()),  # null: expert not known
    ]
)
EXACT = ("optimum", "suboptimality", "model_suboptimality", "expert_kl")
SHARE = 0.25  # of V*: what a policy may lack
FITTED = 2  # largest numbers of demonstrations that the slope is fitted to
THEORY = "λ = ε / KL"  # name of the theory's weight


def load(folder: str | Path) -> pd.DataFrame:
    """A row per evaluation of every finished run with exact numbers; raises ResultsError if there is none."""
    nothing = "no finished run logged exact/suboptimality, as drbc_tabular does"
    return extra_files.load(folder, "demonstrations", SCHEMA, _run, nothing)


def _run(folder: Path) -> pd.DataFrame | None:
    path = folder / "metrics.parquet"
    if not path.is_file():
        return None
    metrics = pq.ParquetFile(path).read().to_pandas()
    if "exact/suboptimality" not in metrics:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    if config["eval_every"] % config["log_every"]:
        raise results.ResultsError(
            f"{path}: rows every {config['log_every']} steps are means over evaluations every {config['eval_every']}; "
            "let eval_every be a multiple of log_every"
        )
    cloned = config["prior"] == "clone"
    if cloned and not config["demonstrations"]:
        raise results.ResultsError(f"{folder}: demonstrations 0 means all; give their number")
    rows = metrics[metrics["exact/suboptimality"].notna()]
    columns = {name: rows.get(f"exact/{name}", pd.Series(math.nan, rows.index)) for name in EXACT}
    return pd.DataFrame(columns).assign(
        demonstrations=config["demonstrations"] if cloned else 0,
        kl_weight=math.nan if config["kl_weight"] is None else config["kl_weight"],
        env_step=rows["env_step"],
        episodes=rows["update"] - config["updates"],
    )


def episodes_to(rows: pd.DataFrame, column: str, share: float = SHARE) -> float:
    """Episodes of one run after which `column` stays within `share` of V*, up to the last evaluation; else infinite."""
    rows = rows.sort_values("env_step")
    within = (rows[column] <= share * rows["optimum"]).to_numpy()
    if not within[-1]:
        return math.inf
    first = 0 if within.all() else int(np.flatnonzero(~within)[-1]) + 1
    return float(rows["episodes"].iloc[first])


def runs(rows: pd.DataFrame, share: float = SHARE) -> pd.DataFrame:
    """A row per run: series, demonstrations, expert_kl, `budget` in episodes, `headline` and `model` episodes needed.

    Both are NaN for a run without an online stage.
    """
    out = []
    for (dataset, method, seed), own in rows.groupby(["dataset", "method", "seed"], sort=False):
        head = own.iloc[0]
        budget = int(own["episodes"].max())
        needed = [episodes_to(own, name, share) for name in ("suboptimality", "model_suboptimality")]
        out.append(
            {
                "dataset": dataset,
                "method": method,
                "seed": seed,
                "series": series(head["demonstrations"], head["kl_weight"]),
                "demonstrations": int(head["demonstrations"]),
                "expert_kl": head["expert_kl"],
                "budget": budget,
                "headline": needed[0] if budget else math.nan,
                "model": needed[1] if budget else math.nan,
            }
        )
    return pd.DataFrame(out)


def series(demonstrations: int, kl_weight: float) -> str:
    """What a run is called in the figure."""
    if kl_weight == 0:
        return "UCBVI"
    weight = THEORY if math.isnan(kl_weight) else f"λ = {kl_weight:g}"
    return f"DRBC, {weight}" if demonstrations else f"no demonstrations, {weight}"


def distances(table: pd.DataFrame) -> pd.DataFrame:
    """The KL of `runs`, once per dataset, seed and number of demonstrations, which methods share."""
    return table.dropna(subset=["expert_kl"]).drop_duplicates(["dataset", "seed", "demonstrations"])


def slope(table: pd.DataFrame, last: int = FITTED) -> float:
    """Least-squares slope of log KL on log N_E over all seeds of the `last` largest N_E; NaN if there are fewer."""
    own = table[table["demonstrations"] > 0]
    largest = sorted(own["demonstrations"].unique())[-last:]
    if len(largest) < last:
        return math.nan
    own = own[own["demonstrations"].isin(largest)]
    return float(np.polyfit(np.log(own["demonstrations"]), np.log(own["expert_kl"]), 1)[0])


def summary(rows: pd.DataFrame, share: float = SHARE) -> pd.DataFrame:
    """Medians over seeds per dataset, series and N_E; `slope` from the N_E before; how many runs got there."""
    table = runs(rows, share)
    out = []
    for (dataset, name), group in table.groupby(["dataset", "series"], sort=False):
        before: tuple[float, float] | None = None
        for count, own in group.groupby("demonstrations"):
            kl = own["expert_kl"].median()
            steep = math.nan
            if before is not None and before[0] > 0:
                steep = math.log(kl / before[1]) / math.log(count / before[0])
            before = (count, kl)
            row = {"dataset": dataset, "series": name, "N_E": count, "seeds": len(own), "KL": kl, "slope": steep}
            online = own[own["budget"] > 0]
            row["budget"] = online["budget"].max() if len(online) else math.nan
            for kind in ("headline", "model"):
                row[kind] = online[kind].median()
                row[f"{kind} reached"] = f"{int(np.isfinite(online[kind]).sum())}/{len(online)}"
            out.append(row)
    return pd.DataFrame(out)


def draw(rows: pd.DataFrame, share: float = SHARE) -> Figure:
    """Three panels per dataset, see the module."""
    table = runs(rows, share)
    datasets, names = list(dict.fromkeys(table["dataset"])), list(dict.fromkeys(table["series"]))
    color = dict(zip(names, plots.PALETTE))
    optimum = rows.groupby("dataset")["optimum"].first()
    with plots.style():
        figure = Figure(figsize=(12.6, 3.7 * len(datasets) + 0.7), layout="constrained")
        panels = figure.subplots(len(datasets), 3, squeeze=False)
        for line, dataset in zip(panels, datasets):
            own = table[table["dataset"] == dataset]
            _draw_distances(line[0], distances(own))
            line[0].set_title(dataset)
            goal = f"{share * optimum[dataset]:.2f} of V* = {optimum[dataset]:.2f}"
            for axes, kind, title in zip(line[1:], ("headline", "model"), ("optimistic policy", "plan without bonus")):
                _draw_episodes(axes, own[own["budget"] > 0], kind, color)
                axes.set_title(f"{title}: within {goal}")
        used: dict[str, Any] = {}
        for axes in panels.flat:
            used |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels()) if text in names}
        if used:
            order = [name for name in names if name in used]
            handles = [used[name] for name in order]
            figure.legend(handles, order, loc="outside upper center", ncols=len(order), frameon=False)
        caption = "dots: seeds; lines: their medians; triangle at the upper edge: not reached by the last evaluation"
        figure.supxlabel(caption, fontsize=9, color=plots.FAINT)
    return figure


def _draw_distances(axes: Axes, table: pd.DataFrame) -> None:
    axes.set_xlabel("demonstrations N_E")
    axes.set_ylabel("KL(expert || clone) over a trajectory")
    cloned = table[table["demonstrations"] > 0]
    if cloned.empty:
        axes.set_axis_off()
        return
    axes.plot(cloned["demonstrations"], cloned["expert_kl"], "o", color=plots.INK, ms=3.5, mew=0, alpha=0.45)
    middle = cloned.groupby("demonstrations")["expert_kl"].median()
    axes.plot(middle.index, middle, color=plots.INK, lw=1.6)
    x, y = float(middle.index[-1]), float(middle.iloc[-1])
    look: dict[str, Any] = {"color": plots.FAINT, "lw": 0.9, "linestyle": (0, (4, 2))}
    reach = np.array([max(float(middle.index[0]), x / 100), x])
    axes.plot(reach, y * x / reach, **look)
    axes.annotate("slope -1", (reach[0], y * x / reach[0]), color=plots.FAINT, fontsize=8, ha="left", va="bottom")
    for value in table.loc[table["demonstrations"] == 0, "expert_kl"].head(1):
        axes.axhline(value, color=plots.FAINT, lw=0.9, linestyle=":")
        axes.annotate("uniform", (x, value), color=plots.FAINT, fontsize=8, ha="right", va="bottom")
    axes.set_xscale("log")
    axes.set_yscale("log")
    steep = slope(table)
    if math.isfinite(steep):
        first, last = middle.index[-FITTED], middle.index[-1]
        text = f"slope {steep:.2f} from {first:,} to {last:,}"
        axes.text(0.04, 0.05, text, transform=axes.transAxes, fontsize=9)


def _draw_episodes(axes: Axes, table: pd.DataFrame, kind: str, color: dict[str, str]) -> None:
    if table.empty:
        axes.set_axis_off()
        return
    top = 1.05 * table["budget"].max()
    counts = sorted(table.loc[table["demonstrations"] > 0, "demonstrations"].unique())
    left = counts[0] / 3 if counts else 1.0  # where the seeds of runs without demonstrations stand
    ticks, labels = [], []
    for name, group in table.groupby("series", sort=False):
        place: dict[str, Any] = {"color": color[str(name)], "label": str(name)}
        middle = group.groupby("demonstrations")[kind].median()
        if group["demonstrations"].max() > 0:
            shown = middle[np.isfinite(middle)]
            axes.plot(shown.index, shown, "-o", lw=1.6, ms=4.5, **place)
            x = group["demonstrations"].astype(float)
        else:
            level = middle.iloc[0]
            axes.axhline(level if math.isfinite(level) else top, lw=1.4, linestyle=(0, (4, 2)), **place)
            x = pd.Series(left, group.index)
            ticks, labels = [left], ["0"]
            left /= 1.6
        reached = np.isfinite(group[kind])
        axes.plot(x[reached], group.loc[reached, kind], "o", color=color[str(name)], ms=3.5, mew=0, alpha=0.45)
        if not reached.all():
            missed = np.full(int((~reached).sum()), top)
            axes.plot(x[~reached], missed, "^", color=color[str(name)], ms=5, mew=0, alpha=0.6, clip_on=False)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([*ticks, *counts]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks([*ticks, *counts], [*labels, *(f"{count:g}" for count in counts)])
    axes.set_ylim(-0.03 * top, top)
    axes.set_xlabel("demonstrations N_E")
    axes.set_ylabel("episodes needed")


def main(arguments: Sequence[str] | None = None) -> None:
    description = "What demonstrations are worth in a finite MDP."
    extra_files.command(__file__, "demonstrations", description, SCHEMA, load, draw, summary, ".3g", arguments)


if __name__ == "__main__":
    main()
