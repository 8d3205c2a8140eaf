"""The accelerators of this machine that a sweep deals out to its cells."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from hoard.runners.sweep.limits import Resources


class Gpus:
    """How much of each accelerator is free. A cell that asks for nothing takes the `per_gpu`-th part of one."""

    def __init__(self, names: Iterable[str], per_gpu: int = 1) -> None:
        self.free = {name: Fraction(1) for name in names}
        self._share = Fraction(1, per_gpu)

    def wanted(self, resources: Resources) -> Fraction:
        """A part of one, or whole ones."""
        return self._share if resources.gpus is None else Fraction(str(resources.gpus))

    def at_once(self, resources: Resources) -> int | None:
        """How many cells of this kind have room at a time; None if they take no accelerator."""
        wanted = self.wanted(resources)
        if wanted == 0:
            return None
        return len(self.free) // int(wanted) if wanted > 1 else len(self.free) * int(1 / wanted)

    def find(self, resources: Resources) -> list[str] | None:
        """Those that a cell may have now: the one with most room, or as many whole ones as it needs; None to wait."""
        wanted = self.wanted(resources)
        if wanted == 0:
            return []
        count, each = (int(wanted), Fraction(1)) if wanted > 1 else (1, wanted)
        roomy = sorted((name for name in self.free if self.free[name] >= each), key=lambda name: -self.free[name])
        return roomy[:count] if len(roomy) >= count else None

    def take(self, names: Iterable[str], resources: Resources, back: bool = False) -> None:
        """Take room on these, or give it back; those that are not dealt out now count for nothing."""
        each = min(self.wanted(resources), Fraction(1))
        for name in names:
            if name in self.free:
                self.free[name] += each if back else -each
