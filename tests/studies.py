"""Small studies: options of runs that take a second, and `hoard tune` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from helpers import ROOT

SMALL = (
    "updates=60", "hidden=16", "batch_size=32", "log_every=10", "eval_every=20", "eval_episodes=2",
    "final_eval_episodes=2", "checkpoint_every=20",
)  # fmt: skip


def until(condition, timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def start(command: list[str], log: Path) -> subprocess.Popen:
    """`hoard ...` in a session of its own, what it prints appended to `log`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "hoard.cli", *command],
            stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
