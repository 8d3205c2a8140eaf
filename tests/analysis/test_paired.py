"""Methods against each other, seed by seed."""

import numpy as np
import pytest
from helpers import ROOT
from synthetic import script

from hoard.analysis import results, stats

tool = script(ROOT / "tools" / "paired.py")
DATASET = "hoard/pendulum/mixed-v0"


@pytest.fixture
def folder(sweep):
    for seed, (one, two) in enumerate(((80.0, 60.0), (90.0, 85.0), (70.0, 40.0))):
        sweep.cell("moorl", DATASET, seed, curve=[0.0, one], env_steps=200)
        sweep.cell("sac", DATASET, seed, curve=[0.0, two, two], env_steps=300)
        sweep.cell("bc", DATASET, seed, curve=[50.0])
    sweep.cell("sac", DATASET, 3, curve=[0.0, 0.0, 0.0], env_steps=300)
    return sweep.write()


def test_by_hand(folder):
    loaded = results.load(folder)
    first, second = (line.split(" | ") for line in tool.rows(loaded, [("moorl", "sac"), ("moorl", "bc")]))
    ends = stats.mean_interval([np.array([20.0, 5.0, 30.0])])  # the fourth seed of SAC has no partner
    assert first[:4] == [f"| `{DATASET}`", "moorl", "sac", "3"]
    assert first[4] == f"{ends.point:.1f} [{ends.low:.1f}, {ends.high:.1f}]"
    assert second[4].startswith("30.0 [")
    assert second[5] == "– |"  # no environment steps
    regret = {}
    grid = np.linspace(0, 400, 100_001)  # MOORL's two evaluations end it, SAC has been seen once
    for name, steps, values in (("moorl", [0, 200, 400], (80, 90, 70)), ("sac", [0, 300, 600], (60, 85, 40))):
        filled = [np.interp(grid, steps, [0, 0, value]) for value in values]
        regret[name] = np.array([np.mean(1 - one / 100) for one in filled])
    assert float(first[5].split(" ")[0]) == pytest.approx(np.mean(regret["moorl"] - regret["sac"]), abs=0.006)


def test_over_all_datasets_every_one_weighs_the_same(sweep, capsys):
    other = "hoard/maze2d/umaze-v0"
    differences = {DATASET: [10.0, 12.0, 14.0], other: [-1.0, 1.0]}
    for dataset, ahead in differences.items():
        for seed, one in enumerate(ahead):
            sweep.cell("iql", dataset, seed, last=50.0 + one)
            sweep.cell("bc", dataset, seed, last=50.0)
    folder = sweep.write()
    tool.main(["--over-all", str(folder), "iql", "bc"])
    found = stats.mean_interval([np.array(one) for one in differences.values()])
    assert found.point == pytest.approx(6.0)
    expected = f"| all 2 datasets | iql | bc | 2 | {found.point:.1f} [{found.low:.1f}, {found.high:.1f}] | – |"
    assert capsys.readouterr().out.splitlines()[2] == expected
    with pytest.raises(SystemExit):
        tool.main(["--over-all", str(folder), "iql", "cql"])
    assert "iql and cql have no finished seed in common on" in capsys.readouterr().err


def test_wrong_requests(folder, capsys):
    for arguments, message in ((["moorl"], "moorl has no partner"), (["moorl", "iql"], "no method iql; there are")):
        with pytest.raises(SystemExit) as end:
            tool.main([str(folder), *arguments])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
