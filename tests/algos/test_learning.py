"""Do they learn? One seed each, the settings of the quick suite, on data generated here."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from hoard.runners.sweep import suite as suites


def last_score(run_file, results: Path, method: str, dataset: str) -> float:
    suite = suites.select(suites.read("quick"), [method], [dataset], "1")
    (cell,) = suite.cells()
    done = run_file(cell.algo, *cell.args, results=results)
    assert done.returncode == 0, done.stderr
    (file,) = results.glob("runs/*/*/*/episodes.parquet")
    rows = pd.read_parquet(file)
    return rows.score[rows.final].mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "method", "margin"),
    [
        ("hoard/pendulum/mixed-v0", "iql", 25),
        ("hoard/pendulum/mixed-v0", "td3_bc", 15),
        ("hoard/pendulum/mixed-v0", "rebrac", 40),
        ("hoard/pendulum/mixed-v0", "prdc", 15),
        ("hoard/maze2d/umaze-v0", "iql", 10),
        ("hoard/maze2d/umaze-v0", "rebrac", 10),
    ],
)
def test_value_learning_beats_cloning(run_file, tmp_path, dataset, method, margin):
    """The data is mostly poor (pendulum) or walks to other goals (maze2d)."""
    learnt, bc = (last_score(run_file, tmp_path / name, name, dataset) for name in (method, "bc"))
    assert learnt > bc + margin


@pytest.mark.slow
def test_the_best_tenth_of_mixed_pendulum_is_the_expert(run_file, tmp_path):
    suite = suites.select(suites.read("learning"), ["bc10"], ["hoard/pendulum/mixed-v0"], "1", {"updates": "3000"})
    (cell,) = suite.cells()
    assert run_file(cell.algo, *cell.args, results=tmp_path).returncode == 0
    (file,) = tmp_path.glob("runs/*/*/*/episodes.parquet")
    rows = pd.read_parquet(file)
    assert rows.score[rows.final].mean() > 80
