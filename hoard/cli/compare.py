"""`hoard compare A B`: two results folders, of two revisions or two machines, method by method and cell by cell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hoard.records.errors import FAILED, OK
from hoard.records.names import METRICS


def add_parsers(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="two results folders: what got better, worse, or stayed",
        description="A regression report of B, the newer, against A. Exit status 1 if a method is worse on a dataset.",
        epilog="example: hoard compare experiments/learning results/learning --markdown",
        allow_abbrev=False,
    )
    compare.add_argument("a", type=Path, metavar="RESULTS_A", help="folder of a suite, of a run, or of runs")
    compare.add_argument("b", type=Path, metavar="RESULTS_B")
    compare.add_argument("--metric", choices=METRICS, help="what to compare (default: the suite's own)")
    compare.add_argument("--markdown", action="store_true", help="print Markdown, with all columns")
    compare.set_defaults(call=_compare)


def _compare(args: argparse.Namespace) -> int:
    from hoard.analysis import comparisons, results

    a, b = results.load(args.a), results.load(args.b)
    found = comparisons.compare(a, b, args.metric or a.metric)
    head = [f"A: {args.a}", f"B: {args.b}"]
    for side, one in zip("AB", (a, b)):
        revision = (one.meta.get("provenance") or {}).get("revision")
        if revision:
            head.append(f"revision of {side}: {revision}")
    print("\n".join(f"- {line}" if args.markdown else line for line in head), end="\n\n")
    print(found.markdown() if args.markdown else found.text(), end="")
    return FAILED if found.worse else OK
