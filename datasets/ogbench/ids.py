"""What an `ogbench:` id says: which environment, which data, which task, and whether the data are made here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from hoard.datasets.dataset import DatasetError
from hoard.records.suggest import nearest

PREFIX = "ogbench:"
BASE_URL = "https://rail.eecs.berkeley.edu/datasets/ogbench/"
TASKS = 5

_MAZES = ("medium", "large", "giant", "teleport")
# environment: kinds of data that are published for it (state-based ones)
PUBLISHED: dict[str, tuple[str, ...]] = {
    **{f"pointmaze-{maze}": ("navigate", "stitch") for maze in _MAZES},
    **{f"antmaze-{maze}": ("navigate", "stitch", "explore") for maze in ("medium", "large", "teleport")},
    "antmaze-giant": ("navigate", "stitch"),
    **{f"humanoidmaze-{maze}": ("navigate", "stitch") for maze in ("medium", "large", "giant")},
    **{f"antsoccer-{field}": ("navigate", "stitch") for field in ("arena", "medium")},
    **{f"cube-{count}": ("play", "noisy") for count in ("single", "double", "triple", "quadruple")},
    "scene": ("play", "noisy"),
    **{f"puzzle-{size}": ("play", "noisy") for size in ("3x3", "4x4", "4x5", "4x6")},
}
# Those that `generate` can make. The others need trained policies or take long.
MADE: dict[str, tuple[str, ...]] = {
    **{f"pointmaze-{maze}": ("navigate", "stitch") for maze in _MAZES},
    "cube-single": ("play", "noisy"),
}
DEFAULT_THOUSANDS = 100

_KINDS = sorted({kind for kinds in PUBLISHED.values() for kind in kinds})
_ID = re.compile(
    rf"(?P<env>[a-z0-9-]+)-(?P<kind>{'|'.join(_KINDS)})(?:-(?P<thousands>[1-9]\d{{0,4}})k)?"
    rf"-singletask(?:-task(?P<task>[1-{TASKS}]))?-v0"
)


@dataclass(frozen=True)
class Request:
    """A parsed id. `task` is None for OGBench's default task; `thousands` of steps, None for the published file."""

    env: str
    kind: str
    task: int | None
    thousands: int | None

    @property
    def env_id(self) -> str:
        """Id of the single-task environment in Gymnasium."""
        return f"{self.env}-singletask{'' if self.task is None else f'-task{self.task}'}-v0"

    @property
    def path(self) -> Path:
        """Where the file lies, or would; all tasks share it."""
        if self.thousands is None:
            return folder() / f"{self.env}-{self.kind}-v0.npz"
        return folder() / "made" / f"{self.env}-{self.kind}-{self.thousands}k-v0.npz"

    @property
    def url(self) -> str:
        return BASE_URL + self.path.name


def folder() -> Path:
    """Where OGBench keeps its files: OGBENCH_DATASET_DIR, else ~/.ogbench/data, the package's own default."""
    return Path(os.environ.get("OGBENCH_DATASET_DIR") or Path.home() / ".ogbench" / "data")


def known_ids() -> list[str]:
    """The default task of every published set, and of those made here at their default length."""
    published = [f"{PREFIX}{env}-{kind}-singletask-v0" for env, kinds in PUBLISHED.items() for kind in kinds]
    made = [f"{PREFIX}{env}-{kind}-{DEFAULT_THOUSANDS}k-singletask-v0" for env, kinds in MADE.items() for kind in kinds]
    return sorted([*published, *made])


def parse(dataset_id: str) -> Request:
    """Raises DatasetError, naming the nearest ids, for a name that is none."""
    match = _ID.fullmatch(dataset_id.removeprefix(PREFIX))
    if match is None or match["kind"] not in PUBLISHED.get(match["env"], ()):
        near = nearest(dataset_id, known_ids())
        raise DatasetError(
            f"{dataset_id}: unknown name; nearest: {near}; write ENVIRONMENT-KIND-singletask-v0 for OGBench's default "
            f"task, -singletask-taskN-v0 for task 1 to {TASKS}. Goal-conditioned and pixel-based sets are not supported"
        )
    thousands = None if match["thousands"] is None else int(match["thousands"])
    if thousands is not None and match["kind"] not in MADE.get(match["env"], ()):
        made = ", ".join(f"{env}-{kind}" for env, kinds in MADE.items() for kind in kinds)
        raise DatasetError(f"{dataset_id}: a length asks for data made here, which there are for {made} alone")
    return Request(match["env"], match["kind"], None if match["task"] is None else int(match["task"]), thousands)
