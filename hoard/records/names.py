"""File-system names of things that have other names: datasets, methods, algorithms."""

from __future__ import annotations

import re

from hoard.records.errors import BadInput

# What tables and figures may compare.
METRICS = ("score", "return", "success")

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def dataset_slug(dataset_id: str) -> str:
    """One path component for a dataset id: `d4rl:hopper-medium-v2` -> `d4rl-hopper-medium-v2`."""
    return dataset_id.strip("/").replace("/", "-").replace(":", "-")


def log_name(method: str, dataset_id: str, seed: int) -> str:
    """File in a suite's `logs` with what a cell printed."""
    return f"{method}--{dataset_slug(dataset_id)}--{seed}.log"


def check_name(kind: str, name: str) -> str:
    """`name`, if it is one plain path component. Raises BadInput for anything that could leave its folder."""
    if not _PLAIN.fullmatch(name) or len(name) > 100:
        raise BadInput(
            f"{kind} '{name}': a name has letters, digits, '.', '_' and '-', begins with a letter, digit or '_', "
            "and is at most 100 characters long"
        )
    return name
