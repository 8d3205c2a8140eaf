"""Commands that need no torch do not import it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("args", "status", "without"),
    [
        (["--help"], 0, ("torch", "numpy", "gymnasium", "pandas")),
        (["train", "--help"], 0, ("torch", "numpy", "gymnasium", "pandas")),
        (["suites"], 0, ("torch", "gymnasium", "pandas", "pyarrow")),
        (["data", "list"], 0, ("torch", "gymnasium", "pandas", "pyarrow")),
        (["report", "."], 2, ("torch", "gymnasium", "mujoco")),
        (["bench", "quickk"], 2, ("torch", "gymnasium", "mujoco")),
        (["bench", "quick", "--set", "seed=7"], 2, ("torch", "gymnasium", "mujoco")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_quick_command_imports_little(args, status, without, tmp_path):
    code = f"""
import sys
from hoard.cli import main
try:
    main({args!r})
except SystemExit as end:
    assert end.code == {status}, end.code
print("imported:", *[name for name in {without!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
