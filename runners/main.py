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
from rich.console import Console

from hoard import datasets
from hoard.runners import trackers
from hoard.runners.evaluate import Evaluator
from hoard.runners.progress import generation_bar
from hoard.runners.run import Busy, Run, Stopped, address, resolve_device, source_hash, status_of

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
    """A command line, understood: the Config, the same as JSON values with the device resolved, what of it departs from
    the file's defaults, and the runner's options."""

    cfg: Any
    config: dict[str, Any]
    overrides: dict[str, Any]
    options: Options
    planned: str | None  # the run folder that the sweep which started this cell expects


def plain(cfg: Any) -> dict[str, Any]:
    """A Config as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def parse(config_type: type, presets: Mapping[str, Mapping[str, Any]], args: Sequence[str], prog: str) -> Parsed:
    """Read options; unknown ones are refused by tyro with exit status 2 and the nearest names."""
    switches = {
        f"--{f.name.replace('_', '-')}"
        for t in (config_type, Options)
        for f in dataclasses.fields(t)
        if "bool" in str(f.type)
    }
    args = [a.capitalize() if a in ("true", "false") and b in switches else a for a, b in zip(args, ["", *args])]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--planned")  # between sweep and cell, not for users: not in the help
    planned, args = first.parse_known_args(args)
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
    online_steps: int = getattr(cfg, "online_steps", 0)
    for name in (
        "updates",
        "log_every",
        "eval_every",
        "eval_episodes",
        "final_eval_episodes",
        "checkpoint_every",
        "threads",
    ):
        least = 0 if name == "updates" and online_steps else 1
        if getattr(cfg, name) < least:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(cfg, name)}: must be at least {least}")
    if online_steps < 0:
        raise BadInput(f"--online-steps {online_steps}: must not be negative")
    if cfg.seed < 0:
        raise BadInput(f"--seed {cfg.seed}: must not be negative")
    try:
        config, defaults = plain(cfg) | {"device": resolve_device(cfg.device)}, plain(config_type())
    except ValueError as error:
        raise BadInput(str(error)) from error
    own = ("dataset", "seed", "device")  # what every run has of its own
    overrides = {k: v for k, v in config.items() if v != defaults[k] and k not in own}
    return Parsed(cfg, config, overrides, parsed.options, planned.planned)


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
    source = source_hash(algo_file)  # first of all: the file may be edited while the data is made
    try:
        parsed = parse(config_type, presets or {}, sys.argv[1:] if args is None else args, algo_file.name)
        sys.exit(_execute(parsed, train, algo_file, source))
    except (BadInput, datasets.DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _execute(parsed: Parsed, train: Callable[[Any, Run], None], algo_file: Path, source: str) -> int:
    cfg, options = parsed.cfg, parsed.options
    if extra := trackers.missing_extra(options.tensorboard, options.wandb):
        raise BadInput(f"--{extra} needs the extra: pip install 'hoard[{extra}]'")
    torch.set_num_threads(cfg.threads)
    writable(options.results)
    with generation_bar(Console(), cfg.dataset) as progress:
        dataset = datasets.load(cfg.dataset, progress)
    Evaluator(dataset).close()  # spaces that do not fit are found before anything is trained
    place = address(algo_file.stem, source, parsed.config, dataset.content_hash)
    if parsed.planned not in (None, place):
        raise BadInput(
            f"{algo_file.name}, the dataset or the device is not what the sweep planned with ({parsed.planned}, now "
            f"{place}); was the file edited while it ran? Start the sweep again"
        )
    folder = options.results / place
    if status_of(folder)["status"] == "finished":
        print(f"finished before: {folder}")
        return OK
    try:
        run = Run(folder, cfg, dataset, parsed.config, parsed.overrides, algo_file, source)
    except Busy as error:
        print(f"busy: {error}", file=sys.stderr)
        return BUSY
    except RuntimeError as error:
        raise BadInput(str(error)) from error

    def stop(*_: object) -> None:
        run.stop_requested = True

    with run:
        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            print(f"{algo_file.stem} on {cfg.dataset}, seed {cfg.seed} -> {folder}", flush=True)
            run.trackers = trackers.start(folder, parsed.config, run.count, options.tensorboard, options.wandb)
            train(cfg, run)
            run.finish()
            return OK
        except Stopped:
            run.fail("interrupted")
            run.say(f"stopped after {run.progress_text}; the same command goes on from there")
            return STOPPED
        except (Exception, SystemExit) as error:
            run.fail("failed", f"{type(error).__name__}: {error}")
            run.say(traceback.format_exc())
            return FAILED
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
