"""One run (`Run`, `main`) and many (`hoard.runners.sweep`). Algorithm files need only what is named here."""

from hoard.runners.evaluate import History, Policy
from hoard.runners.main import main
from hoard.runners.run import Run

__all__ = ["History", "Policy", "Run", "main"]
