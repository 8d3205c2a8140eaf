"""What the folders of runs hold beside results: where a run comes from, films of its policy, its paths in a maze."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hoard.analysis import tables
from hoard.analysis.results import Results, ResultsError
from hoard.records import media
from hoard.records.folder import FILM, PATHS, PROVENANCE

FILE_LIMIT = 1_000_000  # bytes of a picture that goes into a report
LIMIT = 12_000_000  # bytes of all of them
_NAMED = 5  # of what is left out


@dataclass(frozen=True)
class Shown:
    """A picture of a run for the page: `still` and, where it can play, `film` are data URIs."""

    cell: int
    id: str
    title: str
    alt: str
    still: str
    film: str
    width: int
    height: int


def folders(loaded: Results, folder: Path) -> dict[int, Path]:
    """The folder of each cell's run, where it is still there."""
    root = folder.parent if loaded.kind == "suite" else folder
    runs = {number: root / run for number, run in enumerate(loaded.cells["run"]) if isinstance(run, str)}
    return {} if loaded.archived else {number: run for number, run in runs.items() if run.is_dir()}


def provenance(runs: dict[int, Path]) -> dict[int, dict[str, Any]]:
    """The provenance of each run that has one. Raises ResultsError for a damaged file."""
    found = {}
    for number, run in runs.items():
        path = run / PROVENANCE
        if path.is_file():
            try:
                found[number] = dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError) as error:
                raise ResultsError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    return found


def in_words(made: dict[str, Any]) -> str:
    """A run's provenance on one line: code, data, torch, device."""
    data, versions = made.get("dataset") or {}, made.get("versions") or {}
    parts = [
        ("code", ", ".join(_short(one) for one in made.get("revisions") or [])),
        ("data", str(data.get("sha256") or "")[:12]),
        ("torch", versions.get("torch")),
        ("on", made.get("device")),
    ]
    return " · ".join(f"{name} {value}" for name, value in parts if value)


def data_returns(loaded: Results, made: dict[int, dict[str, Any]]) -> dict[str, list[float]]:
    """Quantiles of the returns of each dataset's episodes, from the run that was given most of it."""
    out: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for number, own in made.items():
        data, name = own.get("dataset") or {}, loaded.cells["dataset"].iloc[number]
        if data.get("returns") and data["transitions"] > sizes.get(name, 0):
            out[name], sizes[name] = data["returns"], data["transitions"]
    return out


def pictures(loaded: Results, runs: dict[int, Path]) -> tuple[dict[int, list[Shown]], list[str]]:
    """Films and paths by cell, as many as the limits allow, and a remark on what was left out.

    The first run of every method on every dataset that has any comes first.
    """
    found = [(number, run / name) for number, run in runs.items() for name in (FILM, PATHS) if (run / name).is_file()]
    seen: set[tuple[str, str]] = set()
    order: list[int] = []
    later: list[int] = []
    for number in dict.fromkeys(number for number, _ in found):
        key = tuple(loaded.cells[["dataset", "method"]].iloc[number])
        (later if key in seen else order).append(number)
        seen.add(key)
    rank = {number: place for place, number in enumerate(order + later)}
    shown: dict[int, list[Shown]] = {}
    left, used = [], 0
    for number, path in sorted(found, key=lambda one: rank[one[0]]):
        size = path.stat().st_size
        if size > FILE_LIMIT or used + size > LIMIT:
            left.append(path)
            continue
        used += size
        shown.setdefault(number, []).append(_shown(loaded, number, path))
    return shown, _remarks(left)


def medians(loaded: Results, metric: str | None = None) -> list[int]:
    """For each method on each dataset the cell of the finished seed whose last score is the median, or just below."""
    measure = tables.measures(loaded, metric or loaded.metric)
    values = tables.seed_values(loaded)
    cells = loaded.cells.reset_index().rename(columns={"index": "cell"})
    rows = values[~values["diverged"]].merge(cells[["cell", "method", "dataset", "seed"]])
    out = []
    for (_, dataset), own in rows.groupby(["method", "dataset"], sort=False):
        ranked = own.sort_values([measure[str(dataset)], "seed"], na_position="first")
        out.append(int(ranked["cell"].iloc[(len(ranked) - 1) // 2]))
    return sorted(out)


def _remarks(left: list[Path]) -> list[str]:
    if not left:
        return []
    named = ", ".join(str(path) for path in left[:_NAMED])
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    return [
        f"Left out of the page, in which a picture may have {FILE_LIMIT // 1000:,} kB and all together "
        f"{LIMIT // 1_000_000} MB: {named}{more}."
    ]


def _shown(loaded: Results, number: int, path: Path) -> Shown:
    from PIL import Image

    cell = loaded.cells.iloc[number]
    what = "Film" if path.name == FILM else "Paths"
    title = f"{what} of {cell['method']}, seed {cell['seed']}"
    try:
        alt = (
            media.read_record(path).get("alt") or f"{title} on {cell['dataset']}; the file does not say what it shows."
        )
        with Image.open(path) as image:
            width, height = image.size
            still, film = path.read_bytes(), ""
            if path.name == FILM:
                sink = io.BytesIO()
                image.convert("RGB").quantize(colors=64).save(sink, format="PNG", optimize=True)
                still, film = sink.getvalue(), _uri("gif", path.read_bytes())
    except OSError as error:
        raise ResultsError(f"{path}: is no picture that can be read ({error})") from error
    return Shown(number, f"{what.lower()}-{number + 1}", title, str(alt), _uri("png", still), film, width, height)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _short(revision: str) -> str:
    """A Git hash by its first letters, with what follows it."""
    head, plus, rest = str(revision).partition("+")
    return (head[:10] if len(head) == 40 else head) + plus + rest
