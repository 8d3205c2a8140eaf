"""`hoard status`, `hoard logs`: look at a sweep, while it works and after."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from hoard.records.errors import OK, BadInput


def add_parsers(commands: Any) -> None:
    status = commands.add_parser(
        "status",
        help="how far a suite is: running, finished, failed, stale",
        description="What became of a suite's cells so far. Safe to call at any moment; it changes nothing.",
        epilog="example: hoard status quick; hoard status quick --full",
        allow_abbrev=False,
    )
    status.add_argument("suite", nargs="?", default="quick", help="name of a suite, or its folder")
    status.add_argument("--full", action="store_true", help="a line for every cell, with its last score")
    status.add_argument("--all", action="store_true", help="all cells on record, not only those last asked for")
    status.add_argument("--json", action="store_true", help="one JSON object with every cell")
    status.set_defaults(call=_status)
    logs = commands.add_parser(
        "logs",
        help="what a cell of a sweep printed",
        description="The log of one cell: METHOD--DATASET--SEED, or as much of it as tells it from all others.",
        epilog="example: hoard logs iql--hoard-pendulum-mixed-v0--0; hoard logs quick/iql--hoard-pendulum --follow",
        allow_abbrev=False,
    )
    logs.add_argument("cell", metavar="CELL", help="its name or a part of it; SUITE/ in front says of which suite")
    logs.add_argument("--lines", type=int, metavar="N", help="the last N lines alone")
    logs.add_argument("--follow", action="store_true", help="print what is added, until the sweep has ended")
    logs.set_defaults(call=_logs)
    for command in (status, logs):
        command.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")


def _status(args: argparse.Namespace) -> int:
    from hoard.runners.sweep import status

    given = Path(args.suite)
    folder = given if (given / "cells.json").is_file() else args.results / given.name.removesuffix(".toml")
    told = status.read(folder, args.all, args.full or args.json)
    print(json.dumps(told, sort_keys=True) if args.json else status.as_text(told, args.full))
    return OK


def find_log(results: Path, wanted: str) -> Path:
    """The log that is meant by a name or a part of one. Raises BadInput if there is none or more than one."""
    from hoard.records.names import dataset_slug
    from hoard.records.suggest import nearest

    suite, slash, cell = wanted.partition("/")
    # A dataset may be written as everywhere else, with its slashes.
    if not slash or not (results / suite / "logs").is_dir():
        suite, cell = "*", wanted
    cell = dataset_slug(cell)
    logs = sorted(results.glob(f"{suite}/logs/*.log"))
    found = [log for log in logs if log.stem == cell] or [log for log in logs if cell in log.stem]
    if not found:
        names = [log.stem for log in logs]
        known = f"nearest: {nearest(cell, names)}" if names else f"there are no logs in {results}/*/logs"
        raise BadInput(f"no cell '{wanted}' has a log; {known}")
    if len(found) > 1:
        names = [f"{log.parent.parent.name}/{log.stem}" for log in found]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise BadInput(f"'{wanted}' could be {', '.join(names[:8])}{more}; give more of its name")
    return found[0]


def _logs(args: argparse.Namespace) -> int:
    from hoard.records.locks import is_locked

    if args.lines is not None and args.lines < 1:
        raise BadInput(f"--lines {args.lines}: must be at least 1")
    log = find_log(args.results, args.cell)
    with open(log, errors="replace") as file:
        lines = file.readlines()
        print(*(lines[-args.lines :] if args.lines else lines), sep="", end="", flush=True)
        while args.follow:
            at_work = is_locked(log.parent.parent)  # asked before reading: what was written till the end is printed
            print(file.read(), end="", flush=True)
            if not at_work:
                break
            time.sleep(0.5)
    return OK
