"""Algorithm files: where they are, how they are imported. Needs no torch until one is imported."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from hoard.records.errors import BadInput
from hoard.records.names import check_name
from hoard.records.suggest import nearest

FOLDER = (Path(__file__).parents[1] / "algos").resolve()


def available() -> list[str]:
    """Names of the algorithm files in `algos/`."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def find(name: str | Path) -> Path:
    """The file of an algorithm: a name in `algos/`, or a path that ends in .py.

    Raises BadInput, naming the nearest ones, if there is none.
    """
    if str(name).endswith(".py"):
        path = Path(name).expanduser().resolve()
        check_name("algorithm", path.stem)
        if not path.is_file():
            raise BadInput(f"no algorithm file {name}")
        return path
    text = str(name)
    if text.startswith("_") or text not in available():
        raise BadInput(
            f"no algorithm '{text}' in algos/; nearest: {nearest(text, available())}; or give a path to a .py"
        )
    return FOLDER / f"{text}.py"


def preset_names(path: Path) -> list[str]:
    """Names of the presets that an algorithm file writes down as one dictionary, read without importing it."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if isinstance(target, ast.Name) and target.id == "PRESETS":
            return [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
    return []


def share(a: Path, b: Path) -> float:
    """Lines in common: 2 * matching / (lines of A + lines of B), in order, blank lines aside; 0 to 1."""
    first, second = ([line for line in path.read_text().splitlines() if line.strip()] for path in (a, b))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def import_file(path: Path, algo: str | None = None) -> Any:
    """Import an algorithm file by path; `algo` names it where its file name does not.

    Raises BadInput if there is none, or if it lacks `Config` or `train`.
    """
    if not path.is_file():
        raise BadInput(f"no algorithm file {path}")
    name = f"hoard_algorithm_{algo or path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    for needed in ("Config", "train"):
        if not hasattr(module, needed):
            raise BadInput(f"{path} is no algorithm file: it has no '{needed}'")
    return module
