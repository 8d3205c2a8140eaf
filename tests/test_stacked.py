"""`benchmarks/stacked.py` times the updates that it says it does: each seed of a stack learns as it would alone."""

import torch
from helpers import ROOT
from synthetic import script

stacked = script(ROOT / "benchmarks" / "stacked.py")


def test_a_seed_of_a_stack_learns_as_it_would_alone():
    generator = torch.Generator().manual_seed(3)
    together = stacked.Stack(3, (16, 16), generator)
    alone = stacked.Stack(1, (16, 16), generator)
    for one, all_of_them in zip([*alone.parameters(), *alone.target], [*together.parameters(), *together.target]):
        one.data.copy_(all_of_them[-len(one) :].data)
    for _ in range(5):
        batch = stacked.draw(3, generator)
        together.update(batch)
        alone.update({name: tensor[2:] for name, tensor in batch.items()})
    for one, all_of_them in zip([*alone.parameters(), *alone.target], [*together.parameters(), *together.target]):
        torch.testing.assert_close(one, all_of_them[-len(one) :])


def test_the_table_has_a_row_for_each_width(capsys):
    stacked.main(["--seeds", "2", "--hidden", "8", "12", "--rounds", "1"])
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0] == "| hidden | 1 | 2 |"
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["8, 8", "12, 12"]
    assert all("(1.00)" in row for row in rows[2:])
