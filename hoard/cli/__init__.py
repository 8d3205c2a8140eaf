"""The `hoard` command: bench a suite, rebuild a report, look at data, train one algorithm."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 fine, 1 some cells or checks failed, 2 bad input, 130 stopped."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"] and len(argv) > 1 and not argv[1].startswith("-"):
        sys.exit(_train(argv[1], argv[2:]))  # everything behind the name is the algorithm file's own command line
    parser = argparse.ArgumentParser("hoard", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    bench = commands.add_parser(
        "bench", help="run a suite, skip what is finished, write its report", allow_abbrev=False
    )
    bench.add_argument("suite", nargs="?", default="quick", help="name of a shipped suite, or a .toml file")
    bench.add_argument("--seeds", help="how many (5), or which (0,3,7)")
    bench.add_argument("--algos", nargs="+", metavar="NAME", help="methods of the suite or files in algos/")
    bench.add_argument("--datasets", nargs="+", metavar="ID", help="instead of the suite's datasets")
    bench.add_argument("--set", nargs="+", metavar="OPTION=VALUE", default=[], help="override options in every cell")
    bench.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="runs at a time (default: CPU cores)"
    )
    bench.add_argument("--ray", action="store_true", help="run the cells on a Ray cluster with a shared file system")
    report = commands.add_parser("report", help="rebuild the report of a suite from its results", allow_abbrev=False)
    report.add_argument(
        "suite", nargs="?", default="quick", help="name of the suite, or a folder that holds cells.json"
    )
    for command in (bench, report):
        command.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    data = commands.add_parser("data", help="list, make, describe or check datasets", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="ids that can be had, and which are on this disk", allow_abbrev=False)
    ids = {
        name: actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in (
            ("make", "generate or fetch"),
            ("info", "data card: sizes, returns, quality, coverage, spaces, references, hash"),
            ("check", "validate from the files to a replay in the environment; exit status 1 if anything failed"),
            ("versions", "replay MuJoCo steps in other versions of their environment (Hopper-v4: random steps of it)"),
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
    train = commands.add_parser("train", help="one run: hoard train ALGO [its options]")
    train.add_argument("algo")
    commands.add_parser("suites", help="list suites and algorithms")
    args = parser.parse_args(argv)

    from hoard.analysis.results import ResultsError
    from hoard.datasets import DatasetError
    from hoard.runners.main import BAD_INPUT, BadInput
    from hoard.runners.suite import SuiteError

    try:
        sys.exit({"bench": _bench, "report": _report, "data": _data, "suites": _suites}[args.command](args))
    except (BadInput, SuiteError, DatasetError, ResultsError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except BrokenPipeError:  # the reader of our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _bench(args: argparse.Namespace) -> int:
    from hoard.runners import suite as suites
    from hoard.runners.sweep import Sweep

    suite = suites.select(suites.read(args.suite), args.algos, args.datasets, args.seeds, _overrides(args.set))
    launcher = None
    if args.ray:
        from hoard.runners.ray_launcher import launch_ray

        launcher = launch_ray()
    command = shlex.join(["hoard", *sys.argv[1:]])
    sweep = Sweep(suite, args.results, args.jobs, command, launcher)
    status = sweep.run()
    if any(job.status == "finished" for job in sweep.work):
        _show(args.results / suite.name)
    return status


def _overrides(pairs: list[str]) -> dict[str, Any]:
    from hoard.runners.suite import SuiteError

    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise SuiteError(f"--set {pair}: write OPTION=VALUE, for instance updates=5000 or hidden=64,64")
        out[name.replace("-", "_")] = value.split(",") if "," in value else value
    return out


def _report(args: argparse.Namespace) -> int:
    from hoard.runners.main import BadInput

    given = Path(args.suite)
    folder = given if (given / "cells.json").is_file() else args.results / given.name.removesuffix(".toml")
    if not (folder / "cells.json").is_file():
        raise BadInput(f"no results in {folder}: there is no cells.json; run `hoard bench` first")
    _show(folder)
    return 0


def _show(folder: Path) -> None:
    """Write the report of a suite's folder, print its table and where everything is."""
    from hoard.analysis import report, results
    from hoard.records.files import read_json

    metric = read_json(folder / "cells.json").get("metric", "score")
    built = report.build(folder, metric=metric)
    print(report.summary_text(results.load(folder), metric))
    for name, path in (("report", built.html), ("curves", built.curves), ("figure", built.comparison)):
        print(f"{name:8}{path}")


def _data(args: argparse.Namespace) -> int:
    actions = {
        "list": _data_list,
        "make": _data_make,
        "info": _data_info,
        "check": _data_check,
        "versions": _data_versions,
    }
    return actions[args.action](args)


def _data_list(args: argparse.Namespace) -> int:
    from hoard import datasets

    for dataset_id in datasets.known_ids():
        here = datasets.is_at_hand(dataset_id)
        if args.json:
            print(json.dumps({"id": dataset_id, "on_disk": here}))
        else:
            print(f"{dataset_id:40}{'on disk' if here else ''}".rstrip())
    return 0


def _data_make(args: argparse.Namespace) -> int:
    for dataset_id in args.id:
        made = _ensure(dataset_id)
        print(f"{dataset_id}: {'made' if made else 'at hand'}")
    return 0


def _data_info(args: argparse.Namespace) -> int:
    from hoard import datasets
    from hoard.datasets import card
    from hoard.records.files import write_atomic
    from hoard.runners.main import BadInput

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
    from hoard.datasets.check import check

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
    from hoard.datasets import versions

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
    from hoard.runners.main import BadInput

    if args.sample < 1 or args.seed < 0:
        raise BadInput("--sample must be at least 1 and --seed at least 0")


def _ensure(dataset_id: str) -> bool:
    """Generate or fetch what is not here, with a progress bar on stderr: stdout belongs to the result."""
    from rich.console import Console

    from hoard import datasets
    from hoard.runners.progress import generation_bar

    with generation_bar(Console(stderr=True), dataset_id) as progress:
        return datasets.ensure(dataset_id, progress)


def _train(algo: str, args: list[str]) -> int:
    from hoard.runners.suite import SuiteError, algo_file

    try:
        # Replaced, not called: signals and the terminal belong to the run, which knows how to stop cleanly.
        os.execv(sys.executable, [sys.executable, str(algo_file(algo)), *args])
    except SuiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _suites(_: argparse.Namespace) -> int:
    from hoard.runners import suite as suites

    for name in suites.available():
        print(f"{name:16} {suites.read(name).description}")
    print(f"\nalgorithms: {', '.join(suites.algorithms())}")
    return 0


if __name__ == "__main__":
    main()
