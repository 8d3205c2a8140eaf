"""`hoard diff A B`: how two algorithm files differ, and how much they share."""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Any


def add_parsers(commands: Any) -> None:
    diff = commands.add_parser(
        "diff",
        help="how two algorithm files differ",
        description="A unified diff of two algorithm files, then the share of lines that they have in common.",
        epilog="example: hoard diff iql my_iql.py",
        allow_abbrev=False,
    )
    diff.add_argument("a", metavar="A", help="name of an algorithm, or path of a file")
    diff.add_argument("b", metavar="B")
    diff.add_argument("--quiet", action="store_true", help="the share alone")
    diff.set_defaults(call=_diff)


def _diff(args: argparse.Namespace) -> int:
    from hoard.runners.algorithms import find, share

    a, b = find(args.a), find(args.b)
    if not args.quiet:
        before, after = (path.read_text().splitlines(keepends=True) for path in (a, b))
        sys.stdout.writelines(difflib.unified_diff(before, after, fromfile=a.name, tofile=b.name, n=2))
    print(f"{a.name} and {b.name} share {100 * share(a, b):.0f} % of their lines")
    return 0
