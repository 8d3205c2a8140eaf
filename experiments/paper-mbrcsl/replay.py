"""Replay MBRCSL's rollouts in the real maze: `python experiments/paper-mbrcsl/replay.py RESULTS`.

RESULTS is a results folder (`results/`) or any folder in it. A finished run of MBRCSL keeps `rollouts.parquet`: a row
for each rollout that its dynamics model made, with the start and the actions of those that the policy was trained on.
This adds the column `replayed_return` to it: what the real environment pays for the same actions, played open-loop from
the same start, with the hidden goal at the centre of its cell. Rollouts that were not trained on have none. Runs that
have the column already, and runs in other environments than hoard's own mazes, are left as they are. `figure.py` beside
this file reads the column.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hoard.datasets.actions import ActionScaler
from hoard.envs.mazes import replay_open_loop
from hoard.records import folder as names
from hoard.records.errors import BAD_INPUT, BadInput
from hoard.records.files import read_json, write_atomic
from hoard.runners.task import Task

ROLLOUTS = "rollouts.parquet"


def replayed(table: pa.Table, task: Task) -> np.ndarray:
    """Real returns of the rollouts that were trained on, (K,), in their order. Raises ValueError outside the mazes."""
    chosen = table.filter(table["trained_on"])
    starts = np.array(chosen["start"].to_pylist(), np.float32)
    actions = np.array(chosen["action"].to_pylist(), np.float32).reshape(len(chosen), -1, task.action_dim)
    actions = ActionScaler(task.low, task.high).to_env(torch.as_tensor(actions)).numpy()
    assert task.env_spec is not None  # a run that has finished was evaluated
    return replay_open_loop(task.env_spec, starts, actions)


def add_replays(run: Path) -> str:
    """Add the column to the rollouts of one run; a line on what was found."""
    file = run / ROLLOUTS
    table = pq.ParquetFile(file).read()
    if "replayed_return" in table.column_names:
        return "has been replayed before"
    if names.status_of(run)["status"] != "finished":
        return "is not finished"
    try:
        real = replayed(table, Task.from_json(read_json(run / names.POLICY_SPEC)["task"]))
    except ValueError as error:
        return f"cannot be replayed: {error}"
    trained_on = table["trained_on"].to_numpy()
    gap = table["predicted_return"].to_numpy()[trained_on] - real
    column = np.full(len(table), None, object)
    column[trained_on] = real
    table = table.append_column("replayed_return", pa.array(column, pa.float64()))
    write_atomic(file, lambda scratch: pq.write_table(table, scratch))
    return (
        f"replayed open-loop {real.mean():.1f} on average, {real.min():.1f} to {real.max():.1f}; "
        f"predicted less real {gap.mean():+.1f} +- {gap.std():.1f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python experiments/paper-mbrcsl/replay.py", description="Replay MBRCSL's rollouts in the real maze."
    )
    parser.add_argument("results", type=Path, help="results folder, or any folder in it")
    folder = parser.parse_args(arguments).results
    try:
        files = sorted(folder.rglob(ROLLOUTS))
        runs = [file.parent for file in files if (file.parent / names.STATUS).is_file()]
        if not runs:
            raise BadInput(f"{folder}: no run in it kept a {ROLLOUTS}; give the results folder of runs of MBRCSL")
        for run in runs:
            print(f"{run.relative_to(folder)}: {add_replays(run)}", flush=True)
    except BadInput as error:
        parser.exit(BAD_INPUT, f"error: {error}\n")


if __name__ == "__main__":
    main()
