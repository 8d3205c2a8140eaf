"""The `hoard` command: bench a suite, rebuild a report, look at data, train one algorithm."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 fine, 1 some cells failed, 2 bad input, 130 stopped."""
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
    data = commands.add_parser("data", help="list, make or describe datasets", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="ids that can be had, and which are on this disk")
    for name, text in (("make", "generate or fetch"), ("info", "sizes, returns, spaces, references, hash")):
        actions.add_parser(name, help=text, allow_abbrev=False).add_argument("id", nargs="+")
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
    from hoard.runners.files import read_json

    metric = read_json(folder / "cells.json").get("metric", "score")
    built = report.build(folder, metric=metric)
    print(report.summary_text(results.load(folder), metric))
    for name, path in (("report", built.html), ("curves", built.curves), ("figure", built.comparison)):
        print(f"{name:8}{path}")


def _data(args: argparse.Namespace) -> int:
    from rich.console import Console

    from hoard import datasets
    from hoard.datasets import minari_store
    from hoard.runners.progress import generation_bar

    if args.action == "list":
        for dataset_id in datasets.known_ids():
            here = not dataset_id.startswith("d4rl:") and minari_store.is_stored(dataset_id)
            print(f"{dataset_id:40}{'on disk' if here else ''}".rstrip())
        return 0
    console = Console()
    for dataset_id in args.id:
        with generation_bar(console, dataset_id) as progress:
            made = datasets.ensure(dataset_id, progress)
        if args.action == "make":
            print(f"{dataset_id}: {'made' if made else 'already on disk'}")
        else:
            print(describe(datasets.load(dataset_id)))
    return 0


def describe(data: Any) -> str:
    """A dataset in a few lines of text."""
    returns, lengths = data.returns, data.lengths
    low, median, high = np.percentile(returns, [0, 50, 100])
    env = f"{data.env_spec.id}, {data.env_spec.max_episode_steps} steps" if data.env_spec else "unknown"
    refs = f"{data.ref_min:.2f} .. {data.ref_max:.2f}" if data.ref_min is not None else "none"
    lines = {
        "transitions": f"{len(data):,} in {data.num_episodes:,} episodes",
        "lengths": f"{lengths.min()} .. {lengths.max()}, mean {lengths.mean():.1f}",
        "returns": f"{low:.2f} .. {high:.2f}, median {median:.2f}, mean {returns.mean():.2f}",
        "score of the mean": f"{float(data.normalized_score(returns.mean())):.1f}" if data.ref_min is not None else "-",
        "ends": f"{int(data.terminated.sum()):,} terminated, {int(data.truncated.sum()):,} truncated",
        "observation": f"{data.obs_dim} numbers",
        "action": f"{data.action_dim} numbers in [{data.action_space.low.min():g}, {data.action_space.high.max():g}]",
        "evaluation": env,
        "reference returns": f"{refs} (random .. expert)",
        "sha256": data.content_hash,
        "read from": data.source,
    }
    return "\n".join([data.id, *(f"  {name:18} {text}" for name, text in lines.items())])


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
