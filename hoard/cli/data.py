"""`hoard data`: list, make, describe and check datasets."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hoard.records.errors import BadInput

_EXAMPLES = [
    "hoard data list",
    "hoard data info hoard/pendulum/mixed-v0",
    "hoard data check d4rl:hopper-medium-v2",
]


def _parser(commands: Any, name: str, text: str, examples: list[str]) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_parsers(commands: Any) -> None:
    data = _parser(commands, "data", "list, make, describe or check datasets", _EXAMPLES)
    actions = data.add_subparsers(required=True, metavar="ACTION")
    listing = _parser(actions, "list", "ids that can be had, and which are on this disk", ["hoard data list"])
    ids = {
        name: _parser(actions, name, text, [example])
        for name, text, example in (
            ("make", "generate or fetch", "hoard data make hoard/pendulum/mixed-v0 D4RL/door/human-v2"),
            (
                "info",
                "data card: sizes, returns, quality, coverage, spaces, references, hash",
                "hoard data info hoard/pendulum/mixed-v0 --figure card.png",
            ),
            (
                "check",
                "validate from the files to a replay in the environment; exit status 1 if anything failed",
                "hoard data check d4rl:my_recording.hdf5 --sample 1000",
            ),
            (
                "versions",
                "replay MuJoCo steps in other versions of their environment (Hopper-v4: random steps of it)",
                "hoard data versions D4RL/hopper/medium-v2 Hopper-v4",
            ),
        )
    }
    for command in ids.values():
        command.add_argument("id", nargs="+")
    info, check, versions = ids["info"], ids["check"], ids["versions"]
    for command in (listing, info, check, versions):
        command.add_argument("--json", action="store_true", help="for machines: one JSON object per line and dataset")
    info.add_argument("--figure", type=Path, metavar="FILE", help="draw the card of one dataset (.png, .pdf or .svg)")
    info.add_argument("--reference", metavar="ID", help="dataset to which state-action coverage is relative (SACo)")
    info.add_argument("--bins", type=int, default=10, help="cells per column for counting coverage (default: 10)")
    check.add_argument("--sample", type=int, default=200, help="steps to replay in the environment (default: 200)")
    versions.add_argument("--sample", type=int, default=10_000, help="steps to replay in each version (default: 10000)")
    for command in (check, versions):
        command.add_argument("--seed", type=int, default=0, help="seed that chooses them (default: 0)")
    calls = {"make": _data_make, "info": _data_info, "check": _data_check, "versions": _data_versions}
    listing.set_defaults(call=_data_list)
    for name, command in ids.items():
        command.set_defaults(call=calls[name])


def _data_list(args: argparse.Namespace) -> int:
    from hoard import datasets

    ids = datasets.known_ids()
    width = max(map(len, ids), default=0)
    for dataset_id in ids:
        here = datasets.is_at_hand(dataset_id)
        if args.json:
            print(json.dumps({"id": dataset_id, "on_disk": here}))
        else:
            print(f"{dataset_id:{width}}  {'on disk' if here else ''}".rstrip())
    return 0


def _data_make(args: argparse.Namespace) -> int:
    for dataset_id in args.id:
        made = _ensure(dataset_id)
        print(f"{dataset_id}: {'made' if made else 'at hand'}")
    return 0


def _data_info(args: argparse.Namespace) -> int:
    from hoard import datasets
    from hoard.datasets.inspect import card
    from hoard.records.files import write_atomic

    kind = ""
    if args.figure:
        kind = args.figure.suffix.lower().removeprefix(".")
        if len(args.id) > 1:
            raise BadInput("--figure draws one dataset: give one id")
        if kind not in ("png", "pdf", "svg"):
            raise BadInput(f"--figure {args.figure}: the name must end in .png, .pdf or .svg")
        if not args.figure.parent.is_dir():
            raise BadInput(f"--figure {args.figure}: there is no folder {args.figure.parent}")
    reference = None
    if args.reference:
        _ensure(args.reference)
        reference = datasets.load(args.reference)
    for number, dataset_id in enumerate(args.id):
        _ensure(dataset_id)
        data = datasets.load(dataset_id)
        content = card.describe(data, datasets.metadata_of(dataset_id), reference, args.bins)
        print(json.dumps(content, sort_keys=True) if args.json else "\n" * bool(number) + card.as_text(content))
        if args.figure:
            drawn = card.figure(data, content)
            try:
                write_atomic(args.figure, lambda scratch: drawn.savefig(scratch, format=kind, dpi=130))  # noqa: B023
            except OSError as error:
                raise BadInput(f"--figure {args.figure}: {error}") from error
    return 0


def _data_check(args: argparse.Namespace) -> int:
    from hoard.datasets.inspect.check import check

    _check_sample(args)
    failed = 0
    for dataset_id in args.id:
        _ensure(dataset_id)
        findings = check(dataset_id, args.sample, args.seed)
        counts = {status: sum(f.status == status for f in findings) for status in ("ok", "failed", "skipped")}
        failed += counts["failed"]
        if args.json:
            print(json.dumps({"id": dataset_id, **counts, "findings": [vars(f) for f in findings]}, sort_keys=True))
            continue
        print(dataset_id)
        for finding in findings:
            print(f"  {finding.status:8} {finding.name:14} {finding.text}")
        print("  " + ", ".join(f"{count} {status}" for status, count in counts.items()), flush=True)
    return 1 if failed else 0


def _data_versions(args: argparse.Namespace) -> int:
    from hoard.datasets.inspect import versions

    _check_sample(args)
    for dataset_id in args.id:
        versions.check_id(dataset_id)
    comparisons = []
    for dataset_id in args.id:
        if dataset_id not in versions.ENV_IDS:
            _ensure(dataset_id)
        comparisons.append(versions.compare(dataset_id, args.sample, args.seed))
        if args.json:
            print(json.dumps(comparisons[-1], sort_keys=True), flush=True)
    if not args.json:
        print(versions.as_markdown(comparisons))
    return 0


def _check_sample(args: argparse.Namespace) -> None:
    if args.sample < 1 or args.seed < 0:
        raise BadInput("--sample must be at least 1 and --seed at least 0")


def _ensure(dataset_id: str) -> bool:
    """Generate or fetch what is not here, with a progress bar on stderr: stdout belongs to the result."""
    from rich.console import Console

    from hoard import datasets
    from hoard.runners.progress import generation_bar

    with generation_bar(Console(stderr=True), dataset_id) as progress:
        return datasets.ensure(dataset_id, progress)
