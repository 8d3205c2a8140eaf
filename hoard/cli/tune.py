"""`hoard tune`: search for an algorithm's options, and test what was found."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoard.cli.bench import overrides, show
from hoard.records.errors import FAILED, OK, BadInput

if TYPE_CHECKING:
    from hoard.runners.tune.tuner import Tuner

FIRST_SEED = 100  # seeds from here on are for tuning: docs/protocol.md


def add_parsers(commands: Any) -> None:
    tune = commands.add_parser(
        "tune",
        help="search for an algorithm's options with Optuna, and test the winner on fresh seeds",
        description="Search the options that an algorithm file declares in SEARCH. A trial's runs are runs like any "
        "other. The same command goes on with the study; further ones at the same time work on it too. At the end the "
        "winner meets the default settings on seeds that the search never saw.",
        epilog="example: hoard tune iql hoard/pendulum/mixed-v0 --trials 20 --set updates=5000 eval_every=500",
        allow_abbrev=False,
    )
    tune.add_argument("algo", metavar="ALGO", help="name of a file in algos/, or the path of one anywhere")
    tune.add_argument("datasets", metavar="DATASET", nargs="+", help="the objective is the mean over them")
    tune.add_argument("--trials", type=int, default=40, help="of the study in total, by all workers (default: 40)")
    tune.add_argument("--study", metavar="NAME", help="name of the study (default: after algorithm and datasets)")
    tune.add_argument(
        "--seeds",
        default="2",
        help="tuning seeds: how many, from 100 on, or which (100,105) (default: 2)",
    )
    tune.add_argument(
        "--test-seeds",
        default="5",
        metavar="SEEDS",
        help="seeds of the last comparison: how many, or which (default: 5)",
    )
    tune.add_argument("--no-test", action="store_true", help="end with the search, without that comparison")
    tune.add_argument("--set", nargs="+", metavar="OPTION=VALUE", default=[], help="options of every trial")
    tune.add_argument("--only", nargs="+", metavar="OPTION", default=[], help="of the search space, vary only these")
    tune.add_argument("--metric", default="score", help="score, return or success (default: score)")
    for name, default, what in (
        ("sampler", "TPESampler", "suggests options"),
        (
            "pruner",
            "MedianPruner, from the 9th trial and the 3rd evaluation on",
            "ends hopeless trials; NopPruner never does",
        ),
    ):
        tune.add_argument(
            f"--{name}",
            nargs="+",
            metavar=("NAME", "ARGUMENT=VALUE"),
            help=f"Optuna's {name}, which {what} (default: {default})",
        )
    tune.add_argument("--sampler-seed", type=int, default=0, help="seed of the sampler (default: 0)")
    tune.add_argument("--storage", metavar="URL", help="database of the study (default: a journal in its folder)")
    tune.add_argument("--jobs", type=int, help="runs at a time (default: CPU cores)")
    tune.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    tune.set_defaults(call=_tune)


def tuning_seeds(text: str) -> tuple[int, ...]:
    """`3` means seeds 100, 101 and 102; `100,105` means those. Raises BadInput otherwise."""
    from hoard.runners.sweep.suite import parse_seeds

    seeds = parse_seeds(text)
    return seeds if "," in text else tuple(FIRST_SEED + seed for seed in seeds)


def _tune(args: argparse.Namespace) -> int:
    for package in ("optuna", "tomli_w"):
        if importlib.util.find_spec(package) is None:
            raise BadInput("hoard tune needs the extra: pip install 'hoard[tune]'")
    from hoard.runners.sweep.local import cores
    from hoard.runners.sweep.suite import parse_seeds
    from hoard.runners.tune.tuner import PRUNER, SAMPLER, Request, Tuner

    seeds, test_seeds = tuning_seeds(args.seeds), parse_seeds(args.test_seeds)
    if both := sorted(set(seeds) & set(test_seeds)):
        raise BadInput(
            f"--seeds and --test-seeds share {', '.join(map(str, both))}: what was tuned on a seed is no test there"
        )
    request = Request(
        args.algo, tuple(args.datasets), args.trials, seeds, overrides(args.set), tuple(args.only), args.metric,
        args.sampler or SAMPLER, args.pruner or PRUNER, args.sampler_seed, args.study, args.storage,
    )  # fmt: skip
    jobs = cores() if args.jobs is None else args.jobs
    tuner = Tuner(request, args.results, jobs)
    status = tuner.run()
    if status != OK or not tuner.complete:
        return status
    return _conclude(tuner, test_seeds, jobs, args.no_test)


def _conclude(tuner: Tuner, test_seeds: tuple[int, ...], jobs: int, no_test: bool) -> int:
    """Write down the winner and let it meet the default settings; only one of several workers does."""
    from hoard.records.errors import Busy
    from hoard.records.locks import lock_folder
    from hoard.runners.tune import result

    try:
        lock = lock_folder(tuner.folder)
    except Busy:
        print("another worker tests the winner")
        return OK
    with lock:
        result.write_trials(tuner)
        result.write_episodes(tuner)
        if (best := tuner.best()) is None:
            print(f"no trial of {tuner.name} came to an end: see {tuner.folder / 'trials.csv'}", file=sys.stderr)
            return FAILED
        settings = result.write_settings(tuner, best)
        print(f"\nbest of {len(tuner.finished())} trials: trial {best.number}, {tuner.request.metric} {best.value:.2f}")
        found, default = result.values_of(tuner, best), result.default_values(tuner)
        for name, value in found.items():
            print(f"  {name:20} {value!s:24} (default: {default[name]})")
        print(f"written to {settings}", flush=True)
        if no_test:
            return OK
        return _test(tuner, test_seeds, jobs)


def _test(tuner: Tuner, seeds: tuple[int, ...], jobs: int) -> int:
    from hoard.runners.sweep import suite as suites
    from hoard.runners.sweep.schedule import Sweep
    from hoard.runners.tune import result

    best = tuner.best()
    assert best
    if result.won_by_default(tuner, best):
        print("the default settings have won")
    file = result.write_suite(tuner, best, seeds)
    chosen = ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")
    suite = suites.select(suites.read(str(file)), seeds=chosen)
    sweep = Sweep(suite, tuner.results, jobs, shlex.join(["hoard", *sys.argv[1:]]))
    status = sweep.run()
    test = result.tested(tuner, sweep.work)
    result.write_settings(tuner, best, test)
    if any(job.status == "finished" for job in sweep.work):
        status = show(tuner.results / suite.name) or status
    for method in (result.TUNED, result.DEFAULT):
        if method in test:
            print(f"{method:8} {tuner.request.metric} {test[method]['mean']:.2f} on seeds {chosen.rstrip(',')}")
    return status
