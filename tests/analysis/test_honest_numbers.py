"""Ways in which a table could flatter a method without a word: each closed, and told."""

import numpy as np
import pytest
import scipy.stats

from hoard.analysis import plots, report, results, stats, tables

DATASET, OTHER = "hoard/pendulum/mixed-v0", "hoard/pointmaze/stitch-v0"
NAN = {"status": "failed", "error": "FloatingPointError: critic_loss is nan at update 1200", "final": False}
CRASH = {"status": "failed", "error": "killed by SIGKILL; out of memory", "final": False}


def row(table, dataset, method):
    frame = table.frame
    return frame[(frame["dataset"] == dataset) & (frame["method"] == method)].iloc[0]


class TestDivergedSeeds:
    """Two of five seeds are lost: to nan they count, to a crash of the machine they do not, and both are said."""

    def fill(self, sweep, fate):
        for seed in range(5):
            for dataset in (DATASET, OTHER):
                sweep.cell("bc", dataset, seed, curve=[-7.0 if seed == 0 else 20.0, 30.0])
                lost = fate if seed > 2 and dataset == DATASET else {}
                sweep.cell("iql", dataset, seed, curve=[10.0] if lost else [10.0, 90.0], **lost)
        return results.load(sweep.write())

    def test_nan_counts_with_the_lowest_seen(self, sweep):
        table = tables.score_table(self.fill(sweep, NAN))
        one = row(table, DATASET, "iql")
        assert (one["seeds"], one["diverged"], one["planned"]) == (3, 2, 5)
        assert one["mean"] == pytest.approx((3 * 90 - 2 * 7) / 5)
        assert one["mean_low"] < 0  # and the interval knows of them
        whole = row(table, "all 2 datasets", "iql")
        assert (whole["seeds"], whole["diverged"], whole["planned"]) == (8, 2, 10)
        assert whole["mean"] == pytest.approx((one["mean"] + 90) / 2)
        shown = table.display.set_index(["dataset", "method"])
        assert shown.loc[(DATASET, "iql"), ["n", "diverged"]].tolist() == ["3/5", "2"]
        assert shown.loc[("all 2 datasets", "iql"), ["n", "diverged"]].tolist() == ["8/10", "2"]
        assert shown.loc[(DATASET, "bc"), "diverged"] == tables.DASH
        (note,) = (note for note in table.notes if "diverged" in note)
        assert note.startswith("2 of 20 cells diverged")
        assert "lowest evaluation" in note

    def test_a_crash_counts_nowhere_and_is_said(self, sweep):
        table = tables.score_table(self.fill(sweep, CRASH))
        one = row(table, DATASET, "iql")
        assert (one["seeds"], one["diverged"], one["planned"], one["mean"]) == (3, 0, 5, 90)
        shown = table.display.set_index(["dataset", "method"])
        assert "diverged" not in shown
        assert shown.loc[(DATASET, "iql"), ["n", "missing"]].tolist() == ["3/5", "3, 4"]
        assert shown.loc[("all 2 datasets", "iql"), ["n", "missing"]].tolist() == ["8/10", "2 in all"]
        assert any(note.startswith("2 of 20 cells did not finish") for note in table.notes)

    def test_no_more_than_a_random_policy(self, sweep):
        """Where every evaluation is good, a diverged seed is not."""
        for seed in range(2):
            sweep.cell("bc", DATASET, seed, curve=[60.0, 70.0])
        sweep.cell("bc", DATASET, 2, curve=[60.0], **NAN)
        assert row(tables.score_table(results.load(sweep.write())), DATASET, "bc")["mean"] == pytest.approx(140 / 3)

    def test_a_method_that_always_diverges_has_a_row(self, sweep):
        for seed in range(3):
            sweep.cell("bc", DATASET, seed, curve=[20.0], success=True)
            sweep.cell("iql", DATASET, seed, success=True, **NAN)
        folder = sweep.write()
        one = row(tables.score_table(results.load(folder)), DATASET, "iql")
        assert (one["seeds"], one["diverged"], one["mean"]) == (0, 3, 0)
        assert np.isnan([one["mean_low"], one["iqm_low"]]).all()
        rate = row(tables.score_table(results.load(folder), "success"), DATASET, "iql")
        assert rate["mean"] == 0
        assert report.build(folder).html.is_file()

    def test_figures_mark_them(self, sweep):
        loaded = self.fill(sweep, NAN)
        figure = plots.comparison(loaded)
        (crosses,) = (line for line in figure.axes[0].lines if line.get_marker() == "x" and len(line.get_xdata()))
        assert list(crosses.get_xdata()) == pytest.approx([-7, -7])
        assert "crosses: diverged seeds" in figure.get_supxlabel()
        assert "not drawn: 2" in plots.curves(loaded).get_supxlabel()

    def test_nothing_evaluated_nothing_to_count_with(self, sweep):
        sweep.cell("iql", DATASET, 0, status="failed", error="FloatingPointError: loss is nan at update 1")
        table = tables.score_table(results.load(sweep.write()))
        assert np.isnan(row(table, DATASET, "iql")["mean"])
        assert table.display["n"].tolist() == ["0/1"]


class TestRates:
    def test_certainty_is_never_printed(self, sweep):
        for seed in range(3):
            sweep.cell("hnpg", DATASET, seed, success=True, count=50)
            sweep.cell("trpo", DATASET, seed, success=False, count=50)
        table = tables.score_table(results.load(sweep.write()), "success")
        always, never = row(table, DATASET, "hnpg"), row(table, DATASET, "trpo")
        assert (always["mean"], always["mean_high"], never["mean"], never["mean_low"]) == (1, 1, 0, 0)
        assert always["mean_low"] == pytest.approx(0.05 ** (1 / 3))  # three seeds, however many episodes
        assert never["mean_high"] == pytest.approx(1 - 0.05 ** (1 / 3))
        assert np.isnan([always["iqm_low"], always["iqm_high"]]).all()
        shown = table.display.set_index("method")
        assert shown.loc["hnpg", "mean [95 % Wilson]"] == "1.000 [0.368, 1.000]"
        assert any("three seeds that always succeed give [0.37, 1]" in note for note in table.notes)

    @pytest.mark.parametrize("rates", [[1.0, 1.0, 0.9], [0.02, 0.0, 0.3], [0.5, 0.5, 0.5], [0.0, 1.0, 1.0, 1.0]])
    def test_ends_stay_in_range_and_apart(self, rates):
        point, low, high = stats.rate_interval([np.array(rates)], 50 * len(rates))
        assert 0 <= low < point < high <= 1
        assert point == pytest.approx(np.mean(rates))

    def test_old_interval_left_the_range(self):
        """What the table showed before: Student's interval of rates ends above one."""
        assert stats.mean_interval([np.array([1.0, 1.0, 0.7])]).high > 1 >= stats.rate_interval(
            [np.array([1.0, 1.0, 0.7])], 150).high  # fmt: skip

    def test_equal_seeds_count_as_single_trials(self):
        ours = stats.rate_interval([np.full(4, 0.5)], 4000)
        theirs = scipy.stats.binomtest(2, 4).proportion_ci(method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))

    def test_far_from_the_ends_it_is_students(self):
        rates = np.random.default_rng(0).normal(0.5, 0.01, size=10)
        assert stats.rate_interval([rates], 10**6) == pytest.approx(stats.mean_interval([rates]), abs=1e-3)

    def test_trials_are_no_more_than_episodes(self):
        """Two rates that happen to be near each other do not make ten episodes a thousand."""
        near = np.array([0.5, 0.5001, 0.4999, 0.5])
        wide, narrow = (stats.rate_interval([near], episodes) for episodes in (40, 4000))
        assert wide.high - wide.low > 5 * (narrow.high - narrow.low)

    @pytest.mark.parametrize(("seeds", "spread"), [(3, 0.1), (5, 0.1), (5, 0.02), (10, 0.3)])
    def test_coverage_on_simulated_seeds(self, seeds, spread):
        """Beta-distributed success rates of seeds around 0.9, fifty episodes each."""
        rng, hits, mean = np.random.default_rng(1), 0, 0.9
        worth = mean * (1 - mean) / spread**2 - 1
        for _ in range(1500):
            true = rng.beta(mean * worth, (1 - mean) * worth, size=seeds) if worth > 0 else rng.random(seeds) < mean
            found = stats.rate_interval([rng.binomial(50, true) / 50], 50 * seeds)
            hits += found.low <= mean <= found.high
        assert hits / 1500 > 0.9

    def test_one_seed_has_no_interval(self):
        assert np.isnan(stats.rate_interval([np.array([1.0])], 50)[1:]).all()
        assert np.isnan(stats.rate_interval([np.array([])], 0)).all()

    def test_over_datasets(self):
        point, low, high = stats.rate_interval([np.array([1.0, 0.9, 1.0]), np.array([0.2, 0.4, 0.3])], 300)
        assert point == pytest.approx((2.9 / 3 + 0.3) / 2)
        assert 0 < low < point < high < 1
        assert stats.rate_interval([np.ones(3), np.ones(3)], 300).low == pytest.approx(0.05 ** (1 / 6))


def test_an_interval_is_not_rounded_to_nothing():
    assert tables.interval(0.9996, 0.9984, 0.9999, 2) == "1.000 [0.998, 1.000]"
    assert tables.interval(98.3, 97.2, 99.3, 1) == "98.3 [97.2, 99.3]"
    assert tables.interval(1.0, float("nan"), float("nan"), 2) == "1.00"


def test_equal_seeds_have_no_interval(sweep):
    """Three seeds that end at one score: no [50, 50]."""
    for seed in range(3):
        sweep.cell("iql", DATASET, seed, last=50.0)
    table = tables.score_table(results.load(sweep.write()))
    one = row(table, DATASET, "iql")
    assert np.isnan([one["mean_low"], one["mean_high"], one["iqm_low"], one["iqm_high"]]).all()
    assert table.display["mean [95 % Student t]"].tolist() == ["50.0"]


def test_one_note_for_all_methods_without_a_row_over_all(sweep):
    for method in ("iql", "bc", "hnpg", "moorl", "drbc"):
        for dataset in (DATASET, OTHER) if method in ("iql", "bc") else (DATASET,):
            sweep.cell(method, dataset, 0)
    notes = [note for note in tables.score_table(results.load(sweep.write())).notes if "No row over all" in note]
    assert notes == ["No row over all datasets for hnpg, moorl, drbc: each has datasets without a finished run."]


class TestSelection:
    """A call for some cells shows these; the others are kept, and shown with `everything`."""

    def fill(self, sweep):
        for method in ("iql", "bc"):
            for seed in range(3):
                sweep.cell(method, DATASET, seed, last=50.0 + seed)
        for cell in sweep.cells:
            cell["selected"] = cell["method"] == "iql"
        return sweep.write()

    def test_what_is_shown(self, sweep):
        folder = self.fill(sweep)
        some = report.build(folder)
        assert "bc" not in some.csv.read_text()
        assert "Shown are the 3 cells" in " ".join(some.text.split())
        assert "Shown are the 3 cells" in some.html.read_text()
        every = report.build(folder, everything=True)
        assert "bc" in every.csv.read_text()
        assert "Shown are" not in every.text

    def test_nothing_is_lost_from_the_joined_file(self, sweep):
        episodes = report.build(self.fill(sweep)).episodes
        assert set(results.pq.ParquetFile(episodes).read()["method"].to_pylist()) == {"iql", "bc"}

    def test_loading(self, sweep):
        folder = self.fill(sweep)
        some, every = results.load(folder), results.load(folder, everything=True)
        assert (some.methods, every.methods) == (["iql"], ["iql", "bc"])
        assert set(some.episodes["method"]) == {"iql"}
        assert len(some.evaluations) == 3
        assert len(every.evaluations) == 6
        assert set(results.frame(folder)["method"]) == {"iql", "bc"}

    def test_from_the_command_line(self, sweep):
        folder = self.fill(sweep)
        report.main([str(folder), "--all"])
        assert "bc" in (folder / "table.csv").read_text()

    def test_old_files_have_everything_selected(self, quick):
        assert results.load(quick.folder).cells["selected"].all()

    def test_a_wrong_value_is_named(self, sweep):
        sweep.cell("iql", DATASET, 0)
        sweep.cells[0]["selected"] = "yes"
        with pytest.raises(results.ResultsError, match="cell 0 has selected 'yes'"):
            results.load(sweep.write())


class TestTwice:
    def test_a_dataset_twice_in_a_suite(self, sweep):
        for _ in range(2):
            for method in ("iql", "bc"):
                sweep.cell(method, DATASET, 0)
        sweep.cell("iql", OTHER, 0)
        with pytest.raises(results.ResultsError, match=f"dataset {DATASET} is in the suite twice"):
            results.load(sweep.write())

    def test_two_seeds_that_are_one_run(self, sweep):
        """As where an option overrides the seed: three seeds, one result, an interval of width zero."""
        for seed in range(3):
            sweep.cell("iql", DATASET, seed)
            sweep.cells[-1]["run"] = sweep.cells[0]["run"]
        with pytest.raises(
            results.ResultsError, match=f"iql / {DATASET} / seed 0 and iql / {DATASET} / seed 1 are the"
        ):
            results.load(sweep.write())


class TestTerminal:
    METHODS = ("iql", "rcsl", "bc", "bc10", "decision_mamba", "decision_transformer", "mbrcsl", "moorl", "rlpd",
               "drbc", "hnpg", "sac")  # fmt: skip
    DATASETS = ("hoard/pendulum/mixed-v0", "hoard/maze2d/umaze-v0", "hoard/comblock/h5-v0", "hoard/pointmaze/stitch-v0")

    @pytest.mark.parametrize("metric", ["score", "return", "success"])
    def test_the_default_suite_fits_a_narrow_terminal(self, sweep, metric):
        for dataset in self.DATASETS:
            for method in self.METHODS:
                for seed in range(3):
                    lost = NAN if (method, seed) == ("drbc", 2) else CRASH if (method, seed) == ("moorl", 1) else {}
                    online = 500 * (method in ("moorl", "rlpd", "drbc", "hnpg", "sac"))
                    curve = [10.0 + seed, -123.4 + 10 * seed]
                    sweep.cell(method, dataset, seed, curve=curve, success=bool(seed), env_steps=online, **lost)
        text = report.build(sweep.write(), metric=metric).text
        assert max(len(line) for line in text.splitlines()) <= 80
        for method in self.METHODS:
            assert f" {method} " in text  # no name was cut
        for dataset in ("pendulum/mixed", "maze2d/umaze", "comblock/h5", "pointmaze/stitch"):
            assert f"\n{dataset} " in text

    def test_long_names_are_cut_where_nothing_else_helps(self, sweep):
        name = "a_method_with_a_very_long_name_that_nobody_would_type_twice"
        for seed in range(2):
            sweep.cell(
                name, "d4rl:a_file_of_mine_with_a_long_name.hdf5+as=halfcheetah-medium-replay-v2", seed, last=seed
            )
        text = tables.score_table(results.load(sweep.write())).text(80)
        assert max(len(line) for line in text.splitlines()) <= 80
        assert "a_method" in text
        assert "…" in text

    def test_short_names_stay_distinct(self):
        short = tables.short_names(["hoard/maze2d/umaze-v0", "d4rl:hopper-medium-v2", "d4rl:hopper-medium-v0"])
        assert short == {
            "hoard/maze2d/umaze-v0": "maze2d/umaze",
            "d4rl:hopper-medium-v2": "d4rl:hopper-medium-v2",
            "d4rl:hopper-medium-v0": "d4rl:hopper-medium-v0",
        }
