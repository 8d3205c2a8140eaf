"""`benchmarks/pack.py` times packed updates, and as many as it says."""

import pytest
from helpers import ROOT
from synthetic import script

from hoard.runners import pack

benchmark = script(ROOT / "benchmarks" / "pack.py")


def test_the_table_has_a_row_for_each_width_and_stacks_all_seeds(capsys, monkeypatch):
    sizes, run = [], pack.Stack.run
    monkeypatch.setattr(pack.Stack, "run", lambda stack: sizes.append(len(stack._calls)) or run(stack))
    benchmark.main(["--algos", "bc", "--seeds", "2", "--hidden", "8", "12", "--rounds", "1", "--updates", "3"])
    rows = capsys.readouterr().out.splitlines()[3:]
    assert rows[0] == "| algorithm | hidden | 1 | 2 |"
    assert [row.split("|")[2].strip() for row in rows[2:]] == ["8", "12"]
    assert all("(1.00)" in row for row in rows[2:])
    assert sizes == [2] * (2 * (benchmark.WARM_UP + 3))


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(SystemExit):
        benchmark.main(["--updates", "0"])
