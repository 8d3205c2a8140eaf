"""Datasets that are generated here, on first use, rather than downloaded.

===========================================  ==============================================================
``hoard/pointmaze/{umaze,medium}[-<N>k]-v0``  Minari's PointMaze recipe, the goal observed; N thousand steps
``hoard/maze2d/{umaze,medium}[-<N>k]-v0``     the same walks, the goal hidden, rewards for one fixed goal
``hoard/pointmaze/stitch-v0``                 MBRCSL's point maze: the best path is in no trajectory
``hoard/pendulum/mixed-v0``                   Pendulum-v1 from four skill levels
``hoard/comblock/h{5,10,15}-v0``              HNPG's combination lock, epsilon-greedy episodes
``hoard/{gridworld,doublechain}/expert-v0``   finite MDPs of demonstration-regularised RL, soft expert, one-hot
``hoard/<robot>/<level>[-<N>k]-v0``           locomotion like D4RL's: hopper, halfcheetah or walker2d; random, medium,
                                             medium-replay or medium-expert, from SAC policies that ship with hoard
===========================================  ==============================================================

A recipe is deterministic: the same id gives the same arrays, bit for bit, under the same package versions. Reset
seeds are below 2**31. Nothing is written to disk here.
"""

import difflib
import re
from collections.abc import Callable
from functools import partial

from hoard.datasets.recipes import comblock, locomotion, maze2d, pendulum, pointmaze, stitch, tabular
from hoard.datasets.recipes._common import Progress, Recording

__all__ = ["Progress", "Recording", "generate", "is_in_memory", "is_known", "known_ids"]

_FIXED: dict[str, Callable[..., Recording]] = {
    "hoard/pointmaze/stitch-v0": stitch.record,
    "hoard/pendulum/mixed-v0": pendulum.record,
}
_FIXED |= {f"hoard/comblock/h{horizon}-v0": partial(comblock.record, horizon) for horizon in comblock.HORIZONS}
_FIXED |= {f"hoard/{problem}/expert-v0": partial(tabular.record, problem) for problem in tabular.ENV_IDS}
_WALKS = {"pointmaze": pointmaze.record, "maze2d": maze2d.record}
_WALK_ID = re.compile(r"hoard/(?P<family>pointmaze|maze2d)/(?P<maze>umaze|medium)(-(?P<thousands>[1-9]\d*)k)?-v0")

_ROBOT_ID = re.compile(
    f"hoard/(?P<robot>{'|'.join(locomotion.TASKS)})/(?P<level>{'|'.join(locomotion.DEFAULT_STEPS)})"
    r"(-(?P<thousands>[1-9]\d{0,3})k)?-v0"
)


def known_ids() -> list[str]:
    """The ids at their default length, sorted."""
    walks = [f"hoard/{family}/{maze}-v0" for family in _WALKS for maze in pointmaze.DEFAULT_STEPS]
    robots = [f"hoard/{robot}/{level}-v0" for robot in locomotion.TASKS for level in locomotion.DEFAULT_STEPS]
    return sorted([*_FIXED, *walks, *robots])


def is_known(dataset_id: str) -> bool:
    """Whether `generate` takes this id, lengths such as ``hoard/pointmaze/umaze-1000k-v0`` included."""
    return dataset_id in _FIXED or any(kind.fullmatch(dataset_id) for kind in (_WALK_ID, _ROBOT_ID))


def is_in_memory(dataset_id: str) -> bool:
    """Whether a set is generated at each load: sooner done than read (50,000 episodes: 1 s against 15 s and 0.9 GB)."""
    return dataset_id in _FIXED and dataset_id.startswith("hoard/comblock/")


def generate(dataset_id: str, progress: Progress | None = None) -> Recording:
    """Generate a dataset and measure its reference scores; ``progress(done, total)`` counts environment steps."""
    if dataset_id in _FIXED:
        return _FIXED[dataset_id](progress=progress)
    if match := _WALK_ID.fullmatch(dataset_id):
        maze, thousands = match["maze"], match["thousands"]
        steps = int(thousands) * 1000 if thousands else pointmaze.DEFAULT_STEPS[maze]
        return _WALKS[match["family"]](maze, steps, progress=progress)
    if match := _ROBOT_ID.fullmatch(dataset_id):
        thousands = match["thousands"]
        return locomotion.record(match["robot"], match["level"], int(thousands) * 1000 if thousands else None, progress)
    near = difflib.get_close_matches(dataset_id, known_ids(), n=3, cutoff=0.4) or known_ids()
    raise ValueError(
        f"no recipe for {dataset_id!r}; nearest: {', '.join(near)} "
        "(pointmaze, maze2d and the robots take a length, as in hoard/pointmaze/umaze-1000k-v0; robots up to 9999k)"
    )
