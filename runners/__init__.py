"""One run (`Run`, `main`) and many (`hoard.runners.sweep`). Algorithm files need what is named here and `nn`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hoard.runners.entry import main
    from hoard.runners.evaluate import History, Policy
    from hoard.runners.run import Run

__all__ = ["History", "Policy", "Run", "main"]

# Imported when asked for: a sweep and its reports need no torch.
_FROM = {"History": "evaluate", "Policy": "evaluate", "Run": "run", "main": "entry"}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
