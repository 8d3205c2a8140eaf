"""The folder of a run: which file holds what, and how far the run is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hoard.records.files import read_json

EPISODES, METRICS = "episodes.parquet", "metrics.parquet"
EVALUATIONS = "evaluations.parquet"  # when each evaluation came; the same run again has other times
CONFIG, PROVENANCE, STATUS, LOG = "config.json", "provenance.json", "status.json", "log.txt"
PACKED = "packed"  # among the options in config.json: of how many seeds the updates were made as one
CHECKPOINT = "checkpoint.pt"  # what an unfinished run resumes from
POLICY, POLICY_SPEC = "policy.safetensors", "policy.json"  # the trained policy: weights, and how to build it
ALGORITHM = "algorithm.py"  # the algorithm file as it was
FILM, VIDEO = "policy.gif", "policy.mp4"  # the policy at work, once it was recorded
PATHS = "paths.png"  # its paths through the maze, once they were drawn


def status_of(folder: Path) -> dict[str, Any]:
    """The run's status.json, or {'status': 'pending'} before its first start."""
    try:
        return read_json(folder / STATUS)
    except FileNotFoundError:
        return {"status": "pending"}
