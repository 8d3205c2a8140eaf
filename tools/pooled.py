"""Datasets that are draws of one task, as one row: `python tools/pooled.py FOLDER PATTERN [PATTERN ...]`.

FOLDER is an archive or a suite's folder. For each pattern, such as 'hoard/comblock/h5-lock*-v0', and each method a
Markdown row: each dataset that it fits counts once, with the mean of its seeds. So the interval speaks of other draws
of the dataset, too. HNPG's release draws its lock and its data anew for every seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from hoard.analysis import results, stats, tables
from hoard.records.errors import BAD_INPUT, BadInput


def head(measure: str) -> str:
    kind = "Wilson" if measure == "success" else "Student t"
    return f"| datasets | method | draws | mean ± std | mean [95 % {kind}] | least |\n|---|---|--:|--:|--:|--:|"


def measure_of(loaded: results.Results) -> str:
    """What the suite is measured by. Raises BadInput where datasets differ in it."""
    found = set(tables.measures(loaded, loaded.metric).values())
    if len(found) > 1:
        raise BadInput(f"the datasets have no measure in common: {', '.join(sorted(found))}")
    return found.pop()


def rows(loaded: results.Results, patterns: Sequence[str]) -> Iterator[str]:
    """A line of the table for each pattern and method. Raises BadInput for a pattern that fits no dataset."""
    measure, values = measure_of(loaded), tables.seed_values(loaded)
    decimals = 3 if measure == "success" else 1
    for pattern in patterns:
        fits = values[[fnmatchcase(dataset, pattern) for dataset in values["dataset"]]]
        if fits.empty:
            raise BadInput(f"no dataset fits {pattern}; there are {', '.join(loaded.datasets)}")
        for method in loaded.methods:
            own = fits[fits["method"] == method]
            if own.empty:
                continue
            seen = own.groupby("dataset", sort=False)[measure].mean().to_numpy(dtype=float)
            mean = stats.mean_of([seen], measure, own["episodes"].sum())
            spread, least = tables.number(stats.std(seen), decimals), tables.number(float(seen.min()), decimals)
            shown = f"{tables.number(mean.point, decimals)} ± {spread} | {tables.interval(*mean, decimals)}"
            yield f"| `{pattern}` | {method} | {len(seen)} | {shown} | {least} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("patterns", nargs="+", metavar="PATTERN")
    args = parser.parse_args(arguments)
    try:
        loaded = results.load(args.folder)
        lines = [head(measure_of(loaded)), *rows(loaded, args.patterns)]
    except BadInput as error:
        parser.exit(BAD_INPUT, f"error: {error}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
