"""Methods against each other, seed by seed: `python tools/paired.py [--over-all] FOLDER A B [A B ...]`.

FOLDER is an archive or a suite's folder. For each pair and dataset a Markdown row: by how much A ends above B and,
where both took environment steps, by how much its regret is higher (lower is better), over the steps that all methods
took there. Means of the differences of the seeds that both finished, with 95 % Student-t intervals. With `--over-all` a
row for each pair of the mean over all datasets instead, every one with the same weight, where both have seeds on each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hoard.analysis import online, results, stats, tables
from hoard.records.errors import BAD_INPUT, BadInput

HEAD = "| dataset | A | B | seeds | A − B at the end | regret of A − B |\n|---|---|---|--:|--:|--:|"


def rows(loaded: results.Results, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A line of the table for each pair on each dataset. Raises BadInput for a method that is not there."""
    for name in {method for pair in pairs for method in pair} - set(loaded.methods):
        raise BadInput(f"no method {name}; there are {', '.join(loaded.methods)}")
    measure, ends_of = _last_values(loaded)
    for dataset in loaded.datasets:
        lost = online.regrets(loaded, dataset, measure[dataset])
        for a, b in pairs:
            ends = ends_of(dataset, (a, b))
            if len(ends) == 2:
                regret = _difference(lost[a], lost[b], 2) if a in lost and b in lost else tables.DASH
                seeds = len(ends[0].index.intersection(ends[1].index))
                yield f"| `{dataset}` | {a} | {b} | {seeds} | {_difference(ends[0], ends[1], 1)} | {regret} |"


def over_all(loaded: results.Results, pairs: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A line for each pair over all datasets. Raises BadInput for a method without a common seed on one of them."""
    _, ends_of = _last_values(loaded)
    for a, b in pairs:
        strata = []
        for dataset in loaded.datasets:
            ends = ends_of(dataset, (a, b))
            differences = (ends[0] - ends[1]).dropna() if len(ends) == 2 else ()
            if not len(differences):
                raise BadInput(f"{a} and {b} have no finished seed in common on {dataset}")
            strata.append(np.asarray(differences, dtype=np.float64))
        found = tables.interval(*stats.mean_interval(strata), 1)
        yield f"| all {len(strata)} datasets | {a} | {b} | {min(map(len, strata))} | {found} | {tables.DASH} |"


def _last_values(
    loaded: results.Results,
) -> tuple[dict[str, str], Callable[[str, tuple[str, str]], list[pd.Series]]]:
    """What is measured on each dataset; and (dataset, pair) -> last values by seed, of those of the two with any."""
    measure = tables.measures(loaded, loaded.metric)
    last = tables.seed_values(loaded).set_index(["dataset", "method", "seed"]).sort_index()

    def ends_of(dataset: str, pair: tuple[str, str]) -> list[pd.Series]:
        return [last.loc[(dataset, name)][measure[dataset]] for name in pair if (dataset, name) in last.index]

    return measure, ends_of


def _difference(a: pd.Series, b: pd.Series, decimals: int) -> str:
    found = stats.mean_interval([np.asarray((a - b).dropna(), dtype=np.float64)])
    return tables.interval(*found, decimals)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--over-all", action="store_true", help="the mean over all datasets, in place of each")
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="A B, and further pairs")
    args = parser.parse_args(arguments)
    try:
        if len(args.methods) % 2:
            raise BadInput(f"{args.methods[-1]} has no partner: methods come in pairs")
        pairs = list(zip(args.methods[::2], args.methods[1::2]))
        lines = list((over_all if args.over_all else rows)(results.load(args.folder), pairs))
    except BadInput as error:
        parser.exit(BAD_INPUT, f"error: {error}\n")
    print("\n".join([HEAD, *lines]))


if __name__ == "__main__":
    main()
