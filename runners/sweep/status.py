"""How far a suite is, read from its folder and its runs while a sweep works there or after; nothing is changed.

A cell is `running` if a process holds its run's folder, whatever the record says; `interrupted` if it was begun and no
process has it. A finished cell is stale if other code made it than would run now (`stale_reasons`).
"""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from hoard.records import cells as record
from hoard.records.errors import BadInput
from hoard.records.files import read_json
from hoard.records.folder import ALGORITHM, EPISODES, PROVENANCE, status_of
from hoard.records.locks import is_locked
from hoard.records.meaning import meaning_hash
from hoard.records.names import log_name
from hoard.runners import algorithms, provenance
from hoard.runners.sweep.forecast import aligned, duration

ORDER = ("running", "failed", "interrupted", "pending", "finished")


def read(folder: Path, everything: bool = False, full: bool = False) -> dict[str, Any]:
    """Suite, metric, whether a sweep is at work, and the state of each cell.

    `everything` also counts cells that only earlier calls asked for; `full` also reads the scores of finished cells.
    Raises BadInput if nothing is on record.
    """
    try:
        known = record.read(folder)
    except FileNotFoundError:
        raise BadInput(f"nothing on record in {folder}; run `hoard bench` first, or give other --results") from None
    at_work = is_locked(folder)
    metric = known.get("metric", "score")
    entries = [entry for entry in known["cells"] if everything or entry.get("selected", True)]
    now = Now(folder)
    states = [_state(entry, folder, at_work, now) for entry in entries]
    for state in states:
        if state["run"] and (full or state["status"] not in ("finished", "pending")):
            state["score"] = _last_score(folder.parent / state["run"], metric)
    walls = defaultdict(list)
    for state in states:
        if state["status"] == "finished" and state["wall_time"]:
            walls[_alike(state)].append(state["wall_time"])
    for state in states:
        if state["status"] == "running":
            state["eta"] = _eta(state, walls.get(_alike(state)))
        elif state["status"] in ("pending", "interrupted") and (seconds := walls.get(_alike(state))):
            state["eta"] = max(statistics.median(seconds) - (state["wall_time"] or 0), 0)
    return {"suite": known["suite"], "metric": metric, "sweep_at_work": at_work, "cells": states}


class Now:
    """The code that would run now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = provenance.library_versions()
        self.meaning = cache(meaning_hash)

    @cache  # noqa: B019  one short-lived object
    def revision(self) -> str:
        return provenance.code_revision()

    @cache  # noqa: B019
    def meaning_of(self, file: Path) -> str | None:
        try:
            return meaning_hash(file.read_text())
        except (OSError, SyntaxError):
            return None

    def stale_reasons(self, run: Path, entry: dict[str, Any]) -> list[str]:
        """What of the code behind a finished run is another now: `algorithm file`, `revision`, `libraries`."""
        reasons = []
        given = entry.get("file")
        file = (self.folder / given) if given else algorithms.FOLDER / f"{entry['algo']}.py"
        if (run / ALGORITHM).is_file() and self.meaning((run / ALGORITHM).read_text()) != self.meaning_of(file):
            reasons.append("algorithm file")
        try:
            made = read_json(run / PROVENANCE)
        except (OSError, ValueError):
            return reasons
        if made.get("revisions") != [self.revision()]:
            reasons.append("revision")
        if made.get("versions") != self.versions:
            reasons.append("libraries")
        return reasons


def _alike(state: dict[str, Any]) -> tuple[Any, ...]:
    return state["method"], state["dataset"], str(sorted((state["overrides"] or {}).items()))


def _state(entry: dict[str, Any], folder: Path, at_work: bool, now: Now) -> dict[str, Any]:
    run = folder.parent / entry["run"] if entry["run"] else None
    told = status_of(run) if run else {"status": "pending"}
    status, failure, error = entry["status"], entry.get("failure"), entry["error"]
    if told["status"] == "finished" or (status == "finished" and (run is None or not run.is_dir())):
        status = "finished"  # the latter: an archive
    elif run is not None and is_locked(run):
        status = "running"
    elif status == "running" and at_work:
        pass  # its process is about to open the folder, or has just left it
    elif status != "failed":
        status = "pending" if told["status"] == "pending" else "interrupted"
    if status != "failed":
        failure = error = None
    state = {name: entry[name] for name in ("method", "algo", "dataset", "seed", "run", "overrides")}
    state |= {"status": status, "failure": failure, "error": error, "stale": [], "eta": None, "score": None}
    state["log"] = str(folder / "logs" / log_name(entry["method"], entry["dataset"], entry["seed"]))
    state["stage"] = told.get("phase") or ("updates" if told["status"] != "pending" else None)
    state["done"], state["total"] = told.get("phase_update"), told.get("phase_updates")
    state["per_second"] = told.get("updates_per_second")
    state["wall_time"] = told.get("wall_time", entry["wall_time"])
    # Stages still to come, of which the present one's speed tells nothing.
    state["more"] = state["stage"] not in (None, "online") and bool(
        told.get("env_steps") or (state["stage"] != "updates" and told.get("updates"))
    )
    if status == "finished" and run is not None and run.is_dir():
        state["stale"] = now.stale_reasons(run, entry)
    return state


def _last_score(run: Path, metric: str) -> float | None:
    """Mean of the last evaluation of the headline policy."""
    try:
        table = pq.ParquetFile(run / EPISODES).read([metric, "variant", "update", "env_step"])
    except (OSError, ValueError):
        return None
    table = table.filter(pc.equal(table["variant"], ""))
    if not table.num_rows:
        return None
    for name in ("update", "env_step"):
        table = table.filter(pc.equal(table[name], pc.max(table[name])))
    mean = pc.mean(table[metric].cast("float64")).as_py()
    return None if mean is None else float(mean)


def _eta(state: dict[str, Any], walls: list[float] | None) -> float | None:
    """Seconds a running cell may still take: by its finished like, else by its own speed."""
    spent = state["wall_time"] or 0.0
    if walls and statistics.median(walls) > spent:
        return statistics.median(walls) - spent
    if state["more"] or not state["per_second"] or not state["total"]:
        return None
    return max(state["total"] - state["done"], 0) / state["per_second"]


def as_text(told: dict[str, Any], full: bool = False) -> str:
    """The cells that are running, failed or interrupted, those that are stale, and counts; with `full` every cell."""
    cells = told["cells"]
    counts = Counter(state["status"] for state in cells)
    stale = [state for state in cells if state["stale"]]
    head = ", ".join(f"{counts[name]} {name}" for name in reversed(ORDER) if counts[name]) or "no cells"
    lines = [
        f"suite {told['suite']}: {len(cells)} cells: {head}; {'a' if told['sweep_at_work'] else 'no'} sweep at work"
    ]
    shown = [s for s in cells if full or s["status"] in ("running", "failed", "interrupted")]
    if shown:
        head_row = ("status", "method", "dataset", "seed", "done", "speed", told["metric"], "left")
        rows = [_row(state) for state in sorted(shown, key=lambda state: ORDER.index(state["status"]))]
        lines += ["", *aligned([head_row, *rows])]
    for state in (s for s in cells if s["status"] == "failed"):
        error = (state["error"] or "").strip().splitlines()
        lines.append(f"\nFAILED ({state['failure'] or 'error'}) {state['method']} · {state['dataset']} · seed ")
        lines[-1] += f"{state['seed']}: {error[0] if error else 'no message'}"
        lines.append(f"  log: {os.path.relpath(state['log'])}")
    if stale:
        why = Counter(reason for state in stale for reason in state["stale"])
        which = ", ".join(f"{count} by another {reason}" for reason, count in why.items())
        lines.append(f"\nstale: {len(stale)} finished by other code than would run now ({which})")
    etas = [state["eta"] for state in cells if state["status"] in ("running", "pending", "interrupted")]
    known = [eta for eta in etas if eta is not None]
    if known and told["sweep_at_work"]:
        width = max(counts["running"], 1)
        unknown = f"; {len(etas) - len(known)} cells have none to go by" if len(known) < len(etas) else ""
        lines.append(f"\nabout {duration(max(sum(known) / width, *known))} left, {width} at a time{unknown}")
    return "\n".join(lines)


def _row(state: dict[str, Any]) -> tuple[str, ...]:
    done = ""
    if state["done"] is not None and state["status"] != "finished":
        total = f"/{state['total']:,}" if state["total"] else ""
        unit = {"updates": "", "online": " steps"}.get(state["stage"], f" {state['stage']}")
        done = f"{state['done']:,}{total}{unit}"
    name = state["status"] + (f" ({state['failure']})" if state["failure"] else "")
    return (
        name + (" (stale)" if state["stale"] else ""),
        state["method"],
        state["dataset"],
        str(state["seed"]),
        done,
        f"{state['per_second']:.0f}/s" if state["per_second"] and state["status"] == "running" else "",
        f"{state['score']:.1f}" if state["score"] is not None else "",
        duration(state["eta"]) if state["status"] == "running" else "",
    )
