"""Predicted against real returns of model rollouts: `python experiments/paper-mbrcsl/figure.py [FOLDER]`.

A run of MBRCSL leaves `rollouts.parquet` in its folder: a row per rollout that its dynamics model made. `replay.py`
beside this file adds, for those that the policy was trained on, the return that the real environment pays for the same
actions: run it first. This joins the files of a suite's finished runs into `FOLDER/rollouts.parquet` and draws
`FOLDER/figures/rollouts.png`. Where the run folders are gone, the joined file is read instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from hoard.analysis import extra_files, plots, results

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        ("predicted_return", pa.float64()),
        ("trained_on", pa.bool_()),
        ("replayed_return", pa.float64()),
    ]
)


def load(folder: str | Path) -> pd.DataFrame:
    """Rows of all finished runs that left any; raises ResultsError if none did."""
    return extra_files.load(folder, "rollouts", SCHEMA, _run, "no finished run left a rollouts.parquet")


def _run(folder: Path) -> pd.DataFrame | None:
    path = folder / "rollouts.parquet"
    if not path.is_file():
        return None
    table = pq.ParquetFile(path).read()
    if "replayed_return" not in table.column_names:
        raise results.ResultsError(
            f"{path}: not replayed yet; run python experiments/paper-mbrcsl/replay.py {folder} first"
        )
    return table.select(["predicted_return", "trained_on", "replayed_return"]).to_pandas()


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Per method and seed: rollouts tried and trained on, their mean predicted and real return, and how these agree."""
    out = []
    for (method, seed), own in rows.groupby(["method", "seed"], sort=False):
        used = own[own["trained_on"]]
        gap = used["predicted_return"] - used["replayed_return"]
        out.append(
            {
                "method": method,
                "seed": seed,
                "tried": len(own),
                "trained on": len(used),
                "predicted": used["predicted_return"].mean(),
                "predicted max": used["predicted_return"].max(),
                "real": used["replayed_return"].mean(),
                "predicted - real": gap.mean(),
                "std of it": gap.std(),
                "correlation": used["predicted_return"].corr(used["replayed_return"]),
            }
        )
    return pd.DataFrame(out)


def draw(rows: pd.DataFrame) -> Figure:
    """One panel per method: predicted return across, real return up, a dot per rollout that was trained on."""
    methods = list(dict.fromkeys(rows["method"]))
    used = rows[rows["trained_on"] & rows["replayed_return"].notna()]
    low, high = used[["predicted_return", "replayed_return"]].to_numpy().min(), used["predicted_return"].max()
    with plots.style():
        figure = Figure(figsize=(4.6 * len(methods), 4.4), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0])
        for axes, method in zip(panels, methods):
            axes.plot([low, high], [low, high], color=plots.FAINT, linewidth=0.9)
            for seed, own in used[used["method"] == method].groupby("seed"):
                axes.plot(own["predicted_return"], own["replayed_return"], "o", ms=3, mew=0, alpha=0.5, label=f"{seed}")
            axes.set_title(method)
            axes.set_xlabel("predicted return of the rollout")
        panels[0].set_ylabel("real return of its actions, open loop")
        panels[0].legend(title="seed", fontsize=8, title_fontsize=8, frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    description = "Predicted against real returns of model rollouts."
    extra_files.command(__file__, "rollouts", description, SCHEMA, load, draw, summary, ".2f", arguments)


if __name__ == "__main__":
    main()
