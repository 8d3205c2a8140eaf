"""The report of one suite, or of single runs: `python -m hoard.analysis.report FOLDER`.

FOLDER holds `cells.json`, or is a run's own, or has runs beneath it. Written into it: `table.md`, `table.csv`,
`table.tex`, figures and `report.html`, one file that opens anywhere without a network; in a suite's folder also
`episodes.parquet` and `evaluations.parquet`, the joined rows, enough to rebuild everything. Building twice writes the
same content.

Where neither the results nor the code have changed since, nothing is built again: `.report.json` remembers what the
report was made of. This module imports nothing heavy, so that such a report is there at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoard.records.cells import tail
from hoard.records.errors import BadInput
from hoard.records.files import read_json, write_json
from hoard.records.folder import ALGORITHM, CONFIG, EPISODES, EVALUATIONS, FILM, PATHS, PROVENANCE, STATUS
from hoard.records.names import METRICS

if TYPE_CHECKING:
    pass


STAMP = ".report.json"
_HERE = Path(__file__).resolve().parent
_LIBRARIES = (
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "matplotlib",
    "seaborn",
    "jinja2",
    "pillow",
)  # which could draw or count differently
_SOURCES = ("*.py", "*.j2", "*.toml", "*.csv", "*.js", "*.css")
_CELLS = "cells.json"
_RUN_FILES = CONFIG, STATUS, PROVENANCE, ALGORITHM
_TABLES = EPISODES, EVALUATIONS
_SHOWN = *_TABLES, FILM, PATHS


@dataclass(frozen=True)
class Report:
    """What `build` wrote, and the text for the terminal."""

    folder: Path
    text: str

    @property
    def episodes(self) -> Path:
        return self.folder / EPISODES

    @property
    def markdown(self) -> Path:
        return self.folder / "table.md"

    @property
    def csv(self) -> Path:
        return self.folder / "table.csv"

    @property
    def latex(self) -> Path:
        return self.folder / "table.tex"

    @property
    def curves(self) -> Path:
        return self.folder / "figures" / "curves.png"

    @property
    def comparison(self) -> Path:
        return self.folder / "figures" / "comparison.png"

    @property
    def html(self) -> Path:
        return self.folder / "report.html"

    @property
    def files(self) -> list[Path]:
        return [self.markdown, self.csv, self.latex, self.curves, self.comparison, self.html]


def build(
    folder: str | Path, suite: str | None = None, metric: str | None = None, *, everything: bool = False
) -> Report:
    """Write the report of `folder`, or of `folder/suite`, unless it is there and up to date.

    `metric` is "score", "return" or "success"; by default the suite's own. A suite that was last called for some of its
    cells shows these, or all with `everything`.
    """
    folder = Path(folder) / suite if suite else Path(folder)
    if metric is not None and metric not in METRICS:
        raise BadInput(f"unknown metric {metric!r}; choose one of {', '.join(METRICS)}")
    stamp = _stamp(folder, metric, everything)  # before anything is read: what changes meanwhile makes it old
    if (stored := _stored(folder, stamp)) is not None:
        return Report(folder, stored)
    from hoard.analysis import page

    report = Report(folder, page.write(folder, metric, everything))
    write_json(folder / STAMP, {"stamp": stamp, "text": report.text, "files": _states(report.files)})
    return report


def _stamp(folder: Path, metric: str | None, everything: bool) -> str:
    """A hash of all that a report depends on: options, code, libraries and the files of the results."""
    code = hashlib.sha256()
    for path in sorted(path for kind in _SOURCES for path in _HERE.rglob(kind)):
        code.update(path.read_bytes())
    libraries = [metadata.version(name) for name in _LIBRARIES]
    parts = [metric, everything, str(folder.resolve()), code.hexdigest(), libraries, _inputs(folder)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _inputs(folder: Path) -> list[Any]:
    cells = folder / _CELLS
    if not cells.is_file():
        top = folder / "runs" if (folder / "runs").is_dir() else folder
        runs = sorted({path.parent for path in top.rglob(_RUN_FILES[0])})
        return [[str(run), *(_state(run / name) for name in (*_RUN_FILES, *_SHOWN))] for run in runs]
    content = cells.read_bytes()
    try:
        record = json.loads(content)
        content += tail(record, folder)
        runs = sorted({folder.parent / cell["run"] for cell in record["cells"] if cell["run"]})
    except (ValueError, KeyError, TypeError, AttributeError):
        runs = []  # a damaged file: building the report will say what is wrong
    files = [run / name for run in runs for name in (*_SHOWN, PROVENANCE)]
    if not any(run.is_dir() for run in runs):
        files += [folder / name for name in _TABLES]  # an archive
    return [hashlib.sha256(content).hexdigest(), *(_state(path) for path in files)]


def _stored(folder: Path, stamp: str) -> str | None:
    """The text of the report that is there, if it was made of the same and its files are as they were written."""
    try:
        known = read_json(folder / STAMP)
        files = Report(folder, "").files
        fresh = known["stamp"] == stamp and known["files"] == _states(files) and None not in known["files"]
        return str(known["text"]) if fresh else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _states(files: Sequence[Path]) -> list[list[int] | None]:
    return [_state(path) for path in files]


def _state(path: Path) -> list[int] | None:
    """What changes whenever a file is written: no clock can be set back on all of it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m hoard.analysis.report", description="Write the report of results.")
    parser.add_argument("folder", type=Path, help="suite folder (the one that holds cells.json), or one of runs")
    parser.add_argument("--metric", choices=METRICS, help="what to compare (default: the suite's own)")
    parser.add_argument("--all", action="store_true", help="every cell, where the last call was for some of them")
    options = parser.parse_args(arguments)
    try:
        report = build(options.folder, metric=options.metric, everything=options.all)
    except BadInput as error:
        parser.exit(1, f"error: {error}\n")
    print(report.html)


if __name__ == "__main__":
    main()
