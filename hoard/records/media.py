"""Pictures of a policy: each carries a record of what it shows, which the report reads.

The record is JSON, in a GIF's comment or in the text `Description` of a PNG: `alt` (what one sees, in words), `algo`,
`dataset`, `env`, `seed` of the evaluation, and `episodes`, its rows.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PNG_FIELD = "Description"


def record_of(
    alt: str, algo: str, dataset: str, env: str, seed: int, episodes: Sequence[dict[str, Any]], **more: Any
) -> str:
    """The record as the text that goes into the file."""
    head = {"alt": alt, "algo": algo, "dataset": dataset, "env": env, "seed": seed, "episodes": list(episodes)}
    return json.dumps(head | more)


def read_record(path: Path) -> dict[str, Any]:
    """The record inside a GIF or PNG; empty if it has none. Raises OSError for a file that is no such picture."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()  # text may stand behind the pixels
        text = image.info.get("comment") or image.info.get(PNG_FIELD) or ""
    try:
        found = json.loads(text)
    except ValueError:  # made by something else
        return {}
    return found if isinstance(found, dict) else {}


def outcome(rows: Sequence[dict[str, Any]]) -> str:
    """What came of some episodes, in a few words."""
    returns = [float(row["return"]) for row in rows]
    known = [bool(row["success"]) for row in rows if row["success"] is not None]
    if len(rows) == 1:
        success = f", {'success' if known[0] else 'no success'}" if known else ""
        return f"return {returns[0]:.4g}{success}"
    success = f", {sum(known)} of {len(known)} with success" if known else ""
    return f"mean return {statistics.fmean(returns):.4g}{success}"
