"""The command of a module that joins a further file of a suite's runs, draws it and prints a summary."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from hoard.analysis import plots, results


def command(
    name: str,
    description: str,
    schema: pa.Schema,
    load: Callable[[Path], pd.DataFrame],
    draw: Callable[[pd.DataFrame], Figure],
    summary: Callable[[pd.DataFrame], pd.DataFrame],
    number: str,
    arguments: Sequence[str] | None,
) -> None:
    """Write FOLDER/`name`.parquet and FOLDER/figures/`name`.png, print the summary with numbers formatted as `number`.

    Ends the process with status 1 where `load` raises ResultsError.
    """
    parser = argparse.ArgumentParser(prog=f"python -m hoard.analysis.{name}", description=description)
    parser.add_argument("folder", type=Path, help="suite folder, the one that holds cells.json")
    options = parser.parse_args(arguments)
    try:
        rows = load(options.folder)
    except results.ResultsError as error:
        parser.exit(1, f"error: {error}\n")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False), sink, compression="zstd")
    results.write_atomic(options.folder / f"{name}.parquet", sink.getvalue().to_pybytes())
    print(results.write_atomic(options.folder / "figures" / f"{name}.png", plots.png(draw(rows))))
    print(summary(rows).to_string(index=False, float_format=lambda value: format(value, number)))
