"""What was asked of a suite and what became of it, in the form of `hoard.records.cells`; read by `hoard.analysis`.

Cells that earlier calls asked for and the last one did not are kept, marked `"selected": false`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hoard.records import cells
from hoard.records.errors import BadInput
from hoard.records.files import read_json, write_json
from hoard.records.folder import PROVENANCE, status_of
from hoard.records.schema import SCHEMA_VERSION
from hoard.runners import algorithms, provenance
from hoard.runners.sweep.job import Job
from hoard.runners.sweep.suite import Suite

_EVERY = 15.0  # seconds between two writings of cells.json, and at least
_SHARE = 20.0  # times what the last one took, so that it costs a bounded share of any sweep
_CHANGING = ("run", "status", "failure", "error", "attempts", "process", "wall_time", "updates_per_second")


class Record:
    """Only for the holder of the folder's lock. Raises BadInput if the folder holds another suite of the same name."""

    def __init__(self, folder: Path, results: Path, suite: Suite, command: str) -> None:
        self.file, self.results, self.suite, self.command = folder / cells.FILE, results, suite, command
        self.made_by = {"revision": provenance.code_revision(), "versions": provenance.library_versions()}
        # Relative to the results, so that a project may move as a whole and its results be shown to others.
        self.source = os.path.relpath(suite.source, folder) if suite.source else ""
        self._earlier: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._next_write = 0.0
        self._made: dict[str, dict[str, Any]] = {}  # provenance of finished runs, by address
        if self.file.is_file():
            before = cells.read(folder)
            source = before.get("source", self.source)
            self._earlier = {cells.key_of(cell): cell for cell in before["cells"]}
            # A file that is no longer there was this one, before it moved.
            if source != self.source and (not source or (folder / source).exists()):
                raise BadInput(
                    f"{folder} holds the results of another suite called '{suite.name}' "
                    f"({os.path.normpath(folder / source) if source else 'the one that ships with hoard'}); "
                    "rename one, or choose other --results"
                )
        self.journal = cells.Journal(folder)

    def left_running(self) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Cells that the sweep before this one had running when it was killed: key and entry."""
        for key, entry in self._earlier.items():
            if entry["status"] == "running":
                yield key, entry

    def begin(self, work: list[Job]) -> None:
        self.journal.add("sweep", command=self.command, cells=len(work), pid=os.getpid())
        self.write(work)

    def change(self, event: str, job: Job, work: list[Job]) -> None:
        """Record what became of a job."""
        entry = self._cell(job)
        now = {name: entry.get(name) for name in _CHANGING}
        cell = {"method": job.cell.method, "dataset": job.cell.dataset, "seed": job.cell.seed}
        self.journal.add(event, **cell, now=now)
        if time.monotonic() >= self._next_write:
            self.write(work)

    def write(self, work: list[Job]) -> None:
        """Write all of it to cells.json, which then covers the journal so far."""
        begun = time.monotonic()
        entries = [self._cell(job) for job in work]
        present = {cells.key_of(entry) for entry in entries}
        # What of theirs was still running has been waited for or ended.
        kept = [
            cell | {"selected": False} | ({"status": "interrupted"} if cell["status"] == "running" else {})
            for key, cell in self._earlier.items()
            if key not in present
        ]
        write_json(
            self.file,
            {
                "schema_version": SCHEMA_VERSION,
                "suite": self.suite.name,
                "source": self.source,
                "description": self.suite.description,
                "metric": self.suite.metric,
                "command": self.command,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "provenance": self.provenance(work, kept),
                "journal": self.journal.size,
                "cells": entries + kept,
            },
        )
        now = time.monotonic()
        self._next_write = now + max(_EVERY, _SHARE * (now - begun))

    def _cell(self, job: Job) -> dict[str, Any]:
        if job.entry is not None and job.entry["status"] == job.status:
            return job.entry
        status = status_of(self.results / job.run) if job.run else {}
        wall, update = status.get("wall_time"), status.get("update")
        entry = {
            "method": job.cell.method,
            "algo": job.algo_file.stem,
            "file": self._file(job.algo_file),
            "dataset": job.cell.dataset,
            "seed": job.cell.seed,
            "run": job.run,
            "selected": True,
            "status": job.status,
            "failure": job.failure,
            "error": job.error,
            "attempts": job.attempts,
            "overrides": job.overrides,
            "wall_time": wall,
            "updates_per_second": round(update / wall, 2) if wall and update else None,
            "data_hash": job.data_hash,
        }
        if job.status == "running":
            entry["process"] = job.identity
        job.entry = entry if job.status in ("finished", "failed") else None
        return entry

    def _file(self, algo_file: Path) -> str:
        """An algorithm file that does not ship with hoard, relative to the suite's folder; "" for one that does."""
        return "" if algo_file.parent == algorithms.FOLDER else os.path.relpath(algo_file, self.file.parent)

    def provenance(self, work: list[Job], kept: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Of the runs, not of this call: every code revision and library version that made a finished cell."""
        runs = [str(job.run) for job in work if job.status == "finished"]
        runs += [cell["run"] for cell in kept or [] if cell["status"] == "finished"]
        for run in runs:
            if run not in self._made and (self.results / run / PROVENANCE).is_file():  # a kept one may be gone
                self._made[run] = read_json(self.results / run / PROVENANCE)
        made = [self._made[run] for run in runs if run in self._made]
        revisions = [revision for one in made for revision in one["revisions"]] or [self.made_by["revision"]]
        versions = [one["versions"] for one in made] or [self.made_by["versions"]]
        names = dict.fromkeys(name for one in versions for name in one)
        return {
            "revision": ", ".join(dict.fromkeys(revisions)),
            "versions": {name: ", ".join(dict.fromkeys(one.get(name, "absent") for one in versions)) for name in names},
            "machine": ", ".join(dict.fromkeys(one["device"] for one in made)) or provenance.machine(),
            "cpu_count": os.cpu_count(),
        }

    def other_code(self, work: list[Job]) -> str | None:
        """A note if finished cells were made by another revision or other libraries: their address covers neither."""
        found, now = self.provenance(work), self.made_by
        others = [name for name in ("revision", "versions") if found[name] != now[name]]
        if not others or not any(job.status == "finished" for job in work):
            return None
        return (
            f"note: some finished cells were made by another {' and other '.join(others)} of the code "
            f"({found['revision'] if 'revision' in others else 'see provenance.json'}); "
            f"delete their folders in {self.results / 'runs'} to run them again"
        )
