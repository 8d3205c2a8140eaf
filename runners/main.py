"""The command line of an algorithm file: options from its Config, one run, an exit status that says how it ended.

Exit status: 0 finished (or finished before), 1 failed, 2 bad input, 75 another process has the run, 130 stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tyro

from hoard import datasets
from hoard.runners import trackers
from hoard.runners.evaluate import Evaluator
from hoard.runners.run import Busy, Run, Stopped, address, resolve_device, status_of

OK, FAILED, BAD_INPUT, BUSY, STOPPED = 0, 1, 2, 75, 130


class BadInput(Exception):
    """An option, a file or a folder the user gave cannot be used; the message is meant for them."""


@dataclasses.dataclass
class Options:
    """Options of the runner; none of them changes a result."""

    results: Path = Path("results")
    """Folder for run folders."""
    preset: str | None = None
    """Named set of defaults from the algorithm file's PRESETS; single options override it."""
    tensorboard: bool = False
    """Also write TensorBoard events into the run folder (extra: tensorboard)."""
    wandb: str | None = None
    """Also log to this Weights & Biases project (extra: wandb)."""


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A command line, understood: the Config, its plain form, the defaults it departs from, the runner's options."""

    cfg: Any
    config: dict[str, Any]
    defaults: dict[str, Any]
    options: Options


def plain(cfg: Any) -> dict[str, Any]:
    """A Config as JSON values, `device` resolved: this is what a run's address is made of."""
    value = json.loads(json.dumps(dataclasses.asdict(cfg)))
    return value | {"device": resolve_device(cfg.device)}


def parse(config_type: type, presets: Mapping[str, Mapping[str, Any]], args: Sequence[str], prog: str) -> Parsed:
    """Read options; unknown ones are refused by tyro with exit status 2 and the nearest names."""
    args = [arg.capitalize() if arg in ("true", "false") else arg for arg in args]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    preset = first.parse_known_args(args)[0].preset
    if preset is not None and preset not in presets:
        raise BadInput(f"unknown preset '{preset}' for {prog}; it has: {', '.join(presets) or 'none'}")
    start = config_type(**presets[preset]) if preset else config_type()
    flat: Any = tyro.conf.OmitArgPrefixes
    both = dataclasses.make_dataclass("Arguments", [("config", flat[config_type]), ("options", flat[Options])])
    parsed = tyro.cli(
        both,
        args=args,
        prog=prog,
        description=inspect.getdoc(config_type),
        default=both(start, Options()),
        config=(tyro.conf.FlagConversionOff,),
    )
    cfg = parsed.config
    for name in (
        "updates",
        "log_every",
        "eval_every",
        "eval_episodes",
        "final_eval_episodes",
        "checkpoint_every",
        "threads",
    ):
        if getattr(cfg, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(cfg, name)}: must be at least 1")
    if cfg.seed < 0:
        raise BadInput(f"--seed {cfg.seed}: must not be negative")
    try:
        return Parsed(cfg, plain(cfg), plain(config_type()), parsed.options)
    except ValueError as error:
        raise BadInput(str(error)) from error


def writable(folder: Path) -> None:
    """Raise BadInput unless files can be made in `folder` (which is made if absent)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"results folder {folder} is not writable: {error.strerror}") from error


def main(
    config_type: type,
    train: Callable[[Any, Run], None],
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    args: Sequence[str] | None = None,
) -> None:
    """Run an algorithm file from its command line and exit; see the module's notes for the status."""
    algo_file = Path(inspect.getsourcefile(train) or "").resolve()
    try:
        parsed = parse(config_type, presets or {}, sys.argv[1:] if args is None else args, algo_file.name)
        sys.exit(_execute(parsed, train, algo_file))
    except (BadInput, datasets.DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _execute(parsed: Parsed, train: Callable[[Any, Run], None], algo_file: Path) -> int:
    cfg, options = parsed.cfg, parsed.options
    torch.set_num_threads(cfg.threads)
    writable(options.results)
    dataset = datasets.load(cfg.dataset)
    Evaluator(dataset).close()  # spaces that do not fit are found before anything is trained
    folder = options.results / address(algo_file, parsed.config, dataset.content_hash)
    if status_of(folder)["status"] == "finished":
        print(f"finished before: {folder}")
        return OK
    try:
        watchers = trackers.start(folder, parsed.config, options.tensorboard, options.wandb)
    except ImportError as error:
        raise BadInput(str(error)) from error
    try:
        run = Run(folder, cfg, dataset, parsed.config, parsed.defaults, algo_file, watchers)
    except Busy as error:
        print(f"busy: {error}", file=sys.stderr)
        return BUSY

    def stop(*_: object) -> None:
        run.stop_requested = True

    with run:
        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            print(f"{algo_file.stem} on {cfg.dataset}, seed {cfg.seed} -> {folder}", flush=True)
            train(cfg, run)
            run.finish()
            return OK
        except Stopped:
            run.fail("interrupted")
            run.say(f"stopped after update {run.update}; the same command goes on from there")
            return STOPPED
        except Exception as error:
            run.fail("failed", f"{type(error).__name__}: {error}")
            run.say(traceback.format_exc())
            return FAILED
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
