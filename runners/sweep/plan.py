"""Ask algorithm files what they make of a cell's options, without starting any run.

`python -m hoard.runners.sweep.plan` reads lines of {"file": path, "cells": [{"args": [...], "options": [...]}]} and
answers each with a line: for each cell {"config": {...}, "overrides": {...}, "packable": bool} or {"error": text}, or,
for a file that cannot be used at all, {"unusable": text}. To {"file": path, "search": true} the answer is
[{"space": {...}}]. This happens in a process of its own, so that the sweep needs no torch and a file that crashes the
interpreter costs its own cells only. The sweep asks once for all seeds of a method on a dataset: its command line is
the same but for the seed, which it puts into the answer itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from hoard.records.errors import BadInput
from hoard.records.suggest import nearest
from hoard.runners import algorithms
from hoard.runners.space import search_space


class Unusable(Exception):
    """An algorithm file that cannot be imported, or that ended the process it was asked in."""


def answer(module: Any, name: str, args: list[str], options: list[str]) -> dict[str, Any]:
    """What an algorithm file called `name` makes of a cell's command line, `options` being those the suite gives."""
    from hoard.runners.config import packable
    from hoard.runners.options import parse

    fields = [*(field.name for field in dataclasses.fields(module.Config)), "preset"]
    known = [field.replace("_", "-") for field in fields]
    for option in (given.replace("_", "-") for given in options):
        if option not in known:
            return {"error": f"{name} has no option --{option}; nearest: {nearest(option, known, '--')}"}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(complaint):
            parsed = parse(module.Config, getattr(module, "PRESETS", {}), args, name)
    except BadInput as error:
        return {"error": str(error)}
    except SystemExit:
        return {"error": gist(complaint.getvalue())}
    given = ["--dataset", parsed.cfg.dataset, "--seed", str(parsed.cfg.seed)]
    if args[: len(given)] != given:
        return {"error": f"its options change the cell's own dataset or seed: {' '.join(args)}"}
    return {"config": parsed.config, "overrides": parsed.overrides, "packable": packable(parsed.cfg)}


def space_of(module: Any, name: str) -> dict[str, Any]:
    """The search space of an algorithm file, or why it is none."""
    try:
        return {"space": search_space(module, name)}
    except BadInput as error:
        return {"error": str(error)}


def gist(complaint: str) -> str:
    """What tyro says is wrong, in one line: without its frame, its title and what it adds about the help."""
    lines = [line.strip(" │╭╮╰╯─") for line in complaint.splitlines()]
    words = [line for line in lines if line.strip("-")][1:]
    ends = [k for k, line in enumerate(words) if line.startswith(("Argument helptext", "For full helptext"))]
    return " ".join(words[: ends[0]] if ends else words) or complaint.strip()


class Planner:
    """The process that answers. If a file ends it, it is started anew for the next one."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env
        self._start()

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115  a file, which never fills up as a pipe does
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hoard.runners.sweep.plan"],
            stdin=pipe, stdout=pipe, stderr=self._complaints, text=True, env=self._env, bufsize=1,
        )  # fmt: skip

    def ask(self, algo_file: Path, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """An answer for each cell. Raises Unusable, with what the file printed."""
        return self._answer({"file": str(algo_file), "cells": cells})

    def _answer(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        if self._process.poll() is not None:
            self.close()
            self._start()
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._complaints.seek(0)
            raise Unusable(f"{self._complaints.read()}\nthe process that imported it ended with status {code}".strip())
        told = json.loads(line)
        if isinstance(told, dict):
            raise Unusable(told["unusable"])
        return told

    def search_space(self, algo_file: Path) -> dict[str, list[Any]]:
        """What the file declares worth tuning (`hoard.runners.space`). Raises Unusable, and BadInput if it is wrong."""
        (told,) = self._answer({"file": str(algo_file), "search": True})
        if "error" in told:
            raise BadInput(told["error"])
        return told["space"]

    def close(self) -> None:
        self._process.kill()  # nothing is lost with it
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._complaints.close()


def main() -> None:
    answers_to = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever a file prints is no answer
        for line in sys.stdin:
            question = json.loads(line)
            file = Path(question["file"])
            told: Any
            try:
                module = algorithms.import_file(file)
                if question.get("search"):
                    told = [space_of(module, file.name)]
                else:
                    told = [answer(module, file.name, cell["args"], cell["options"]) for cell in question["cells"]]
            except BadInput as error:
                told = {"unusable": str(error)}
            except (Exception, SystemExit):
                told = {"unusable": traceback.format_exc()}
            print(json.dumps(told), file=answers_to, flush=True)


if __name__ == "__main__":
    main()
