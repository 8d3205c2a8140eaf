"""Datasets made side by side: a sweep makes them in order, helpers begin at the other end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hoard import datasets
from hoard.runners.sweep.local import cores, environment


@contextmanager
def making_ahead(dataset_ids: Sequence[str], jobs: int) -> Iterator[None]:
    """Within it, processes besides this one, up to `jobs` in all, generate those of the datasets that are not on disk.

    They go through them from the last to the first, so that they meet whoever goes from the first to the last; a set
    that another process is making is waited for. What fails here fails there as well and is told there.
    """
    missing = [
        name
        for name in dataset_ids
        if datasets.progress_unit(name) == "environment steps" and not datasets.is_at_hand(name)
    ]
    count = min(jobs, cores(), len(missing)) - 1
    command, nowhere = [sys.executable, "-m", "hoard.cli", "data", "make"], subprocess.DEVNULL
    helpers = [
        subprocess.Popen(
            [*command, *missing[::-1][number::count]], stdin=nowhere, stdout=nowhere, stderr=nowhere, env=environment()
        )
        for number in range(count)
    ]
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()  # a set appears whole or not at all
        for helper in helpers:
            helper.wait()
