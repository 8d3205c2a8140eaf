"""What a run writes down: evaluation episodes, window means of metrics, log lines, status."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from hoard.records import folder as names
from hoard.records.files import write_atomic, write_json
from hoard.records.schema import EPISODE_SCHEMA, EVALUATION_SCHEMA, SCHEMA_VERSION


class Recorder:
    """Rows of one run and the files they go to. Rows after the last checkpoint are discarded on resume."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trackers: list[Any] = []  # functions of (count, {name: value})
        self.print: Callable[[str], None] = lambda text: print(text, flush=True)
        self._episodes: list[dict[str, Any]] = []
        self._evaluations: list[dict[str, Any]] = []
        self._metrics: list[dict[str, Any]] = []
        self._pending: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        self._wall_before = 0.0
        self._evaluating = 0.0  # seconds of evaluations so far
        self._started = time.monotonic()
        self._window = (0, self._started)
        self._speed: float | None = None  # rounds a second in the last window

    @property
    def wall_time(self) -> float:
        """Seconds of work that this result is made of; what was lost to a kill does not count."""
        return self._wall_before + time.monotonic() - self._started

    @property
    def training_time(self) -> float:
        """`wall_time` without what was spent on evaluations."""
        return self.wall_time - self._evaluating

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """What runs inside is an evaluation, no training."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._evaluating += time.monotonic() - begun

    def say(self, text: str) -> None:
        """One plain line on standard output and in the run's log.txt."""
        self.print(text)
        with open(self.folder / names.LOG, "a") as file:
            file.write(text + "\n")

    # --- metrics ---

    def begin_window(self, count: int) -> None:
        self._window, self._speed = (count, time.monotonic()), None

    def log(self, count: int, metrics: dict[str, Tensor]) -> None:
        """Keep detached 0-d metrics of round `count`. Nothing is copied from the device until the window ends."""
        for name, value in metrics.items():
            self._pending[name].append((count, value))

    def pending_values(self, unit: str) -> dict[str, Tensor]:
        """This window's values of each metric. Raises FloatingPointError for the first round that broke one."""
        out, broken = {}, []
        for name, entries in self._pending.items():
            values = out[name] = torch.stack([value.detach() for _, value in entries]).double().cpu()
            bad = torch.nonzero(~torch.isfinite(values))
            if len(bad):
                broken.append((entries[bad[0, 0]][0], name, values[bad[0, 0]].item()))
        if broken:
            count, name, value = min(broken, key=lambda item: item[0])
            raise FloatingPointError(f"{name} is {value} at {unit} {count}")
        return out

    def flush(self, head: dict[str, Any], count: int, unit: str) -> bool:
        """Write the window's means as one row of metrics; whether there was anything to write."""
        if not self._pending:
            return False
        row: dict[str, Any] = {name: values.mean().item() for name, values in self.pending_values(unit).items()}
        self._pending = defaultdict(list)
        now, (since, then) = time.monotonic(), self._window
        self._window = (count, now)
        self._speed = (count - since) / max(now - then, 1e-9)
        self._metrics.append(head | {"wall_time": self.wall_time, "updates_per_second": self._speed} | row)
        self.track(count, row)
        return True

    def track(self, count: int, values: dict[str, Any]) -> None:
        """Hand values to the trackers. One that fails is dropped with a line in the log; the run goes on."""
        for tracker in list(self.trackers):
            try:
                tracker(count, values)
            except Exception as error:  # services and their clients fail in many ways
                self.trackers.remove(tracker)
                self.say(f"{type(tracker).__name__} failed and is left out from here on: {error}")

    # --- files ---

    def add_evaluation(self, evaluation: dict[str, Any], episodes: list[dict[str, Any]]) -> None:
        self._evaluations.append(evaluation)
        self._episodes += episodes
        self.write_evaluations()

    def write_evaluations(self) -> None:
        for name, rows, schema in (
            (names.EPISODES, self._episodes, EPISODE_SCHEMA),
            (names.EVALUATIONS, self._evaluations, EVALUATION_SCHEMA),
        ):
            table = pa.Table.from_pylist(rows, schema=schema)
            write_atomic(self.folder / name, lambda path: pq.write_table(table, path))  # noqa: B023

    def write_metrics(self) -> None:
        # Columns are the union over all rows: a metric that appears late is kept, with nulls before.
        columns = list(dict.fromkeys(["update", *(name for row in self._metrics for name in row)]))
        table = pa.table({name: [row.get(name) for row in self._metrics] for name in columns})
        write_atomic(self.folder / names.METRICS, lambda path: pq.write_table(table, path))

    def write_status(self, status: str, progress: dict[str, Any], error: str | None = None) -> None:
        head = {"schema_version": SCHEMA_VERSION, "status": status}
        speed = round(self._speed, 2) if self._speed is not None else None
        tail = {
            "updates_per_second": speed,
            "wall_time": round(self.wall_time, 3),
            "pid": os.getpid(),
            "error": error,
        }
        write_json(self.folder / names.STATUS, head | progress | tail)

    def write_table(self, name: str, table: pa.Table) -> None:
        """A further file of the run, `name`.parquet."""
        write_atomic(self.folder / f"{name}.parquet", lambda path: pq.write_table(table, path))

    # --- resume ---

    def state_dict(self) -> dict[str, Any]:
        return {
            "wall_time": self.wall_time,
            "evaluating": self._evaluating,
            "episodes": self._episodes,
            "evaluations": self._evaluations,
            "metrics": self._metrics,
            "pending": {name: list(entries) for name, entries in self._pending.items()},
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._wall_before = state["wall_time"]
        self._episodes, self._metrics = state["episodes"], state["metrics"]
        # Checkpoints of version 0.1 have neither: what was evaluated before then stays without its time.
        self._evaluating, self._evaluations = state.get("evaluating", 0.0), state.get("evaluations", [])
        for name, entries in state["pending"].items():
            self._pending[name] = [(count, value.to(device)) for count, value in entries]

    def discard(self) -> None:
        """Remove the files of rows that no checkpoint holds."""
        for stale in (names.EPISODES, names.EVALUATIONS, names.METRICS):
            (self.folder / stale).unlink(missing_ok=True)

    def close(self) -> None:
        for tracker in self.trackers:
            try:
                tracker.close()
            except Exception as error:
                self.say(f"{type(tracker).__name__} could not be closed: {error}")
