"""Reading and joining result files: every row once, every fault named."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hoard.analysis import report, results
from hoard.records import files
from hoard.records.schema import EPISODE_SCHEMA, TABLE_SCHEMA

DATASET = "hoard/pendulum/mixed-v0"


def test_collect_joins_row_for_row(quick):
    joined = results.collect(quick.root, quick.suite)
    assert list(joined.columns) == TABLE_SCHEMA.names
    total = 0
    for cell in quick.cells:
        path = quick.root / (cell["run"] or "absent") / "episodes.parquet"
        if path.is_file():
            source = pq.ParquetFile(path).read().to_pandas().drop(columns="success")
            own = joined[joined["run"] == cell["run"]]
            assert set(own["seed"]) == {cell["seed"]}
            assert set(own["method"]) == {cell["method"]}
            assert set(own["dataset"]) == {cell["dataset"]}
            pd.testing.assert_frame_equal(own[source.columns].reset_index(drop=True), source, check_dtype=False)
            total += len(source)
    assert len(joined) == total
    assert set(joined["suite"]) == {"quick"}


def test_archive_equals_the_run_folders(quick, archive):
    """D26: the joined file and cells.json are all that later work needs."""
    live, archived = results.load(quick.folder), results.load(archive)
    assert archived.archived
    assert not live.archived
    pd.testing.assert_frame_equal(live.episodes, archived.episodes)
    pd.testing.assert_frame_equal(live.cells, archived.cells)
    assert live.meta == archived.meta


def test_times_of_evaluations_go_into_the_archive_and_are_not_asked_of_old_runs(sweep, tmp_path):
    sweep.cell("iql", DATASET, 0, curve=[1.0, 2.0], variants={"target=0.5": 1.0}, training=[3.0, 5.0])
    sweep.cell("iql", DATASET, 1, curve=[1.0, 2.0])
    report.build(sweep.write())
    live = results.load(sweep.folder)
    seconds = live.evaluations.set_index(["seed", "update", "variant"])["training_time"]
    assert seconds[0].to_dict() == {(1000, ""): 3.0, (2000, ""): 5.0, (2000, "target=0.5"): 5.0}
    assert seconds[1].isna().all()
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("cells.json", "episodes.parquet", "evaluations.parquet"):
        (archive / name).write_bytes((sweep.folder / name).read_bytes())
    pd.testing.assert_frame_equal(results.load(archive).evaluations, live.evaluations)
    (archive / "evaluations.parquet").unlink()
    assert results.load(archive).evaluations["training_time"].isna().all()
    (archive / "evaluations.parquet").write_bytes(b"no table")
    with pytest.raises(results.ResultsError, match="cannot be read"):
        results.load(archive)


def test_a_selection_keeps_the_times_of_its_cells(sweep):
    sweep.cell("bc", DATASET, 0, training=[3.0])
    sweep.cell("iql", DATASET, 0, training=[5.0])
    sweep.cells[0]["selected"] = False
    assert results.load(sweep.write()).evaluations["training_time"].tolist() == [5.0]


def test_missing_values_survive_the_archive(sweep):
    sweep.cell("iql", DATASET, 0, normalised=False, success=None)
    sweep.cell("iql", DATASET, 1, normalised=False, success=True)
    folder = sweep.write()
    results.write_table(results.collect(sweep.root, "quick"), folder)
    stored = pq.ParquetFile(folder / "episodes.parquet").read()
    assert stored.schema == TABLE_SCHEMA
    assert stored["success"].null_count == 4
    assert np.isnan(stored["score"].to_numpy()).all()
    assert stored["score"].null_count == 0


def test_writing_leaves_whole_files_only(quick, monkeypatch):
    path = results.write(quick.folder / "table.md", "old")

    def crash(_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        results.write(path, "new, but only half of")
    assert path.read_text() == "old"
    assert not list(quick.folder.glob(".*.tmp"))


def test_unfinished_cells_stay_listed(quick):
    loaded = results.load(quick.folder)
    assert loaded.cells["status"].value_counts().to_dict() == {"finished": 43, "failed": 1, "pending": 1}
    failed = loaded.cells[loaded.cells["status"] == "failed"].iloc[0]
    assert len(loaded.episodes[loaded.episodes["run"] == failed["run"]]) == 16  # visible, as far as it got
    assert failed["run"] not in set(loaded.finished["run"])  # but in no statistic


class TestDamage:
    """D21: each fault stops the reader with the file's name; nothing is skipped."""

    @pytest.fixture
    def run(self, sweep):
        sweep.cell("iql", DATASET, 1)
        run = sweep.cell("iql", DATASET, 0)
        sweep.write()
        return run

    def fails(self, sweep, *texts):
        with pytest.raises(results.ResultsError) as caught:
            results.load(sweep.folder)
        for text in texts:
            assert text in str(caught.value)

    def rewrite(self, run, change):
        path = run / "episodes.parquet"
        pq.write_table(change(pq.ParquetFile(path).read()), path)

    def test_truncated_file(self, sweep, run):
        path = run / "episodes.parquet"
        path.write_bytes(path.read_bytes()[:-100])
        self.fails(sweep, str(path), "cannot be read")

    def test_absent_file_of_a_finished_cell(self, sweep, run):
        (run / "episodes.parquet").unlink()
        self.fails(sweep, str(run / "episodes.parquet"))

    @pytest.mark.parametrize("column", EPISODE_SCHEMA.names)
    def test_missing_column(self, sweep, run, column):
        self.rewrite(run, lambda table: table.drop_columns(column))
        self.fails(sweep, str(run), f"column '{column}' is missing")

    def test_wrong_type(self, sweep, run):
        texts = pa.array(["high", "low", "high", "low"])
        self.rewrite(run, lambda table: table.drop_columns("return").append_column("return", texts))
        self.fails(sweep, str(run), "column 'return' is not double")

    def test_empty_values(self, sweep, run):
        holes = pa.array([1.0, None, 2.0, None])
        self.rewrite(run, lambda table: table.drop_columns("return").append_column("return", holes))
        self.fails(sweep, str(run), "column 'return' has 2 empty values")

    def test_other_schema_version(self, sweep, run):
        new = pa.array([2] * 4, pa.int32())
        self.rewrite(run, lambda table: table.drop_columns("schema_version").append_column("schema_version", new))
        self.fails(sweep, str(run), "schema_version [2]")

    def test_repeated_rows(self, sweep, run):
        self.rewrite(run, lambda table: pa.concat_tables([table, table]))
        self.fails(sweep, "iql/hoard-pendulum-mixed-v0/0", "twice")

    def test_finished_without_final_evaluation(self, sweep, run):
        pq.write_table(sweep.episodes(final=False), run / "episodes.parquet")
        self.fails(sweep, "iql / hoard/pendulum/mixed-v0 / seed 0", "no final evaluation")

    def test_final_evaluation_that_is_not_the_last(self, sweep, run):
        """D19: an earlier, better evaluation cannot pose as the final one."""
        best = sweep.episodes(curve=[90.0])
        last = sweep.episodes(curve=[0.0, 50.0], final=False).slice(4)
        pq.write_table(pa.concat_tables([best, last]), run / "episodes.parquet")
        self.fails(sweep, "final that is not its last")

    def test_damaged_cells_file(self, sweep, run):
        (sweep.folder / "cells.json").write_text('{"schema_version": 1, "cells": [')
        self.fails(sweep, "cells.json", "JSONDecodeError")

    def test_no_cells_file(self, sweep):
        self.fails(sweep, str(sweep.folder), "no such folder")
        sweep.folder.mkdir(parents=True)
        self.fails(sweep, str(sweep.folder), "no cells.json", "config.json beneath it")

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"schema_version": 7}, "schema_version 7"),
            ({"cells": []}, "lists no cell"),
            ({"cells": [{"method": "iql"}]}, "cell 0 lacks field 'algo'"),
        ],
    )
    def test_faulty_cells_file(self, sweep, changes, text):
        sweep.write(**changes)
        self.fails(sweep, "cells.json", text)

    @pytest.mark.parametrize(
        ("field", "value", "text"),
        [("status", "done", "unknown status 'done'"), ("run", None, "names no run"), ("seed", 1, "listed twice")],
    )
    def test_faulty_cell(self, sweep, run, field, value, text):
        sweep.cells[1][field] = value
        sweep.write()
        self.fails(sweep, "cells.json", text)

    def test_archive_with_foreign_rows(self, archive):
        content = json.loads((archive / "cells.json").read_text())
        gone = content["cells"].pop(0)
        (archive / "cells.json").write_text(json.dumps(content))
        with pytest.raises(results.ResultsError, match=rf"episodes of {gone['method']} / {gone['dataset']} / 0"):
            results.load(archive)


def test_analysis_stands_alone():
    """Reports build where torch is absent, and no part of the analysis reaches into the code it judges."""
    program = (
        "import sys; import hoard.analysis.report, hoard.analysis.notebooks\n"
        "others = ('torch', 'hoard.algos', 'hoard.datasets', 'hoard.envs', 'hoard.runners')\n"
        "print([name for name in sys.modules if name.startswith(others)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
