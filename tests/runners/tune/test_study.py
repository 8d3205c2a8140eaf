"""Samplers, pruners, storages and what trials are pruned by; nothing is trained here."""

from __future__ import annotations

import contextlib
import math

import optuna
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hoard.records.errors import BadInput
from hoard.records.schema import EPISODE_SCHEMA
from hoard.runners.tune import study as studies
from hoard.runners.tune.curve import Curve, steps

SPACE = {
    "lr": ["log", 1e-4, 1e-2],
    "critics": ["int", 2, 5],
    "hidden": ["choice", [[16], [16, 16]]],
    "scale": ["choice", [None, 1.0, "auto"]],
}
GRID = {"critics": SPACE["critics"], "hidden": SPACE["hidden"]}
PATIENT = {"patience": 3, "wrapped_pruner": None}


# --- names ---


@pytest.mark.parametrize(
    ("kind", "words", "spec"),
    [
        ("Sampler", ["TPESampler"], ("TPESampler", {})),
        ("Sampler", ["tpe", "multivariate=true"], ("TPESampler", {"multivariate": True})),
        ("Sampler", ["cmaes"], ("CmaEsSampler", {})),
        ("Pruner", ["median", "n_warmup_steps=2"], ("MedianPruner", {"n_warmup_steps": 2})),
        ("Pruner", ["hyperband", "max_resource=auto"], ("HyperbandPruner", {"max_resource": "auto"})),
        ("Pruner", ["NopPruner"], ("NopPruner", {})),
        ("Pruner", ["patient", "patience=3", "wrapped_pruner=null"], ("PatientPruner", PATIENT)),
    ],
    ids=str,
)
def test_samplers_and_pruners_have_names_and_arguments(kind, words, spec):
    assert studies.spec_of(kind, words, SPACE) == spec


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("Sampler", ["TPESampeler"], "--sampler TPESampeler: Optuna has no such; nearest: TPESampler"),
        ("Sampler", ["BaseSampler"], "Optuna has no such"),
        ("Sampler", ["tpe", "n_startup=5"], "write ARGUMENT=VALUE behind it, not 'n_startup=5'; it takes: .*n_startup"),
        ("Sampler", ["tpe", "seed=5"], "not 'seed=5'"),
        ("Sampler", ["tpe", "n_startup_trials"], "write ARGUMENT=VALUE"),
        ("Sampler", ["grid"], "GridSampler: 'lr' is a range of numbers; a grid needs choices"),
        ("Sampler", ["bruteforce"], "BruteForceSampler: 'lr' is a range of numbers"),
        ("Pruner", ["medium"], "--pruner medium: Optuna has no such; nearest: MedianPruner"),
        ("Pruner", ["percentile"], "--pruner PercentilePruner:? .*percentile"),
        ("Pruner", ["percentile", "percentile=200"], "--pruner PercentilePruner percentile=200: .*100"),
        ("Pruner", ["nop", "x=1"], "it takes: "),
    ],
    ids=str,
)
def test_what_optuna_does_not_have_is_refused(kind, words, message):
    with pytest.raises(BadInput, match=message):
        studies.spec_of(kind, words, SPACE)


@pytest.mark.parametrize("name", studies.names("Sampler"))
def test_every_sampler_searches_and_bears_a_diverged_trial(name):
    """Seeded by trial, so that it draws the same in a process that takes the study up."""
    space = GRID if name in ("GridSampler", "BruteForceSampler") else SPACE
    drawn = []
    for _ in range(2):
        study = optuna.create_study(direction="maximize")
        for number in range(8):
            with studies.quiet():
                study.sampler = studies.ByNumber((name, {}), space, 0)  # as in a process that takes the study up
                trial = study.ask()
                values = studies.suggest(trial, space)
            assert values["hidden"] in ([16], [16, 16])
            assert 2 <= values["critics"] <= 5
            assert isinstance(values["critics"], int)
            value = -math.inf if number % 3 == 0 else values["critics"] + len(values["hidden"])
            # A grid that is used up says so.
            ends = name in ("GridSampler", "BruteForceSampler") and number == 7
            with pytest.raises(RuntimeError, match="stop") if ends else contextlib.nullcontext(), studies.quiet():
                study.tell(trial, value)
        drawn.append([str(trial.params) for trial in study.trials])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 4


@pytest.mark.parametrize("name", ["RandomSampler", "TPESampler"])
def test_workers_that_ask_at_the_same_moment_draw_differently(name, tmp_path):
    """Both may see the same trials when they ask; what tells them apart is the number that the storage gives out."""
    first = {"lr": 1e-3, "critics": 2, "hidden": "[16]", "scale": None}
    url = f"sqlite:///{tmp_path / 'study.db'}"
    workers = [studies.opened("one", studies.storage_of(url, tmp_path), {}) for _ in range(2)]
    for worker in workers:
        worker.sampler = studies.ByNumber((name, {}), SPACE, 0, first)
    for _ in range(3):
        for trial in [worker.ask() for worker in workers]:
            studies.suggest(trial, SPACE)
    made = workers[0].trials
    assert made[0].params == first
    assert len({trial.params["lr"] for trial in made}) == 6

    # and one worker alone draws the same
    alone = optuna.create_study()
    alone.sampler = studies.ByNumber((name, {}), SPACE, 0, first)
    for _ in range(6):
        studies.suggest(alone.ask(), SPACE)
    assert [trial.params for trial in alone.trials] == [trial.params for trial in made]


def test_default_settings_are_a_trial_where_they_lie_within_the_space():
    config = {"lr": 1e-3, "critics": 2, "hidden": [16, 16], "scale": None, "other": 3}
    assert studies.within(SPACE, config) == {"lr": 1e-3, "critics": 2, "hidden": "[16, 16]", "scale": None}
    for change in ({"lr": 1.0}, {"critics": 9}, {"hidden": [8]}, {"scale": 2.0}, {"lr": None}):
        assert studies.within(SPACE, config | change) is None


# --- storage ---


def test_a_journal_with_half_a_line_goes_on(tmp_path):
    """What a writer that was killed left behind is removed by the next one."""
    study = studies.opened("one", studies.storage_of(None, tmp_path), {"a": 1})
    trial = study.ask()
    journal = tmp_path / studies.JOURNAL
    whole = journal.read_bytes()
    for rest in (b'{"op_code": 4, "wor', b"x" * 10_000):
        journal.write_bytes(whole + rest)
        again = studies.opened("one", studies.storage_of(None, tmp_path), {"a": 1})
        assert [t.number for t in again.trials] == [0]
        second = again.ask()
        again.tell(second, 1.0)
        assert rest not in journal.read_bytes()
        journal.write_bytes(whole)
    again = studies.opened("one", studies.storage_of(None, tmp_path), {"a": 1})
    again.tell(trial.number, 2.0)
    assert studies.opened("one", studies.storage_of(None, tmp_path), {"a": 1}).best_value == 2.0


def test_a_study_asks_one_question(tmp_path):
    def ask(**question):
        return studies.opened("one", studies.storage_of(None, tmp_path), question)

    ask(seeds=[100], meaning="m")
    ask(seeds=(100,), meaning="m")
    with pytest.raises(BadInput, match=r"study 'one' asks something else: seeds was \[100\], now \[101\]; .*--study"):
        ask(seeds=[101], meaning="m")
    with pytest.raises(BadInput, match="the algorithm file has changed since it began"):
        ask(seeds=[100], meaning="n")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "--storage nonsense:...: "),
        ("postgresql+psycopg://user:secret@127.0.0.1:1/x", "cannot be used"),
        ("oracle://user:secret@host/x", "--storage oracle:...: "),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_without_its_password(tmp_path, url, message):
    pytest.importorskip("psycopg")
    with pytest.raises(BadInput, match=message) as error:
        studies.storage_of(url, tmp_path)
    assert "secret" not in str(error.value)


def test_sqlite_is_a_storage_too(tmp_path):
    study = studies.opened("one", studies.storage_of(f"sqlite:///{tmp_path}/study.db", tmp_path), {"a": 1})
    study.tell(study.ask(), -math.inf)
    (trial,) = studies.opened("one", studies.storage_of(f"sqlite:///{tmp_path}/study.db", tmp_path), {"a": 1}).trials
    assert trial.value == -math.inf


# --- curves ---


def test_steps_are_means_over_datasets_seed_by_seed():
    """Two seeds on two datasets; the first seed's runs have ended."""
    first, second = [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]], [[10.0, 20.0], [30.0]]
    assert steps([first, [[], []]], [False, False]) == [3.0, 4.0, 5.0]
    assert steps([first, [[], []]], [True, False]) == [3.0, 4.0, 5.0]
    assert steps([first, second], [False, False]) == [3.0, 4.0, 5.0]  # one seed after the other
    assert steps([first, second], [True, False]) == [3.0, 4.0, 5.0, ((3 + 10) / 2 + (7 + 30) / 2) / 2]
    whole = [[10.0, 20.0, 40.0], [30.0, 30.0, 30.0]]
    assert steps([first, whole], [True, True])[-1] == ((3 + 40) / 2 + (7 + 30) / 2) / 2
    assert steps([[[], [1.0]]], [False]) == []


def test_the_last_step_is_the_objective_where_datasets_are_evaluated_at_their_own_pace():
    assert steps([[[1.0, 2.0], [4.0, 5.0, 6.0]]], [True]) == [2.5, 4.0]
    assert steps([[[1.0, 2.0], [4.0, 5.0, 6.0]]], [False]) == [2.5, 3.5]


def test_a_curve_is_read_while_it_grows(tmp_path):
    curve = Curve(tmp_path, "score")
    assert curve.values() == []

    def write(rows):
        full = [
            dict.fromkeys(EPISODE_SCHEMA.names) | {"variant": "", "env_step": 0, "update": u, "score": s} | more
            for u, s, more in rows
        ]
        pq.write_table(pa.Table.from_pylist(full, schema=EPISODE_SCHEMA), tmp_path / "episodes.parquet")

    write([(20, 1.0, {}), (20, 3.0, {}), (10, 5.0, {}), (10, 90.0, {"variant": "mean"})])
    assert curve.values() == [5.0, 2.0]
    write([(20, 1.0, {}), (20, 3.0, {}), (20, 7.0, {"env_step": 500})])
    assert Curve(tmp_path, "score").values() == [2.0, 7.0]
    write([(20, None, {})])
    with pytest.raises(BadInput, match="its evaluations have no score; choose another --metric"):
        Curve(tmp_path, "score").values()
    assert pd.read_parquet(tmp_path / "episodes.parquet").score.isna().all()
