"""Discrete parts of a Minari dataset as numbers, and the refusal to train on discrete actions.

A space is rewritten into one made of Box alone, and values follow it, so that `hoard.envs.flatten_obs` stays the only
place that knows the order of columns:

- ``Discrete(n)``: n columns, one-hot; column 0 stands for ``start``. Not the bare index, which would say that 2 lies
  between 1 and 3;
- ``MultiDiscrete``: the one-hot columns of its entries side by side, in C order;
- ``MultiBinary``: its bits, 0 or 1;
- ``Text`` (the missions of Minigrid): left out, inside a Dict or Tuple; a space of nothing else is refused. `left_out`
  names what is missing, and the data card prints it;
- ``Box``, and ``Dict`` and ``Tuple`` of all these: as they are.

Actions follow the same rule. A dataset whose actions are not a Box has `OneHot` for its action space: it can be loaded
and looked at, while `require_box_actions` refuses it wherever an algorithm, all of which are continuous here, begins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Text, Tuple

from hoard.datasets.dataset import Dataset, DatasetError

MAX_COLUMNS = 4096  # of one one-hot encoding; a larger one is a mistake or an attack, never a small control problem


class OneHot(Box):
    """The Box [0, 1]^n of one-hot encoded actions; `original` is the space the environment has."""

    def __init__(self, original: Space) -> None:
        super().__init__(0.0, 1.0, (columns(original),), np.float32)
        self.original = original

    def __repr__(self) -> str:
        return f"one-hot of {self.original}"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, OneHot) and self.original == other.original


def require_box_actions(dataset: Dataset) -> None:
    """Raise DatasetError, naming the dataset, unless its actions are a Box: what every algorithm here needs."""
    space = dataset.action_space
    if isinstance(space, OneHot):
        raise DatasetError(
            f"{dataset.id}: its action space is {space.original}; the algorithms here need a Box action space "
            "(continuous control), so this dataset can be loaded and described but not trained on"
        )


def columns(space: Space) -> int:
    """How many numbers encode one value of a Discrete, MultiDiscrete or MultiBinary space.

    Raises TypeError for another space, ValueError beyond `MAX_COLUMNS`.
    """
    if isinstance(space, MultiBinary):
        count = int(np.prod(space.shape))
    elif isinstance(space, Discrete):
        count = int(space.n)
    elif isinstance(space, MultiDiscrete):
        count = sum(int(n) for n in space.nvec.reshape(-1))
    else:
        raise TypeError(f"{space} is not Discrete, MultiDiscrete or MultiBinary")
    if not 1 <= count <= MAX_COLUMNS:
        raise ValueError(f"{space} would take {count} columns, at most {MAX_COLUMNS} are allowed")
    return count


def boxed_space(space: Space) -> Space:
    """`space` made of Box alone (see the module's notes).

    Raises TypeError where it holds anything else, or nothing but text.
    """
    boxed = _boxed(space)
    if boxed is None:
        raise TypeError(f"{space} holds nothing but text")
    return boxed


def boxed(space: Space, values: Any) -> Any:
    """T stacked values of `space`, in Minari's layout, as T stacked values of `boxed_space(space)`.

    Raises ValueError for an index that is not in its space, or of the wrong shape.
    """
    if isinstance(space, Box):
        return values
    if isinstance(space, Dict):
        return {key: boxed(part, values[key]) for key, part in space.spaces.items() if _boxed(part) is not None}
    if isinstance(space, Tuple):
        return tuple(boxed(part, values[i]) for i, part in enumerate(space.spaces) if _boxed(part) is not None)
    index = np.asarray(values)
    if index.dtype.kind not in "iub":
        raise ValueError(f"{space} has values of type {index.dtype}, expected integers")
    shape: tuple[int, ...] = space.shape or ()
    if index.ndim == 0 or index.shape[1:] not in (shape, (*shape, 1)):
        raise ValueError(f"{space} has values of shape {index.shape}, expected {('T', *shape)}")
    index = index.reshape(len(index), -1)
    if isinstance(space, MultiBinary):
        sizes, start = np.full(index.shape[1], 2), np.zeros(index.shape[1], np.int64)
    elif isinstance(space, Discrete):
        sizes, start = np.array([space.n]), np.array([space.start])
    else:
        assert isinstance(space, MultiDiscrete)
        sizes, start = space.nvec.reshape(-1).astype(np.int64), space.start.reshape(-1)
    outside = (index < start) | (index >= start + sizes)
    if outside.any():
        row, entry = np.argwhere(outside)[0]
        raise ValueError(f"{space} does not hold {index[row, entry]}, first at row {row}")
    if isinstance(space, MultiBinary):
        return index.astype(np.float32)
    out = np.zeros((len(index), columns(space)), np.float32)
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])  # column of each entry's lowest value
    out[np.arange(len(index))[:, None], first + (index.astype(np.int64) - start)] = 1.0
    return out


def left_out(space: Space, name: str = "") -> list[str]:
    """Names of the Text parts that `boxed_space` leaves out: ['mission'], ['task/goal'], ..."""
    if isinstance(space, Text):
        return [name]
    parts: list[tuple[Any, Space]] = []
    if isinstance(space, Dict):
        parts = list(space.spaces.items())
    elif isinstance(space, Tuple):
        parts = list(enumerate(space.spaces))
    return [hit for key, part in parts for hit in left_out(part, f"{name}/{key}".lstrip("/"))]


def brief(space: Space) -> str:
    """A space in few words: the bounds of a large Box, or the characters of a Text, would fill a screen."""
    if isinstance(space, Text):
        return "Text"
    if isinstance(space, Box):
        return f"Box{space.shape} {space.dtype}"
    if isinstance(space, Dict):
        return "{" + ", ".join(f"{key}: {brief(part)}" for key, part in space.spaces.items()) + "}"
    if isinstance(space, Tuple):
        return "(" + ", ".join(brief(part) for part in space.spaces) + ")"
    return str(space)


def _boxed(space: Space) -> Space | None:
    """As `boxed_space`, None for what is left out."""
    if isinstance(space, Text):
        return None
    if isinstance(space, Box):
        return space
    if isinstance(space, Dict):
        parts = {key: new for key, part in space.spaces.items() if (new := _boxed(part)) is not None}
        return Dict(parts) if parts else None
    if isinstance(space, Tuple):
        kept = [new for part in space.spaces if (new := _boxed(part)) is not None]
        return Tuple(kept) if kept else None
    if isinstance(space, (Discrete, MultiDiscrete, MultiBinary)):
        return Box(0.0, 1.0, (columns(space),), np.float32)
    raise TypeError(f"{space} is not made of Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple and Text")
