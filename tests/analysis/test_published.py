"""Published numbers stand beside ours, with their source and how sure we are."""

import subprocess
import sys
import tomllib

import pandas as pd
import pytest
from helpers import ROOT

from hoard.analysis import published, report, results
from hoard.runners.sweep import suite

CORL = ROOT.parent / "shared" / "data" / "corl_readme_tables.csv"


def fill(sweep):
    for seed in range(3):
        sweep.cell("mbrcsl", "hoard/pointmaze/stitch-v0", seed, curve=[100.0 + seed])
        sweep.cell("iql", "hoard/pointmaze/stitch-v0", seed, curve=[50.0])
    return sweep.write()


def test_ours_and_theirs_in_one_row(sweep):
    sweep.suite = "paper-mbrcsl"
    folder = fill(sweep)
    table = published.published_table(results.load(folder))
    rows = {row["method"]: row for row in table.display.to_dict("records")}
    assert rows["mbrcsl"]["ours: mean ± std"] == "-91.0 ± 9.0"  # return = -1000 + 9 score
    assert rows["mbrcsl"]["published: mean ± std"] == "91.5 ± 7.1"
    assert rows["iql"]["published as"] == "–"
    assert table.display["published as"].tolist().count("COMBO") == 1
    assert "memory" in table.notes[0]
    assert "Beside published numbers" in report.build(folder, metric="return").markdown.read_text()


def test_a_file_evaluated_like_the_published_set_stands_beside_it_and_is_named(sweep):
    sweep.suite = "door-human"
    ours = "d4rl:mine.hdf5+as=door-human-v1"
    for seed in range(3):
        sweep.cell("bc", ours, seed, curve=[2.0])
    table = published.published_table(results.load(sweep.write()))
    assert table.display.to_dict("records")[0]["published: mean ± std"] == "2.3 ± 4.0"
    assert ours in table.notes[1]
    for other in ("d4rl:mine.hdf5", "d4rl:mine.hdf5+as=door-cloned-v1", "d4rl:pen-human-v1"):
        assert not published._stands_for(other, "d4rl:door-human-v1")


def test_a_suite_without_published_numbers_has_no_such_table(quick):
    loaded = results.load(quick.folder)
    assert published.published_table(loaded) is None
    assert "published" not in report.build(quick.folder).markdown.read_text()


def test_command(sweep):
    sweep.suite = "paper-mbrcsl"
    run = [sys.executable, "-m", "hoard.analysis.published", str(fill(sweep))]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| mbrcsl |" in done.stdout


def test_several_datasets_have_their_own_rows(sweep):
    sweep.suite = "d4rl-locomotion"
    for dataset in ("d4rl:hopper-medium-v2", "d4rl:walker2d-medium-v2"):
        for method in ("iql_corl", "bc", "rcsl"):
            sweep.cell(method, dataset, 0, curve=[50.0])
    table = published.published_table(results.load(sweep.write()))
    shown = {(row["dataset"], row["method"], row["published as"]): row for row in table.display.to_dict("records")}
    assert shown["d4rl:hopper-medium-v2", "iql_corl", "IQL"]["published: mean ± std"] == "67.5 ± 3.8"
    assert shown["d4rl:walker2d-medium-v2", "bc", "BC"]["published: mean ± std"] == "63.2 ± 16.2"
    assert shown["d4rl:hopper-medium-v2", "rcsl", "–"]["published: mean ± std"] == "–"
    assert shown["d4rl:hopper-medium-v2", "–", "CQL"]["ours: mean ± std"] == "–"
    assert len(shown) == 2 * (10 + 1)


@pytest.mark.skipif(not CORL.is_file(), reason="CORL's tables are not here")
def test_numbers_of_corl_are_those_it_printed():
    printed = pd.read_csv(CORL).query("section == 'Last Scores'").set_index(["dataset", "algo"])
    checked = 0
    for name, entry in tomllib.loads(published.FILE.read_text()).items():
        for dataset, scores in entry["scores"].items():
            for algo, (mean, std) in scores.items() if entry["source"].startswith("CORL") else ():
                row = printed.loc[dataset.removeprefix("d4rl:"), algo]
                assert (mean, std) == (row["mean"], row["std"]), (name, dataset, algo)
                checked += 1
    assert checked == 100


def test_every_set_names_a_suite_its_methods_and_its_source():
    for name, entry in tomllib.loads(published.FILE.read_text()).items():
        shipped = suite.read(name)
        assert set(entry["scores"]) <= set(shipped.datasets)
        assert set(entry["methods"].values()) <= {m.name for m in shipped.methods}
        assert set(entry["methods"]) <= {algo for scores in entry["scores"].values() for algo in scores}
        assert entry["sure"] in ("read", "memory")
        assert entry["source"]
        assert entry["measure"] == shipped.metric
