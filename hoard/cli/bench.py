"""`hoard train`, `hoard bench`, `hoard plan`, `hoard report`, `hoard suites`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from hoard.records.errors import FAILED, OK, BadInput


def add_parsers(commands: Any) -> None:
    train_ = commands.add_parser("train", help="one run: hoard train ALGO [options of that file]", add_help=False)
    train_.add_argument("-h", "--help", action=_TrainHelp, nargs=0, help="show this help message and exit")
    train_.add_argument("algo", metavar="ALGO", help="name of a file in algos/, or the path of one anywhere")
    train_.set_defaults(call=lambda args: train(args.algo, []))
    bench = commands.add_parser(
        "bench",
        help="run a suite, skip what is finished, write its report",
        epilog="example: hoard bench quick --seeds 5 --algos iql bc --set updates=2000",
        allow_abbrev=False,
    )
    bench.add_argument(
        "--engine",
        choices=("local", "ray", "slurm"),
        default="local",
        help="where cells run: here, as tasks of a Ray cluster, or as Slurm jobs (local)",
    )
    bench.add_argument(
        "--slurm", nargs="+", metavar="KEY=VALUE", default=[], help="of the jobs: partition=gpu account=me time=240"
    )
    bench.add_argument(
        "--retries", type=int, default=2, help="further starts of a cell that was killed or whose machine was lost (2)"
    )
    bench.add_argument("--time-limit", metavar="TIME", help="end a cell that takes longer in one start: 90s, 30m, 2.5h")
    bench.add_argument("--memory-limit", metavar="SIZE", help="end a cell that holds more resident memory: 800M, 4G")
    bench.add_argument(
        "--gpus", metavar="LIST", help="deal these out to the cells: 0,1 or their UUIDs; one to each cell"
    )
    bench.add_argument("--per-gpu", type=int, metavar="N", help="cells at a time on each of them (default: 1)")
    bench.add_argument(
        "--pack",
        type=int,
        default=1,
        metavar="K",
        help="up to K seeds of a method in one process, their updates as one (1)",
    )
    bench.add_argument("--mirror", metavar="URL", help="copy finished runs to and from there: s3://bucket/results")
    bench.add_argument("--cold", action="store_true", help="start each cell as a fresh process that imports anew")
    bench.add_argument("--dry-run", action="store_true", help="as `hoard plan`: say what would be done, start nothing")
    bench.set_defaults(call=_bench)
    plan = commands.add_parser(
        "plan",
        help="what a suite would do, and how long it may take; starts and fetches nothing",
        description="Cells of a suite, what of them is finished, and hours by the runs made on this machine before.",
        epilog="example: hoard plan quick --seeds 5 --jobs 2",
        allow_abbrev=False,
    )
    plan.set_defaults(call=_plan)
    for command in (bench, plan):
        command.add_argument("suite", nargs="?", default="quick", help="name of a shipped suite, or a .toml file")
        command.add_argument("--seeds", help="how many (5), or which (0,3,7)")
        command.add_argument(
            "--algos", nargs="+", metavar="NAME", help="methods of the suite, algorithms, or paths of files"
        )
        command.add_argument("--datasets", nargs="+", metavar="ID", help="instead of the suite's datasets")
        command.add_argument(
            "--set", nargs="+", metavar="OPTION=VALUE", default=[], help="override options in every cell"
        )
        command.add_argument("--jobs", type=int, help="runs at a time (default: CPU cores)")
        command.add_argument("--json", action="store_true", help="the plan as one JSON object")
    report = commands.add_parser(
        "report",
        help="rebuild the report of a suite, a run or a results folder",
        epilog="example: hoard report quick; hoard report results/runs/iql; hoard report s3://bucket/results/quick",
        allow_abbrev=False,
    )
    report.add_argument("suite", nargs="?", default="quick", help="name of a suite, a folder, or a mirror's URL/SUITE")
    report.add_argument("--all", action="store_true", help="all cells on record, not only those last asked for")
    report.add_argument(
        "--rollouts",
        action="store_true",
        help="first film the policy of each method's median seed on each dataset, and draw its paths in a maze",
    )
    report.set_defaults(call=_report)
    for command in (bench, plan, report):
        command.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    commands.add_parser("suites", help="list suites and algorithms").set_defaults(call=_suites)


class _TrainHelp(argparse.Action):
    """The help of `hoard train`, with the algorithms and their presets, which no other command needs to read."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from hoard.runners.algorithms import FOLDER, available, preset_names

        print(parser.format_help())
        print("algorithms and their presets:")
        for name in available():
            print(f"  {name:22}{', '.join(preset_names(FOLDER / f'{name}.py'))}".rstrip())
        print("\nexamples:\n  hoard train iql --help                                          its options")
        print("  hoard train iql --dataset hoard/pendulum/mixed-v0 --updates 5000")
        print("  hoard train path/to/my_iql.py --dataset hoard/pendulum/mixed-v0")
        parser.exit()


def train(algo: str, args: list[str]) -> NoReturn:
    """Become the algorithm file's own command: signals and the terminal belong to the run. Raises BadInput."""
    from hoard.runners.algorithms import find

    os.execv(sys.executable, [sys.executable, str(find(algo)), *args])


def _asked_for(args: argparse.Namespace) -> tuple[Any, int]:
    """The suite as the command line selects from it, and how many runs at a time."""
    from hoard.runners.sweep import suite as suites
    from hoard.runners.sweep.local import cores

    suite = suites.select(suites.read(args.suite), args.algos, args.datasets, args.seeds, overrides(args.set))
    jobs = cores() if args.jobs is None else args.jobs
    if jobs < 1:
        raise BadInput(f"--jobs {jobs}: must be at least 1")
    for method in suite.methods:
        if method.original:
            where = sys.stderr if args.json else sys.stdout
            print(f"{method.name}: a fork with {method.original}'s settings in this suite", file=where)
    return suite, jobs


def _plan(args: argparse.Namespace) -> int:
    suite, jobs = _asked_for(args)
    return _tell(suite, jobs, args)


def _tell(suite: Any, jobs: int, args: argparse.Namespace) -> int:
    from hoard.runners.sweep.forecast import forecast

    told = forecast(suite, args.results, jobs, getattr(args, "pack", 1))
    print(json.dumps(told.as_json(), sort_keys=True) if args.json else told.as_text())
    return OK


def _bench(args: argparse.Namespace) -> int:
    _check_engine(args)
    if args.json and not args.dry_run:
        raise BadInput("--json goes with --dry-run")
    from hoard.runners.sweep.mirror import Mirror
    from hoard.runners.sweep.schedule import Sweep

    limits, gpus = _limits(args), _gpus(args)
    suite, jobs = _asked_for(args)
    if gpus:
        jobs = _places(args, suite, gpus, jobs)
    if args.dry_run:
        return _tell(suite, jobs, args)
    launcher: Any = None
    at_end = contextlib.ExitStack()
    if args.engine == "ray":
        from hoard.runners.sweep.ray import RayCluster

        launcher = RayCluster()
        jobs = launcher.cpus if args.jobs is None else jobs
    elif args.engine == "slurm":
        from hoard.runners.sweep import slurm

        kind, parameters = slurm.parse_parameters(args.slurm)
        launcher = slurm.SlurmCluster(args.results / suite.name / "slurm", suite.name, limits, kind, parameters)
        jobs = slurm.JOBS if args.jobs is None and launcher.counts_cells else jobs
    elif not args.cold:
        from hoard.runners.sweep.warm import WarmLauncher

        launcher = WarmLauncher()
        at_end.callback(launcher.close)
    command = shlex.join(["hoard", *sys.argv[1:]])
    mirror = Mirror(args.mirror, args.results) if args.mirror else None
    with at_end:
        sweep = Sweep(suite, args.results, jobs, command, launcher, limits, gpus, args.per_gpu or 1, mirror, args.pack)
        status = sweep.run()
    if any(job.status == "finished" for job in sweep.work):
        status = show(args.results / suite.name) or status
    return status


def _check_engine(args: argparse.Namespace) -> None:
    """Raise BadInput for options that the chosen engine has no use for."""
    if args.slurm and args.engine != "slurm":
        raise BadInput("--slurm goes with --engine slurm")
    if args.engine == "local":
        return
    for option, given in (
        ("--gpus", args.gpus),
        ("--per-gpu", args.per_gpu),
        ("--cold", args.cold),
        ("--pack", args.pack > 1),
    ):
        if given:
            raise BadInput(f"{option} is for this machine, not for --engine {args.engine}")
    if args.dry_run and args.jobs is None:
        raise BadInput(f"--dry-run starts nothing on --engine {args.engine}, so give --jobs for its hours")


def _limits(args: argparse.Namespace) -> Any:
    from hoard.runners.sweep.limits import Limits, parse_duration, parse_size

    if args.retries < 0:
        raise BadInput(f"--retries {args.retries}: must be 0 or more")
    seconds = parse_duration("--time-limit", args.time_limit) if args.time_limit else None
    memory = parse_size("--memory-limit", args.memory_limit) if args.memory_limit else None
    return Limits(args.retries, seconds, memory)


def _gpus(args: argparse.Namespace) -> list[str]:
    """Names of the accelerators that are dealt out."""
    if args.gpus is None:
        if args.per_gpu is not None:
            raise BadInput("--per-gpu needs --gpus")
        return []
    names = [name.strip() for name in args.gpus.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise BadInput(f"--gpus {args.gpus}: write different ones, as 0,1 or GPU-8a56a4bc")
    if args.per_gpu is not None and args.per_gpu < 1:
        raise BadInput(f"--per-gpu {args.per_gpu}: must be at least 1")
    return names


def _places(args: argparse.Namespace, suite: Any, gpus: list[str], jobs: int) -> int:
    """How many places for cells the accelerators leave; `jobs` where some cells need none of them."""
    from hoard.runners.sweep.gpus import Gpus

    known = Gpus(gpus, args.per_gpu or 1)
    asked = {cell.resources for cell in suite.cells()}
    rooms = [room * (one.cpus or 1) for one in asked if (room := known.at_once(one)) is not None]
    if len(rooms) < len(asked):
        return jobs
    if args.jobs is not None and jobs > max(rooms):
        raise BadInput(f"--jobs {jobs}: {len(gpus)} accelerators have room for {max(rooms)} at a time")
    return max(rooms) or 1


def overrides(pairs: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise BadInput(f"--set {pair}: write OPTION=VALUE, for instance updates=5000 or hidden=64,64")
        out[name.replace("-", "_")] = value.split(",") if "," in value else value
    return out


def _report(args: argparse.Namespace) -> int:
    if "://" in args.suite:
        from hoard.runners.sweep.mirror import fetch_suite

        given = named = fetch_suite(args.suite, args.results / "fetched")
    else:
        given = Path(args.suite)
        named = args.results / given.name.removesuffix(".toml")
    folder = next((folder for folder in (given, named) if folder.is_dir()), None)
    if folder is not None:
        if args.rollouts:
            from hoard.cli import rollouts

            rollouts.record(folder, args.all)
        return show(folder, args.all)
    raise BadInput(f"no results in {named}, nor a folder {given}; run `hoard bench {args.suite}` first")


def show(folder: Path, everything: bool = False) -> int:
    """Write the report of a folder, or find it up to date; print its text."""
    from hoard.analysis import report

    try:
        print(report.build(folder, everything=everything).text)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk
        print(f"error: the report of {folder} cannot be written: {error}", file=sys.stderr)
        return FAILED
    return OK


def _suites(_: argparse.Namespace) -> int:
    from hoard.runners import algorithms
    from hoard.runners.sweep import suite as suites

    for name in suites.available():
        print(f"{name:16} {suites.read(name).description}")
    print(f"\nalgorithms: {', '.join(algorithms.available())}")
    return 0
