"""The study behind `hoard tune`: Optuna's samplers, pruners and storages, found by name and checked.

Needs the extra `tune`.
"""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from hoard.records.errors import BadInput
from hoard.records.suggest import nearest

JOURNAL = "journal.log"

Space = dict[str, list[Any]]
Spec = tuple[str, dict[str, Any]]  # name of a sampler or pruner, and its arguments

# Not to be had by name: bases, and what needs another sampler or a function as an argument.
_NOT = ("BaseSampler", "BaseGASampler", "PartialFixedSampler", "BasePruner")
_FIXED_SEED = ("GridSampler", "QMCSampler")  # one order, one sequence, of which each trial takes its part


# --- samplers and pruners ---


def names(kind: str) -> list[str]:
    """Optuna's samplers, or pruners, that can be named. `kind` is "Sampler" or "Pruner"."""
    module = optuna.samplers if kind == "Sampler" else optuna.pruners
    return [name for name in module.__all__ if name.endswith(kind) and name not in _NOT]


def spec_of(kind: str, words: Sequence[str], space: Space) -> Spec:
    """`["tpe", "n_startup_trials=5"]` as ("TPESampler", {"n_startup_trials": 5}); values are JSON, else text.

    Names may be written in small letters and without Sampler or Pruner. Raises BadInput, with the nearest names, for
    what Optuna does not have, and for arguments that it refuses.
    """
    known = {name.lower(): name for name in names(kind)}
    known |= {short.removesuffix(kind.lower()): name for short, name in known.items()}
    name = known.get(words[0].lower())
    if name is None:
        near = dict.fromkeys(known[word] for word in nearest(words[0].lower(), known, count=4).split(", "))
        raise BadInput(f"--{kind.lower()} {words[0]}: Optuna has no such; nearest: {', '.join(near)}")
    taken = [p for p in inspect.signature(_class(kind, name).__init__).parameters if p not in ("self", "seed")]
    arguments = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals or key not in taken:
            raise BadInput(
                f"--{kind.lower()} {name}: write ARGUMENT=VALUE behind it, not '{word}'; "
                f"it takes: {', '.join(taken) or 'nothing'}"
            )
        try:
            arguments[key] = json.loads(value)
        except json.JSONDecodeError:
            arguments[key] = value
    spec = name, arguments
    if kind == "Sampler":
        sampler(spec, space, 0, 0)
        points(spec, space)
    else:
        pruner(spec)
    return spec


def sampler(spec: Spec, space: Space, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """The sampler that suggests trial `number`.

    Seeded by study and trial, so that workers of one study draw differently, and a study that was killed goes on with
    the suggestions it would have made. Raises BadInput for arguments that it refuses.
    """
    name, arguments = spec
    arguments = dict(arguments)
    if name == "GridSampler":
        arguments["search_space"] = {option: _grid(name, option, given) for option, given in space.items()}
    if "seed" in inspect.signature(_class("Sampler", name).__init__).parameters:
        entropy = [seed] if name in _FIXED_SEED else [seed, number]
        arguments["seed"] = int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)
    return _made("Sampler", name, arguments)


class ByNumber(optuna.samplers.BaseSampler):
    """Has each trial drawn by `sampler` for the number that the storage gave it.

    Workers that ask at the same moment get different numbers, and so different suggestions. `first` are the values of
    trial 0, as Optuna stores them; None has them drawn too.
    """

    def __init__(self, spec: Spec, space: Space, seed: int, first: dict[str, Any] | None = None) -> None:
        self._spec, self._space, self._seed, self.first = spec, space, seed, first
        self._made: tuple[int, optuna.samplers.BaseSampler] | None = None

    def _of(self, trial: FrozenTrial) -> optuna.samplers.BaseSampler:
        if self._made is None or self._made[0] != trial.number:
            with quiet():
                self._made = trial.number, sampler(self._spec, self._space, self._seed, trial.number)
        return self._made[1]

    def _is_given(self, trial: FrozenTrial) -> bool:
        return trial.number == 0 and self.first is not None

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._is_given(trial):
            return distributions(self._space)
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._is_given(trial):
            return dict(self.first or {})
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._of(trial).before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._of(trial).after_trial(study, trial, state, values)


def pruner(spec: Spec) -> optuna.pruners.BasePruner:
    """The pruner of that name. Raises BadInput for arguments that it refuses."""
    return _made("Pruner", *spec)


def _class(kind: str, name: str) -> Any:
    return getattr(optuna.samplers if kind == "Sampler" else optuna.pruners, name)


def _made(kind: str, name: str, arguments: dict[str, Any]) -> Any:
    try:
        with quiet():
            return _class(kind, name)(**arguments)
    except (TypeError, ValueError, ImportError) as error:
        told = ", ".join(f"{key}={value}" for key, value in arguments.items() if key not in ("seed", "search_space"))
        raise BadInput(f"--{kind.lower()} {name} {told}: {error}".replace(" :", ":")) from error


def _grid(name: str, option: str, given: list[Any]) -> list[Any]:
    kind, *values = given
    if kind == "choice":
        return [encoded(value) for value in values[0]]
    if kind == "int":
        return list(range(values[0], values[1] + 1))
    raise BadInput(f"--sampler {name}: '{option}' is a range of numbers; a grid needs choices or whole numbers")


def points(spec: Spec, space: Space) -> int | None:
    """How many trials use a grid up; None for samplers that walk no grid."""
    if spec[0] not in ("GridSampler", "BruteForceSampler"):
        return None
    return math.prod(len(_grid(spec[0], option, given)) for option, given in space.items())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's remarks on what is experimental, or how it clips infinite values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "Clip non-finite values")
        yield


# --- the space in Optuna's terms ---


def encoded(choice: Any) -> Any:
    """A choice as Optuna stores it: lists as text."""
    return json.dumps(choice) if isinstance(choice, list) else choice


def distributions(space: Space) -> dict[str, BaseDistribution]:
    out: dict[str, BaseDistribution] = {}
    for option, (kind, *values) in space.items():
        if kind == "choice":
            out[option] = CategoricalDistribution([encoded(value) for value in values[0]])
        elif kind == "int":
            out[option] = IntDistribution(*values)
        else:
            low, high = values
            out[option] = FloatDistribution(low, high, log=kind == "log")
    return out


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """The values of a trial: those that it has already, and new ones for the rest."""
    out: dict[str, Any] = {}
    with quiet():
        for option, (kind, *values) in space.items():
            if kind == "choice":
                trial.suggest_categorical(option, [encoded(value) for value in values[0]])
                out[option] = decoded(space, option, trial.params[option])
            elif kind == "int":
                out[option] = trial.suggest_int(option, *values)
            else:
                out[option] = trial.suggest_float(option, *values, log=kind == "log")
    return out


def decoded(space: Space, option: str, stored: Any) -> Any:
    """The value of an option behind what Optuna stores."""
    kind, *values = space[option]
    return next(value for value in values[0] if encoded(value) == stored) if kind == "choice" else stored


def within(space: Space, config: dict[str, Any]) -> dict[str, Any] | None:
    """The values that a resolved config has, as Optuna stores them; None where one lies outside of its range."""
    out = {}
    for option, distribution in distributions(space).items():
        value = encoded(config[option])
        if isinstance(distribution, CategoricalDistribution):
            inside = value in distribution.choices
        else:
            inside = isinstance(value, int | float) and distribution.low <= value <= distribution.high  # type: ignore[attr-defined]
        if not inside:
            return None
        out[option] = value
    return out


# --- storage ---


class _KernelLock:
    """A lock of the journal that the kernel releases with the process that holds it.

    A writer that was killed may leave half a line behind, with which Optuna could not go on; whoever writes next
    removes it: what it said was never done.
    """

    def __init__(self, journal: Path) -> None:
        self._journal, self._path = journal, journal.with_name(f".{journal.name}.lock")
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        self._file = open(self._path, "a+")  # noqa: SIM115
        fcntl.flock(self._file, fcntl.LOCK_EX)
        with open(self._journal, "rb+") as journal:
            end = size = journal.seek(0, os.SEEK_END)
            while end:  # lines are short: look back in pieces for the last end of one
                start = max(0, end - 4096)
                journal.seek(start)
                found = journal.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            if end < size:
                journal.truncate(end)
        return True

    def release(self) -> None:
        assert self._file
        self._file.close()


def storage_of(url: str | None, folder: Path) -> BaseStorage:
    """Optuna's journal in `folder`, or the database at `url`. Raises BadInput if that cannot be used."""
    if url is None:
        journal = folder / JOURNAL
        return JournalStorage(JournalFileBackend(str(journal), lock_obj=_KernelLock(journal)))  # type: ignore[arg-type]
    from sqlalchemy.exc import SQLAlchemyError

    kind = url.partition(":")[0]  # the rest may hold a password
    for attempt in range(5):
        try:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except ImportError as error:
            more = "; pip install 'hoard[postgresql]'" if kind.startswith("postgresql") else ""
            raise BadInput(f"--storage {kind}:...: {error}{more}") from error
        except (SQLAlchemyError, ValueError) as error:
            # Two workers that make the tables at the same time get into each other's way.
            reason = str(error).splitlines()[0]
            if attempt == 4 or "exist" not in str(error).lower():
                raise BadInput(f"--storage {kind}:...: cannot be used: {reason}") from error
            time.sleep(0.5 * (attempt + 1))
    raise AssertionError


# --- the question ---


def opened(name: str, storage: BaseStorage, question: dict[str, Any]) -> optuna.Study:
    """The study of that name, made where it is new. Raises BadInput if one of that name asks something else."""
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    known = study.user_attrs.get("question")
    if known is None:
        study.set_user_attr("question", question)
        known = study.user_attrs["question"]
    question = json.loads(json.dumps(question))
    for key in question:
        if known.get(key) != question[key]:
            was, now = (json.dumps(one.get(key)) for one in (known, question))
            what = (
                "the algorithm file has changed since it began" if key == "meaning" else f"{key} was {was}, now {now}"
            )
            raise BadInput(f"study '{name}' asks something else: {what}; give another name with --study")
    return study
