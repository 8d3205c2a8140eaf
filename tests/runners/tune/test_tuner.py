"""Small studies from beginning to end: killed, crowded, pruned, diverging, asked for wrongly."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import tomllib
from pathlib import Path

import optuna
import pandas as pd
import pytest
from helpers import ROOT
from studies import SMALL, start, until

from hoard.cli import main
from hoard.runners.sweep import suite as suites
from hoard.runners.tune import study as studies


def call(command: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as end:
        main(command)
    return end.value.code


def trials_of(results: Path, url: str | None = None) -> list[optuna.trial.FrozenTrial]:
    storage = studies.storage_of(url, results / "tune" / "small")
    trials = optuna.load_study(study_name="small", storage=storage).trials
    return [trial for trial in trials if not trial.user_attrs.get("withdrawn")]


def statuses(results: Path) -> dict[Path, dict]:
    return {p.parent: json.loads(p.read_text()) for p in results.glob("runs/*/*/*/status.json")}


def test_a_study_finds_settings_tests_them_and_goes_on_by_name(tune, tmp_path, capsys):
    results = tmp_path / "results"
    assert call(tune("--trials", 2, "--seeds", 1, "--test-seeds", "7,")) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\[2/2\] trial \d complete \S+  best \S+ \(trial \d\)  lr ", printed)
    trials = trials_of(results)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    assert trials[0].user_attrs["default"]
    assert trials[0].params == {"lr": 3e-4, "top_fraction": 1.0, "dropout": 0.0, "input_noise": 0.0}

    # the objective: the last evaluation, in runs like any other
    for trial in trials:
        (run,) = (results / run for run in trial.user_attrs["runs"])
        assert run.name.split("-")[0] == "100"
        assert json.loads((run / "config.json").read_text())["config"]["lr"] == trial.params["lr"]
        rows = pd.read_parquet(run / "episodes.parquet")
        assert trial.value == pytest.approx(rows[rows.final].score.mean())
        assert trial.intermediate_values[3] == pytest.approx(trial.value)

    # the winner as a file of settings, with where it comes from
    best = max(trials, key=lambda trial: trial.value)
    folder = results / "tune" / "small"
    settings = tomllib.loads((folder / "small.toml").read_text())
    assert settings["options"] == {"hidden": [16], "batch_size": 32} | best.params
    made = settings["provenance"]
    assert (made["study"], made["trials"], made["best_trial"], made["value"]) == ("small", 2, best.number, best.value)
    assert made["tuning_seeds"] == [100]
    assert made["protocol"]["updates"] == 60
    assert made["sampler"] == "TPESampler"
    assert made["runs"] == best.user_attrs["runs"]
    assert made["test"]["seeds"] == [7]
    cells = json.loads((results / "small-test" / "cells.json").read_text())["cells"]
    assert {(cell["method"], cell["seed"], cell["status"]) for cell in cells} == {
        (method, 7, "finished") for method in made["test"].keys() - {"seeds"}
    }
    table = list(csv.DictReader((folder / "trials.csv").open()))
    assert [float(row["value"]) for row in table] == [trial.value for trial in trials]
    assert [row["runs"].split() for row in table] == [trial.user_attrs["runs"] for trial in trials]
    episodes = pd.read_parquet(folder / "episodes.parquet")
    assert set(episodes.seed) == {100}
    last = episodes[episodes.final].groupby("trial").score.mean()
    assert last.tolist() == pytest.approx([trial.value for trial in trials])

    # the same command has nothing to do; more trials go on from there
    before = {file: file.stat().st_mtime_ns for file in results.glob("runs/*/*/*/*")}
    assert call(tune("--trials", 2, "--seeds", 1, "--test-seeds", "7,")) == 0
    assert "2 of 2 trials finished before" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in results.glob("runs/*/*/*/*")} == before
    assert call(tune("--trials", 3, "--seeds", 1, "--no-test")) == 0
    assert [trial.params for trial in trials_of(results)][:2] == [trial.params for trial in trials]
    assert len(trials_of(results)) == 3

    # a worker that was killed before it had claimed its trial leaves it to the next one
    study = optuna.load_study(study_name="small", storage=studies.storage_of(None, folder))
    assert study.ask().number == 3
    assert call(tune("--trials", 4, "--seeds", 1, "--no-test")) == 0
    assert [trial.state.name for trial in trials_of(results)] == ["COMPLETE"] * 4

    # and another question under its name is refused
    for change, message in (
        (["--seeds", "3"], "seeds was [100], now [100, 101, 102]"),
        (["--only", "lr"], "space was"),
    ):
        capsys.readouterr()
        assert call(tune("--trials", 4, "--seeds", 1, *change)) == 2
        assert f"study 'small' asks something else: {message}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def other(tiny):
    """A second dataset, of the same environment."""
    from hoard.datasets.minari import writer
    from hoard.datasets.recipes import pendulum

    writer.write("test/other-v0", pendulum.record(episodes=6, reference_episodes=2))
    return "test/other-v0"


@pytest.mark.slow
def test_two_datasets_count_alike_and_the_default_settings_may_win(tiny, other, tmp_path, capsys):
    results = tmp_path / "results"
    seeds = ["--seeds", "2", "--test-seeds", "1"]
    command = ["tune", "bc", tiny, other, "--trials", "1", *seeds, "--results", str(results)]
    assert call([*command, "--set", *SMALL]) == 0
    assert "the default settings have won" in capsys.readouterr().out
    name = "bc-test-pendulum-v0-and-1-more"
    storage = studies.storage_of(None, results / "tune" / name)
    (trial,) = optuna.load_study(study_name=name, storage=storage).trials
    runs = [(run.split("/")[2], run.split("/")[3].split("-")[0]) for run in trial.user_attrs["runs"]]
    sets = ("test-pendulum-v0", "test-other-v0")
    assert runs == [(name, seed) for seed in ("100", "101") for name in sets]
    episodes = [pd.read_parquet(results / run / "episodes.parquet") for run in trial.user_attrs["runs"]]
    finals = [rows[rows.final].score.mean() for rows in episodes]
    assert list(trial.user_attrs["scores"].values()) == pytest.approx([sum(finals[::2]) / 2, sum(finals[1::2]) / 2])
    assert trial.value == pytest.approx(sum(finals) / 4)
    assert len(trial.intermediate_values) == 6
    first = [rows[rows["update"] == 20].score.mean() for rows in episodes]
    assert trial.intermediate_values[1] == pytest.approx((first[0] + first[1]) / 2)
    suite = suites.read(str(results / "tune" / name / f"{name}-test.toml"))
    assert [method.name for method in suite.methods] == ["tuned"]
    made = tomllib.loads((results / "tune" / name / f"{name}.toml").read_text())["provenance"]
    assert made["value"] == made["value_of_the_default"]
    assert set(made["test"]["tuned"]) == {"mean", tiny, other}


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory):
    """Trials of a study that nothing disturbed: number -> (params, value)."""
    results = tmp_path_factory.mktemp("straight")
    assert call(long(tiny, results)) == 0
    return {trial.number: (trial.params, trial.value) for trial in trials_of(results)}


def long(dataset: str, results: Path) -> list[str]:
    """Three trials of some seconds, one run at a time."""
    options = [*SMALL, "updates=3000", "eval_every=1000", "checkpoint_every=100", "log_every=50"]
    given = ["--study", "small", "--trials", "3", "--seeds", "1", "--jobs", "1", "--no-test", "--pruner", "NopPruner"]
    return ["tune", "bc", dataset, *given, "--results", str(results), "--set", *options]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["tree", "alone", "ctrl-c"])
def test_a_study_killed_in_mid_trial_ends_as_if_it_had_not_been(straight, tiny, tmp_path, how):
    """SIGKILL to tuner and run, to the tuner alone, whose run goes on, and SIGTERM: nothing is lost or doubled."""
    results, log = tmp_path / "results", tmp_path / "log.txt"
    tuner = start(long(tiny, results), log)

    def in_mid_trial() -> bool:
        working = [status for status in statuses(results).values() if status["status"] == "running"]
        return len(statuses(results)) == 2 and any(status["update"] >= 200 for status in working)

    until(lambda: tuner.poll() is not None or in_mid_trial())
    assert tuner.poll() is None, log.read_text()
    if how == "tree":
        os.killpg(tuner.pid, signal.SIGKILL)
    else:
        os.kill(tuner.pid, signal.SIGKILL if how == "alone" else signal.SIGTERM)
    assert tuner.wait(timeout=120) == (130 if how == "ctrl-c" else -signal.SIGKILL)
    states = [trial.state.name for trial in trials_of(results)]
    assert states == ["COMPLETE", "RUNNING"]

    again = start(long(tiny, results), log)
    assert again.wait(timeout=300) == 0, log.read_text()
    assert "trial 1: its tuner is gone; it goes on here" in log.read_text()
    trials = trials_of(results)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert {trial.number: (trial.params, trial.value) for trial in trials} == straight
    assert {status["status"] for status in statuses(results).values()} == {"finished"}
    assert len(statuses(results)) == 3
    if how != "alone":
        assert "resuming after update" in (results / trials[1].user_attrs["runs"][0] / "log.txt").read_text()


def check_workers(commands: list[list[str]], tmp_path: Path, url: str | None, trials: int) -> None:
    """Start them at once: together they do every trial once."""
    logs = [tmp_path / f"worker-{number}.txt" for number in range(len(commands))]
    workers = [start(command, log) for command, log in zip(commands, logs)]
    ends = [worker.wait(timeout=600) for worker in workers]
    printed = [log.read_text() for log in logs]
    assert ends == [0] * len(commands), "\n".join(printed)
    done = [[int(number) for number in re.findall(r"^\[\d+/\d+\] trial (\d+) ", text, re.M)] for text in printed]
    assert sorted(number for one in done for number in one) == list(range(trials))
    assert all(done), "one did all the work"
    found = trials_of(tmp_path / "results", url)
    assert [trial.number for trial in found] == list(range(trials))
    assert {trial.state.name for trial in found} == {"COMPLETE"}
    runs = [run for trial in found for run in trial.user_attrs["runs"]]
    assert len(set(runs)) == trials
    assert len({trial.params["lr"] for trial in found}) == trials


@pytest.mark.slow
def test_two_workers_share_a_journal(tune, tmp_path):
    command = tune("--trials", 6, "--seeds", 1, "--jobs", 1, "--no-test", "--pruner", "nop")
    check_workers([command, command], tmp_path, None, 6)
    assert (tmp_path / "results" / "tune" / "small" / "small.toml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_two_workers_share_a_postgresql_study(tune, tmp_path, postgresql, apart):
    """In one results folder, and each in its own, as on machines without a shared file system."""
    common = ["--trials", 6, "--seeds", 1, "--jobs", 1, "--no-test", "--pruner", "nop", "--storage", postgresql]
    places = [tmp_path / "results", tmp_path / "elsewhere" if apart else tmp_path / "results"]
    check_workers([tune(*common, results=place) for place in places], tmp_path, postgresql, 6)
    made = [len(list(place.glob("runs/*/*/*"))) for place in dict.fromkeys(places)]
    assert sum(made) == 6
    assert all(made)


@pytest.mark.slow
def test_a_worker_killed_on_postgresql_is_replaced(straight, tiny, tmp_path, postgresql):
    results, log = tmp_path / "results", tmp_path / "log.txt"
    command = [*long(tiny, results), "--storage", postgresql]
    tuner = start(command, log)
    until(lambda: tuner.poll() is not None or len(statuses(results)) == 2)
    assert tuner.poll() is None, log.read_text()
    os.killpg(tuner.pid, signal.SIGKILL)
    tuner.wait()
    assert start(command, log).wait(timeout=300) == 0, log.read_text()
    trials = trials_of(results, postgresql)
    assert {trial.number: (trial.params, trial.value) for trial in trials} == straight


def test_a_hopeless_trial_is_stopped(tune, tmp_path, capsys):
    """By a pruner that wants more than anyone has: after the first evaluation."""
    long_run = ("updates=500000", "log_every=1000", "eval_every=2000", "checkpoint_every=1000")
    pruner = ["--pruner", "threshold", "lower=1000"]
    assert call(tune("--trials", 2, "--seeds", 2, "--jobs", 2, *pruner, options=long_run)) == 1
    assert "no trial of small came to an end" in capsys.readouterr().err
    for trial in trials_of(tmp_path / "results"):
        assert trial.state.name == "PRUNED"
        assert list(trial.intermediate_values) == [1]
        assert trial.value == trial.intermediate_values[1]
    for status in statuses(tmp_path / "results").values():
        assert status["status"] == "interrupted"
        assert status["update"] < 400_000


@pytest.mark.slow
def test_trials_that_diverge_fail_or_are_killed(tune, tmp_path, capsys):
    """The worst value, none, and a run that is started again. A grid ends itself."""
    source = (ROOT / "algos" / "bc.py").read_text()
    hook = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
    deed = f"""
        if cfg.lr == 0.002:
            buffer.action *= float("nan")
        if cfg.lr == 0.003:
            raise KeyError("lost")
        if cfg.lr == 0.004 and number == 30:
            import os, pathlib
            marker = pathlib.Path({str(tmp_path / "killed")!r})
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), 9)
"""
    assert hook in source
    search = "SEARCH = {'lr': ('choice', [0.001, 0.002, 0.003, 0.004])}\n\n\nif __name__"
    (tmp_path / "odd.py").write_text(source.replace(hook, deed + hook).replace("if __name__", search))
    command = tune("--trials", 9, "--seeds", 1, "--sampler", "grid", "--no-test", algo=tmp_path / "odd.py")
    assert call(command) == 0
    printed = capsys.readouterr().out
    trials = trials_of(tmp_path / "results")
    ended = {trial.params["lr"]: trial for trial in trials}
    assert len(trials) == len(ended) == 4
    assert {lr: trial.user_attrs["ended"] for lr, trial in ended.items()} == {
        0.001: "complete", 0.002: "diverged", 0.003: "failed", 0.004: "complete"
    }  # fmt: skip
    assert ended[0.002].value == float("-inf")
    assert "FloatingPointError" in ended[0.002].user_attrs["error"]
    assert ended[0.003].state.name == "FAIL"
    assert "KeyError: 'lost'" in ended[0.003].user_attrs["error"]
    assert "KeyError: 'lost'" in printed
    assert (tmp_path / "killed").exists()
    settings = tomllib.loads((tmp_path / "results" / "tune" / "small" / "small.toml").read_text())
    assert settings["algo"] == os.path.join("..", "..", "..", "odd.py")
    assert [settings["provenance"][name] for name in ("trials", "complete", "diverged", "failed")] == [4, 2, 1, 1]
    assert call(command) == 0
    assert len(trials_of(tmp_path / "results")) == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--sampler", "tpp"], "--sampler tpp: Optuna has no such; nearest: TPESampler"),
        (["--pruner", "MedianPrunner"], "nearest: MedianPruner"),
        (["--seeds", "3,4", "--test-seeds", "5"], "--seeds and --test-seeds share 3, 4"),
        (["--seeds", "some"], "seeds 'some'"),
        (["--trials", "0"], "--trials 0: must be at least 1"),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--metric", "best"], "--metric best: must be one of score, return, success"),
        (["--only", "lrr"], "--only lrr: bc.py searches no such option, but lr, top_fraction, dropout"),
        (["--study", "../x"], "study '../x': a name has letters"),
        (["--storage", "nonsense"], "--storage nonsense:...: "),
        (["hoard/pendulum/mixd-v0"], "hoard/pendulum/mixed-v0"),
        (["test/pendulum-v0"], "dataset test/pendulum-v0 stands there twice"),
    ],
    ids=str,
)
def test_wrong_requests_are_refused_before_anything_runs(tune, tmp_path, args, message, capsys):
    command = tune(*args) if args[0].startswith("--") else [*tune()[:3], *args, *tune()[3:]]
    assert call(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results" / "runs").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("seed=3", "--set seed: every run of a study has its own"),
        ("updatez=3", "bc.py has no option --updatez; nearest: --updates"),
        ("preset=bc11", "unknown preset 'bc11' for bc.py"),
        ("lr=-1", "lr -1.0: must be above 0"),
    ],
)
def test_wrong_options_are_refused(tune, option, message, capsys):
    assert call(tune(options=(option,))) == 2
    assert message in capsys.readouterr().err


def test_nothing_to_search_and_nothing_declared(tune, tmp_path, capsys):
    assert call(tune(options=("lr=0.1", "top_fraction=0.5", "dropout=0.1", "input_noise=0.1"))) == 2
    assert "nothing is left to search" in capsys.readouterr().err
    (tmp_path / "mine.py").write_text((ROOT / "algos" / "bc.py").read_text().replace("SEARCH", "_SEARCH"))
    assert call(tune(algo=tmp_path / "mine.py")) == 2
    assert "mine.py declares no search space" in capsys.readouterr().err
    (tmp_path / "broken.py").write_text("def (")
    assert call(tune(algo=tmp_path / "broken.py")) == 2
    assert "broken.py cannot be used" in capsys.readouterr().err


def test_a_suite_names_settings(tmp_path):
    (tmp_path / "found.toml").write_text(
        'algo = "bc"\n[options]\nlr = 0.01\ndropout = 0.1\n[provenance]\nstudy = "x"\n'
    )
    text = """
description = "a test"
seeds = 1
datasets = ["test/pendulum-v0"]
[options]
lr = 0.5
updates = 5
[method.tuned]
settings = "found.toml"
options = { dropout = 0.2 }
"""
    file = tmp_path / "mine.toml"
    file.write_text(text)
    (method,) = suites.read(str(file)).methods
    assert (method.name, method.algo) == ("tuned", "bc")
    (cell,) = suites.read(str(file)).cells()
    assert cell.options == {"lr": 0.01, "updates": 5, "dropout": 0.2}
    for before, after, message in (
        ("settings =", "algo = 'iql'\nsettings =", "method.tuned: found.toml holds settings of bc, not iql"),
        ('"found.toml"', '"lost.toml"', "lost.toml: cannot be read: No such file"),
        ('"found.toml"', "3", "settings must be the path of a .toml file, not 3"),
    ):
        file.write_text(text.replace(before, after))
        with pytest.raises(suites.SuiteError, match=message):
            suites.read(str(file))
    file.write_text(text)
    for content, message in (
        ("[options]\nlr = 1\n", "'algo' is needed"),
        ('algo = "bc"\n', "'options' is needed"),
        ('algo = "bcc"\n[options]\n', "no algorithm 'bcc'"),
        ('algo = "bc"\n[options]\nseed = 1\n', "'seed' is not an option of a suite"),
        ('algo = "bc"\nlr = 1\n[options]\n', "unknown key 'lr'"),
        ("algo = ", "found.toml: Invalid value"),
    ):
        (tmp_path / "found.toml").write_text(content)
        with pytest.raises(suites.SuiteError, match=message):
            suites.read(str(file))
