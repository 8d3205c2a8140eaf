"""What the sweep asks the algorithm files before anything runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

from hoard.records.errors import BadInput
from hoard.runners.algorithms import find, import_file
from hoard.runners.sweep.plan import Planner, Unusable, answer
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import read

SUITE = """
description = "a test"
seeds = 40
datasets = ["test/pendulum-v0"]
[options]
updates = 60
hidden = [16]
[method.bc]
[method.iql]
"""
CELL = ["--dataset", "test/pendulum-v0", "--seed", "0"]


@pytest.fixture
def suite_file(tmp_path, tiny):
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def bc():
    return import_file(find("bc"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"updatez": 3}, "bc.py has no option --updatez; nearest: --updates"),
        ({"eval_evry": 3}, "bc.py has no option --eval-evry; nearest: --eval-every"),
        ({"updates": "many"}, "Error parsing --updates: invalid literal for int() with base 10: 'many'"),
        ({"lr": -1}, "lr -1.0: must be above 0"),
        ({"preset": "bc11"}, "unknown preset 'bc11' for bc.py; it has: bc, bc10"),
    ],
)
def test_an_option_that_is_refused_is_named_in_one_line(bc, options, error):
    args = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    told = answer(bc, "bc.py", [*CELL, *args], list(options))["error"]
    assert told.startswith(error)
    assert "\n" not in told


@pytest.mark.parametrize("more", [["--seed", "7"], ["--dataset", "test/other-v0"]])
def test_a_cell_keeps_its_dataset_and_seed(bc, more):
    assert "change the cell's own dataset or seed" in answer(bc, "bc.py", [*CELL, *more], [])["error"]


def test_a_file_costs_its_own_cells_only(tmp_path):
    """No Python, an exit, a dead interpreter, nothing in it; the files after them, one of which prints, are."""
    source = (ROOT / "algos" / "bc.py").read_text()
    for name, text in (
        ("broken", "def ("),
        ("exits", "raise SystemExit(0)\n"),
        ("aborts", "import os\nos.abort()\n"),
        ("empty", ""),
        ("talks", source + "\nprint('[]')\n"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    planner, question = Planner(dict(os.environ)), [{"args": CELL, "options": []}]
    try:
        for name, message in (
            ("broken", "SyntaxError"),
            ("exits", "SystemExit"),
            ("aborts", "ended with status -6"),
            ("empty", "it has no 'Config'"),
        ):
            with pytest.raises(Unusable, match=message):
                planner.ask(tmp_path / f"{name}.py", question)
        answers = [planner.ask(file, question) for file in (tmp_path / "talks.py", find("bc"))]
    finally:
        planner.close()
    assert answers[0] == answers[1]
    assert answers[0][0]["config"]["dataset"] == "test/pendulum-v0"


def test_all_seeds_of_a_method_are_one_question(suite_file, tmp_path, monkeypatch):
    asked = []
    ask = Planner.ask
    monkeypatch.setattr(Planner, "ask", lambda self, file, cells: asked.append(len(cells)) or ask(self, file, cells))
    sweep = Sweep(read(str(suite_file)), tmp_path / "results", 1, "test")
    sweep.prepare()
    assert asked == [1, 1]
    assert len({job.run for job in sweep.work}) == 80
    seeds = {job.run.split("/")[-1].split("-")[0] for job in sweep.work}
    assert seeds == {str(seed) for seed in range(40)}


def test_an_option_is_refused_before_any_data_is_made(suite_file, tmp_path, monkeypatch):
    from hoard import datasets

    monkeypatch.setattr(datasets, "load", lambda *_: pytest.fail("data was made"))
    suite_file.write_text(SUITE.replace("[method.bc]", "[method.bc]\noptions = { expectil = 0.7 }"))
    sweep = Sweep(read(str(suite_file)), tmp_path / "results", 1, "test")
    with pytest.raises(BadInput) as error:
        sweep.prepare()
    assert str(error.value).splitlines() == [
        str(suite_file),
        "line 9: method bc (bc.py): bc.py has no option --expectil; nearest: " + str(error.value).split("nearest: ")[1],
    ]


def test_the_sweep_itself_needs_no_torch(suite_file, tmp_path):
    code = f"""
import sys
from pathlib import Path
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import read
sweep = Sweep(read({str(suite_file)!r}), Path({str(tmp_path / "results")!r}), 1, "test")
sweep.prepare()
sweep.record.write(sweep.work)
assert all(job.run for job in sweep.work)
print(sorted(name for name in ("torch", "tyro") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]"), done.stderr


def test_a_forked_file_has_other_addresses(suite_file, tmp_path):
    """Its name stands in the address, its meaning in the hash; a comment changes neither."""
    places = {}
    for name, change in (("same", "# a comment\n"), ("other", "UNUSED = 1\n")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(ROOT / "algos" / "bc.py", folder / "my_bc.py")
        with open(folder / "my_bc.py", "a") as file:
            file.write(change)
        suite_file.write_text(SUITE.replace("[method.bc]", f"[method.bc]\nalgo = '{name}/my_bc.py'"))
        sweep = Sweep(read(str(suite_file)), tmp_path / f"results-{name}", 1, "test")
        sweep.prepare()
        places[name] = sweep.work[0].run
    assert all(place.startswith("runs/my_bc/test-pendulum-v0/0-") for place in places.values())
    assert places["same"] != places["other"]
