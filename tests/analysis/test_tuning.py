"""Score against tuning budget: closed form against enumeration, the bandit against what it must find."""

import itertools
import shutil

import numpy as np
import pandas as pd
import pytest

from hoard.analysis import plots, results, tuning
from hoard.analysis.results import ResultsError


def test_expected_best_is_the_mean_over_all_subsets():
    scores = np.array([3.0, 10.0, 4.0, 4.0, -2.0, 7.5])
    expected = [np.mean([max(one) for one in itertools.combinations(scores, k)]) for k in range(1, 7)]
    assert tuning.expected_best(scores) == pytest.approx(expected, abs=1e-9)
    assert tuning.expected_best(np.stack([scores, scores[::-1]]))[1] == pytest.approx(expected)


def test_expected_best_of_many_settings_is_finite():
    found = tuning.expected_best(np.arange(2000.0))
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(999.5)
    assert found[-1] == pytest.approx(1999)


def test_the_curve_rises_inside_its_interval():
    curve = tuning.expected_best_curve(np.random.default_rng(0).normal(50, 10, 20), np.random.default_rng(1))
    assert curve.index.tolist() == list(range(1, 21))
    assert (curve["point"].diff().dropna() > 0).all()
    assert ((curve["low"] <= curve["point"]) & (curve["point"] <= curve["high"] + 1e-9)).all()
    single = tuning.expected_best_curve(np.array([4.0]), np.random.default_rng(1))
    assert single["point"].tolist() == [4.0]
    assert single["low"].isna().all()
    for wrong in ([], [1.0, np.nan]):
        with pytest.raises(ValueError, match="one finite score"):
            tuning.expected_best_curve(np.array(wrong), np.random.default_rng(1))


def test_the_bandit_starts_at_a_random_policy_and_ends_at_the_best():
    rng = np.random.default_rng(0)
    returns = [rng.normal(level, 5, 200) for level in (10, 30, 50, 90)]
    means = np.array([values.mean() for values in returns])
    curve = tuning.bandit(returns, np.random.default_rng(1), pulls=60)
    assert curve["point"].iloc[0] == pytest.approx(means.mean(), abs=4)
    assert curve["point"].iloc[-1] == pytest.approx(means.max(), abs=0.5)
    subset = tuning.bandit(returns, np.random.default_rng(1), pulls=60, policies=2)
    pairs = np.mean([max(one) for one in itertools.combinations(means, 2)])
    assert subset["point"].iloc[-1] == pytest.approx(pairs, abs=3)


def test_equal_policies_cannot_be_improved_upon():
    curve = tuning.bandit([np.full(3, 7.0)] * 4, np.random.default_rng(0), pulls=10, repetitions=50)
    assert (curve == 7.0).to_numpy().all()


def test_refusals():
    rng = np.random.default_rng(0)
    for wrong in ([], [np.array([])]):
        with pytest.raises(ValueError, match="at least one policy"):
            tuning.bandit(wrong, rng)
    with pytest.raises(ValueError, match="3 policies cannot be drawn from 2"):
        tuning.bandit([np.ones(2)] * 2, rng, policies=3)


def test_settings_are_the_methods_of_one_algorithm(quick):
    found = tuning.settings(results.load(quick.folder))
    own = found[(found["algo"] == "iql") & (found["dataset"] == "hoard/acrobot/expert-v0")]
    assert own["setting"].tolist() == ["expectile = 0.9, updates = 10000"]
    assert own["seeds"].tolist() == [5]
    assert 75 < own["value"].iloc[0] < 95


@pytest.fixture
def study(sweep, tmp_path):
    """Six trials of a study as `hoard tune` leaves them: four complete, one pruned, one diverged."""
    folder = tmp_path / "results" / "tune" / "mine"
    folder.mkdir(parents=True)
    lines, parts = ["trial,ended,value,begun,finished,lr,hoard/pendulum/mixed-v0,runs"], []
    for trial, value in enumerate([40.0, 90.0, 60.0, 70.0]):
        run = sweep.cell("iql", f"task{trial}", 0, curve=[value])
        lines.append(f"{trial},complete,{value},,,0.001,{value},{run.relative_to(sweep.root)}")
        parts.append(pd.read_parquet(run / "episodes.parquet").assign(trial=trial, dataset=f"task{trial % 2}", seed=0))
    pd.concat(parts).to_parquet(folder / "episodes.parquet")
    lines += ["4,pruned,,,,0.1,,runs/gone", "5,diverged,-inf,,,0.5,,"]
    (folder / "trials.csv").write_text("\n".join(lines) + "\n")
    (folder / "mine.toml").write_text('algo = "iql"\n')
    return folder


def test_a_study_is_read(study):
    found = tuning.read_study(study)
    assert (found.name, found.algo) == ("mine", "iql")
    assert found.values.tolist() == [40, 90, 60, 70, 40]  # the diverged one counts as the worst
    assert found.ended == {"complete": 4, "pruned": 1, "diverged": 1}
    means = {trial: values.mean() for trial, values in tuning.last_episodes(found).items()}
    assert means == pytest.approx({0: 40, 1: 90, 2: 60, 3: 70})
    assert [len(values) for values in tuning.last_episodes(found, "task1").values()] == [0, 4, 0, 4]


def test_the_command_draws_both_curves(study, capsys):
    tuning.main([str(study), "--pulls", "20"])
    said = capsys.readouterr().out
    assert "mine: 4 complete, 1 pruned, 1 diverged" in said
    assert "best of   5: 90.0" in said
    assert (study / "budget.png").is_file()
    assert (study / "bandit.png").is_file()


def test_two_studies_of_one_name_are_both_drawn(study, tmp_path, capsys, monkeypatch):
    other = tmp_path / "elsewhere" / study.name
    shutil.copytree(study, other)
    drawn = []
    budget = plots.budget
    monkeypatch.setattr(plots, "budget", lambda curves, *more: drawn.append(list(curves)) or budget(curves, *more))
    tuning.main([str(study), str(other), "--pulls", "20"])
    assert drawn == [[str(study), str(other)]] * 2
    assert f"{other}: 4 complete" in capsys.readouterr().out


def test_what_is_no_study_is_refused(tmp_path, capsys):
    with pytest.raises(ResultsError, match="cannot be read"):
        tuning.read_study(tmp_path)
    (tmp_path / "trials.csv").write_text("trial,ended,value,runs\n0,pruned,,\n")
    with pytest.raises(ResultsError, match=r"episodes\.parquet: cannot be read"):
        tuning.read_study(tmp_path)
    pd.DataFrame({"trial": [0]}).to_parquet(tmp_path / "episodes.parquet")
    with pytest.raises(ResultsError, match="no trial is complete"):
        tuning.read_study(tmp_path)
    with pytest.raises(SystemExit):
        tuning.main([str(tmp_path)])
    assert "no trial is complete" in capsys.readouterr().err
