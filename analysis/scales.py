"""A second scale for Minari's `mujoco/*` sets: 100 is the mean return of the set's own experts.

Their scores follow D4RL where the environment is the same as far as scores go (Hopper, HalfCheetah), to compare with
what is published there. The policies of `mujoco/*/expert-v0` return more than D4RL's: 100 is no expert there.
"""

from __future__ import annotations

import pandas as pd

from hoard.analysis import stats, tables
from hoard.analysis.results import Results
from hoard.records.published_returns import PUBLISHED

ENDS = {name.removesuffix("-v5").lower(): ends for name, ends in PUBLISHED.items()}


def ends_of(dataset: str) -> tuple[float, float] | None:
    """Returns of a random policy and of the experts on a `mujoco/*` set; None for any other set."""
    source, _, rest = dataset.partition("/")
    return ENDS.get(rest.split("/")[0]) if source == "mujoco" else None


def on_expert_scale(dataset: str, returns: pd.Series) -> pd.Series | None:
    """Returns on a `mujoco/*` set as 100 (R - random) / (mean of expert-v0 - random); None for any other set."""
    ends = ends_of(dataset)
    return None if ends is None else 100 * (returns - ends[0]) / (ends[1] - ends[0])


def expert_table(loaded: Results) -> tables.Table | None:
    """Last returns of each method on the expert sets' scale; None where no dataset has it."""
    rows = []
    for (dataset, method), own in tables.seed_values(loaded).groupby(["dataset", "method"], sort=False):
        ends, values = ends_of(dataset), on_expert_scale(dataset, own["return"])
        if ends is not None and values is not None:
            interval = stats.mean_interval([values.to_numpy(float)])
            rows.append(
                {
                    "dataset": dataset, "method": method, "seeds": len(own), "mean": interval.point,
                    "t_low": interval.low, "t_high": interval.high, "random": ends[0], "expert": ends[1],
                }
            )  # fmt: skip
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    display = pd.DataFrame(
        {
            "dataset": frame["dataset"],
            "method": frame["method"],
            "n": frame["seeds"].astype(str),
            "mean [95 % Student t]": [tables.interval(r.mean, r.t_low, r.t_high, 1) for r in frame.itertuples()],
            "random": [tables.number(value, 1) for value in frame["random"]],
            "expert": [tables.number(value, 1) for value in frame["expert"]],
        }
    )
    note = (
        "100 is the mean return of the episodes in Minari's mujoco/*/expert-v0, 0 that of a random policy, both as "
        "published. It enters no figure or verdict."
    )
    return tables.Table(frame, display, (note,))
