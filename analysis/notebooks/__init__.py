"""Notebooks over result files, `execute` to run them from the command line, and where they find their results."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of a checkout


def find_results(experiment: str = "learning") -> Path:
    """The folder in HOARD_RESULTS, or else the committed `experiment` of this checkout.

    A relative path is looked for where the notebook runs and, as Jupyter runs it in its own folder, in the checkout.
    Raises FileNotFoundError with what was looked for.
    """
    given = os.environ.get("HOARD_RESULTS")
    places = [Path(given).expanduser(), ROOT / given] if given else [ROOT / "experiments" / experiment]
    for place in places:
        if place.is_dir():
            return place.resolve()
    looked = " and ".join(str(place.absolute()) for place in places)
    raise FileNotFoundError(f"no results: looked for {looked}; set HOARD_RESULTS to the folder that has cells.json")
