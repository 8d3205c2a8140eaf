"""From an algorithm file to a finished run: on the command line (`main`) and in Python (`train_file`).

Exit status: 0 finished (or finished before), 1 failed, 2 bad input, 75 another process has the run, 130 stopped.
"""

from __future__ import annotations

import inspect
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hoard import datasets
from hoard.datasets import plugins
from hoard.records.errors import BAD_INPUT, BUSY, FAILED, OK, STOPPED, BadInput, Busy
from hoard.records.files import writable
from hoard.records.folder import status_of
from hoard.records.meaning import meaning_hash
from hoard.runners import trackers
from hoard.runners.address import address
from hoard.runners.algorithms import import_file
from hoard.runners.evaluate import Evaluator
from hoard.runners.options import Options, Parsed, build, parse
from hoard.runners.progress import generation_bar
from hoard.runners.run import Run, Stopped
from hoard.runners.task import task_of
from hoard.runners.together import run_together

Train = Callable[[Any, Run], None]
Begun = Callable[[Run], None]


def main(
    config_type: type,
    train: Train,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    args: Sequence[str] | None = None,
) -> None:
    """Run an algorithm file from its command line and exit; see the module's notes for the status."""
    algo_file = Path(inspect.getsourcefile(train) or "").resolve()
    source = algo_file.read_text()  # first of all: the file may be edited while the data is made
    given = sys.argv[1:] if args is None else args

    def run_one(args: Sequence[str], begun: Begun | None = None) -> int:
        try:
            parsed = parse(config_type, presets or {}, args, algo_file.name)
            if parsed.packed and begun is None:
                raise BadInput("--packed is for the runs that `hoard bench --pack` starts together")
            return _to_status(parsed, train, algo_file, source, begun)
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT

    together = len(given) == 2 and given[0] == "--pack"  # what the sweep calls; not an option of the files
    sys.exit(run_together(Path(given[1]), run_one) if together else run_one(given))


def _to_status(parsed: Parsed, train: Train, algo_file: Path, source: str, begun: Begun | None) -> int:
    try:
        run = prepare(parsed, algo_file, source)
    except Busy as error:
        print(f"busy: {error}", file=sys.stderr)
        return BUSY
    except BadInput:
        raise
    except Exception:
        traceback.print_exc()
        return FAILED
    if isinstance(run, Path):
        return OK
    try:
        carry_out(run, parsed, train, begun)
    except Stopped:
        return STOPPED
    except (Exception, SystemExit):  # recorded and said already
        return FAILED
    return OK


def train_file(algo_file: Path, dataset: str, results: Path, preset: str | None, **values: Any) -> Path:
    """Train in this process and return the folder of the finished run; what is finished already is not trained again.

    Raises BadInput for options that make no sense, Busy if another process has the run, and whatever ended a run early.
    """
    source = algo_file.read_text()
    module = import_file(algo_file)
    options = Options(results=Path(results), preset=preset)
    values = {"dataset": dataset, **values}
    parsed = build(module.Config, getattr(module, "PRESETS", {}), algo_file.name, options, values)
    return execute(parsed, module.train, algo_file, source)


def execute(parsed: Parsed, train: Train, algo_file: Path, source: str) -> Path:
    """Make or continue the run that was asked for and return its folder. Raises as `prepare` and `carry_out` do."""
    run = prepare(parsed, algo_file, source)
    return run if isinstance(run, Path) else carry_out(run, parsed, train)


def prepare(parsed: Parsed, algo_file: Path, source: str) -> Run | Path:
    """The run that was asked for, new or where its last checkpoint left it; its folder if it is finished already.

    Raises BadInput, Busy, and OSError where nothing can be written.
    """
    cfg, options = parsed.cfg, parsed.options
    if extra := trackers.missing_extra(options.tensorboard, options.wandb):
        raise BadInput(f"--{extra} needs the extra: pip install 'hoard[{extra}]'")
    torch.set_num_threads(cfg.threads)
    writable(options.results)
    with generation_bar(Console(), cfg.dataset) as progress:
        dataset = datasets.load(cfg.dataset, progress)
    Evaluator(task_of(dataset)).close()  # spaces that do not fit are found before anything is trained
    place = address(algo_file.stem, meaning_hash(source), parsed.config, dataset.content_hash)
    if parsed.planned not in (None, place):
        raise BadInput(
            f"{algo_file.name}, the dataset or the device is not what the sweep planned with ({parsed.planned}, now "
            f"{place}); was the file edited while it ran? Start the sweep again"
        )
    folder = options.results / place
    if status_of(folder)["status"] == "finished":
        print(f"finished before: {folder}")
        return folder
    return Run(
        folder,
        cfg,
        plugins.apply(dataset, getattr(cfg, "data", "all")),
        algo=algo_file.stem,
        source=source,
        config=parsed.config,
        overrides=parsed.overrides,
        eval_processes=options.eval_processes,
    )


def carry_out(run: Run, parsed: Parsed, train: Train, begun: Begun | None = None) -> Path:
    """Train to the end and return the run's folder; `begun` is told of the run first.

    How it ended stands in its status.json and log. Raises Stopped (a signal asked for it), or what went wrong.
    """
    options = parsed.options

    def stop(*_: object) -> None:
        run.stop_requested = True

    with run:
        if begun:
            begun(run)
        # Only the main thread may handle signals; elsewhere (a notebook's worker, say) they stay as they are.
        handled = [signal.SIGINT, signal.SIGTERM] if threading.current_thread() is threading.main_thread() else []
        if handled and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored: nohup wants the run to go on
            handled.append(signal.SIGHUP)
        previous = {number: signal.signal(number, stop) for number in handled}
        try:
            print(f"{run.algo} on {run.cfg.dataset}, seed {run.cfg.seed} -> {run.folder}", flush=True)
            run.recorder.trackers = trackers.start(
                run.folder, parsed.config, run.count, options.tensorboard, options.wandb, run.say
            )
            train(run.cfg, run)
            run.finish(options.keep_checkpoint)
        except Stopped:
            run.fail("interrupted")
            run.say(f"stopped after {run.progress_text}; the same command goes on from there")
            raise
        except (Exception, SystemExit) as error:
            _record_failure(run, error)
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    return run.folder


def _record_failure(run: Run, error: BaseException) -> None:
    """Say and record why a run failed; on a full disk saying it has to do."""
    print(traceback.format_exc(), flush=True)
    try:
        run.fail("failed", f"{type(error).__name__}: {error}")
        with open(run.folder / "log.txt", "a") as log:
            log.write(traceback.format_exc())
    except OSError as second:
        print(f"and it could not be recorded in {run.folder}: {second}", flush=True)
