"""What a `d4rl:` id says: which file, read as which published set or for which environment, and how."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hoard.datasets.d4rl.table import BY_FILE, ENTRIES, Entry
from hoard.datasets.dataset import DatasetError
from hoard.records.suggest import nearest

PREFIX = "d4rl:"
NAMES = tuple(ENTRIES)

_FILE_ID = re.compile(r"(?P<path>.*\.(?:hdf5|h5))(?P<options>(?:\+[^+]*)*)", re.DOTALL)
_ENV_ID = re.compile(r"(?:[\w.]+:)?(?:[\w-]+/)*[\w.-]+")
_FILE_OPTIONS = "+full, +as=NAME or +as=ENVIRONMENT, +ref=LOW,HIGH, each once"


@dataclass(frozen=True)
class Request:
    """A parsed id. `entry` is the published set that the file is read as (None: unknown)."""

    path: Path
    entry: Entry | None
    named: bool  # by D4RL's name, so it may be downloaded
    own: bool  # a file of the user's, never compared with the published one
    full: bool
    env_id: str | None = None  # +as=ENVIRONMENT; whether there is such an environment is not yet known
    references: tuple[float, float] | None = None  # +ref=LOW,HIGH


def folder() -> Path:
    """Where D4RL keeps its files: D4RL_DATASET_DIR, else ~/.d4rl/datasets."""
    return Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")


def parse(dataset_id: str) -> Request:
    """Raises DatasetError for a name that D4RL has not, and for options that there are not."""
    text = dataset_id.removeprefix(PREFIX)
    if file := _FILE_ID.fullmatch(text):
        return _parse_file(dataset_id, Path(os.path.expanduser(file["path"])), file["options"])
    name, plus, options = text.partition("+")
    if name not in ENTRIES:
        raise DatasetError(f"{dataset_id}: unknown name; nearest: {nearest(name, NAMES, PREFIX)}; or d4rl:PATH.hdf5")
    if options != "full" and plus:
        raise DatasetError(
            f"{dataset_id}: unknown option '+{options.removeprefix('full+')}'; there is +full, once (+as=NAME goes "
            "with d4rl:PATH.hdf5)"
        )
    return Request(folder() / ENTRIES[name].file_name, ENTRIES[name], named=True, own=False, full=bool(plus))


def _parse_file(dataset_id: str, path: Path, options: str) -> Request:
    given: dict[str, str] = {}
    for option in options.split("+")[1:]:
        key, equals, value = option.partition("=")
        if key not in ("full", "as", "ref") or key in given or (key == "full" and equals):
            raise DatasetError(f"{dataset_id}: unknown option '+{option}'; there is {_FILE_OPTIONS}")
        given[key] = value
    full, target = "full" in given, given.get("as")
    if target is None:
        if "ref" in given:
            raise DatasetError(f"{dataset_id}: +ref=LOW,HIGH goes with +as=ENVIRONMENT")
        return Request(path, BY_FILE.get(path.name), named=False, own=False, full=full)
    if target in ENTRIES:
        if "ref" in given:
            raise DatasetError(f"{dataset_id}: +ref=LOW,HIGH goes with an environment; {target} has its own references")
        return Request(path, ENTRIES[target], named=False, own=True, full=full)
    if not _ENV_ID.fullmatch(target):
        raise unknown_target(dataset_id, target)
    references = _references(dataset_id, given["ref"]) if "ref" in given else None
    return Request(path, None, named=False, own=True, full=full, env_id=target, references=references)


def unknown_target(dataset_id: str, target: str, near: str = "") -> DatasetError:
    """What to say of a +as= that is neither one of D4RL's names nor an environment."""
    names = nearest(target, NAMES) + (f"; nearest environments: {near}" if near else "")
    return DatasetError(
        f"{dataset_id}: +as={target}: unknown name; nearest: {names}. It may be a D4RL name or a Gymnasium "
        "environment, as Hopper-v5 or my_package:MyEnv-v0"
    )


def _references(dataset_id: str, text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise DatasetError(
            f"{dataset_id}: +ref={text}: write the return of a random policy and that of an expert, as +ref=-20,3200"
        )
    return low, high
