"""Helpers for figures that need a further file of each run, beside its episodes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from hoard.analysis import plots, results


def load(
    folder: str | Path, name: str, schema: pa.Schema, of_run: Callable[[Path], pd.DataFrame | None], nothing: str
) -> pd.DataFrame:
    """What `of_run` finds in the folders of all finished runs of a suite, with their method, dataset and seed.

    An archive without run folders has them joined already, in `name`.parquet. Raises ResultsError, saying `nothing`, if
    no run has any.
    """
    folder = Path(folder)
    loaded = results.load(folder, everything=True)
    archive = folder / f"{name}.parquet"
    if loaded.archived and archive.is_file():
        return pq.ParquetFile(archive).read().to_pandas()
    parts = []
    for cell in loaded.cells[loaded.cells["status"] == "finished"].to_dict("records"):
        own = of_run(folder.parent / cell["run"])
        if own is not None:
            parts.append(own.assign(method=cell["method"], dataset=cell["dataset"], seed=cell["seed"]))
    if not parts:
        raise results.ResultsError(f"{folder}: {nothing}")
    return pd.concat(parts, ignore_index=True)[schema.names]


def command(
    script: str,
    name: str,
    description: str,
    schema: pa.Schema,
    load: Callable[[Path], pd.DataFrame],
    draw: Callable[[pd.DataFrame], Figure],
    summary: Callable[[pd.DataFrame], pd.DataFrame],
    number: str,
    arguments: Sequence[str] | None,
) -> None:
    """The command line of `script`: write FOLDER/`name`.parquet and FOLDER/figures/`name`.png, print the summary.

    FOLDER is the suite's, by default the script's own; numbers are formatted as `number`. Ends the process with status
    1 where `load` raises ResultsError.
    """
    own = Path(script).resolve().parent
    parser = argparse.ArgumentParser(prog=f"python experiments/{own.name}/figure.py", description=description)
    parser.add_argument("folder", type=Path, nargs="?", default=own, help="suite folder (default: this one)")
    options = parser.parse_args(arguments)
    try:
        rows = load(options.folder)
    except results.ResultsError as error:
        parser.exit(1, f"error: {error}\n")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False), sink, compression="zstd")
    results.write(options.folder / f"{name}.parquet", sink.getvalue().to_pybytes())
    print(results.write(options.folder / "figures" / f"{name}.png", plots.png(draw(rows))))
    print(summary(rows).to_string(index=False, float_format=lambda value: format(value, number)))
