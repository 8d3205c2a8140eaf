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

from __future__ import annotations

from hoard.datasets.recipes.catalogue import find, is_in_memory, is_known, known_ids
from hoard.datasets.recording import Recording
from hoard.datasets.source import Progress

__all__ = ["Progress", "Recording", "generate", "is_in_memory", "is_known", "known_ids"]


def generate(dataset_id: str, progress: Progress | None = None) -> Recording:
    """Generate a dataset and measure its reference scores; ``progress(done, total)`` counts environment steps."""
    return find(dataset_id)(progress)
