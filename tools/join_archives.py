"""Join what a sweep left on two machines or days: `python tools/join_archives.py INTO OTHER [OTHER ...]`.

Each folder is an archive, `cells.json` with `episodes.parquet`, or a suite's folder in a results folder, which holds
the same. INTO gains the cells of the others, and is made where it is not there. Where results lay and how many ran at
a time is left out of the commands, and cells that only an earlier call asked for count as well. What cannot stand in
one table is refused: another suite or measure, other data or options under the same name, other versions of libraries,
and one cell with two results. When evaluations came is kept if every folder knows it. INTO is written only once the
whole has been read back.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hoard.analysis import results
from hoard.records import cells as record
from hoard.records.folder import EPISODES, EVALUATIONS


def joined(folders: Sequence[Path]) -> tuple[dict[str, Any], pa.Table, pa.Table | None]:
    """The record, the episodes, and the times of evaluations of all.

    Raises ValueError naming the folder, the cell or the field that clashes.
    """
    records = [record.read(folder) for folder in folders]
    timed = all((folder / EVALUATIONS).is_file() for folder in folders)
    times = [pq.read_table(folders[0] / EVALUATIONS)] if timed else []
    whole = {name: value for name, value in records[0].items() if name not in ("journal", "source")}
    whole["cells"] = list(whole["cells"])
    whole["command"] = _portable(whole["command"])
    tables = [pq.read_table(folders[0] / EPISODES)]
    for folder, other in zip(folders[1:], records[1:]):
        _check(folders[0], whole, folder, other)
        known = {record.key_of(cell): cell for cell in whole["cells"]}
        fresh = []
        for cell in other["cells"]:
            mine = known.get(record.key_of(cell))
            if mine is None:
                fresh.append(cell)
            elif (mine["run"], mine["status"]) != (cell["run"], cell["status"]):
                raise ValueError(
                    f"{folder}: {' · '.join(map(str, record.key_of(cell)))} is in {folders[0]} as {mine['run']} "
                    f"({mine['status']}), here as {cell['run']} ({cell['status']}); keep one of them"
                )
        whole["cells"] += fresh
        table = pq.read_table(folder / EPISODES)
        runs = pa.array([cell["run"] for cell in fresh], pa.string())
        tables.append(table.filter(pa.compute.is_in(table["run"], runs)))
        if timed:
            own = pq.read_table(folder / EVALUATIONS)
            wanted = {record.key_of(cell) for cell in fresh}
            keys = zip(*(own[name].to_pylist() for name in record.CELL_KEY))
            times.append(own.filter(pa.array([key in wanted for key in keys], pa.bool_())))
        for name, added in (("command", _portable(other["command"])), ("created", other["created"])):
            whole[name] = "; ".join(dict.fromkeys([*whole[name].split("; "), added]))
        made, also = whole["provenance"], other["provenance"]
        whole["provenance"] = made | {"revision": record.joined_names(made["revision"], also["revision"])}
    whole["cells"] = [cell | {"selected": True} for cell in whole["cells"]]
    return whole, pa.concat_tables(tables), pa.concat_tables(times) if timed else None


def _portable(command: str) -> str:
    """The command without what belongs to the machine that it ran on."""
    return re.sub(r" --(results|jobs)[ =]\S+", "", command)


def _check(first: Path, mine: dict[str, Any], folder: Path, other: dict[str, Any]) -> None:
    for name in ("schema_version", "suite", "metric"):
        if mine.get(name) != other.get(name):
            raise ValueError(f"{folder}: {name} is {other.get(name)!r}, in {first} {mine.get(name)!r}")
    ours, theirs = mine["provenance"]["versions"], other["provenance"]["versions"]
    for package in sorted((ours.keys() | theirs.keys()) - {"hoard", "python"}):
        if ours.get(package) != theirs.get(package):
            raise ValueError(f"{folder}: made with {package} {theirs.get(package)}, {first} with {ours.get(package)}")
    data = {cell["dataset"]: cell["data_hash"] for cell in mine["cells"] if cell["data_hash"]}
    options = {(cell["method"], cell["dataset"]): cell["overrides"] for cell in mine["cells"]}
    for cell in other["cells"]:
        method = cell["method"], cell["dataset"]
        if options.get(method, cell["overrides"]) != cell["overrides"]:
            raise ValueError(f"{folder}: {' on '.join(method)} has other options than in {first}")
        if cell["data_hash"] and data.get(cell["dataset"], cell["data_hash"]) != cell["data_hash"]:
            raise ValueError(f"{folder}: the data of {cell['dataset']} are others than in {first}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Join archives of one suite.")
    parser.add_argument("into", type=Path, help="archive that gains the cells of the others")
    parser.add_argument("others", type=Path, nargs="+", metavar="other", help="archive of the same suite")
    options = parser.parse_args(arguments)
    try:
        there = (options.into / record.FILE).exists()
        whole, table, times = joined([options.into, *options.others] if there else options.others)
        options.into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=options.into) as scratch:
            made = Path(scratch)
            results.write_table(table.cast(results.TABLE_SCHEMA), made)
            results.write(made / record.FILE, json.dumps(whole, indent=1, sort_keys=True) + "\n")
            if times is not None:
                pq.write_table(times, made / EVALUATIONS, compression="zstd")
            results.load(made)  # cells and episodes agree
            (options.into / EVALUATIONS).unlink(missing_ok=True)
            for file in made.iterdir():
                file.replace(options.into / file.name)
    except (ValueError, OSError, KeyError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{options.into}: {len(whole['cells'])} cells, {table.num_rows} episodes")


if __name__ == "__main__":
    main()
