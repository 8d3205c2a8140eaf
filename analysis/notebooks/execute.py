"""Run the notebooks of this folder: `python -m hoard.analysis.notebooks.execute [--check]`.

Without `--check` each notebook is executed in place and keeps its outputs; with it nothing is written. Either way the
first cell that raises ends the run with a non-zero exit status.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from hoard.analysis.results import write_atomic

HERE = Path(__file__).parent


def execute(path: Path, *, check: bool = False) -> nbformat.NotebookNode:
    """Execute one notebook in a fresh kernel and write it back unless `check`; returns it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    metadata = notebook.metadata.copy()
    if "HOARD_RESULTS" in os.environ:  # the kernel works in the notebook's folder, the caller's path need not
        os.environ["HOARD_RESULTS"] = str(Path(os.environ["HOARD_RESULTS"]).resolve())
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=resources).execute()
    notebook.metadata = metadata  # the kernel's own version would change the file from machine to machine
    if not check:
        write_atomic(path, nbformat.writes(notebook) + "\n")
    return notebook


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hoard.analysis.notebooks.execute", description="Execute the notebooks."
    )
    parser.add_argument("--check", action="store_true", help="execute without writing the outputs back")
    options = parser.parse_args(arguments)
    for path in sorted(HERE.glob("*.ipynb")):
        execute(path, check=options.check)
        print(f"{path.name}: {'runs' if options.check else 'executed'}")


if __name__ == "__main__":
    main()
