"""The record of a suite: `cells.json` in its folder, an entry for every cell it ever asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hoard.records.errors import BadInput
from hoard.records.files import read_json
from hoard.records.schema import CELL_KEY

FILE = "cells.json"


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
    return record
