"""The README can be followed: its Python runs, and it is short. What all pages share is tested in test_docs.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from helpers import ROOT

README = (ROOT / "README.md").read_text()


def test_python_example_runs(tmp_path):
    """As printed, but for the budget."""
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    short = code.replace("updates=5000", "updates=20, final_eval_episodes=2").replace("episodes=20", "episodes=2")
    assert short.count("episodes=2)") == 1
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", short], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^-?\d+\.\d+$", done.stdout, re.M)  # the mean score
    assert "hoard/pendulum/mixed-v0" in done.stdout  # the results


def test_it_is_short():
    assert len(README.split()) < 900


def test_score_is_defined_where_the_first_table_stands():
    after = README[README.index("<!-- /table -->") :]
    assert after.index("**Score**") < 40


def test_names_no_number_from_memory():
    assert "from memory" not in README
