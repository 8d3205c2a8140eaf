"""Result files -> tables in memory, and back to one archive file.

`load` reads three kinds of folders:

- a suite's: `cells.json` names every cell (method x dataset x seed) with its status, `journal.jsonl` what came after;
  the episodes stand in the run folders beside it, and in newer ones `evaluations.parquet`, when each evaluation came;
- an archive: `cells.json` and one joined `episodes.parquet` (and `evaluations.parquet`), the run folders being gone;
- a run's own folder, or one that has runs beneath it (`results`, `results/runs/iql`): no suite is needed.

Nothing is skipped: a file that cannot be read, a missing column, a repeated row or a finished cell without its last
evaluation raises `ResultsError` with the file's name. A cell that never finished stays in `Results.cells`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hoard.records.cells import JOURNAL, fold
from hoard.records.errors import BadInput
from hoard.records.files import write_atomic
from hoard.records.folder import ALGORITHM, CONFIG, EPISODES, EVALUATIONS, PROVENANCE, STATUS, status_of
from hoard.records.meaning import meaning_hash
from hoard.records.schema import (
    CELL_FIELDS,
    CELL_KEY,
    EPISODE_SCHEMA,
    EVALUATION_SCHEMA,
    NULLABLE,
    SCHEMA_VERSION,
    STATUSES,
    TABLE_SCHEMA,
    TIMES_SCHEMA,
)

CELLS = "cells.json"
VALUES = ("return", "score", "success")  # what an evaluation measures
_EVALUATION = ["cell", "variant", "update", "env_step", "final"]
_TIMES = [*_EVALUATION, "training_time"]


class ResultsError(BadInput):
    """A result file is damaged, incomplete or contradicts another one."""


@dataclass(frozen=True)
class Results:
    """Runs and their evaluations: a row per cell, a row per evaluation episode, and what is known of the sweep."""

    cells: pd.DataFrame
    table: pa.Table  # the episodes in TABLE_SCHEMA
    meta: dict[str, Any]
    kind: str = "suite"  # or "archive", or "runs"
    cell_of_row: np.ndarray | None = None  # which row of `cells` each episode belongs to
    times: pd.DataFrame | None = None  # `cell`, evaluation and `training_time`, of the runs that have recorded it

    @property
    def archived(self) -> bool:
        return self.kind == "archive"

    @property
    def metric(self) -> str:
        """What the suite compares by; the score where it does not say."""
        return self.meta.get("metric") or "score"

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(self.cells["method"]))

    @cached_property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(self.cells["dataset"]))

    @cached_property
    def measured(self) -> dict[str, set[str]]:
        """The datasets on which an evaluation has a return, a score, a success."""
        known = self.evaluations.groupby("dataset", sort=False)[list(VALUES)].count()
        return {name: set(known.index[known[name] > 0]) for name in VALUES}

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """A row per evaluation episode, of unfinished cells too."""
        return _to_pandas(self.table)

    @cached_property
    def finished(self) -> pd.DataFrame:
        """Episodes of finished cells."""
        keep = (self.cells["status"] == "finished").to_numpy()[self._cell_of_row]
        return self.episodes[keep].reset_index(drop=True)

    @cached_property
    def evaluations(self) -> pd.DataFrame:
        """A row per evaluation of every cell, in the order of cells and updates: means over its episodes.

        A mean is NaN where any of its values is: averaging the others would hide an episode that diverged. `success` is
        a rate, NaN where none was reported. `training_time` are the seconds of training until then, evaluations left
        out; NaN for runs from before it was recorded.
        """
        table = _numbered(self.table, self._cell_of_row)
        wanted: list[Any] = [(name, "mean") for name in (*VALUES, "length")] + [([], "count_all")]
        wanted += [(name, "count") for name in VALUES]
        found = table.group_by(_EVALUATION).aggregate(wanted).to_pandas()
        found = found.rename(columns={f"{name}_mean": name for name in (*VALUES, "length")} | {"count_all": "episodes"})
        for name in VALUES:
            found[name] = found[name].astype(float).where(found[f"{name}_count"] == found["episodes"])
        if self.times is None:
            found["training_time"] = np.nan
        else:
            found = found.merge(self.times, how="left", on=_EVALUATION)
        found = found.sort_values(["cell", "update", "env_step", "variant"], kind="stable", ignore_index=True)
        own = self.cells[["method", "dataset", "seed", "status", "diverged"]].iloc[found["cell"]].reset_index(drop=True)
        names = ["variant", "update", "env_step", "final", "episodes", *VALUES, "length", "training_time"]
        return pd.concat([own, found[names]], axis=1)

    @property
    def _cell_of_row(self) -> np.ndarray:
        return _cell_of_row(self.table, self.cells, "results") if self.cell_of_row is None else self.cell_of_row

    def selection(self) -> Results:
        """The cells that the suite's last call asked for; everything where it asked for everything."""
        if self.cells["selected"].all():
            return self
        chosen = self.cells["selected"].to_numpy()
        number = np.cumsum(chosen) - 1  # of each chosen cell among the chosen
        keep = chosen[self._cell_of_row]
        times = self.times
        if times is not None:
            times = times[chosen[times["cell"]]]
            times = times.assign(cell=number[times["cell"]])
        return replace(
            self,
            cells=self.cells[chosen].reset_index(drop=True),
            table=self.table.filter(pa.array(keep)),
            cell_of_row=number[self._cell_of_row[keep]],
            times=times,
        )


def load(folder: str | Path, *, everything: bool = False) -> Results:
    """Read a suite's folder, an archive, a run's folder or a folder of runs.

    Where a suite was last called for some of its cells only (`selected` in `cells.json`), these are returned; with
    `everything`, all that the suite ever ran.
    """
    folder = Path(folder)
    loaded = _load_suite(folder) if (folder / CELLS).is_file() else _load_runs(folder)
    return loaded if everything else loaded.selection()


def frame(folder: str | Path) -> pd.DataFrame:
    """One row per evaluation episode of all runs in `folder` (see `load`): who, where, when, and what came of it.

    Columns: suite, method, algo, dataset, seed, status (of the run), variant, update, env_step, final, episode,
    eval_seed, return, score, success, length, run.
    """
    loaded = load(folder, everything=True)
    status = loaded.cells["status"].to_numpy()[loaded._cell_of_row]
    names = [
        "suite", "method", "algo", "dataset", "seed", "status", "variant", "update", "env_step", "final", "episode",
        "eval_seed", "return", "score", "success", "length", "run",
    ]  # fmt: skip
    return loaded.episodes.assign(status=status)[names]


def collect(results_dir: str | Path, suite: str) -> pd.DataFrame:
    """Join the cells of `results_dir/suite` with the episodes in their run folders: one row per episode, none lost."""
    path = Path(results_dir) / suite / CELLS
    meta, cells = _read_cells(path)
    table, rows = _join(Path(results_dir), meta["suite"], cells)
    _check_agreement(cells, table, rows, path)
    return _to_pandas(table)


def run_folders(folder: str | Path) -> list[Path]:
    """The folders of all runs at or beneath `folder`; of a results folder, those in its `runs`."""
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        return [folder]
    top = folder / "runs" if (folder / "runs").is_dir() else folder
    return sorted(path.parent for path in top.rglob(CONFIG))


def write_table(episodes: pd.DataFrame | pa.Table, folder: str | Path) -> Path:
    """Write the joined episodes as `folder/episodes.parquet`, whole or not at all."""
    if isinstance(episodes, pd.DataFrame):
        # Float columns go in as numpy arrays: pandas would turn NaN into null, and a return of NaN must stay one.
        columns = [
            pa.array(episodes[field.name].to_numpy() if pa.types.is_floating(field.type) else episodes[field.name],
                     type=field.type)
            for field in TABLE_SCHEMA
        ]  # fmt: skip
        episodes = pa.Table.from_arrays(columns, schema=TABLE_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(episodes.combine_chunks(), sink, compression="zstd")
    return write(Path(folder) / EPISODES, sink.getvalue().to_pybytes())


def write_times(loaded: Results, folder: str | Path) -> None:
    """Write the joined times as `folder/evaluations.parquet`; a file that is there goes where no run has any."""
    path = Path(folder) / EVALUATIONS
    if loaded.times is None:
        path.unlink(missing_ok=True)
        return
    own = loaded.cells[list(CELL_KEY)].iloc[loaded.times["cell"]].reset_index(drop=True)
    joined = pd.concat([own, loaded.times.reset_index(drop=True)], axis=1).assign(schema_version=SCHEMA_VERSION)
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(joined[TIMES_SCHEMA.names], schema=TIMES_SCHEMA, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(), sink, compression="zstd")
    write(path, sink.getvalue().to_pybytes())


def write(path: Path, content: bytes | str) -> Path:
    """Write a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    write_atomic(path, lambda scratch: scratch.write_bytes(data))
    return path


# --- the kinds of folders ---


def _load_suite(folder: Path) -> Results:
    meta, cells = _read_cells(folder / CELLS)
    root, archive = folder.parent, folder / EPISODES
    archived = archive.is_file() and not any((root / run).is_dir() for run in cells["run"].dropna())
    if archived:
        table = _read_parquet(archive, TABLE_SCHEMA)
        rows = _cell_of_row(table, cells, archive)
        times = _archived_times(folder / EVALUATIONS, cells)
    else:
        table, rows = _join(root, meta["suite"], cells)
        times = _join_times(root, cells)
    _check_agreement(cells, table, rows, archive if archived else folder / CELLS)
    return Results(cells, table, meta, "archive" if archived else "suite", rows, times)


def _load_runs(folder: Path) -> Results:
    """Runs that were started one by one: a cell for each run folder."""
    folders = run_folders(folder) if folder.is_dir() else []
    if not folders:
        why = f"it has no {CELLS}, and no run's {CONFIG} beneath it" if folder.is_dir() else "there is no such folder"
        raise ResultsError(f"no results in {folder}: {why}")
    entries = [_entry(run, folder) for run in folders]
    for entry, method in zip(entries, _method_names(entries)):
        entry["method"] = method
    cells = _cells_frame([{name: entry[name] for name in CELL_FIELDS} for entry in entries], folder)
    meta: dict[str, Any] = {"suite": folder.resolve().name}
    revisions = dict.fromkeys(revision for entry in entries for revision in entry["revisions"])
    if revisions:
        meta["provenance"] = {"revision": ", ".join(revisions)}
    table, rows = _join(folder, meta["suite"], cells)
    _check_agreement(cells, table, rows, folder)
    return Results(cells, table, meta, "runs", rows, _join_times(folder, cells))


def _entry(run: Path, root: Path) -> dict[str, Any]:
    """A run's cell, from its own files."""
    with _named(run / CONFIG):
        stored = json.loads((run / CONFIG).read_text(encoding="utf-8"))
        algo, config, overrides = stored["algo"], stored["config"], stored.get("overrides") or {}
        dataset, seed = config["dataset"], config["seed"]
    with _named(run / STATUS):
        status = status_of(run)
    made: dict[str, Any] = {}
    if (run / PROVENANCE).is_file():
        with _named(run / PROVENANCE):
            made = json.loads((run / PROVENANCE).read_text(encoding="utf-8"))
    wall, update = status.get("wall_time"), status.get("update")
    return {
        "algo": algo,
        "dataset": dataset,
        "seed": seed,
        "run": run.relative_to(root).as_posix(),
        "status": status["status"],
        "error": status.get("error"),
        "overrides": overrides,
        "wall_time": wall,
        "updates_per_second": round(update / wall, 2) if wall and update else None,
        "data_hash": (made.get("dataset") or {}).get("sha256"),
        "revisions": made.get("revisions") or [],
        "code": _code(run / ALGORITHM) or made.get("algo_sha256"),
        "versions": made.get("versions"),
    }


def _code(path: Path) -> str | None:
    """What an algorithm file means to a run's address; None if the run kept none."""
    if not path.is_file():
        return None
    with _named(path):
        return meaning_hash(path.read_text(encoding="utf-8"))


def _method_names(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The algorithm's name; where its runs differ in settings or code, numbered, those with fewer settings first.

    Runs of one setting on one dataset and seed were made by other versions of libraries, from other data, or by other
    shared code; they are told apart by as much of this as is known.
    """

    def clashes(keys: list[tuple[str, ...]]) -> set[str]:
        counts = Counter(zip(keys, ((entry["dataset"], entry["seed"]) for entry in entries)))
        return {key[0] for (key, _), count in counts.items() if count > 1}

    keys: list[tuple[str, ...]] = [
        (entry["algo"], _text(entry["overrides"]), _text(entry["code"])) for entry in entries
    ]
    if clashing := clashes(keys):
        keys = [
            (*key, _text(entry["versions"]), _text(entry["data_hash"])) if key[0] in clashing else key
            for key, entry in zip(keys, entries)
        ]
    seen: Counter[Any] = Counter()
    for number, (key, entry) in enumerate(zip(keys, entries)):
        place = (key, entry["dataset"], entry["seed"])
        seen[place] += 1
        if seen[place] > 1:
            keys[number] = (*key, f"again {seen[place]}")
    known: dict[str, list[tuple[str, ...]]] = {}
    for key in dict.fromkeys(keys):
        known.setdefault(key[0], []).append(key)
    for own in known.values():
        own.sort(key=lambda key: (len(json.loads(key[1]) or ()), key))  # not by the folders, whose names are hashes
    return [key[0] if len(known[key[0]]) == 1 else f"{key[0]} #{known[key[0]].index(key) + 1}" for key in keys]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


# --- files ---


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Give every failure to read a file the file's name."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ResultsError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _read_cells(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    with _named(path):
        meta = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(meta, dict):
        raise ResultsError(f"{path}: holds no JSON object")
    if meta.get("schema_version") != SCHEMA_VERSION:
        raise ResultsError(f"{path}: schema_version {meta.get('schema_version')!r}, this code reads {SCHEMA_VERSION}")
    for field in ("suite", "cells"):
        if field not in meta:
            raise ResultsError(f"{path}: field {field!r} is missing")
    with _named(path.parent / JOURNAL):
        fold(meta, path.parent)
    return meta, _cells_frame(meta.pop("cells"), path)


def _cells_frame(entries: Sequence[dict[str, Any]], path: Path) -> pd.DataFrame:
    if not entries:
        raise ResultsError(f"{path}: lists no cell")
    for number, entry in enumerate(entries):
        for field in CELL_FIELDS:
            if field not in entry:
                raise ResultsError(f"{path}: cell {number} lacks field {field!r}")
        if entry["status"] not in STATUSES:
            raise ResultsError(f"{path}: cell {number} has unknown status {entry['status']!r}")
        if entry["status"] == "finished" and entry["run"] is None:
            raise ResultsError(f"{path}: cell {number} is finished but names no run")
        if not isinstance(entry.get("selected", True), bool):
            raise ResultsError(f"{path}: cell {number} has selected {entry['selected']!r}, which is not true or false")
    cells = pd.DataFrame([[entry[field] for field in CELL_FIELDS] for entry in entries], columns=list(CELL_FIELDS))
    cells = cells.astype({"wall_time": float, "updates_per_second": float})
    cells["selected"] = [entry.get("selected", True) for entry in entries]
    cells["file"] = [entry.get("file", "") for entry in entries]  # of an algorithm that does not ship with hoard
    # A run that left the numbers (nan or inf) tells of its method; one that crashed, of the machine or the code.
    cells["diverged"] = [
        entry["status"] == "failed" and "FloatingPointError" in (entry["error"] or "") for entry in entries
    ]
    _check_distinct(cells, path)
    return cells


def _check_distinct(cells: pd.DataFrame, path: Path) -> None:
    """No cell twice, and no run that stands for two."""
    repeated = cells[cells.duplicated(CELL_KEY)]
    if len(repeated):
        for dataset, own in cells.groupby("dataset", sort=False):
            if own.duplicated(["method", "seed"], keep=False).all():
                raise ResultsError(
                    f"{path}: dataset {dataset} is in the suite twice, every one of its cells is listed twice; "
                    "name it once"
                )
        raise ResultsError(f"{path}: cell {_name(repeated.iloc[0])} is listed twice")
    runs = cells[cells["run"].notna()]
    shared = runs[runs.duplicated("run", keep=False)]
    if len(shared):
        one, other = shared[shared["run"] == shared["run"].iloc[0]].iloc[:2].itertuples()
        raise ResultsError(
            f"{path}: {_name(cells.loc[one.Index])} and {_name(cells.loc[other.Index])} are the same run ({one.run}): "
            "one result must not count as two"
        )


def _read_parquet(path: Path, schema: pa.Schema) -> pa.Table:
    # ParquetFile, not read_table: the latter takes `name=value` folders of the path for partition columns.
    with _named(path):
        table = pq.ParquetFile(path).read()
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            raise ResultsError(f"{path}: column {field.name!r} is missing")
        try:
            column = table.column(field.name).cast(field.type)
        except pa.ArrowException as error:
            raise ResultsError(f"{path}: column {field.name!r} is not {field.type} ({error})") from error
        if column.null_count and field.name not in NULLABLE:
            raise ResultsError(f"{path}: column {field.name!r} has {column.null_count} empty values")
        columns.append(column)
    versions = set(columns[schema.get_field_index("schema_version")].unique().to_pylist())
    if versions - {SCHEMA_VERSION}:
        raise ResultsError(f"{path}: schema_version {sorted(versions)}, this code reads {SCHEMA_VERSION}")
    return pa.Table.from_arrays(columns, schema=schema)


def _join(root: Path, suite: str, cells: pd.DataFrame) -> tuple[pa.Table, np.ndarray]:
    """The episodes of all cells, and the row of `cells` to which each belongs."""
    tables, numbers = [TABLE_SCHEMA.empty_table()], [np.empty(0, np.int64)]
    for number, cell in enumerate(cells.to_dict("records")):
        path = root / cell["run"] / EPISODES if isinstance(cell["run"], str) else None
        if path is None or (cell["status"] != "finished" and not path.is_file()):
            continue  # never started or not yet evaluated; the cell itself stays in the cells table
        table = _read_parquet(path, EPISODE_SCHEMA)
        constants = {"suite": suite} | {name: cell[name] for name in ("method", "algo", "dataset", "seed", "run")}
        for name, value in constants.items():
            column = pa.repeat(pa.scalar(value, TABLE_SCHEMA.field(name).type), table.num_rows)
            table = table.append_column(name, column)
        tables.append(table.select(TABLE_SCHEMA.names))
        numbers.append(np.full(table.num_rows, number))
    return pa.concat_tables(tables), np.concatenate(numbers)


def _join_times(root: Path, cells: pd.DataFrame) -> pd.DataFrame | None:
    """When each evaluation came, of the runs that tell; None if none does."""
    parts = []
    for number, run in enumerate(cells["run"]):
        path = root / run / EVALUATIONS if isinstance(run, str) else None
        if path is not None and path.is_file():
            parts.append(_read_parquet(path, EVALUATION_SCHEMA).to_pandas().assign(cell=number))
    return pd.concat(parts, ignore_index=True)[_TIMES] if parts else None


def _archived_times(path: Path, cells: pd.DataFrame) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    table = _read_parquet(path, TIMES_SCHEMA)
    return table.to_pandas().assign(cell=_cell_of_row(table, cells, path))[_TIMES]


def _cell_of_row(table: pa.Table, cells: pd.DataFrame, path: str | Path) -> np.ndarray:
    """For each episode of a joined table the row of `cells` that it belongs to; raises where there is none."""
    place = {key: number for number, key in enumerate(cells[CELL_KEY].itertuples(index=False, name=None))}
    names = [pc.dictionary_encode(table[name].combine_chunks()) for name in CELL_KEY]
    sizes = [max(len(column.dictionary), 1) for column in names]
    codes = np.zeros(table.num_rows, np.int64)
    for column, size in zip(names, sizes):
        codes = codes * size + column.indices.to_numpy()
    found, inverse = np.unique(codes, return_inverse=True)
    numbers = []
    for code in found.tolist():
        key: list[Any] = []
        for column, size in zip(reversed(names), reversed(sizes)):
            code, rest = divmod(code, size)
            key.insert(0, column.dictionary[rest].as_py())
        if tuple(key) not in place:
            raise ResultsError(f"{path}: there are episodes of {' / '.join(map(str, key))}, which {CELLS} lacks")
        numbers.append(place[tuple(key)])
    return np.array(numbers, np.int64)[inverse]


def _numbered(table: pa.Table, rows: np.ndarray) -> pa.Table:
    names = [*_EVALUATION[1:], "episode", *VALUES, "length"]
    rates = table["success"].cast(pa.int8())  # which can be averaged
    return (
        table.select(names).set_column(names.index("success"), "success", rates).append_column("cell", pa.array(rows))
    )


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    return frame.astype({"final": bool})


def _check_agreement(cells: pd.DataFrame, table: pa.Table, rows: np.ndarray, path: Path) -> None:
    """Cells and episodes must agree: no row twice, no finished cell without its last score."""
    counted = [("episode", "count_distinct"), ([], "count_all")]
    found = _numbered(table, rows).group_by(_EVALUATION).aggregate(counted).to_pandas()
    repeated = found[found["episode_count_distinct"] != found["count_all"]]
    if len(repeated):
        one = repeated.iloc[0]
        cell = cells.iloc[one["cell"]]
        raise ResultsError(f"{path}: run {cell['run']} has an episode twice at update {one['update']}")
    newest = found.groupby("cell")["update"].max()
    last = found[found["final"] & (found["variant"] == "")].groupby("cell")["update"].agg(["min", "max"])
    for number in np.flatnonzero(cells["status"] == "finished"):
        if number not in last.index:
            cell = cells.iloc[number]
            raise ResultsError(f"{path}: finished cell {_name(cell)} ({cell['run']}) has no final evaluation")
        if not last.loc[number, "min"] == last.loc[number, "max"] == newest[number]:
            cell = cells.iloc[number]
            raise ResultsError(f"{path}: {_name(cell)} ({cell['run']}) marks an evaluation final that is not its last")


def _name(cell: pd.Series) -> str:
    return f"{cell['method']} / {cell['dataset']} / seed {cell['seed']}"
