"""Predicted against real returns: joined from run folders, drawn, and read again from the joined file."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT
from synthetic import script

from hoard.analysis import results

rollouts = script(ROOT / "experiments" / "paper-mbrcsl" / "figure.py")

SCHEMA = pa.schema(
    [
        ("predicted_return", pa.float64()),
        ("trained_on", pa.bool_()),
        ("start", pa.list_(pa.float64())),
        ("replayed_return", pa.float64()),
    ]
)


@pytest.fixture
def suite(sweep):
    for seed in range(2):
        run = sweep.cell("mbrcsl", "hoard/pointmaze/stitch-v0", seed, curve=[50.0])
        rows = [
            {"predicted_return": 90.0 + seed, "trained_on": True, "start": [0.0], "replayed_return": 80.0},
            {"predicted_return": 70.0, "trained_on": True, "start": [0.0], "replayed_return": 70.0},
            {"predicted_return": 20.0, "trained_on": False, "start": None, "replayed_return": None},
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), run / "rollouts.parquet")
        sweep.cell("iql", "hoard/pointmaze/stitch-v0", seed, curve=[40.0])
    return sweep.write()


def test_summary(suite):
    rows = rollouts.load(suite)
    assert len(rows) == 6
    one, two = rollouts.summary(rows).to_dict("records")
    assert (one["tried"], one["trained on"], one["predicted"], one["real"]) == (3, 2, 80.0, 75.0)
    assert (two["predicted - real"], two["correlation"]) == (5.5, pytest.approx(1.0))


def test_command_writes_the_joined_file_and_the_figure_and_reads_it_again(suite, tmp_path, capsys):
    rollouts.main([str(suite)])
    assert (suite / "figures" / "rollouts.png").stat().st_size > 5000
    assert "mbrcsl" in capsys.readouterr().out
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("cells.json", "rollouts.parquet"):
        shutil.copy(suite / name, archive)
    results.write_table(results.load(suite).episodes, archive)
    assert rollouts.load(archive).equals(rollouts.load(suite))


def test_rollouts_that_were_not_replayed_are_named(suite, capsys):
    path = next(suite.parent.rglob("rollouts.parquet"))
    pq.write_table(pq.read_table(path).drop(["replayed_return"]), path)
    with pytest.raises(SystemExit) as end:
        rollouts.main([str(suite)])
    assert end.value.code == 1
    assert "not replayed yet; run python experiments/paper-mbrcsl/replay.py" in capsys.readouterr().err


def test_a_suite_without_rollouts_is_named(quick, capsys):
    with pytest.raises(SystemExit) as end:
        rollouts.main([str(quick.folder)])
    assert end.value.code == 1
    assert "no finished run left a rollouts.parquet" in capsys.readouterr().err
