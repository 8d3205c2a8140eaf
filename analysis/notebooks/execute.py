"""Run the notebooks of this folder: `python -m hoard.analysis.notebooks.execute`.

Each is executed and written, with its outputs, to `--output` (default: `results/notebooks`); the notebooks themselves
stay as they are unless `--in-place` asks for it. With `--check` nothing is written. The first cell that raises ends the
run with a non-zero exit status.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from hoard.analysis.results import write

HERE = Path(__file__).parent
OUTPUT = Path("results") / "notebooks"


def execute(path: Path, output: Path | None = None) -> nbformat.NotebookNode:
    """Execute one notebook in a fresh kernel and write it, with its outputs, to `output` if that is given."""
    notebook = nbformat.read(path, as_version=4)
    metadata = notebook.metadata.copy()
    if "HOARD_RESULTS" in os.environ:  # the kernel works in the notebook's folder, the caller's path need not
        os.environ["HOARD_RESULTS"] = str(Path(os.environ["HOARD_RESULTS"]).resolve())
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=resources).execute()
    notebook.metadata = metadata  # the kernel's own version would change the file from machine to machine
    if output is not None:
        write(output, nbformat.writes(notebook) + "\n")
    return notebook


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hoard.analysis.notebooks.execute", description="Execute the notebooks."
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--output", type=Path, default=OUTPUT, help=f"folder for what was executed (default: {OUTPUT})")
    where.add_argument("--in-place", action="store_true", help="keep the outputs in the notebooks themselves")
    where.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    for path in sorted(HERE.glob("*.ipynb")):
        output = None if options.check else path if options.in_place else options.output / path.name
        execute(path, output)
        print(f"{path.name}: {'runs' if output is None else f'executed, {output}'}")


if __name__ == "__main__":
    main()
