"""Checkpoints: everything a run would need after a kill, in one file that appears whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map

from hoard.records.files import write_atomic
from hoard.records.schema import SCHEMA_VERSION
from hoard.runners import pack


def save(path: Path, state: dict[str, Any], prove: bool) -> None:
    """Write `state`. With `prove` it is read back before it takes its place: what cannot be is found out now.

    Raises RuntimeError if it cannot be read back.
    """

    def write(scratch: Path) -> None:
        torch.save(state | {"schema_version": SCHEMA_VERSION}, scratch)
        if prove:
            load(scratch)

    write_atomic(path, write)


def state_of(thing: Any) -> Any:
    """`thing.state_dict()`, without the other seeds' weights that share storage with it in a pack."""
    state = thing.state_dict()
    return state if pack.member() is None else tree_map(_alone, state)


def _alone(value: Any) -> Any:
    """A tensor that is a part of a larger one, as a pack's weights are, without the rest, which would be saved too."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return value
    return value.clone() if value.untyped_storage().nbytes() > value.numel() * value.element_size() else value


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Raises RuntimeError for a damaged file or another schema.

    `load_state_dict` moves what belongs on the device; Adam's step counts belong on the CPU.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RuntimeError(f"{path.name} cannot be read back: {error}") from error
    if state["schema_version"] != SCHEMA_VERSION:
        raise RuntimeError(f"{path.name} has schema version {state['schema_version']}, not {SCHEMA_VERSION}")
    return state
