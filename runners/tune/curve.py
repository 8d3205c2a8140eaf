"""What a run has shown so far: its evaluations, read while it goes on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from hoard.records.errors import BadInput
from hoard.records.folder import EPISODES


class Curve:
    """Mean of `metric` at each evaluation of the run in `folder`, in order; a finished run's score is the last."""

    def __init__(self, folder: Path, metric: str) -> None:
        self._file, self._metric = folder / EPISODES, metric
        self._read_at: int | None = None
        self._values: list[float] = []

    def values(self) -> list[float]:
        """Raises BadInput if the evaluations have no such metric."""
        try:
            changed = self._file.stat().st_mtime_ns
            if changed == self._read_at:
                return self._values
            table = pq.read_table(self._file, columns=["variant", "update", "env_step", self._metric])
        except FileNotFoundError:  # not yet, or discarded by a run that begins anew
            return []
        rows = table.to_pandas()
        rows = rows[rows.variant == ""]
        numbers = pd.to_numeric(rows[self._metric]).astype(float)
        if len(rows) and numbers.isna().all():
            raise BadInput(f"{self._file.parent}: its evaluations have no {self._metric}; choose another --metric")
        means = numbers.groupby([rows.env_step, rows["update"]]).mean()
        self._read_at, self._values = changed, means.tolist()
        return self._values


def steps(curves: list[list[list[float]]], finished: list[bool]) -> list[float]:
    """Values to prune by: one for each evaluation of each seed, as far as all datasets have them.

    `curves[seed][dataset]` are the evaluations, `finished[seed]` says whether they are all there. The value of
    evaluation k of a seed is the mean over datasets of the mean over seeds, of which earlier ones count with their last
    evaluation. So the very last value is the objective.
    """
    out: list[float] = []
    before: list[list[float]] = [[] for _ in curves[0]]
    for of_datasets, whole in zip(curves, finished):
        for k in range(min(map(len, of_datasets))):
            means = [(sum(b) + values[k]) / (len(b) + 1) for b, values in zip(before, of_datasets)]
            out.append(sum(means) / len(means))
        if not whole:
            break
        # Where datasets have different numbers of evaluations, the last ones are what counts.
        means = [(sum(b) + values[-1]) / (len(b) + 1) for b, values in zip(before, of_datasets)]
        out[-1] = sum(means) / len(means)
        for b, values in zip(before, of_datasets):
            b.append(values[-1])
    return out
