"""Rankings within a folder, and two folders against each other."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from synthetic import Sweep, train

from hoard.analysis import comparisons, results, tables, verdicts
from hoard.records.errors import BadInput

PENDULUM, MAZE = "hoard/pendulum/mixed-v0", "hoard/maze2d/umaze-v0"


def filled(root, shift=0.0, noise=0, seeds=5, methods=("iql", "bc")):
    sweep, rng = Sweep(root), np.random.default_rng(noise)
    for dataset in (PENDULUM, MAZE):
        for method in methods:
            for seed in range(seeds):
                level = (90.0 if method == "iql" else 40.0) + (shift if method == "iql" and dataset == MAZE else 0)
                sweep.cell(method, dataset, seed, curve=[level + rng.standard_normal()])
    return sweep.write()


def test_rankings_say_who_wins(quick):
    found = comparisons.rankings(results.load(quick.folder))
    assert [one.dataset for one in found][-1] == "all 3 datasets"
    first = found[0]
    assert first.leader == "iql"
    assert set(first.others) == {"rcsl", "bc"}
    assert first.others["bc"].word == verdicts.BETTER
    assert "iql has the highest mean" in first.sentence
    frame = comparisons.verdict_table(found).frame
    assert set(frame["verdict"]) <= {verdicts.BETTER, verdicts.EVEN, verdicts.NONE}
    assert (frame["difference"] >= 0).all()


def test_sentences(tmp_path):
    found = comparisons.rankings(results.load(filled(tmp_path)))
    assert found[0].sentence == "iql has the highest mean, 90.0, and is better than bc."
    alone = comparisons.rankings(results.load(filled(tmp_path / "alone", methods=("bc",))))
    assert alone[0].sentence == "bc is alone, with a mean of 40.0."
    assert comparisons.verdict_table(alone) is None
    one = comparisons.rankings(results.load(filled(tmp_path / "one", seeds=1)))
    assert re.fullmatch(r"iql has the highest mean, 90\.1, but is not told apart from bc\.", one[0].sentence)


def test_equal_methods_are_seldom_told_apart_though_the_best_was_picked(tmp_path):
    wrong = 0
    for number in range(20):
        sweep, rng = Sweep(tmp_path / str(number)), np.random.default_rng(number)
        for method in "abcdef":
            for seed in range(5):
                sweep.cell(method, PENDULUM, seed, curve=[50 + 5 * rng.standard_normal()])
        (found,) = comparisons.rankings(results.load(sweep.write()))
        wrong += any(verdict.word == verdicts.BETTER for verdict in found.others.values())
    assert wrong <= 4


def test_two_revisions(tmp_path):
    a, b = results.load(filled(tmp_path / "a")), results.load(filled(tmp_path / "b", shift=-20, noise=1))
    found = comparisons.compare(a, b)
    rows = found.pairs.frame.set_index(["method", "dataset"])
    assert rows.loc[("iql", MAZE), "verdict"] == "worse"
    assert rows.loc[("iql", MAZE), "difference"] == pytest.approx(-20, abs=2)
    assert rows.loc[("bc", MAZE), "verdict"] == "not told apart"
    assert found.worse == 1
    assert found.summary == "B against A, 4 methods on datasets: 1 worse, 3 not told apart."
    assert len(found.cells.frame) == 20
    back = comparisons.compare(b, a).pairs.frame.set_index(["method", "dataset"])
    assert back.loc[("iql", MAZE), "verdict"] == "better"


def test_the_same_folder_is_identical(tmp_path):
    a = results.load(filled(tmp_path))
    found = comparisons.compare(a, a)
    assert set(found.pairs.frame["verdict"]) == {"identical"}
    assert set(found.cells.frame["remark"]) == {"identical"}


def test_what_only_one_has_is_named(tmp_path):
    a = results.load(filled(tmp_path / "a", methods=("iql", "bc")))
    sweep = Sweep(tmp_path / "b")
    for seed in range(3):
        sweep.cell("iql", PENDULUM, seed, curve=[90.0 + seed])
    sweep.cell("iql", PENDULUM, 3, status="failed", error="x")
    sweep.cells[0]["data_hash"] = "00"
    found = comparisons.compare(a, results.load(sweep.write()))
    assert any(note.startswith("Only in A: bc on") for note in found.notes)
    cells = found.cells.frame.set_index(["method", "dataset", "seed"])["remark"]
    assert cells["iql", PENDULUM, 0] == "other data"
    assert cells["iql", PENDULUM, 3] == "B failed"
    assert cells["iql", PENDULUM, 4] == "B absent"
    sweep = Sweep(tmp_path / "c")
    sweep.cell("sac", PENDULUM, 0)
    with pytest.raises(BadInput, match="share no method"):
        comparisons.compare(a, results.load(sweep.write()))


def test_other_options_are_said(tmp_path):
    folders = []
    for name, options in (("a", {}), ("b", {"lr": 0.1})):
        sweep = Sweep(tmp_path / name)
        for seed in range(2):
            sweep.cell("iql", PENDULUM, seed, overrides=options, last=50.0 + seed)
        folders.append(results.load(sweep.write()))
    (note,) = [note for note in comparisons.compare(*folders).notes if note.startswith("Other options")]
    assert note == f"Other options in A and B: iql on {PENDULUM} (defaults, now lr = 0.1)."


def test_numbered_methods_are_compared_with_their_own_kind_alone(tmp_path):
    """Several settings of one algorithm, in folders whose hashes sort otherwise; then with another setting."""
    loaded = []
    for name, hashes, settings in (
        ("a", "12", [{}, {"lr": 0.1}]), ("b", "21", [{}, {"lr": 0.1}]), ("c", "12", [{}, {"lr": 0.2}])
    ):  # fmt: skip
        sweep = Sweep(tmp_path / name)
        for at, (start, options) in enumerate(zip(hashes, settings)):
            for seed in range(2):
                train(sweep, "iql", seed, overrides=options, suffix=start * 12, last=20.0 + 60 * at + seed)
        loaded.append(results.load(sweep.root))
    same = comparisons.compare(loaded[0], loaded[1]).pairs.frame
    assert set(same["verdict"]) == {"identical"}
    with pytest.raises(BadInput, match=r"iql #2 on .* \(lr = 0.1, now lr = 0.2\): not the same settings"):
        comparisons.compare(loaded[0], loaded[2])


def test_command(tmp_path):
    a, b = filled(tmp_path / "a"), filled(tmp_path / "b", shift=-20, noise=1)
    run = [sys.executable, "-m", "hoard.cli", "compare", str(a), str(b)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "revision of A: 0123abcd" in done.stdout
    assert "1 worse" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 400
    done = subprocess.run([*run, "--markdown"], capture_output=True, text=True, timeout=120)
    assert "| dataset | method | seeds | A | B | B - A [95 %] | time B/A | B is |" in done.stdout
    same = subprocess.run([*run[:-1], str(a)], capture_output=True, text=True, timeout=120)
    assert same.returncode == 0
    missing = subprocess.run([*run[:-1], str(tmp_path / "no")], capture_output=True, text=True, timeout=120)
    assert missing.returncode == 2
    assert "no such folder" in missing.stderr


def test_a_metric_of_the_suite_is_compared(tmp_path):
    folder = filled(tmp_path)
    content = json.loads((folder / "cells.json").read_text())
    (folder / "cells.json").write_text(json.dumps(content | {"metric": "return"}))
    done = subprocess.run(
        [sys.executable, "-m", "hoard.cli", "compare", str(folder), str(folder), "--markdown"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "| -192." in done.stdout or "| -190." in done.stdout or "| -191." in done.stdout


def test_over_the_suite(quick, tmp_path):
    loaded = results.load(quick.folder)
    values, measure = tables.seed_values(loaded), tables.measures(loaded)
    found = comparisons.suite_table(loaded, values, measure)
    rows = found.frame.set_index("method")
    assert set(rows.index) == {"iql", "bc", "rcsl"}
    means = values.groupby(["method", "dataset"])["score"].mean().unstack()
    assert rows["mean"].to_dict() == pytest.approx(means.mean(axis=1).to_dict())
    assert rows["median"].to_dict() == pytest.approx(means.median(axis=1).to_dict())
    assert (rows["mean_low"] < rows["mean"]).all()
    assert rows.loc["bc", "optimality gap"] == pytest.approx(100 - rows.loc["bc", "mean"])  # all below 100
    leader = rows["mean"].idxmax()
    assert found.display.columns.tolist() == [
        "method", "IQM [95 %]", "mean [95 % Student t]", "median [95 %]", "optimality gap [95 %]",
        f"{leader} beats it [95 %]",
    ]  # fmt: skip
    for other in rows.index.drop(leader):  # by hand, pair for pair
        shares = []
        for dataset in loaded.datasets:
            one, two = (
                values.loc[(values["dataset"] == dataset) & (values["method"] == method), "score"]
                for method in (leader, other)
            )
            shares.append(np.mean([(a > b) + 0.5 * (a == b) for a in one for b in two]))
        assert rows.loc[other, "beaten"] == pytest.approx(np.mean(shares))
        low, high = rows.loc[other, "beaten_low"], rows.loc[other, "beaten_high"]
        assert np.isnan(low) == np.isnan(high)
        assert np.isnan(low) or low <= rows.loc[other, "beaten"] <= high
    assert np.isnan(rows.loc[leader, "beaten"])
    raw = dict.fromkeys(loaded.datasets, "return")
    assert comparisons.suite_table(loaded, values, raw) is None
    sweep = Sweep(tmp_path / "one")
    sweep.cell("bc", PENDULUM, 0)
    single = results.load(sweep.write())
    assert comparisons.suite_table(single, tables.seed_values(single), tables.measures(single)) is None
