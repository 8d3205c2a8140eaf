"""Datasets that are draws of one task, as one row."""

import numpy as np
import pytest
from helpers import ROOT
from synthetic import script

from hoard.analysis import results, stats

tool = script(ROOT / "tools" / "pooled.py")


@pytest.fixture
def folder(sweep):
    for lock, scores in enumerate(((80.0, 60.0), (90.0, 90.0), (40.0, 20.0))):
        for seed, score in enumerate(scores):
            sweep.cell("iql", f"hoard/comblock/h5-lock{lock}-v0", seed, curve=[score])
    sweep.cell("bc", "hoard/comblock/h5-lock1-v0", 0, curve=[50.0])
    sweep.cell("iql", "hoard/comblock/h10-v0", 0, curve=[0.0])
    return sweep.write()


def test_a_dataset_counts_once_with_the_mean_of_its_seeds(folder):
    one, two, other = tool.rows(results.load(folder), ["hoard/comblock/h5-lock*-v0", "hoard/comblock/h10-v0"])
    draws = np.array([70.0, 90.0, 30.0])
    mean = stats.mean_interval([draws])
    interval = f"{mean.point:.1f} [{mean.low:.1f}, {mean.high:.1f}]"
    assert one == (
        f"| `hoard/comblock/h5-lock*-v0` | iql | 3 | {mean.point:.1f} ± {draws.std(ddof=1):.1f} | {interval} | 30.0 |"
    )
    assert two.startswith("| `hoard/comblock/h5-lock*-v0` | bc | 1 | 50.0 ± –")
    assert other.startswith("| `hoard/comblock/h10-v0` | iql | 1 | 0.0 ± –")


def test_a_pattern_that_fits_nothing_is_refused(folder, capsys):
    with pytest.raises(SystemExit) as end:
        tool.main([str(folder), "hoard/comblock/h15*"])
    assert end.value.code == 2
    assert "no dataset fits hoard/comblock/h15*; there are hoard/comblock/h5-lock0-v0" in capsys.readouterr().err


def test_successes_are_rates(capsys):
    tool.main([str(ROOT / "experiments" / "hnpg-locks"), "hoard/comblock/h5-lock*-v0"])
    head, _, first, *_ = capsys.readouterr().out.splitlines()
    assert "Wilson" in head
    assert "| hnpg | 3 | 0.999 ±" in first
    assert "[0.9" in first
    assert "1.000]" in first
