"""A suite: which methods meet which datasets, with how many seeds and what settings. A small TOML file.

    description = "what it shows"
    metric = "score"                       # or "return", "success": what tables and figures compare
    seeds = 3
    datasets = ["hoard/pendulum/mixed-v0"]
    [options]                              # for every cell; names are options of the algorithm files
    updates = 10_000
    [dataset."hoard/pendulum/mixed-v0"]    # for every method on that dataset
    [method.bc10]                          # a row of the tables
    algo = "bc"                            # file in algos/ (default: the method's name), or the path of a .py
    options = { preset = "bc10" }          # for this method
    datasets = ["hoard/..."]               # only on these of the suite's (default: all)
    seeds = 2                              # only the first so many of its seeds (default: all)
    without = ["online_steps"]             # options of the two sections above that this method does not take
    [method.bc10.dataset."hoard/..."]      # for this method on that dataset
    [method.iql_tuned]
    settings = "results/tune/.../iql.toml" # algorithm and options from a file, such as `hoard tune` writes

A table `resources = { cpus = 2, gpus = 0.5, memory = "4G" }`, at the top or in a section of a dataset or method, says
what a cell needs (`limits.Resources`).

Later sections win, over a file of settings too. Datasets and seeds chosen on the command line are met by every method.
Paths of algorithm files and settings are relative to the suite's own. A suite is read and checked without importing any
algorithm; whether a file has an option is asked of it when the sweep plans its cells, before anything is made or
fetched.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hoard import datasets
from hoard.records.errors import BadInput
from hoard.records.names import check_name
from hoard.records.suggest import nearest
from hoard.runners import algorithms
from hoard.runners.sweep.limits import Resources, check_resource, resources_of

FOLDER = Path(__file__).resolve().parents[1] / "suites"

# What a cell has of its own, and the runner's own options: none of them is an option of a suite.
RESERVED = ("seed", "dataset", "results", "planned", "keep_checkpoint", "tensorboard", "wandb")


_NEEDS = "resources"  # a table among the options of a dataset, too
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


class SuiteError(BadInput):
    """A suite file, or a choice from it, that cannot be used."""


@dataclass(frozen=True)
class Method:
    """A named way to run an algorithm file."""

    name: str
    algo: str  # name of a file in algos/, or the absolute path of one
    options: dict[str, Any] = field(default_factory=dict)
    by_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)
    datasets: tuple[str, ...] | None = None  # those it is limited to
    seeds: int | None = None  # how many it is limited to
    without: tuple[str, ...] = ()  # options of the suite and of its datasets that it does not take
    on_request: bool = False  # run only where it is named
    original: str = ""  # the method whose settings a fork took over
    resources: dict[str, Any] = field(default_factory=dict)
    resources_by_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One run to be made."""

    method: str
    algo: str
    dataset: str
    seed: int
    options: dict[str, Any]
    resources: Resources = field(default_factory=Resources)

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
    """What was asked for. `source` tells suites of one name apart: the suite's file, or "" for one that ships."""

    name: str
    source: str
    description: str
    metric: str
    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    methods: tuple[Method, ...]
    options: dict[str, Any]
    by_dataset: dict[str, dict[str, Any]]
    resources: dict[str, Any] = field(default_factory=dict)
    resources_by_dataset: dict[str, dict[str, Any]] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Every run, seed by seed: a sweep stopped half-way has seen every method."""
        return [
            Cell(
                m.name,
                m.algo,
                d,
                seed,
                self._shared(m, d) | m.options | m.by_dataset.get(d, {}),
                self._resources(m, d),
            )
            for number, seed in enumerate(self.seeds)
            for d in self.datasets
            for m in self.methods
            if not m.on_request and (m.datasets is None or d in m.datasets) and (m.seeds is None or number < m.seeds)
        ]

    def _shared(self, method: Method, dataset: str) -> dict[str, Any]:
        """Options that `method` has in common with others on this dataset."""
        shared = self.options | self.by_dataset.get(dataset, {})
        return {name: value for name, value in shared.items() if name not in method.without}

    def _resources(self, method: Method, dataset: str) -> Resources:
        own = method.resources, method.resources_by_dataset.get(dataset, {})
        return resources_of(self.resources, self.resources_by_dataset.get(dataset, {}), *own)


def line_of(path: Path, key: str, *sections: str) -> int | None:
    """The line, from 1, on which `key` stands in the first of these sections that has it; None where none has.

    A section is named as in its header, without quotes: `method.iql.options`; "" is the part above the first header. A
    table inside a line belongs to the section around it too.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    word = re.compile(rf"""(?<![\w:/.-])["']?{re.escape(key)}["']?\s*(?=[=,\]}}]|$)""")
    headers, header = [], ""
    for line in lines:
        if (code := line.split(" #")[0].strip()).startswith("[") and code.endswith("]") and "," not in code:
            header = re.sub(r"""[\[\]\s"']""", "", code)
        headers.append(header)
    for section in sections:
        whole = f"{section}.{key}".lstrip(".")
        for number, (line, header) in enumerate(zip(lines, headers), 1):
            begins = header != (headers[number - 2] if number > 1 else "")
            if begins and (header == whole or header.startswith(whole + ".")):
                return number
            if not begins and header == section and word.search(line.split(" #")[0]):
                return number
    return None


def _wrong(path: Path | str, where: str, key: str, text: str) -> SuiteError:
    """An error that names file, line and section of `key`."""
    section = "" if where in ("the suite", "the settings") else where.replace('"', "")
    around = [section.rsplit(".", k)[0] for k in range(section.count(".") + 1)]
    number = line_of(path, key, *around, "") if isinstance(path, Path) else None
    return SuiteError(f"{path}{'' if number is None else f', line {number}'}: {where}: {text}")


def available() -> list[str]:
    """Names of the suites that ship with hoard."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Suite:
    """Read a shipped suite by name or any by path. Raises SuiteError for what is wrong in it, naming file and key."""
    shipped = not name.endswith(".toml")
    path = FOLDER / f"{name}.toml" if shipped else Path(name)
    try:
        if shipped:
            check_name("suite", name)
        raw = tomllib.loads(path.read_text())
    except (FileNotFoundError, BadInput):
        raise SuiteError(f"no suite '{name}'; there are: {', '.join(available())}; or give a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: {error}") from error
    except OSError as error:
        raise SuiteError(f"{path}: cannot be read: {error.strerror}") from error
    _known(path, "the suite", raw, "description", "metric", "seeds", "datasets", "options", "dataset", "method", _NEEDS)
    for key, kind in (("description", str), ("seeds", int), ("datasets", list), ("method", dict)):
        if not isinstance(raw.get(key), kind) or isinstance(raw[key], bool):
            raise SuiteError(f"{path}: '{key}' is needed and must be a {kind.__name__}")
    for key in ("datasets", "method"):
        if not raw[key]:
            raise SuiteError(f"{path}: '{key}' is empty: there would be nothing to run")
    if raw.get("metric", "score") not in ("score", "return", "success"):
        raise SuiteError(f"{path}: metric must be 'score', 'return' or 'success'")
    _no_repeats(path, "datasets", raw["datasets"])
    _check_options(path, "options", raw.get("options", {}))
    _check_resources(path, _NEEDS, raw.get(_NEEDS, {}))
    by_dataset, resources_by_dataset = _by_dataset(path, "dataset", raw.get("dataset", {}), raw["datasets"])
    raw["dataset"] = by_dataset
    methods = tuple(_method(path, key, section, raw) for key, section in raw["method"].items())
    if all(method.on_request for method in methods):
        raise SuiteError(f"{path}: every method is on_request: without --algos there would be nothing to run")
    return Suite(
        name=check_name("suite", path.stem),
        source="" if shipped else str(path.resolve()),
        description=raw["description"],
        metric=raw.get("metric", "score"),
        seeds=parse_seeds(raw["seeds"]),
        datasets=tuple(raw["datasets"]),
        methods=methods,
        options=raw.get("options", {}),
        by_dataset=by_dataset,
        resources=raw.get(_NEEDS, {}),
        resources_by_dataset=resources_by_dataset,
    )


def _method(path: Path, key: str, section: Any, raw: dict[str, Any]) -> Method:
    where, known = f"method.{key}", raw["datasets"]
    try:
        check_name("method", key)
    except BadInput as error:
        raise SuiteError(f"{path}: {error}") from error
    if not isinstance(section, dict):
        raise SuiteError(f"{path}: {where} must be a table")
    _known(
        path,
        where,
        section,
        "algo",
        "settings",
        "options",
        "dataset",
        "datasets",
        "seeds",
        "without",
        "on_request",
        _NEEDS,
    )
    own, count = section.get("datasets"), section.get("seeds")
    on_request = section.get("on_request", False)
    if not isinstance(on_request, bool):
        raise _wrong(path, where, "on_request", f"on_request must be true or false, not {on_request!r}")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise _wrong(path, where, "seeds", f"seeds must be a count like 2, not {count!r}")
    if own is not None and (not isinstance(own, list) or not own):
        raise _wrong(path, where, "datasets", f"datasets must be a list of some of the suite's, not {own!r}")
    _no_repeats(path, f"{where}.datasets", own or [])
    for dataset in own or []:
        if dataset not in known:
            near = nearest(dataset, known)
            raise _wrong(path, where, dataset, f"'{dataset}' is not a dataset of the suite; nearest: {near}")
    without = section.get("without", [])
    shared = {name for options in (raw.get("options", {}), *raw.get("dataset", {}).values()) for name in options}
    if not isinstance(without, list) or not shared.issuperset(map(str, without)):
        raise _wrong(
            path, where, "without",
            "without must be a list of options of the suite or of its datasets, of which there are "
            f"{', '.join(sorted(shared)) or 'none'}; not {without!r}",
        )  # fmt: skip
    _check_options(path, f"{where}.options", section.get("options", {}))
    _check_resources(path, f"{where}.{_NEEDS}", section.get(_NEEDS, {}))
    by_dataset, resources_by_dataset = _by_dataset(path, f"{where}.dataset", section.get("dataset", {}), known)
    tuned: dict[str, Any] = {}
    if "settings" in section:
        if not isinstance(section["settings"], str):
            raise SuiteError(f"{path}: {where}: settings must be the path of a .toml file, not {section['settings']!r}")
        algo, tuned = read_settings(path.resolve().parent / Path(section["settings"]).expanduser())
        if "algo" in section and _algo(path, where, section["algo"]) != algo:
            raise SuiteError(f"{path}: {where}: {section['settings']} holds settings of {algo}, not {section['algo']}")
    else:
        algo = _algo(path, where, section.get("algo", key))
    return Method(
        key,
        algo,
        tuned | section.get("options", {}),
        by_dataset,
        None if own is None else tuple(own),
        count,
        tuple(without),
        on_request,
        resources=section.get(_NEEDS, {}),
        resources_by_dataset=resources_by_dataset,
    )


def _algo(path: Path, where: str, algo: Any) -> str:
    """The name of a file in algos/, or the absolute path of one; `algo` may be relative to the file `path`."""
    if not isinstance(algo, str):
        raise _wrong(path, where, "algo", f"algo must be the name or the path of an algorithm file, not {algo!r}")
    try:
        if algo.endswith(".py"):
            return str(algorithms.find(path.resolve().parent / Path(algo).expanduser()))
        algorithms.find(algo)
    except BadInput as error:
        key = "algo" if line_of(path, "algo", where) else where.rpartition(".")[2]
        raise _wrong(path, where, key, str(error)) from error
    return algo


def read_settings(path: Path) -> tuple[str, dict[str, Any]]:
    """Algorithm and options of a file of settings, whose `provenance` says where they come from.

    Raises SuiteError for what is wrong in it, naming file and key.
    """
    try:
        raw = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: {error}") from error
    except OSError as error:
        raise SuiteError(f"settings {path}: cannot be read: {error.strerror}") from error
    _known(path, "the settings", raw, "algo", "options", "provenance")
    for key in ("algo", "options"):
        if key not in raw:
            raise SuiteError(f"{path}: '{key}' is needed")
    _check_options(path, "options", raw["options"])
    return _algo(path, "the settings", raw["algo"]), raw["options"]


def _known(path: Path, where: str, section: dict[str, Any], *keys: str) -> None:
    for key in section:
        if key not in keys:
            raise _wrong(path, where, key, f"unknown key '{key}'; nearest: {nearest(key, keys)}")


def _no_repeats(path: Path, where: str, values: list[str]) -> None:
    for value in values:
        if not isinstance(value, str):
            raise SuiteError(f"{path}: {where}: {value!r} is no dataset id")
        if values.count(value) > 1:
            raise _wrong(path, where, value, f"'{value}' stands there twice")


def _by_dataset(path: Path, where: str, sections: Any, known: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and resources of each dataset that has a section of its own."""
    if not isinstance(sections, dict):
        raise SuiteError(f'{path}: {where} must be tables of options, such as [{where}."{known[0]}"]')
    options, resources = {}, {}
    for dataset, section in sections.items():
        if dataset not in known:
            near = nearest(dataset, known)
            raise _wrong(path, where, dataset, f"'{dataset}' is not a dataset of the suite; nearest: {near}")
        if isinstance(section, dict) and _NEEDS in section:
            resources[dataset] = section[_NEEDS]
            section = {name: value for name, value in section.items() if name != _NEEDS}
            _check_resources(path, f'{where}."{dataset}".{_NEEDS}', resources[dataset])
        _check_options(path, f'{where}."{dataset}"', section)
        options[dataset] = section
    return options, resources


def _check_resources(path: Path, where: str, table: Any) -> None:
    if not isinstance(table, dict):
        raise _wrong(path, where, _NEEDS, f'{_NEEDS} must be a table like {{ cpus = 2, memory = "4G" }}, not {table!r}')
    for name, value in table.items():
        try:
            check_resource(name, value)
        except BadInput as error:
            raise _wrong(path, where, name, str(error)) from None


def _check_options(path: Path | str, where: str, options: Any) -> None:
    if not isinstance(options, dict):
        raise SuiteError(f"{path}: {where} must be a table of options")
    for name, value in options.items():
        if not _OPTION.fullmatch(name):
            raise _wrong(path, where, name, f"'{name}' is not the name of an option")
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, str | int | float) or str(part).startswith("--"):
                raise _wrong(path, where, name, f"{name} must be a number, a text, true, false or a list of these")
        if name.replace("-", "_") in RESERVED:
            raise _wrong(
                path, where, name,
                f"'{name}' is not an option of a suite: every cell has its own; choose seeds and datasets with --seeds "
                "and --datasets, or in the suite",
            )  # fmt: skip


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
    chosen: list[str] | None = None,
    seeds: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Suite:
    """The part of a suite that was asked for.

    Without `algos`, methods that are `on_request` have no cells. A name in `algos` is a method of the suite, or an
    algorithm (all its methods), or another algorithm file: by name if it is in algos/, else by path. If it is a fork of
    an algorithm of the suite, it takes over that algorithm's settings there: both are compared under the same protocol.
    A fork is called after its original (`my_iql`, `iql_wide`) and has at least half of its lines, so `td3_bc` is no
    fork of `bc`. Raises SuiteError for names that are none of these, for options that are no suite's, and for unknown
    datasets.
    """
    _check_options("command line", "--set", overrides or {})
    methods = list(suite.methods)
    if algos:
        methods = []
        for name in algos:
            found = [m for m in suite.methods if m.name == name] or [m for m in suite.methods if m.algo == name]
            named = [replace(m, on_request=False) for m in found or [_fork(suite, name)]]
            methods += [m for m in named if m not in methods]
    if overrides:  # from the command line: they win over every section
        methods = [
            replace(m, options=m.options | overrides, by_dataset={d: o | overrides for d, o in m.by_dataset.items()})
            for m in methods
        ]
    if chosen:
        for dataset_id in chosen:
            datasets.check_id(dataset_id)
        methods = [replace(m, datasets=None) for m in methods]
    if seeds:
        methods = [replace(m, seeds=None) for m in methods]
    for method in methods:
        if sum(other.name == method.name for other in methods) > 1:
            raise SuiteError(f"two methods are called '{method.name}': rename one of the files")
    return replace(
        suite,
        methods=tuple(methods),
        datasets=tuple(dict.fromkeys(chosen)) if chosen else suite.datasets,
        seeds=parse_seeds(seeds) if seeds else suite.seeds,
    )


def _fork(suite: Suite, given: str) -> Method:
    file = algorithms.find(given)
    name = file.stem
    algo = name if file.parent == algorithms.FOLDER else str(file)

    def likeness(method: Method) -> float:
        of = algorithms.find(method.algo)
        called_after = name.startswith(f"{of.stem}_") or name.endswith(f"_{of.stem}")
        return algorithms.share(of, file) if called_after else 0.0

    original = max(suite.methods, key=likeness)  # of several methods on the same file the first: its plain form
    if likeness(original) < 0.5:
        return Method(name, algo)
    return replace(original, name=name, algo=algo, original=original.name)
