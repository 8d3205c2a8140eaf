"""What a cell may take, and how often one is started again after a crash."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hoard.records.errors import BadInput

_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

# Kinds of failure that another start may get over: the machine's, not the method's.
TRANSIENT = ("killed", "out of memory", "lost")


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
