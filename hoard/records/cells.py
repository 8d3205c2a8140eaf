"""The record of a suite: `cells.json`, an entry for every cell it ever asked for, and `journal.jsonl`, what came after.

The journal is only ever appended to, a line for each change of a cell, so that recording one costs the same among ten
cells and ten thousand. `cells.json` is written at the start and the end of a sweep, and now and then between; it says
how much of the journal it covers. Who reads the record through `read` sees all of both.
"""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hoard.records.errors import BadInput
from hoard.records.files import read_json

FILE, JOURNAL = "cells.json", "journal.jsonl"
CELL_KEY = ["method", "dataset", "seed"]


def key_of(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Method, dataset and seed of a cell's entry."""
    return tuple(entry[name] for name in CELL_KEY)


def read(folder: Path) -> dict[str, Any]:
    """What a suite's folder has on record. Raises FileNotFoundError without one, BadInput if it is damaged."""
    file = folder / FILE
    try:
        record = read_json(file)
        for entry in record["cells"]:
            key_of(entry)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is damaged ({error}); move it away: finished runs are found without it") from error
    fold(record, folder)
    return record


def merged(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The record `mine` with the cells that only `theirs` has, or has finished. Both are of one suite.

    Raises BadInput if the two differ in schema, name or measure.
    """
    for name in ("schema_version", "suite", "metric"):
        if mine.get(name) != theirs.get(name):
            raise BadInput(f"{name} is {theirs.get(name)!r} in the record that is there, {mine.get(name)!r} here")
    entries = {key_of(cell): cell for cell in theirs["cells"]}
    for cell in mine["cells"]:
        other = entries.get(key_of(cell))
        if other is None or cell["status"] == "finished" or other["status"] != "finished":
            entries[key_of(cell)] = cell
    made, also = mine["provenance"], theirs["provenance"]
    versions = {
        name: joined_names(made["versions"].get(name, "absent"), also["versions"].get(name, "absent"))
        for name in dict.fromkeys([*made["versions"], *also["versions"]])
    }
    together = {name: joined_names(made[name], also[name]) for name in ("revision", "machine")}
    return mine | {"cells": [*entries.values()], "provenance": made | together | {"versions": versions}}


def joined_names(*lists: str) -> str:
    """Names separated by commas, each once."""
    return ", ".join(dict.fromkeys(name for names in lists for name in names.split(", ")))


def tail(record: dict[str, Any], folder: Path) -> bytes:
    """The lines of the journal that came after `record` was written to `cells.json`."""
    covered = record.get("journal")
    if covered is None:  # an archive, or from before there was a journal
        return b""
    try:
        with open(folder / JOURNAL, "rb") as file:
            file.seek(covered)
            lines = file.read()
    except FileNotFoundError:
        return b""
    return lines[: lines.rfind(b"\n") + 1]  # a line without an end is being written, or its writer was killed


def fold(record: dict[str, Any], folder: Path) -> None:
    """Bring the entries of `record` up to date by the journal. Raises BadInput if that is damaged."""
    if not (lines := tail(record, folder)):
        return
    entries = {key_of(entry): entry for entry in record["cells"]}
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            change = dict(json.loads(line))
            if "method" in change:
                entries[key_of(change)].update(change["now"])
            else:
                change["event"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{folder / JOURNAL}: line {number} after byte {record['journal']} is damaged ({error!r}); move the "
                "file away: finished runs are found without it"
            ) from error


class Journal:
    """The writer of a suite's journal; one at a time, the holder of the folder's lock."""

    def __init__(self, folder: Path) -> None:
        # Unbuffered: a line is one write, and no kill of this process can take back what was written.
        self._file = open(folder / JOURNAL, "ab", buffering=0)  # noqa: SIM115
        self.size = self._file.tell()
        self._cut_torn_line(folder / JOURNAL)

    def _cut_torn_line(self, path: Path) -> None:
        """Remove what a killed writer left of its last line."""
        back = min(self.size, 1 << 20)
        with open(path, "rb") as file:
            file.seek(self.size - back)
            end = file.read()
        if torn := len(end) - (end.rfind(b"\n") + 1):
            self.size -= torn
            os.truncate(path, self.size)

    def add(self, event: str, **content: Any) -> None:
        """Append a line. Raises OSError on a full disk, of which the reader then sees nothing."""
        head = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        line = json.dumps(head | content, sort_keys=True).encode() + b"\n"
        if self._file.write(line) != len(line):
            os.ftruncate(self._file.fileno(), self.size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        self.size += len(line)

    def close(self) -> None:
        self._file.close()
