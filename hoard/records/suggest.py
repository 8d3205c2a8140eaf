"""Near misses for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], prefix: str = "", count: int = 3) -> str:
    """The `count` names in `known` that look most like `name`, joined for a message."""
    return ", ".join(prefix + hit for hit in difflib.get_close_matches(name, list(known), n=count, cutoff=0.0))
