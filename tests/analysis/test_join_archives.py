"""Archives of one suite join to the archive of the whole sweep, and what cannot stand in one table is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT
from synthetic import script

from hoard.analysis import report, results

tool = script(ROOT / "tools" / "join_archives.py")


def part(archive, folder, seeds, **changes):
    """An archive of some seeds of another one."""
    record = json.loads((archive / "cells.json").read_text())
    record["cells"] = [cell for cell in record["cells"] if cell["seed"] in seeds]
    folder.mkdir()
    (folder / "cells.json").write_text(json.dumps(record | changes))
    runs = [cell["run"] for cell in record["cells"]]
    table = results.load(archive, everything=True).episodes
    results.write_table(table[table["run"].isin(runs)].drop(columns="status", errors="ignore"), folder)
    return folder


@pytest.fixture
def halves(archive, tmp_path):
    return [part(archive, tmp_path / "first", {0, 1}), part(archive, tmp_path / "second", {1, 2, 3, 4})]


def change(folder, edit):
    record = json.loads((folder / "cells.json").read_text())
    edit(record)
    (folder / "cells.json").write_text(json.dumps(record))


def test_two_halves_are_the_whole_again(archive, halves):
    change(halves[1], lambda record: record["provenance"].update(revision="4567cdef"))
    tool.main([str(half) for half in halves])
    keys = ["method", "dataset", "seed", "variant", "update", "episode"]
    whole, again = (results.frame(folder).sort_values(keys, ignore_index=True) for folder in (archive, halves[0]))
    assert whole.equals(again)
    record = json.loads((halves[0] / "cells.json").read_text())
    assert record["provenance"]["revision"] == "0123abcd, 4567cdef"
    assert len(record["cells"]) == len(json.loads((archive / "cells.json").read_text())["cells"])


def test_what_belongs_to_the_machine_is_left_out(halves):
    def edit(record):
        record.update(
            command="hoard bench s --algos bc --results /data/x --jobs 2 --set lr=1", journal=5, source="s.toml"
        )
        record["cells"] = [cell | {"selected": False} for cell in record["cells"]]

    change(halves[1], edit)
    tool.main([str(half) for half in halves])
    record = json.loads((halves[0] / "cells.json").read_text())
    assert record["command"].endswith("; hoard bench s --algos bc --set lr=1")
    assert all(cell.get("selected", True) for cell in record["cells"])
    assert not {"journal", "source"} & set(record)


def test_an_archive_is_made_of_one_results_folder(halves, tmp_path):
    def edit(record):
        record.update(command="hoard bench s --results /data/x --jobs 2", journal=5, source="s.toml")
        record["cells"] = [cell | {"selected": False} for cell in record["cells"]]

    change(halves[1], edit)
    made = tmp_path / "new" / "archive"
    tool.main([str(made), str(halves[1])])
    record = json.loads((made / "cells.json").read_text())
    assert record["command"] == "hoard bench s"
    assert not {"journal", "source"} & set(record)
    assert all(cell["selected"] for cell in record["cells"])
    assert len(results.frame(made)) == len(results.load(halves[1], everything=True).episodes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record.update(suite="other"), "suite is 'other'"),
        (lambda record: record.update(metric="success"), "metric is 'success'"),
        (lambda record: record["provenance"]["versions"].update(torch="1.0"), "made with torch 1.0"),
        (lambda record: [cell.update(data_hash="other") for cell in record["cells"]], "the data of"),
        (lambda record: [cell.update(overrides={"lr": 1.0}) for cell in record["cells"]], "other options"),
        (lambda record: [cell.update(run="runs/else") for cell in record["cells"] if cell["seed"] == 1], "keep one"),
    ],
)
def test_what_cannot_stand_in_one_table_is_refused(halves, edit, message, capsys):
    before = [(halves[0] / name).read_bytes() for name in ("cells.json", "episodes.parquet")]
    change(halves[1], edit)
    with pytest.raises(SystemExit, match="1"):
        tool.main([str(half) for half in halves])
    printed = capsys.readouterr().err
    assert message in printed
    assert str(halves[1]) in printed
    assert before == [(halves[0] / name).read_bytes() for name in ("cells.json", "episodes.parquet")]


def test_what_does_not_hold_together_leaves_the_archive_as_it_was(halves, capsys):
    """A finished cell whose episodes are not there, as in a suite's folder that nobody reported on since."""
    record = json.loads((halves[1] / "cells.json").read_text())
    lost = next(cell["run"] for cell in record["cells"] if cell["seed"] == 4)
    table = pq.read_table(halves[1] / "episodes.parquet")
    pq.write_table(
        table.filter(pa.array([run != lost for run in table["run"].to_pylist()])), halves[1] / "episodes.parquet"
    )
    before = {file.name: file.read_bytes() for file in halves[0].iterdir()}
    with pytest.raises(SystemExit) as end:
        tool.main([str(half) for half in halves])
    assert end.value.code == 1
    assert "error:" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in halves[0].iterdir()} == before


def test_times_are_joined_where_every_part_has_them(sweep, tmp_path):
    for seed in range(3):
        sweep.cell("bc", "hoard/pendulum/mixed-v0", seed, curve=[10.0, 20.0], training=[5.0 + seed, 9.0 + seed])
    sweep.write()
    report.build(sweep.folder)
    whole = pq.read_table(sweep.folder / "evaluations.parquet")
    parts = []
    for name, seeds in (("one", {0, 1}), ("two", {1, 2})):
        parts.append(part(sweep.folder, tmp_path / name, seeds))
        own = whole.filter(pa.array([seed in seeds for seed in whole["seed"].to_pylist()]))
        pq.write_table(own, parts[-1] / "evaluations.parquet")
    tool.main([str(part) for part in parts])
    keys = [(name, "ascending") for name in ("seed", "update")]
    assert pq.read_table(parts[0] / "evaluations.parquet").sort_by(keys).equals(whole.sort_by(keys))
    (parts[1] / "evaluations.parquet").unlink()
    tool.main([str(part) for part in parts])
    assert not (parts[0] / "evaluations.parquet").exists()
