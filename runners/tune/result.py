"""What a study leaves: the winner as settings, a suite that tests it, a table of all trials, their episodes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w
from optuna.trial import FrozenTrial, TrialState

from hoard.records.files import read_json, write_atomic
from hoard.records.folder import CONFIG, EPISODES
from hoard.runners import algorithms, provenance
from hoard.runners.sweep.job import Job
from hoard.runners.tune import study as studies
from hoard.runners.tune.curve import Curve
from hoard.runners.tune.tuner import Tuner

TUNED, DEFAULT = "tuned", "default"  # methods of the suite that tests the winner


def write_trials(tuner: Tuner) -> Path:
    """Every trial as a row of trials.csv: state, value, options, and the addresses of its runs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    datasets = list(tuner.request.datasets)
    writer.writerow(["trial", "ended", "value", "begun", "finished", *tuner.space, *datasets, "runs"])
    for trial in tuner.trials():
        values = values_of(tuner, trial)
        scores = trial.user_attrs.get("scores", {})
        times = [
            time.isoformat(timespec="seconds") if time else ""
            for time in (trial.datetime_start, trial.datetime_complete)
        ]
        state = trial.user_attrs.get("ended", trial.state.name.lower())
        complete = trial.value if trial.state == TrialState.COMPLETE else None
        searched = [values.get(name) for name in tuner.space]
        reached = [scores.get(dataset) for dataset in datasets]
        runs = " ".join(trial.user_attrs.get("runs", []))
        writer.writerow([trial.number, state, complete, *times, *searched, *reached, runs])
    file = tuner.folder / "trials.csv"
    write_atomic(file, lambda scratch: scratch.write_text(text.getvalue()))
    return file


def write_episodes(tuner: Tuner) -> Path | None:
    """The evaluation episodes of all trials in one episodes.parquet, so that the study's folder tells by itself.

    Columns trial, dataset and seed, then those of a run's own file. None where no run has been evaluated, or none is
    on this machine.
    """
    parts = []
    for trial in tuner.trials():
        for run in trial.user_attrs.get("runs", []):
            folder = tuner.results / run
            if not (folder / EPISODES).is_file():
                continue
            config, rows = read_json(folder / CONFIG)["config"], pq.read_table(folder / EPISODES)
            for name, value in (("seed", config["seed"]), ("dataset", config["dataset"]), ("trial", trial.number)):
                rows = rows.add_column(0, name, pa.array([value] * len(rows)))
            parts.append(rows)
    if not parts:
        return None
    file, whole = tuner.folder / EPISODES, pa.concat_tables(parts, promote_options="default")
    write_atomic(file, lambda scratch: pq.write_table(whole, scratch, compression="zstd"))
    return file


def values_of(tuner: Tuner, trial: FrozenTrial) -> dict[str, Any]:
    """The options of a trial, as its runs had them."""
    return {
        name: studies.decoded(tuner.space, name, trial.params[name]) for name in tuner.space if name in trial.params
    }


def default_values(tuner: Tuner) -> dict[str, Any]:
    """The options searched, as they are without a search."""
    config = tuner.defaults[tuner.request.datasets[0]]
    return {name: config[name] for name in tuner.space}


def write_settings(tuner: Tuner, best: FrozenTrial, test: Mapping[str, Any] | None = None) -> Path:
    """The winner as STUDY.toml in the study's folder: algorithm, options, and where they come from.

    Options of the protocol, such as `updates`, are recorded and not part of the settings: they belong to a suite.
    """
    request, trials = tuner.request, tuner.finished()
    ended = [trial.user_attrs.get("ended", trial.state.name.lower()) for trial in trials]
    reference = [trial for trial in trials if trial.user_attrs.get("default") and trial.state == TrialState.COMPLETE]
    made: dict[str, Any] = {
        "study": tuner.name,
        "trials": len(trials),
        **{name: ended.count(name) for name in ("complete", "pruned", "diverged", "failed")},
        "best_trial": best.number,
        "value": best.value,
        "value_of_the_default": reference[0].value if reference else None,
        "metric": request.metric,
        "datasets": list(request.datasets),
        "tuning_seeds": list(request.seeds),
        "sampler": _words(tuner.sampler),
        "sampler_seed": request.sampler_seed,
        "pruner": _words(tuner.pruner),
        "revision": provenance.code_revision(),
        "optuna": version("optuna"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": best.user_attrs.get("runs", []),
        "protocol": tuner.protocol,
        "default": default_values(tuner),
        "space": tuner.space,
        "test": dict(test or {}),
    }
    content = {
        "algo": _algo(tuner),
        "options": tuner.settings(values_of(tuner, best)),
        "provenance": {name: value for name, value in made.items() if value not in (None, {})},
    }
    text = f'# The best settings of a study, by `hoard tune`. A suite names them: settings = "{tuner.name}.toml".\n\n'
    file = tuner.folder / f"{tuner.name}.toml"
    write_atomic(file, lambda scratch: scratch.write_text(text + tomli_w.dumps(_told(content))))
    return file


def write_suite(tuner: Tuner, best: FrozenTrial, seeds: tuple[int, ...]) -> Path:
    """The suite in which the winner meets the default settings; the winner alone if it is the default."""
    methods: dict[str, Any] = {TUNED: {"settings": f"{tuner.name}.toml"}}
    if not won_by_default(tuner, best):
        methods[DEFAULT] = {"algo": _algo(tuner), "options": tuner.settings({})}
    content = {
        "description": f"settings found by the study {tuner.name} beside the default, on seeds it never saw",
        "metric": tuner.request.metric,
        "seeds": len(seeds),
        "datasets": list(tuner.request.datasets),
        "options": tuner.protocol,
        "method": methods,
    }
    file = tuner.folder / f"{tuner.name}-test.toml"
    text = (
        f"# Written by `hoard tune`; its seeds: --seeds {','.join(map(str, seeds))}{',' if len(seeds) == 1 else ''}\n\n"
    )
    write_atomic(file, lambda scratch: scratch.write_text(text + tomli_w.dumps(_told(content))))
    return file


def won_by_default(tuner: Tuner, best: FrozenTrial) -> bool:
    return values_of(tuner, best) == default_values(tuner)


def tested(tuner: Tuner, work: list[Job]) -> dict[str, Any]:
    """Mean of the last evaluation for each method, on each dataset and over them; of finished runs."""
    out: dict[str, Any] = {"seeds": sorted({job.cell.seed for job in work})}
    for method in dict.fromkeys(job.cell.method for job in work):
        means = {}
        for dataset in tuner.request.datasets:
            runs = [j for j in work if (j.cell.method, j.cell.dataset, j.status) == (method, dataset, "finished")]
            finals = [Curve(tuner.results / str(job.run), tuner.request.metric).values()[-1] for job in runs]
            if finals:
                means[dataset] = sum(finals) / len(finals)
        if len(means) == len(tuner.request.datasets):
            out[method] = {"mean": sum(means.values()) / len(means), **means}
    return out


def _algo(tuner: Tuner) -> str:
    """A name in algos/, or the path from the study's folder: a project may move as a whole."""
    if tuner.algo_file.parent == algorithms.FOLDER:
        return tuner.algo_file.stem
    return os.path.relpath(tuner.algo_file, tuner.folder.resolve())


def _words(spec: studies.Spec) -> str:
    name, arguments = spec
    return " ".join([name, *(f"{key}={value}" for key, value in arguments.items())])


def _told(value: Any) -> Any:
    """TOML has no null: an option without a value is told as a command line tells it."""
    if isinstance(value, dict):
        return {key: _told(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_told(part) for part in value]
    return "None" if value is None else value
