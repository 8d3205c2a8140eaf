"""Published numbers stand beside ours, with their source and how sure we are."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from helpers import ROOT

from hoard.analysis import online, published, report, results, tables
from hoard.runners.sweep import suite

DATA = ROOT.parent / "shared" / "data"
CORL, GFP = DATA / "corl_readme_tables.csv", DATA / "published" / "gfp_iclr2026_minari_21_tasks.csv"
FINE_TUNED = [
    *(f"antmaze-{maze}-v2" for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play",
                                        "large-diverse")),
    *(f"{task}-cloned-v1" for task in ("pen", "door", "hammer", "relocate")),
]  # fmt: skip
CURVES = DATA / "finetune_scores.npz"


def fill(sweep):
    for seed in range(3):
        sweep.cell("mbrcsl", "hoard/pointmaze/stitch-v0", seed, curve=[100.0 + seed])
        sweep.cell("iql", "hoard/pointmaze/stitch-v0", seed, curve=[50.0])
    return sweep.write()


def shown(table):
    return table.display.to_dict("records")


def test_ours_and_theirs_in_one_row(sweep):
    folder = fill(sweep)
    table = published.published_table(results.load(folder))
    rows = {row["method"]: row for row in shown(table)}
    assert rows["mbrcsl"]["ours: mean ± std"] == "-91.0 ± 9.0"  # return = -1000 + 9 score
    assert rows["mbrcsl"]["published: mean ± std"] == "91.5 ± 7.1"
    assert rows["mbrcsl"]["told apart"] == "ours lower"
    assert (rows["mbrcsl"]["seeds"], rows["mbrcsl"]["source"]) == ("4", "MBRCSL")
    assert rows["iql"]["published as"] == "–"
    assert table.display["published as"].tolist().count("COMBO") == 1
    assert "memory" in table.notes[0]
    assert "Beside published numbers" in report.build(folder, metric="return").markdown.read_text()


def test_a_file_evaluated_like_the_published_set_stands_beside_it_and_is_named(sweep):
    ours = "d4rl:mine.hdf5+as=door-human-v1"
    for seed in range(3):
        sweep.cell("bc", ours, seed, curve=[2.0])
    table = published.published_table(results.load(sweep.write()))
    assert shown(table)[0]["published: mean ± std"] == "2.3 ± 4.0"
    assert ours in table.notes[-1]
    for other in ("d4rl:mine.hdf5", "d4rl:mine.hdf5+as=door-cloned-v1", "d4rl:pen-human-v1"):
        assert not published.same(other, "d4rl:door-human-v1")


def test_datasets_without_published_numbers_have_no_such_table(sweep):
    sweep.cell("bc", "hoard/pendulum/mixed-v0", 0)
    assert published.published_table(results.load(sweep.write())) is None
    assert "published" not in report.build(sweep.folder).markdown.read_text()


def test_scores_are_not_set_beside_raw_returns(sweep):
    sweep.cell("bc", "d4rl:door-human-v1", 0, normalised=False)
    assert published.published_table(results.load(sweep.write())) is None


def test_command(sweep):
    run = [sys.executable, "-m", "hoard.analysis.published", str(fill(sweep))]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| mbrcsl |" in done.stdout


def test_any_suite_finds_its_datasets_rows(sweep):
    for dataset in ("d4rl:hopper-medium-v2", "mujoco/hopper/medium-v0"):
        for method in ("iql_corl", "bc", "rcsl", "fql"):
            sweep.cell(method, dataset, 0, curve=[50.0])
    table = published.published_table(results.load(sweep.write()))
    rows = {(row["dataset"], row["method"], row["published as"]): row for row in shown(table)}
    assert rows["d4rl:hopper-medium-v2", "iql_corl", "IQL"]["published: mean ± std"] == "67.5 ± 3.8"
    assert rows["d4rl:hopper-medium-v2", "rcsl", "–"]["published: mean ± std"] == "–"
    assert rows["d4rl:hopper-medium-v2", "–", "CQL"]["ours: mean ± std"] == "–"
    assert rows["mujoco/hopper/medium-v0", "fql", "FQL"]["published: mean ± std"] == "81.9 ± 23.9"
    assert rows["mujoco/hopper/medium-v0", "fql", "FQL"]["told apart"] == "–"  # one seed of ours
    assert len(rows) == (10 + 2) + (4 + 3)


def test_online_methods_stand_beside_numbers_from_after_an_online_phase(sweep):
    for seed in range(2):
        sweep.cell("cal_ql", "d4rl:pen-cloned-v1", seed, curve=[50.0 + seed], env_steps=1000)
        sweep.cell("cql", "d4rl:pen-cloned-v1", seed, curve=[50.0 + seed])
    rows = {row["method"]: row for row in shown(published.published_table(results.load(sweep.write())))}
    theirs = published.numbers().set_index(["dataset", "algorithm", "phase", "statistic", "measure"]).sort_index()
    after = theirs.loc[("d4rl:pen-cloned-v1", "Cal-QL", "online", "last", "score")]
    offline = theirs.loc[("d4rl:pen-cloned-v1", "CQL", "offline", "last", "score")]
    assert rows["cal_ql"]["published: mean ± std"] == f"{after['mean']:.1f} ± {after['spread']:.1f}"
    assert rows["cql"]["published: mean ± std"] == f"{offline['mean']:.1f} ± {offline['spread']:.1f}"


def test_overlap_is_welchs_test_of_their_seeds():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(50, 5, 5), rng.normal(53, 5, 8)
    row = {"mean": theirs.mean(), "spread": theirs.std(), "spread_kind": "population std", "seeds": 8}
    assert published.overlap(ours, row) == "not told apart"
    assert scipy.stats.ttest_ind(ours, theirs, equal_var=False).pvalue > 0.05
    assert published.overlap(ours + 20, row) == "ours higher"
    assert published.overlap(ours - 20, row) == "ours lower"
    assert published.overlap(ours[:1], row) == ""
    assert published.overlap(np.full(3, 1.0), row | {"spread": 0.0}) == ""


def test_the_tables_are_whole():
    known, about = published.numbers(), published.sources()
    assert not known.isna().any().any()
    keys = ["algorithm", "dataset", "phase", "measure", "statistic", "source"]
    assert not known.duplicated(keys).any()
    assert set(known["source"]) == set(about["sources"])
    assert set(known["how_sure"]) == set(about["how_sure"])
    assert set(known["statistic"]) == {"last", "best", "mean over training"}
    assert set(known["phase"]) == {"offline", "before online", "online"}
    assert set(known["spread_kind"]) == {"std", "population std"}
    assert set(about["methods"]) <= set(known["algorithm"])
    assert (known["seeds"] >= 4).all()


@pytest.mark.skipif(not CORL.is_file(), reason="CORL's tables are not here")
def test_numbers_of_corl_are_those_it_printed():
    known = published.numbers().query("source == 'CORL'")
    known = known.assign(dataset=known["dataset"].str.removeprefix("d4rl:"))
    known = known.set_index(["dataset", "algorithm", "phase", "measure", "statistic"])[["mean", "spread"]]
    assert known.index.is_unique
    checked = 0
    for row in pd.read_csv(CORL).to_dict("records"):
        kinds = {
            "Last Scores": [("offline", "score", "last", "")],
            "Best Scores": [("offline", "score", "best", "")],
            "Scores": [("before online", "score", "last", ""), ("online", "score", "last", "_after_online")],
            "Regrets": [("online", "regret", "mean over training", "")],
        }[row["section"]]
        for *key, suffix in kinds:
            found = known.loc[(row["dataset"], row["algo"], *key)]
            assert (found["mean"], found["spread"]) == (row[f"mean{suffix}"], row[f"std{suffix}"])
            checked += 1
    assert checked == len(known) == 780


@pytest.mark.skipif(not GFP.is_file(), reason="the numbers of Guided Flow Policy are not here")
def test_numbers_of_guided_flow_policy_are_those_of_its_release():
    known = published.numbers().query("source == 'GFP'").set_index(["dataset", "algorithm"])
    for row in pd.read_csv(GFP).to_dict("records"):
        for name, theirs in {"GFP": "gfp", "FQL": "fql", "flow BC": "flow_bc", "ReBRAC": "rebrac"}.items():
            found = known.loc[(row["dataset"], name)]
            assert (found["mean"], found["spread"]) == (row[f"{theirs}_mean"], row[f"{theirs}_std"])
    assert len(known) == 4 * 21 + 4 * 5  # the rest are OGBench's cube, five tasks


def test_a_set_of_ogbench_made_here_stands_beside_the_published_one_by_its_success_rate(sweep):
    ours = "ogbench:cube-single-noisy-100k-singletask-task1-v0"
    for seed, success in enumerate((True, False, True)):
        for method in ("iql", "bc"):
            sweep.cell(method, ours, seed, normalised=False, success=success)
    table = published.published_table(results.load(sweep.write()))
    rows = {row["method"]: row for row in shown(table)}
    assert rows["iql"]["ours: mean ± std"] == "0.67 ± 0.58"
    assert rows["iql"]["published: mean ± std"] == "0.52 ± 0.07"
    assert rows["iql"]["told apart"] == "not told apart"
    assert rows["bc"]["ours: mean ± std"] == "0.67 ± 0.58"  # the same measure, though nothing stands beside it
    assert "success rate" in table.notes[-2]
    assert ours in table.notes[-1]
    for other in ("ogbench:cube-single-noisy-100k-singletask-task2-v0", "ogbench:cube-single-play-singletask-task1-v0"):
        assert not published.same(other, "ogbench:cube-single-noisy-singletask-task1-v0")


@pytest.mark.skipif(not CURVES.is_file(), reason="CORL's curves are not here")
@pytest.mark.parametrize("dataset", FINE_TUNED)
def test_corls_curves_through_our_code_give_its_table(sweep, dataset):
    """From curves in run folders to the tables: means and spreads before and after the online phase, and regret."""
    curves = np.load(CURVES, allow_pickle=False)
    algorithms = ["AWAC", "CQL", "Cal-QL", "IQL", "ReBRAC", "SPOT"]
    for algorithm in algorithms:
        for seed in range(4):
            offline, after = (curves[f"{algorithm}|{dataset}|{seed}|{phase}"] for phase in ("offline", "online"))
            sweep.cell(algorithm, f"d4rl:{dataset}", seed, curve=[*offline[-3:], *after], offline=3, env_steps=1000)
    loaded = results.load(sweep.write())
    scores = tables.score_table(loaded).frame.set_index("method")
    phases = online.online_table(loaded).frame.set_index("method")
    known = published.numbers().query("source == 'CORL' and dataset == @name", local_dict={"name": f"d4rl:{dataset}"})
    known = known.query("phase != 'offline'").set_index(["algorithm", "phase", "measure"])
    for algorithm in algorithms:
        before, after = (known.loc[(algorithm, phase, "score")] for phase in ("before online", "online"))
        assert phases.loc[algorithm, "before"] == pytest.approx(before["mean"], abs=0.0051)
        assert scores.loc[algorithm, "mean"] == pytest.approx(after["mean"], abs=0.0051)
        population = scores.loc[algorithm, "std"] * np.sqrt(3 / 4)
        assert population == pytest.approx(after["spread"], abs=0.0051)
        stored = np.array([curves[f"{algorithm}|{dataset}|{seed}|regret"] for seed in range(4)], float)
        regret = known.loc[(algorithm, "online", "regret")]
        assert (stored.mean(), stored.std()) == pytest.approx((regret["mean"], regret["spread"]), abs=0.0051)


def test_suites_of_published_sets_find_their_numbers():
    known = published.numbers()
    for name in ("d4rl-locomotion", "d4rl-adroit", "d4rl-antmaze", "d4rl-maze2d", "minari-adroit", "minari-mujoco",
                 "ogbench-local"):  # fmt: skip
        shipped = suite.read(name)
        for dataset in shipped.datasets:
            assert any(published.same(dataset, theirs) for theirs in known["dataset"].unique()), dataset
        matches = {
            ours for algorithm in known["algorithm"] for ours in published.sources()["methods"].get(algorithm, ())
        }
        assert len(matches & {method.name for method in shipped.methods}) >= 4
