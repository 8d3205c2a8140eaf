"""Runs that were started one by one, without a suite: a table, curves, a DataFrame."""

import pandas as pd
import pytest
from synthetic import train

from hoard.analysis import report, results
from hoard.records.errors import BadInput


def test_a_runs_own_folder(sweep):
    run = train(sweep, "iql", 3, curve=[10.0, 20.0, 30.0])
    before = (run / "episodes.parquet").read_bytes()
    built = report.build(run)
    assert "iql" in built.text
    assert "30.0" in built.text
    assert built.curves.is_file()
    assert "0123abcd" in built.html.read_text()
    assert (run / "episodes.parquet").read_bytes() == before  # the run's, not the report's
    frame = results.frame(run)
    assert set(frame["method"]) == {"iql"}
    assert set(frame["seed"]) == {3}
    assert frame.groupby("update")["score"].mean().to_dict() == pytest.approx({1000: 10.0, 2000: 20.0, 3000: 30.0})


@pytest.mark.parametrize("below", [".", "runs", "runs/iql"])
def test_a_folder_of_runs(sweep, below):
    for seed in range(3):
        train(sweep, "iql", seed, last=40.0 + seed)
    if below != "runs/iql":
        train(sweep, "bc", 0, last=5.0)
        train(sweep, "bc", 1, status="failed", last=5.0, final=False)
    loaded = results.load(sweep.root / below)
    assert set(loaded.methods) == ({"iql"} if below == "runs/iql" else {"iql", "bc"})
    text = report.build(sweep.root / below).text
    assert "41.0 [" in text
    assert not (sweep.root / below / "episodes.parquet").exists()
    if below == ".":
        assert "1/2" in text
        assert "ValueError: x" in text


def test_other_settings_are_another_method(sweep):
    train(sweep, "iql", 0, last=10.0)
    train(sweep, "iql", 0, overrides={"lr": 0.1}, suffix="ba9876543210", last=90.0)
    train(sweep, "iql", 1, overrides={"lr": 0.1}, last=92.0)
    loaded = results.load(sweep.root)
    assert loaded.methods == ["iql #1", "iql #2"]
    assert set(loaded.cells.loc[loaded.cells["method"] == "iql #2", "seed"]) == {0, 1}
    assert "lr = 0.1" in report.build(sweep.root).html.read_text()


def test_other_code_is_another_method(sweep):
    train(sweep, "iql", 0, last=10.0)
    train(sweep, "iql", 0, code="x = 2", suffix="ba9876543210", last=90.0)
    assert results.load(sweep.root).methods == ["iql #1", "iql #2"]


def test_comments_are_no_other_code(sweep):
    train(sweep, "iql", 0, code='"""Doc."""\nx = 1\n', last=10.0)
    train(sweep, "iql", 1, code="x = 1  # one\n", last=90.0)
    assert results.load(sweep.root).methods == ["iql"]


def test_presets_and_search_spaces_are_no_other_code(sweep):
    """They move no address either."""
    train(sweep, "iql", 0, code="SEARCH = {}\nPRESETS = {}\nx = 1\n", last=10.0)
    train(sweep, "iql", 1, code="SEARCH = {'lr': 1}\nx = 1\n", last=90.0)
    assert results.load(sweep.root).methods == ["iql"]


def test_the_same_run_under_other_versions_is_another_method(sweep):
    """Versions tell runs apart where nothing else does; between seeds they split nothing."""
    for seed in range(2):
        train(sweep, "iql", seed, last=10.0)
        train(sweep, "iql", seed, torch="3", suffix=f"b{seed}", last=90.0)
        train(sweep, "bc", seed, torch=str(seed), last=50.0)
    cells = results.load(sweep.root).cells
    assert sorted(set(cells["method"])) == ["bc", "iql #1", "iql #2"]
    assert (cells["method"].value_counts() == 2).all()


def test_what_cannot_be_told_apart_is_still_two(sweep):
    for seed in range(2):
        train(sweep, "iql", seed, last=10.0)
        train(sweep, "iql", seed, suffix="b", last=90.0)
    assert sorted(results.load(sweep.root).cells["method"]) == ["iql #1", "iql #1", "iql #2", "iql #2"]


def test_a_run_in_progress(sweep):
    train(sweep, "iql", 0, status="running", curve=[10.0], final=False)
    built = report.build(sweep.root)
    assert "0/1" in built.text
    frame = results.frame(sweep.root)
    assert set(frame["status"]) == {"running"}


def test_frame_of_a_suite_and_of_its_archive(quick, archive):
    live, archived = results.frame(quick.folder), results.frame(archive)
    pd.testing.assert_frame_equal(live, archived)
    assert {"method", "dataset", "seed", "status", "update", "env_step", "return", "score", "success"} <= set(live)
    assert set(live["status"]) == {"finished", "failed"}
    assert len(live) == len(results.load(quick.folder).episodes)


@pytest.mark.parametrize(("make", "text"), [(False, "there is no such folder"), (True, "no run's config.json beneath")])
def test_nothing_there(tmp_path, make, text):
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    for call in (results.load, results.frame, report.build):
        with pytest.raises(BadInput, match=f"no results in {folder}: .*{text}"):
            call(folder)


def test_a_damaged_config_is_named(sweep):
    run = train(sweep, "iql", 0)
    (run / "config.json").write_text('{"algo": "iql"}')
    with pytest.raises(results.ResultsError, match=r"config\.json: cannot be read \(KeyError: 'config'\)"):
        results.load(sweep.root)
