"""Search spaces: what `hoard tune` varies, declared by an algorithm file at its end.

    SEARCH = {
        "lr": ("log", 1e-4, 1e-2),             # a number, even in the logarithm
        "expectile": ("uniform", 0.5, 0.95),   # a number
        "critics": ("int", 2, 20),             # a whole number; both ends belong to the range
        "hidden": ("choice", [(256, 256), (256, 256, 256)]),
    }

The names are options of the file's Config. A space is no part of what the file means: changing it moves no address.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from hoard.records.errors import BadInput
from hoard.records.suggest import nearest

KINDS = {"log": float, "uniform": float, "int": int, "choice": None}

# Options that say what is asked, with how much effort and how it is measured: no trial may choose its own.
PROTOCOL = (
    "dataset", "seed", "device", "threads", "updates", "online_steps", "log_every", "eval_every", "eval_episodes",
    "final_eval_episodes", "checkpoint_every",
)  # fmt: skip


def search_space(module: Any, name: str) -> dict[str, list[Any]]:
    """The checked SEARCH of the algorithm file `name`, as JSON values: {"lr": ["log", 1e-4, 1e-2]}.

    Raises BadInput, naming file, option and what would be right, if there is none, if it names what is no option or
    belongs to the protocol, for a range that is none or that the option cannot take, and for ends or choices that the
    Config refuses.
    """
    search = getattr(module, "SEARCH", None)
    if not isinstance(search, Mapping) or not search:
        raise BadInput(f'{name} declares no search space; end it with SEARCH = {{"lr": ("log", 1e-4, 1e-2)}}, say')
    hints = typing.get_type_hints(module.Config)
    fields = [field.name for field in dataclasses.fields(module.Config)]
    for option, given in search.items():
        if option not in fields:
            raise BadInput(f"{name}: SEARCH: no option '{option}'; nearest: {nearest(str(option), fields)}")
        where = f"{name}: SEARCH['{option}']"
        if option in PROTOCOL:
            raise BadInput(f"{where}: belongs to the protocol and is the same in every trial")
        for value in _range(where, given, hints[option]):
            _accepted(where, module.Config, option, value)
    return {option: _plain(given) for option, given in search.items()}


def _range(where: str, given: Any, hint: Any) -> Iterable[Any]:
    """The ends, or the choices, of a range. Raises BadInput if it is none."""
    if not isinstance(given, tuple | list) or not given or given[0] not in KINDS:
        raise BadInput(f"{where}: must begin with its kind, one of {', '.join(KINDS)}, not {given!r}")
    kind, *values = given
    if kind == "choice":
        choices = values[0] if len(values) == 1 else None
        if not isinstance(choices, tuple | list) or len(choices) < 2:
            raise BadInput(f"{where}: a choice needs one list of at least two values, not {values!r}")
        for number, choice in enumerate(choices):
            if not _fits(choice, hint):
                raise BadInput(f"{where}: {choice!r} is no value of that option")
            if choice in choices[:number]:
                raise BadInput(f"{where}: {choice!r} stands there twice")
        return choices
    if len(values) != 2 or not all(_fits(value, float) for value in values):
        raise BadInput(f"{where}: '{kind}' needs two numbers, the smallest and the largest, not {values!r}")
    low, high = values
    if not low < high or (kind == "log" and low <= 0):
        more = ", both above 0" if kind == "log" else ""
        raise BadInput(f"{where}: the smallest must be below the largest{more}; not {values!r}")
    if kind == "int" and not (_fits(low, int) and _fits(high, int)):
        raise BadInput(f"{where}: 'int' needs whole numbers, not {values!r}")
    if not _fits(low if kind == "int" else float(low) + 0.5, hint):
        right = "'int' or 'choice'" if kind != "int" and _fits(1, hint) else "'choice'"
        raise BadInput(f"{where}: '{kind}' gives no value of that option; take {right}")
    return values


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field of a Config is annotated with."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in arguments)
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(part, arguments[0]) for part in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _accepted(where: str, config_type: type, option: str, value: Any) -> None:
    from hoard.runners.config import check  # needs torch

    value = tuple(value) if isinstance(value, list) else value
    try:
        check(config_type(**{option: value}))
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def _plain(given: Any) -> Any:
    return [_plain(part) for part in given] if isinstance(given, tuple | list) else given
