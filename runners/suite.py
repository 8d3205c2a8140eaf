"""A suite: which methods meet which datasets, with how many seeds and what settings. A small TOML file.

    description = "what it shows"
    metric = "score"                       # or "return", "success": what tables and figures compare
    seeds = 3
    datasets = ["hoard/pendulum/mixed-v0"]
    [options]                              # for every cell; names are options of the algorithm files
    updates = 10_000
    [dataset."hoard/pendulum/mixed-v0"]    # for every method on that dataset
    [method.bc10]                          # a row of the tables
    algo = "rcsl"                          # file in algos/ (default: the method's name)
    options = { preset = "bc10" }          # for this method
    datasets = ["hoard/..."]               # only on these of the suite's (default: all)
    seeds = 2                              # only the first so many of its seeds (default: all)
    [method.bc10.dataset."hoard/..."]      # for this method on that dataset

Later sections win. Datasets and seeds chosen on the command line are met by every method. A file of algos/ that the
suite does not name can be asked for all the same (see `select`).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hoard.algos
from hoard.records.suggest import nearest
from hoard.runners import suites

ALGOS_FOLDER = Path(next(iter(hoard.algos.__path__)))
SUITES_FOLDER = Path(next(iter(suites.__path__)))


class SuiteError(ValueError):
    """A suite file, or a choice from it, that cannot be used."""


@dataclass(frozen=True)
class Method:
    """A named way to run an algorithm file."""

    name: str
    algo: str
    options: dict[str, Any] = field(default_factory=dict)
    by_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: tuple[str, ...] | None = None  # those it is limited to
    seeds: int | None = None  # how many it is limited to


@dataclass(frozen=True)
class Cell:
    """One run to be made."""

    method: str
    algo: str
    dataset: str
    seed: int
    options: dict[str, Any]

    @property
    def args(self) -> list[str]:
        """The command line of the algorithm file."""
        out = ["--dataset", self.dataset, "--seed", str(self.seed)]
        for name, value in self.options.items():
            values = value if isinstance(value, list) else [value]
            out += [f"--{name.replace('_', '-')}", *map(str, values)]
        return out

    @property
    def label(self) -> str:
        return f"{self.method} · {self.dataset} · seed {self.seed}"


@dataclass(frozen=True)
class Suite:
    name: str
    description: str
    metric: str
    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    methods: tuple[Method, ...]
    options: dict[str, Any]
    by_dataset: dict[str, dict[str, Any]]

    def cells(self) -> list[Cell]:
        """Every run, seed by seed: a sweep stopped half-way has seen every method."""
        return [
            Cell(
                m.name,
                m.algo,
                d,
                seed,
                self.options | self.by_dataset.get(d, {}) | m.options | m.by_dataset.get(d, {}),
            )
            for number, seed in enumerate(self.seeds)
            for d in self.datasets
            for m in self.methods
            if (m.datasets is None or d in m.datasets) and (m.seeds is None or number < m.seeds)
        ]


def available() -> list[str]:
    return sorted(path.stem for path in SUITES_FOLDER.glob("*.toml"))


def algorithms() -> list[str]:
    return sorted(path.stem for path in ALGOS_FOLDER.glob("*.py") if not path.stem.startswith("_"))


def algo_file(name: str) -> Path:
    """The file of an algorithm. Raises SuiteError naming the nearest ones."""
    path = ALGOS_FOLDER / f"{name}.py"
    if name.startswith("_") or not path.is_file():
        raise SuiteError(f"no algorithm '{name}' in {ALGOS_FOLDER.name}/; nearest: {nearest(name, algorithms())}")
    return path


def read(name: str) -> Suite:
    """Read a shipped suite by name or any by path. Raises SuiteError for unknown names, keys and types."""
    path = Path(name) if name.endswith(".toml") else SUITES_FOLDER / f"{name}.toml"
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise SuiteError(f"no suite '{name}'; there are: {', '.join(available())}; or give a .toml file") from None
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{path}: {error}") from error
    _known(path, raw, "description", "metric", "seeds", "datasets", "options", "dataset", "method")
    for key, kind in (("description", str), ("seeds", int), ("datasets", list), ("method", dict)):
        if not isinstance(raw.get(key), kind):
            raise SuiteError(f"{path}: '{key}' is needed and must be a {kind.__name__}")
    if raw.get("metric", "score") not in ("score", "return", "success"):
        raise SuiteError(f"{path}: metric must be 'score', 'return' or 'success'")
    methods = []
    for key, section in raw["method"].items():
        _known(path, section, "algo", "options", "dataset", "datasets", "seeds")
        own, count = section.get("datasets"), section.get("seeds")
        if count is not None and (not isinstance(count, int) or count < 1):
            raise SuiteError(f"{path}: method '{key}': seeds must be a count like 2, not {count!r}")
        for dataset in own or []:
            if dataset not in raw["datasets"]:
                near = nearest(dataset, raw["datasets"])
                raise SuiteError(f"{path}: method '{key}': '{dataset}' is not a dataset of the suite; nearest: {near}")
        methods.append(
            Method(
                key,
                section.get("algo", key),
                section.get("options", {}),
                section.get("dataset", {}),
                None if own is None else tuple(own),
                count,
            )
        )
    return Suite(
        name=path.stem,
        description=raw["description"],
        metric=raw.get("metric", "score"),
        seeds=parse_seeds(raw["seeds"]),
        datasets=tuple(raw["datasets"]),
        methods=tuple(methods),
        options=raw.get("options", {}),
        by_dataset=raw.get("dataset", {}),
    )


def _known(path: Path, section: dict[str, Any], *keys: str) -> None:
    for key in section:
        if key not in keys:
            raise SuiteError(f"{path}: unknown key '{key}'; nearest: {nearest(key, keys)}")


def parse_seeds(text: str | int) -> tuple[int, ...]:
    """`5` means seeds 0..4; `3,4,9` means those, `7,` that one. Raises SuiteError otherwise."""
    try:
        if isinstance(text, str) and "," in text:
            seeds = tuple(int(part) for part in text.removesuffix(",").split(","))
        else:
            seeds = tuple(range(int(text)))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise SuiteError(f"seeds '{text}': give a count like 5 or a list of different numbers like 0,1,2 (one: 7,)")
    return seeds


def select(
    suite: Suite,
    algos: list[str] | None = None,
    datasets: list[str] | None = None,
    seeds: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Suite:
    """The part of a suite that was asked for.

    A name in `algos` is a method of the suite, or an algorithm (all its methods), or any other file in algos/. Such a
    file, if it is called after an algorithm of the suite (`my_iql`, `iql_wide`), takes over that algorithm's settings
    in the suite: a fork is compared under the same protocol. Raises SuiteError for names that are none of these.
    """
    methods = list(suite.methods)
    if algos:
        methods = []
        for name in algos:
            found = [m for m in suite.methods if m.name == name] or [m for m in suite.methods if m.algo == name]
            methods += [m for m in found or [_fork(suite, name)] if m not in methods]
    if overrides:  # from the command line: they win over every section
        methods = [
            replace(m, options=m.options | overrides, by_dataset={d: o | overrides for d, o in m.by_dataset.items()})
            for m in methods
        ]
    if datasets:
        methods = [replace(m, datasets=None) for m in methods]
    if seeds:
        methods = [replace(m, seeds=None) for m in methods]
    return replace(
        suite,
        methods=tuple(methods),
        datasets=tuple(dict.fromkeys(datasets)) if datasets else suite.datasets,
        seeds=parse_seeds(seeds) if seeds else suite.seeds,
    )


def _fork(suite: Suite, name: str) -> Method:
    algo_file(name)
    kin = [m for m in suite.methods if name.startswith(f"{m.algo}_") or name.endswith(f"_{m.algo}")]
    # Of several methods on the same file the first listed is its plain form.
    return replace(kin[0], name=name, algo=name) if kin else Method(name, name)
