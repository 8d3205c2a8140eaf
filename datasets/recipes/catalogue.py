"""Which recipes there are: ids, lengths, and the function that generates each. Needs no simulator."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable
from functools import partial

from hoard.datasets.recording import Recording

COMBLOCK_HORIZONS = (5, 10, 15, 30, 50)
COMBLOCK_VARIANTS = ("paper", "rich", "forced", "unit")  # see `hoard.datasets.recipes.comblock`
TABULAR = {"gridworld": "hoard/GridWorld-v0", "doublechain": "hoard/DoubleChain-v0"}  # problem: environment
MAZE_STEPS = {"umaze": 200_000, "medium": 400_000}  # enough for a laptop; the published sets have 1,000,000
ROBOTS = ("hopper", "halfcheetah", "walker2d")
# Steps of a robot's set without a length in its id, in each version; None is all there are.
ROBOT_STEPS: tuple[dict[str, int | None], ...] = (
    {"random": 200_000, "medium": 200_000, "medium-replay": 200_000, "medium-expert": 400_000},
    {"random": 200_000, "medium": 200_000, "medium-replay": None, "medium-expert": 400_000, "expert": 200_000},
)

# id: the module whose `record` generates the set, and its arguments.
_FIXED: dict[str, tuple[str, tuple]] = {
    "hoard/pointmaze/stitch-v0": ("stitch", ()),
    "hoard/pendulum/mixed-v0": ("pendulum", ()),
    **{f"hoard/{problem}/expert-v0": ("tabular", (problem,)) for problem in TABULAR},
}
_WALKS = ("pointmaze", "maze2d")
_WALK_ID = re.compile(
    f"hoard/(?P<family>{'|'.join(_WALKS)})/(?P<maze>{'|'.join(MAZE_STEPS)})" r"(-(?P<thousands>[1-9]\d*)k)?-v0"
)
_ROBOT_IDS = tuple(
    re.compile(
        f"hoard/(?P<robot>{'|'.join(ROBOTS)})/(?P<level>{'|'.join(steps)})"
        rf"(-(?P<thousands>[1-9]\d{{0,3}})k)?-v{version}"
    )
    for version, steps in enumerate(ROBOT_STEPS)
)

# Variants in this order, each at most once, then the number of the lock.
_LOCK_ID = re.compile(
    r"hoard/comblock/h(?P<horizon>[1-9]\d?)"
    + "".join(f"(?P<{variant}>-{variant})?" for variant in COMBLOCK_VARIANTS)
    + r"(-lock(?P<lock>[1-9]\d{0,3}))?-v0"
)


def known_ids() -> list[str]:
    """The ids at their default length, sorted."""
    walks = [f"hoard/{family}/{maze}-v0" for family in _WALKS for maze in MAZE_STEPS]
    levels = [f"{level}-v{version}" for version, steps in enumerate(ROBOT_STEPS) for level in steps]
    robots = [f"hoard/{robot}/{level}" for robot in ROBOTS for level in levels]
    locks = [f"hoard/comblock/h{horizon}-v0" for horizon in COMBLOCK_HORIZONS]
    locks += [f"hoard/comblock/h10-{variant}-v0" for variant in COMBLOCK_VARIANTS]
    return sorted([*_FIXED, *walks, *robots, *locks])


def is_known(dataset_id: str) -> bool:
    """Whether there is a recipe, lengths such as ``hoard/pointmaze/umaze-1000k-v0`` included."""
    return dataset_id in _FIXED or any(kind.fullmatch(dataset_id) for kind in (_WALK_ID, *_ROBOT_IDS, _LOCK_ID))


def is_in_memory(dataset_id: str) -> bool:
    """Whether a set is generated at each load: faster than reading it (50,000 episodes: 1 s, not 15 s and 0.9 GB)."""
    return bool(_LOCK_ID.fullmatch(dataset_id))


def find(dataset_id: str) -> Callable[..., Recording]:
    """The recipe of a set, to be called with the progress; imports its module. Raises ValueError for an unknown id."""
    module, arguments = _recipe_of(dataset_id)
    importlib.import_module("hoard.envs")  # first: it keeps Gymnasium-Robotics from printing its notice
    return partial(importlib.import_module(f"hoard.datasets.recipes.{module}").record, *arguments)


def _recipe_of(dataset_id: str) -> tuple[str, tuple]:
    if dataset_id in _FIXED:
        return _FIXED[dataset_id]
    if match := _WALK_ID.fullmatch(dataset_id):
        steps = _steps(match["thousands"])
        return match["family"], (match["maze"], MAZE_STEPS[match["maze"]] if steps is None else steps)
    for number, kind in enumerate(_ROBOT_IDS):
        if match := kind.fullmatch(dataset_id):
            return "locomotion", (match["robot"], match["level"], number, _steps(match["thousands"]))
    if match := _LOCK_ID.fullmatch(dataset_id):
        variants = tuple(variant for variant in COMBLOCK_VARIANTS if match[variant])
        return "comblock", (int(match["horizon"]), variants, int(match["lock"] or 0))
    near = difflib.get_close_matches(dataset_id, known_ids(), n=3, cutoff=0.4) or known_ids()
    raise ValueError(
        f"no recipe for {dataset_id!r}; nearest: {', '.join(near)} "
        "(pointmaze, maze2d and the robots take a length, as in hoard/pointmaze/umaze-1000k-v0; robots up to 9999k; "
        "comblock takes a horizon, variants and a lock, as in hoard/comblock/h20-paper-rich-lock3-v0)"
    )


def _steps(thousands: str | None) -> int | None:
    return None if thousands is None else int(thousands) * 1000
