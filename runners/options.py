"""The command line of an algorithm file: options from its Config, presets, the runner's own options."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from hoard.records.errors import BadInput
from hoard.records.folder import PACKED
from hoard.records.suggest import nearest
from hoard.runners import guide
from hoard.runners.config import check, departures, resolved


@dataclasses.dataclass
class Options:
    """Options of the runner; none of them changes a result."""

    results: Path = Path("results")
    """Folder for run folders."""
    preset: str | None = None
    """Named set of defaults from the algorithm file; single options override it."""
    eval_processes: int = 1
    """Processes that step the environments of an evaluation, the run's own among them."""
    keep_checkpoint: bool = False
    """Keep the resume checkpoint of a finished run."""
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
    planned: str | None = None  # the run folder that the sweep which started this cell expects
    packed: int = 0  # its updates are made as part of so many; 0 if alone


def preset_of(presets: Mapping[str, Mapping[str, Any]], name: str | None, prog: str) -> Mapping[str, Any]:
    """The options of a preset. Raises BadInput, naming those there are."""
    if name is not None and name not in presets:
        raise BadInput(f"unknown preset '{name}' for {prog}; it has: {', '.join(presets) or 'none'}")
    return presets[name] if name else {}


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
    first.add_argument("--packed", type=int, default=0)
    cell, args = first.parse_known_args(args)
    first.add_argument("--preset")
    preset = preset_of(presets, first.parse_known_args(args)[0].preset, prog)
    flat: Any = tyro.conf.OmitArgPrefixes
    both = dataclasses.make_dataclass("Arguments", [("config", flat[config_type]), ("options", flat[Options])])
    listed = f"\n\nPresets: {', '.join(presets)}." if presets else ""
    parsed = tyro.cli(
        both,
        args=args,
        prog=prog,
        description=f"{inspect.getdoc(config_type)}{listed}",
        default=both(config_type(**preset), Options()),
        config=(tyro.conf.FlagConversionOff,),
    )
    return understood(parsed.config, parsed.options, cell.planned, cell.packed)


def understood(cfg: Any, options: Options, planned: str | None = None, packed: int = 0) -> Parsed:
    """A Config with what follows from it. Raises BadInput for values that make no sense."""
    check(cfg)
    if options.eval_processes < 1:
        raise BadInput(f"eval_processes {options.eval_processes}: must be at least 1")
    guide.parse(getattr(cfg, "guide", "none"))
    config = resolved(cfg)
    overrides = departures(cfg, config)
    # Stacked updates round otherwise: such a run is another one than the same alone.
    more = {PACKED: packed} if packed else {}
    return Parsed(cfg, config | more, overrides | more, options, planned, packed)


def build(
    config_type: type, presets: Mapping[str, Mapping[str, Any]], prog: str, options: Options, values: Mapping[str, Any]
) -> Parsed:
    """As `parse`, from Python values. Raises BadInput for an option that the Config does not have."""
    fields = {field.name for field in dataclasses.fields(config_type)}
    for name in values:
        if name not in fields:
            raise BadInput(f"{prog} has no option '{name}'; nearest: {nearest(name, fields)}")
    tuples = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return understood(config_type(**{**preset_of(presets, options.preset, prog), **tuples}), options)
