"""Result files -> tables in memory, and back to one archive file.

A suite folder holds `cells.json`: one entry per cell (method x dataset x seed) with its status. While the run folders
exist, every cell's `episodes.parquet` is read from there; a committed archive has `cells.json` and one joined
`episodes.parquet` instead. Nothing is skipped: a file that cannot be read, a missing column, a repeated row or a
finished cell without its last evaluation raises `ResultsError` with the file's name, and a cell that never finished
stays in `Results.cells` with its status.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1
STATUSES = ("finished", "failed", "interrupted", "running", "pending")
CELL_FIELDS = (
    "method", "algo", "dataset", "seed", "run", "status", "error",
    "overrides", "wall_time", "updates_per_second", "data_hash",
)  # fmt: skip
CELL_KEY = ["method", "dataset", "seed"]

RUN_SCHEMA = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("variant", pa.string()),
        ("update", pa.int64()),
        ("env_step", pa.int64()),
        ("final", pa.bool_()),
        ("episode", pa.int32()),
        ("eval_seed", pa.int64()),
        ("return", pa.float64()),
        ("length", pa.int32()),
        ("success", pa.bool_()),
        ("score", pa.float64()),
    ]
)
TABLE_SCHEMA = pa.schema(
    [
        RUN_SCHEMA.field("schema_version"),
        ("suite", pa.string()),
        ("method", pa.string()),
        ("algo", pa.string()),
        ("dataset", pa.string()),
        ("seed", pa.int64()),
        *(field for field in RUN_SCHEMA if field.name != "schema_version"),
        ("run", pa.string()),
    ]
)
NULLABLE = {"success", "score"}  # no success signal, no reference scores


class ResultsError(ValueError):
    """A result file is damaged, incomplete or contradicts another one."""


@dataclass(frozen=True)
class Results:
    """One suite: a row per cell, a row per evaluation episode, and what `cells.json` says about the sweep itself."""

    cells: pd.DataFrame
    episodes: pd.DataFrame
    meta: dict[str, Any]
    archived: bool = False  # read from a joined `episodes.parquet`, the run folders being gone

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(self.cells["method"]))

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(self.cells["dataset"]))

    @cached_property
    def finished(self) -> pd.DataFrame:
        """Episodes of finished cells, the only ones that count in statistics."""
        keys = self.cells.loc[self.cells["status"] == "finished", CELL_KEY]
        return self.episodes.merge(keys, on=CELL_KEY, how="inner")


def load(folder: str | Path) -> Results:
    """Read a suite folder from the run folders beside it, or from its `episodes.parquet` where these are gone."""
    folder = Path(folder)
    meta, cells = _read_cells(folder / "cells.json")
    root, archive = folder.parent, folder / "episodes.parquet"
    archived = archive.is_file() and not any((root / run).is_dir() for run in cells["run"].dropna())
    if archived:
        table = _read_parquet(archive, TABLE_SCHEMA)
    else:
        table = _join(root, meta["suite"], cells)
    episodes = _to_pandas(table)
    _check_agreement(cells, episodes, archive if archived else folder / "cells.json")
    return Results(cells, episodes, meta, archived)


def collect(results_dir: str | Path, suite: str) -> pd.DataFrame:
    """Join the cells of `results_dir/suite` with the episodes in their run folders: one row per episode, none lost."""
    path = Path(results_dir) / suite / "cells.json"
    meta, cells = _read_cells(path)
    episodes = _to_pandas(_join(Path(results_dir), meta["suite"], cells))
    _check_agreement(cells, episodes, path)
    return episodes


def write_table(episodes: pd.DataFrame, folder: str | Path) -> Path:
    """Write the joined episodes as `folder/episodes.parquet`, whole or not at all."""
    # Float columns go in as numpy arrays: pandas would turn NaN into null, and a return of NaN must stay one.
    columns = [
        pa.array(episodes[field.name].to_numpy() if pa.types.is_floating(field.type) else episodes[field.name],
                 type=field.type)
        for field in TABLE_SCHEMA
    ]  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(columns, schema=TABLE_SCHEMA), sink, compression="zstd")
    return write_atomic(Path(folder) / "episodes.parquet", sink.getvalue().to_pybytes())


def write_atomic(path: Path, content: bytes | str) -> Path:
    """Write a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Give every failure to read a file the file's name."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
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
    entries = meta.pop("cells")
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
    cells = pd.DataFrame([[entry[field] for field in CELL_FIELDS] for entry in entries], columns=list(CELL_FIELDS))
    cells = cells.astype({"wall_time": float, "updates_per_second": float})
    repeated = cells[cells.duplicated(CELL_KEY)]
    if len(repeated):
        raise ResultsError(f"{path}: cell {_name(repeated.iloc[0])} is listed twice")
    return meta, cells


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


def _join(root: Path, suite: str, cells: pd.DataFrame) -> pa.Table:
    tables = [TABLE_SCHEMA.empty_table()]
    for cell in cells.to_dict("records"):
        path = root / cell["run"] / "episodes.parquet" if isinstance(cell["run"], str) else None
        if path is None or (cell["status"] != "finished" and not path.is_file()):
            continue  # never started or not yet evaluated; the cell itself stays in the cells table
        table = _read_parquet(path, RUN_SCHEMA)
        constants = {"suite": suite} | {name: cell[name] for name in ("method", "algo", "dataset", "seed", "run")}
        for name, value in constants.items():
            column = pa.repeat(pa.scalar(value, TABLE_SCHEMA.field(name).type), table.num_rows)
            table = table.append_column(name, column)
        tables.append(table.select(TABLE_SCHEMA.names))
    return pa.concat_tables(tables)


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    return frame.astype({"final": bool})


def _check_agreement(cells: pd.DataFrame, episodes: pd.DataFrame, path: Path) -> None:
    """Cells and episodes must agree: no foreign row, no row twice, no finished cell without its last score."""
    unique = [*CELL_KEY, "variant", "update", "env_step", "final", "episode"]
    repeated = episodes[episodes.duplicated(unique)]
    if len(repeated):
        row = repeated.iloc[0]
        raise ResultsError(f"{path}: run {row['run']} has episode {row['episode']} at update {row['update']} twice")
    listed = set(cells[CELL_KEY].itertuples(index=False, name=None))
    groups = dict(iter(episodes.groupby(CELL_KEY, sort=False)))
    for key in groups:
        if key not in listed:
            raise ResultsError(f"{path}: there are episodes of {' / '.join(map(str, key))}, which cells.json lacks")
    for _, cell in cells[cells["status"] == "finished"].iterrows():
        rows = groups.get(tuple(cell[CELL_KEY]), episodes.iloc[:0])
        last = rows.loc[rows["final"] & (rows["variant"] == ""), "update"]
        if last.empty:
            raise ResultsError(f"{path}: finished cell {_name(cell)} ({cell['run']}) has no final evaluation")
        if (last != rows["update"].max()).any():
            raise ResultsError(f"{path}: {_name(cell)} ({cell['run']}) marks an evaluation final that is not its last")


def _name(cell: pd.Series) -> str:
    return f"{cell['method']} / {cell['dataset']} / seed {cell['seed']}"
