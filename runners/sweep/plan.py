"""Ask an algorithm file where its runs would live, without starting any: the sweep's only question to it.

`python -m hoard.runners.sweep.plan FILE` reads lines of [{"args": [...], "data_hash": "..."}] and answers each with a
line of, for each cell, {"run": folder, "overrides": {...}} or {"error": text}. A process of its own: a file that cannot
be imported, or that crashes the interpreter, costs its own cells only, and the sweep itself needs no torch.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hoard.records.errors import BadInput
from hoard.runners import algorithms


def answer(algo_file: Path, meaning: str, module: Any, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the file says to each cell."""
    from hoard.runners.address import address
    from hoard.runners.options import parse

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
            place = address(algo_file.stem, meaning, parsed.config, cell["data_hash"])
            out.append({"run": place, "overrides": parsed.overrides})
    return out


class Planner:
    """The process that answers for one algorithm file."""

    def __init__(self, algo_file: Path, env: dict[str, str]) -> None:
        command = [sys.executable, "-m", "hoard.runners.sweep.plan", str(algo_file)]
        pipe = subprocess.PIPE
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115  a file, which never fills up as a pipe does
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._complaints, text=True, env=env, bufsize=1
        )

    def ask(self, cells: list[dict[str, Any]]) -> None:
        """Send a question; `answers` waits for what comes back."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it ended early; `answers` says why
            self._process.stdin.write(json.dumps(cells) + "\n")
            self._process.stdin.flush()

    def answers(self) -> list[dict[str, Any]] | None:
        """The answers to the last question; None if the process failed, see `complaint`."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def complaint(self) -> str:
        """What the process said when it failed."""
        self._process.wait()
        self._complaints.seek(0)
        return self._complaints.read()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._process.wait()
        self._complaints.close()


def main() -> None:
    algo_file = Path(sys.argv[1]).resolve()
    answers_to = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever the file prints is no answer
        meaning = algorithms.meaning_hash(algo_file.read_text())
        try:
            module = algorithms.import_file(algo_file)
        except BadInput as error:
            sys.exit(f"error: {error}")
        for line in sys.stdin:
            print(json.dumps(answer(algo_file, meaning, module, json.loads(line))), file=answers_to, flush=True)


if __name__ == "__main__":
    main()
