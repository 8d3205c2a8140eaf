"""Tables: the last score, printed with everything it must be read with, and nothing hidden."""

import io

import numpy as np
import pandas as pd
import pytest

from hoard.analysis import results, stats, tables

DATASET, OTHER = "hoard/pendulum/mixed-v0", "hoard/pointmaze/stitch-v0"


def row(table, dataset, method, **more):
    frame = table.frame
    keys = {"dataset": dataset, "method": method} | more
    found = frame[np.logical_and.reduce([frame[name] == value for name, value in keys.items()])]
    assert len(found) == 1
    return found.iloc[0]


def test_numbers_of_a_row(sweep):
    values = [10.0, 40.0, 20.0, 90.0, 30.0]
    for seed, value in enumerate(values):
        sweep.cell("iql", DATASET, seed, last=value, count=6, success=seed < 2)
    table = tables.score_table(results.load(sweep.write()))
    one = row(table, DATASET, "iql")
    assert one["iqm"] == pytest.approx(0.3 * 20 + 0.4 * 30 + 0.3 * 40)
    assert one["mean"] == pytest.approx(38.0)
    assert one["std"] == pytest.approx(np.std(values, ddof=1))
    assert (one["iqm_low"], one["iqm_high"]) == pytest.approx(stats.bootstrap_interval([np.array(values)])[1:])
    assert (one["mean_low"], one["mean_high"]) == pytest.approx(stats.mean_interval([np.array(values)])[1:])
    assert one["return"] == pytest.approx(-1000 + 9 * 38.0)
    assert one["success"] == pytest.approx(0.4)
    assert one["wall_time"] == pytest.approx(77.0)
    assert (one["seeds"], one["episodes_min"], one["episodes_max"]) == (5, 6, 6)
    assert len(table) == 1  # one dataset: no row over all datasets


def test_a_seed_counts_once_however_many_episodes_it_has(sweep):
    sweep.cell("iql", DATASET, 0, last=0.0, count=2)
    sweep.cell("iql", DATASET, 1, last=90.0, count=20)
    table = tables.score_table(results.load(sweep.write()))
    assert row(table, DATASET, "iql")["mean"] == pytest.approx(45.0)
    assert table.display["episodes/seed"].tolist() == ["2-20"]


def test_headline_is_the_last_evaluation_never_the_best(sweep):
    """D19: runs that peak at 95 and fall back to 20 score 20, and no table offers a "best"."""
    for seed in range(3):
        sweep.cell("awac", DATASET, seed, curve=[60.0, 95.0, 20.0], variants={"target=1": 99.0})
    table = tables.score_table(results.load(sweep.write()))
    assert row(table, DATASET, "awac")["iqm"] == pytest.approx(20.0)
    assert "best" not in f"{table.display.columns} {table.csv()}".lower()


def test_tables_print_how_to_read_them(quick):
    """D18, D20: n, episodes per seed, ddof, level, kind of interval, resamples, and the true coverage."""
    loaded = results.load(quick.folder)
    for table in (tables.score_table(loaded), tables.variant_table(loaded)):
        assert {"n", "episodes/seed", "IQM [95 % bootstrap]", "mean [95 % Student t]"} <= set(table.display.columns)
        notes = " ".join(table.notes)
        for text in ("10,000 resamples", "ddof = 1", "75 / 90 / 93 % of cases at 3 / 5 / 10 seeds", "last update"):
            assert text in notes
        assert {"level", "resamples", "ddof", "seeds", "episodes_min"} <= set(table.frame.columns)
    ninety = tables.score_table(loaded, level=0.9, resamples=4_000)
    assert "IQM [90 % bootstrap]" in ninety.display
    assert "4,000 resamples" in " ".join(ninety.notes)
    assert "of cases" not in " ".join(ninety.notes)  # coverage was measured for 95 % only


def test_missing_cells_are_shown(quick):
    """D21: a failed cell is counted in its row, listed with its error, and named in the notes."""
    loaded = results.load(quick.folder)
    table = tables.score_table(loaded)
    printed = dict(zip(table.frame["dataset"] + table.frame["method"], table.display["missing"]))
    assert printed[OTHER + "iql"] == "3"
    assert printed[OTHER + "bc"] == tables.DASH
    assert printed["all 3 datasets" + "iql"] == "1 in all"
    assert "4/5" in table.display["n"].tolist()
    assert "2 of 45 cells did not finish" in " ".join(table.notes)
    missing = tables.missing_table(loaded)
    assert missing.frame["status"].tolist() == ["failed", "pending"]
    assert "loss</b> is not finite \\| see log" in missing.markdown()


def test_a_suite_without_any_finished_cell(sweep):
    sweep.cell("iql", DATASET, 0, status="failed", error="Traceback:\n  line 1\nKeyError: 'x'\n")
    sweep.cell("iql", DATASET, 1, status="pending")
    loaded = results.load(sweep.write())
    table = tables.score_table(loaded)
    assert table.display["n"].tolist() == ["0/2"]
    assert table.display["missing"].tolist() == ["0, 1"]
    assert "KeyError: 'x'\n" in tables.missing_table(loaded).text()  # the line that names the error
    assert "Traceback" not in tables.missing_table(loaded).text()


def test_a_diverged_episode_is_not_averaged_away(sweep):
    run = sweep.cell("iql", DATASET, 0)
    sweep.cell("iql", DATASET, 1)
    table = sweep.episodes()
    values = table["score"].to_pylist()
    scores = results.pa.array([float("nan"), *values[1:]])
    table = table.set_column(table.schema.get_field_index("score"), "score", scores)
    results.pq.write_table(table, run / "episodes.parquet")
    assert np.isnan(row(tables.score_table(results.load(sweep.write())), DATASET, "iql")["iqm"])


class TestAggregate:
    def test_weighs_datasets_not_runs(self, sweep):
        for seed in range(4):
            sweep.cell("iql", DATASET, seed, last=80.0)
            sweep.cell("iql", OTHER, seed, last=20.0, **({"status": "failed"} if seed > 1 else {}))
        one = row(tables.score_table(results.load(sweep.write())), "all 2 datasets", "iql")
        assert (one["mean"], one["iqm"], one["seeds"], one["planned"]) == (50.0, pytest.approx(50.0), 6, 8)
        assert np.isnan([one["std"], one["return"]]).all()

    def test_omitted_with_a_reason_where_a_dataset_is_missing(self, sweep):
        for method in ("bc", "iql"):
            sweep.cell(method, DATASET, 0)
            sweep.cell(method, OTHER, 0, **({"status": "failed"} if method == "iql" else {}))
        table = tables.score_table(results.load(sweep.write()))
        assert table.frame.loc[table.frame["dataset"] == "all 2 datasets", "method"].tolist() == ["bc"]
        assert f"No row over all datasets for iql: no finished run on {OTHER}." in table.notes

    def test_omitted_with_a_reason_where_scores_are_not_normalised(self, sweep):
        sweep.cell("iql", DATASET, 0, last=10.0)
        sweep.cell("iql", OTHER, 0, normalised=False, last=10.0)
        table = tables.score_table(results.load(sweep.write()))
        assert table.frame["measure"].tolist() == ["score", "return"]
        assert row(table, OTHER, "iql")["mean"] == pytest.approx(-910.0)
        assert f"No row over all datasets: no normalised score on {OTHER}." in table.notes
        assert any(note.startswith("Raw return, not normalised") and note.endswith(f"{OTHER}.") for note in table.notes)


def test_raw_return_as_the_measure(quick):
    loaded = results.load(quick.folder)
    table = tables.score_table(loaded, "return")
    assert set(table.frame["measure"]) == {"return"}
    assert (table.frame["mean"] == table.frame["return"]).all()
    assert "The measure is the raw, undiscounted return." in table.notes
    assert "No row over all datasets: raw returns of different tasks have no common scale." in table.notes
    with pytest.raises(ValueError, match="unknown metric 'best'"):
        tables.score_table(loaded, "best")


def test_variants_stand_apart(quick, sweep):
    table = tables.variant_table(results.load(quick.folder))
    assert set(table.frame["method"]) == {"rcsl"}
    headline = row(table, DATASET, "rcsl", variant="(headline)")
    lower = row(table, DATASET, "rcsl", variant="target=0.5")
    assert headline["mean"] - lower["mean"] == pytest.approx(10.0)


def test_no_variants_no_table(sweep):
    sweep.cell("iql", DATASET, 0)
    assert tables.variant_table(results.load(sweep.write())) is None


def test_every_difference_from_the_defaults_is_printed(quick):
    """D27: a setting changed for one dataset stands in a row of its own."""
    frame = tables.settings_table(results.load(quick.folder)).frame
    assert frame[frame["method"] == "iql"][["datasets", "differences from defaults"]].to_numpy().tolist() == [
        ["hoard/pendulum/mixed-v0, hoard/pointmaze/stitch-v0", "updates = 10000"],
        ["hoard/acrobot/expert-v0", "expectile = 0.9, updates = 10000"],
    ]
    assert frame[frame["method"] == "bc"]["datasets"].tolist() == ["all"]


def test_different_contents_of_one_dataset_are_reported(sweep):
    for seed in range(2):
        sweep.cell("iql", DATASET, seed)
    sweep.cells[1]["data_hash"] = "0" * 16
    notes = tables.score_table(results.load(sweep.write())).notes
    assert f"Warning: the runs on {DATASET} read 2 different contents of the dataset." in notes


def test_written_forms_agree(quick):
    table = tables.score_table(results.load(quick.folder))
    markdown, text = table.markdown().splitlines(), table.text().splitlines()
    assert len(markdown) == len(table) + 2
    assert len(text) == len(table) + 1
    assert len({line.count("|") for line in markdown}) == 1
    read = pd.read_csv(io.StringIO(table.csv()))
    np.testing.assert_allclose(read["iqm"], table.frame["iqm"])
    assert "measure" in table.text().splitlines()[0]
    assert "measure" not in table.text(80).splitlines()[0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, "42 s"), (210, "3.5 min"), (9000, "2.5 h"), (float("nan"), tables.DASH)]
)
def test_duration(seconds, text):
    assert tables.duration(seconds) == text


def test_the_last_bits_of_a_sum_do_not_show():
    """What two processors may make of 0.9965 and of a third."""
    frames = [pd.DataFrame({"method": ["a", "b"], "mean": [low, third]}) for low, third in (
        (0.9964999999999999, 1 / 3), (0.9965000000000002, np.nextafter(1 / 3, 1)))]  # fmt: skip
    assert len({frame.to_csv() for frame in frames}) == 2
    settled = [tables.settled(frame) for frame in frames]
    assert len({frame.to_csv() for frame in settled}) == 1
    assert {tables.number(frame["mean"][0], 3) for frame in settled} == {"0.997"}
