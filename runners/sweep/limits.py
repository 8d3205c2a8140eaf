"""What a cell asks for, what it may take, and how often one is started again after a crash."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hoard.records.errors import BadInput
from hoard.records.suggest import nearest
from hoard.runners.sweep import local

_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

# Kinds of failure that another start may get over: the machine's, not the method's.
TRANSIENT = ("killed", "out of memory", "lost")

GRACE = 30.0  # seconds a run gets to write its checkpoint after Ctrl-C or at its time limit


RESOURCES = ("cpus", "gpus", "memory")


@dataclass(frozen=True)
class Resources:
    """What a suite says that a cell needs: CPU cores, GPUs (a part of one, or whole ones), bytes of memory.

    None is not said. It changes no result and is no part of a run's address.
    """

    cpus: int | None = None
    gpus: float | None = None
    memory: int | None = None

    def __str__(self) -> str:
        parts = {"cpus": self.cpus, "gpus": self.gpus, "memory": self.memory and as_size(self.memory)}
        return ", ".join(f"{name} = {value}" for name, value in parts.items() if value is not None)


def check_resource(name: str, value: Any) -> int | float:
    """A value of a suite's table `resources`; memory in bytes. Raises BadInput that says what would be right."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "cpus" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise BadInput(f"cpus must be a whole number from 1, not {value!r}")
    if name == "gpus" and (not number or not 0 <= value < 1e6 or (value > 1 and value != int(value))):
        raise BadInput(f"gpus must be a part of one like 0.5, or a whole number, not {value!r}")
    if name == "memory":
        return parse_size("memory", value if isinstance(value, str) else repr(value))
    if name not in RESOURCES:
        raise BadInput(f"unknown resource '{name}'; nearest: {nearest(name, RESOURCES)}")
    return value


def resources_of(*tables: Mapping[str, Any]) -> Resources:
    """What tables of checked values say together; later ones win."""
    merged = {name: check_resource(name, value) for table in tables for name, value in table.items()}
    return Resources(**merged)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Limits:
    """`retries`: further starts of a cell after a crash of the machine's kind. `seconds`: wall time of one start.
    `memory`: resident bytes of a cell's process and its children together. None is no limit."""

    retries: int = 2
    seconds: float | None = None
    memory: int | None = None
    backoff: float = 1.0  # seconds before the first retry, doubled for each further one
    longest_backoff: float = 60.0

    def wait(self, attempts: int) -> float:
        """Seconds before a cell that was started `attempts` times is started again."""
        return min(self.backoff * 2 ** (attempts - 1), self.longest_backoff)

    def of(self, resources: Resources) -> Limits:
        """The limits of a cell with these resources: their memory holds where the sweep sets no limit."""
        return replace(self, memory=resources.memory) if self.memory is None else self

    def passed(self, started: float, pid: int, cells: int = 1) -> tuple[str, str] | None:
        """Kind and words of a limit that a process of this machine, started then for so many cells, is over."""
        if self.seconds is not None and time.time() - started > self.seconds:
            return (
                "time limit",
                f"still at work after the time limit of {self.seconds:g} s; with a longer one it goes on from its "
                "checkpoint",
            )
        if self.memory is not None and (taken := local.resident(pid) // cells) > self.memory:
            return "memory limit", f"{as_size(taken)} resident, over the memory limit of {as_size(self.memory)}"
        return None


def parse_duration(option: str, text: str) -> float:
    """Seconds of `90`, `30m` or `2.5h`. Raises BadInput, naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip().lower())
    if not found or found[2] not in _SECONDS or float(found[1]) == 0:
        raise BadInput(f"{option} {text}: write a time like 90s, 30m, 2.5h or 1d")
    return float(found[1]) * _SECONDS[found[2]]


def parse_size(option: str, text: str) -> int:
    """Bytes of `800M` or `4G`. Raises BadInput, naming the option."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?)(?:i?b)?", text.strip().lower())
    if not found or float(found[1]) == 0:
        raise BadInput(f"{option} {text}: write a size like 800M or 4G")
    return int(float(found[1]) * _BYTES[found[2]])


def as_size(count: int) -> str:
    """Bytes for people: `1.5 GiB`."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MiB"
