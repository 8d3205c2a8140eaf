"""Turns of a tenth of a second, for `peers.py` and `d3rlpy_iql.py`; needs nothing but the standard library."""

import time
from collections.abc import Callable

TURN = 0.1
WARM_UP = 10


def best_turn(update: Callable[[], object], seconds: float) -> float:
    """Milliseconds of CPU time of one update, in the best turn."""
    best, until = float("inf"), time.monotonic() + seconds
    for _ in range(WARM_UP):
        update()
    while best == float("inf") or time.monotonic() < until:
        begun, count = time.process_time(), 0
        while time.process_time() < begun + TURN:
            update()
            count += 1
        best = min(best, (time.process_time() - begun) / count)
    return 1000 * best
