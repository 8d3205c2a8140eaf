"""The `hoard` command. Each module of this package adds its commands and imports what they need when called."""

from __future__ import annotations

import argparse
import os
import sys

from hoard.cli import bench, compare, data, diff, policies, tune, watch_sweep
from hoard.records.errors import BAD_INPUT, STOPPED, BadInput


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 fine, 1 some cells or checks failed, 2 bad input, 130 stopped."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["train"] and len(argv) > 1 and not argv[1].startswith("-"):
            bench.train(argv[1], argv[2:])  # everything behind the name is the algorithm file's own command line
        args = _parser().parse_args(argv)
        sys.exit(args.call(args))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hoard",
        description="Offline and hybrid reinforcement learning: train, sweep, compare, and look at what came out.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (bench, watch_sweep, tune, policies, compare, diff, data):
        module.add_parsers(commands)
    return parser


if __name__ == "__main__":
    main()
