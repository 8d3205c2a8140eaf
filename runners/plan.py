"""Ask an algorithm file where its runs would live, without starting any: the sweep's only question to it.

`python -m hoard.runners.plan FILE` reads [{"args": [...], "data_hash": "..."}] from standard input and prints, for each
{"run": folder, "overrides": {...}} or {"error": text}. A process of its own: a file that cannot be imported, or that
crashes the interpreter, costs its own cells only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

from hoard.runners.main import BadInput, parse
from hoard.runners.run import address, source_hash


def import_file(algo_file: Path) -> Any:
    """Import an algorithm file by path. Raises BadInput if it lacks Config or train."""
    spec = importlib.util.spec_from_file_location(f"hoard_planned_{algo_file.stem}", algo_file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for name in ("Config", "train"):
        if not hasattr(module, name):
            raise BadInput(f"{algo_file} is no algorithm file: it has no '{name}'")
    return module


def plan(algo_file: Path, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    source = source_hash(algo_file)
    module = import_file(algo_file)
    out: list[dict[str, Any]] = []
    for cell in cells:
        complaint = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
                parsed = parse(module.Config, getattr(module, "PRESETS", {}), cell["args"], algo_file.name)
        except BadInput as error:
            out.append({"error": str(error)})
        except SystemExit:
            out.append({"error": complaint.getvalue().strip()})
        else:
            place = address(algo_file.stem, source, parsed.config, cell["data_hash"])
            out.append({"run": place, "overrides": parsed.overrides})
    return out


def main() -> None:
    cells = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # whatever the file prints on import is not the answer
        try:
            answer = plan(Path(sys.argv[1]).resolve(), cells)
        except BadInput as error:
            sys.exit(f"error: {error}")
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
