"""The search: trials of an algorithm's options, each some runs in the normal run folders, many at a time.

A trial runs the algorithm file on every dataset with every tuning seed, as a sweep would: each run a process of its
own, found again by its address. Killed at any moment, the same command goes on: finished trials stand in the study,
and a trial whose tuner is gone is taken up by the next one, its runs resuming from their checkpoints. Any number of
tuners may work on one study. What a trial belongs to is known by a lock on its folder, which the kernel releases with
the process.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live

from hoard import datasets
from hoard.records.errors import BUSY, FAILED, OK, STOPPED, BadInput, Busy
from hoard.records.files import read_json, writable, write_json
from hoard.records.folder import status_of
from hoard.records.locks import hold_file, is_locked, lock_folder
from hoard.records.meaning import meaning_hash
from hoard.records.names import METRICS, check_name, dataset_slug
from hoard.runners import algorithms
from hoard.runners.address import address
from hoard.runners.progress import generation_bar
from hoard.runners.space import PROTOCOL
from hoard.runners.sweep import view
from hoard.runners.sweep.job import Job, end_all, how_it_ended, tail
from hoard.runners.sweep.local import LocalProcess, environment, oom_kills
from hoard.runners.sweep.plan import Planner, Unusable
from hoard.runners.sweep.schedule import interruptible
from hoard.runners.sweep.suite import RESERVED, Cell
from hoard.runners.tune import study as studies
from hoard.runners.tune.curve import Curve, steps
from hoard.runners.tune.orphan import Orphan

SAMPLER = ("TPESampler",)
# Single evaluations are noisy: prune from the ninth trial on, and none at its first two steps.
PRUNER = ("MedianPruner", "n_startup_trials=8", "n_warmup_steps=3")

WORST = -math.inf  # of a trial with a run that diverged: below any other, and no sampler looks there again
_FULL = 1 << 20  # bytes: a disk with less room is full
_GRACE = 30.0  # seconds a run gets to write its checkpoint
_STARTS = 3  # of a run that something from outside ends
_UNCLAIMED = 60.0  # seconds after which a running trial without a place is one whose tuner was killed at once


@dataclass(frozen=True)
class Request:
    """What is asked of a study.

    `options` hold in every trial, `only` names those of the search space that are varied (all, if empty). `sampler` and
    `pruner` are words such as `["TPESampler", "n_startup_trials=5"]`.
    """

    algo: str
    datasets: tuple[str, ...]
    trials: int = 40
    seeds: tuple[int, ...] = (100, 101)
    options: dict[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    metric: str = "score"
    sampler: Sequence[str] = SAMPLER
    pruner: Sequence[str] = PRUNER
    sampler_seed: int = 0
    study: str | None = None
    storage: str | None = None


@dataclass
class LiveTrial:
    """A trial at work in this process. `verdict` is what it will be told as once its runs have ended."""

    trial: optuna.Trial
    lock: IO[str]
    values: dict[str, Any]
    jobs: list[Job]  # seed by seed, and dataset by dataset within
    curves: list[Curve]
    reported: set[int] = field(default_factory=set)
    starts: dict[int, int] = field(default_factory=dict)
    verdict: str | None = None  # complete, pruned, diverged, failed
    error: str | None = None
    ends_by: float | None = None  # time.monotonic() after which its runs are killed

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def at_work(self) -> list[Job]:
        return [job for job in self.jobs if job.status == "running"]


class Tuner:
    """One worker of a study. Raises BadInput, before anything runs, for what makes no sense."""

    def __init__(self, request: Request, results: Path, jobs: int) -> None:
        if jobs < 1:
            raise BadInput(f"--jobs {jobs}: must be at least 1")
        if request.trials < 1:
            raise BadInput(f"--trials {request.trials}: must be at least 1")
        if request.metric not in METRICS:
            raise BadInput(f"--metric {request.metric}: must be one of {', '.join(METRICS)}")
        for dataset_id in request.datasets:
            datasets.check_id(dataset_id)
            if request.datasets.count(dataset_id) > 1:
                raise BadInput(f"dataset {dataset_id} stands there twice")
        for name in request.options:
            if name in RESERVED:
                raise BadInput(f"--set {name}: every run of a study has its own; there are --seeds and datasets")
        self.request, self.results, self.jobs = request, results, jobs
        self.console = Console()
        self.algo_file = algorithms.find(request.algo)
        self.name = check_name("study", request.study or default_name(self.algo_file.stem, request.datasets))
        self.folder = results / "tune" / self.name
        self.live: list[LiveTrial] = []
        self._headline = ""  # of the view: what has been found so far
        self._planner = Planner(environment())
        try:
            self._ask_the_file()
            self.sampler = studies.spec_of("Sampler", request.sampler, self.space)
            grid = studies.points(self.sampler, self.space)
            self.limit = request.trials if grid is None else min(request.trials, grid)
            # Trial 0 has the default settings, where the space holds them; a grid has its own order.
            self.first = studies.within(self.space, next(iter(self.defaults.values()))) if grid is None else None
            self.pruner = studies.spec_of("Pruner", request.pruner, self.space)
            writable(self.folder)
            self._get_data()
            self.place = self._token()
            self.study = self._open()
        except BaseException:
            self._planner.close()
            raise

    # --- before the first trial ---

    def _ask_the_file(self) -> None:
        """Learn the search space, and what the options in common are without it."""
        file, options = self.algo_file, self.request.options
        try:
            told = self._planner.search_space(file)
        except Unusable as error:
            raise BadInput(f"{file.name} cannot be used:\n{tail(str(error))}") from None
        for name in self.request.only:
            if name not in told:
                raise BadInput(f"--only {name}: {file.name} searches no such option, but {', '.join(told)}")
        chosen = self.request.only or tuple(told)
        self.space: studies.Space = {name: told[name] for name in told if name in chosen and name not in options}
        if not self.space:
            raise BadInput("nothing is left to search: --set fixes all options of the search space")
        self.defaults = self._configs({})

    def _configs(self, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The resolved options of a trial on each dataset. Raises BadInput where the file refuses them."""
        cells = [self._cell(dataset_id, self.request.seeds[0], values, "") for dataset_id in self.request.datasets]
        questions = [{"args": cell.args, "options": list(cell.options)} for cell in cells]
        answers = self._planner.ask(self.algo_file, questions)
        for answer in answers:
            if "error" in answer:
                raise BadInput(answer["error"])
        return {cell.dataset: answer["config"] for cell, answer in zip(cells, answers)}

    def _cell(self, dataset_id: str, seed: int, values: dict[str, Any], method: str) -> Cell:
        return Cell(method, str(self.algo_file), dataset_id, seed, self.request.options | values)

    def _get_data(self) -> None:
        self.data: dict[str, str] = {}
        for dataset_id in self.request.datasets:
            with generation_bar(self.console, dataset_id) as progress:
                data = datasets.load(dataset_id, progress)
            if self.request.metric == "score" and data.ref_min is None:
                raise BadInput(f"{dataset_id} has no reference returns and so no score; choose another --metric")
            self.data[dataset_id] = data.content_hash

    def _token(self) -> str:
        """What tells this study's folder from those of workers that do not share it."""
        file = self.folder / "place.json"
        with hold_file(self.folder / ".place.lock"):
            if not file.exists():
                write_json(file, secrets.token_hex(8))
            return read_json(file)

    def _open(self) -> optuna.Study:
        request = self.request
        self.meaning = meaning_hash(self.algo_file.read_text())
        question = {
            "algo": self.algo_file.stem,
            "meaning": self.meaning,
            "datasets": list(request.datasets),
            "data": self.data,
            "seeds": list(request.seeds),
            "options": {name: request.options[name] for name in sorted(request.options)},
            "space": self.space,
            "metric": request.metric,
            "sampler": list(self.sampler),
            "sampler_seed": request.sampler_seed,
            "pruner": list(self.pruner),
        }
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with hold_file(self.folder / ".ask.lock"):
            study = studies.opened(self.name, studies.storage_of(request.storage, self.folder), question)
        study.pruner = studies.pruner(self.pruner)
        study.sampler = studies.ByNumber(self.sampler, self.space, request.sampler_seed, self.first)
        return study

    # --- the search ---

    def run(self) -> int:
        """Work on the study until all its trials are done or at other workers. Returns 0, 130 if stopped, 1 if the disk
        is full or a folder went away."""
        try:
            with interruptible():
                self._say_what_there_is()
                self._search()
                return OK
        except KeyboardInterrupt:
            self._print("stopped; the same command goes on from here")
            return STOPPED
        except OSError as error:
            self._print(f"the search cannot go on: {error}; the same command goes on from here", "bold red")
            return FAILED
        finally:
            self._planner.close()

    def trials(self) -> list[FrozenTrial]:
        """All trials that count, oldest first."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if not trial.user_attrs.get("withdrawn")]

    def finished(self) -> list[FrozenTrial]:
        return [trial for trial in self.trials() if trial.state.is_finished()]

    def best(self) -> FrozenTrial | None:
        """The trial with the highest value; None while every one was pruned, failed or diverged."""
        done = [
            t for t in self.finished() if t.state == TrialState.COMPLETE and t.value is not None and t.value > WORST
        ]
        return max(done, key=lambda trial: (trial.value, -trial.number), default=None)

    @property
    def complete(self) -> bool:
        """Whether no trial is left, here or at another worker."""
        return not self._wanted(self.trials()) and all(trial.state.is_finished() for trial in self.trials())

    @property
    def _on_a_grid(self) -> bool:
        return studies.points(self.sampler, self.space) is not None

    def _wanted(self, trials: list[FrozenTrial]) -> bool:
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        return waiting or len(trials) < self.limit

    def _say_what_there_is(self) -> None:
        done, runs = self.finished(), len(self.request.datasets) * len(self.request.seeds)
        self._print(
            f"study {self.name}: {len(done)} of {self.limit} trials finished before; "
            f"{len(self.space)} options, {runs} runs a trial, {self.jobs} at a time; trials in {self.folder}"
        )

    def _search(self) -> None:
        live = Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        try:
            if live:
                live.start()
            while True:
                for one in list(self.live):
                    self._look_at(one)
                more = self._start_what_fits()
                if not self.live and not more:
                    break
                if live:
                    work = [job for one in self.live for job in one.jobs]
                    running = [(job, status_of(self.results / str(job.run))) for job in work if job.status == "running"]
                    counts = Counter(job.status for job in work)
                    live.update(view.live(f"{self.name} {self._headline}", counts, running))
                time.sleep(0.1)
        except BaseException:
            self._stop()
            raise
        finally:
            if live:
                live.stop()
        if not self.complete:
            self._print("other workers still have trials; the last one of them chooses and tests the winner")

    def _start_what_fits(self) -> bool:
        """Start runs, and trials, as far as there is room; whether there may be more trials."""
        while True:
            for one in self.live:
                for job in one.jobs:
                    if self._at_work() < self.jobs and job.status == "pending" and one.verdict is None:
                        self._start(one, job)
            if self._at_work() >= self.jobs or any(job.status == "pending" for one in self.live for job in one.jobs):
                return True
            if (new := self._next_trial()) is None:
                return False
            self.live.append(new)
            self._look_at(new)

    def _at_work(self) -> int:
        return sum(len(one.at_work) for one in self.live)

    def _start(self, one: LiveTrial, job: Job) -> None:
        folder = self.results / str(job.run)
        if is_locked(folder):  # it outlived its tuner, or another trial has the same run
            job.process = Orphan(folder)
        else:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.note_launch()
            job.process = LocalProcess(job.command(self.results), job.log)
        job.status = "running"
        number = one.jobs.index(job)
        one.starts[number] = one.starts.get(number, 0) + 1

    # --- one trial ---

    def _next_trial(self) -> LiveTrial | None:
        """Take up a trial whose tuner is gone, or begin a new one; None if there is none to be had."""
        with hold_file(
            self.folder / ".ask.lock"
        ):  # so that trials are counted right, and samplers draw for their number
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and (lock := self._left_behind(trial)):
                    return self._begun(self._again(trial), lock)
            if not self._wanted(trials):
                return None
            with studies.quiet():
                new = self.study.ask()
            earlier = [trial for trial in self.trials() if trial.number < new.number]
            if len(earlier) >= self.limit:  # a worker elsewhere was quicker
                new.set_user_attr("withdrawn", True)
                self.study.tell(new, state=TrialState.FAIL)
                return None
            lock = self._claim(new.number)
            assert lock
            new.set_user_attr("place", self.place)
        return self._begun(new, lock)

    def _claim(self, number: int) -> IO[str] | None:
        folder = self.folder / "trials" / f"{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return lock_folder(folder, f"process {os.getpid()}")
        except Busy:
            return None

    def _left_behind(self, trial: FrozenTrial) -> IO[str] | None:
        """The lock of a running trial that nobody works on; None if somebody does, or may do so elsewhere."""
        place = trial.user_attrs.get("place")
        if place is None and self.request.storage is not None:
            since = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            if time.time() - since < _UNCLAIMED:
                return None
        if place not in (None, self.place) or any(one.number == trial.number for one in self.live):
            return None
        if (lock := self._claim(trial.number)) is None:
            return None
        if self._now(trial.number).state != TrialState.RUNNING:  # ended just now
            lock.close()
            return None
        if place is None:
            self._again(trial).set_user_attr("place", self.place)
        self._print(f"trial {trial.number}: its tuner is gone; it goes on here")
        return lock

    def _again(self, trial: FrozenTrial) -> optuna.Trial:
        """A running trial of the study, to go on with."""
        return optuna.Trial(self.study, trial._trial_id)

    def _begun(self, trial: optuna.Trial, lock: IO[str]) -> LiveTrial:
        values = studies.suggest(trial, self.space)
        if trial.number == 0 and trial.params == self.first:
            trial.set_user_attr("default", True)
        one = LiveTrial(trial, lock, values, [], [], set(self._stored(trial).intermediate_values))
        try:
            configs = self._configs(values)
        except BadInput as error:  # options that the file does not take together
            one.verdict, one.error = "failed", str(error)
            return one
        except Unusable as error:
            raise BadInput(f"{self.algo_file.name} cannot be used:\n{tail(str(error))}") from None
        for seed in self.request.seeds:
            for dataset_id in self.request.datasets:
                log = self.folder / "trials" / f"{trial.number:04d}" / f"{dataset_slug(dataset_id)}--{seed}.log"
                job = Job(self._cell(dataset_id, seed, values, f"trial {trial.number}"), self.algo_file, log)
                config = configs[dataset_id] | {"seed": seed}
                job.run = address(self.algo_file.stem, self.meaning, config, self.data[dataset_id])
                if status_of(self.results / job.run)["status"] == "finished":
                    job.status = "finished"
                one.jobs.append(job)
                one.curves.append(Curve(self.results / job.run, self.request.metric))
        trial.set_user_attr("runs", [job.run for job in one.jobs])
        return one

    def _stored(self, trial: optuna.Trial) -> FrozenTrial:
        return self._now(trial.number)

    def _now(self, number: int) -> FrozenTrial:
        """A trial as the storage has it at this moment."""
        return self.study.get_trials(deepcopy=False)[number]

    def _look_at(self, one: LiveTrial) -> None:
        """Settle its runs, report its evaluations, and tell the study once it has ended."""
        for job in one.at_work:
            assert job.process
            if (code := job.process.poll()) is not None:
                self._settle(one, job, code)
        if one.verdict is None:
            self._report(one)
        if one.verdict is None:
            return
        if one.ends_by is None:
            one.ends_by = time.monotonic() + _GRACE
            for job in one.at_work:
                assert job.process
                job.process.terminate()
        if not one.at_work:
            self._tell(one)
        elif time.monotonic() > one.ends_by:
            for job in one.at_work:
                assert job.process
                job.process.kill()

    def _settle(self, one: LiveTrial, job: Job, code: int) -> None:
        if code == OK and status_of(self.results / str(job.run))["status"] == "finished":
            job.status = "finished"
            return
        if one.verdict is not None:  # stopped with its trial
            job.status = "interrupted"
            return
        if code == BUSY:
            job.status = "pending"
            return
        again = one.starts[one.jobs.index(job)] < _STARTS
        if isinstance(job.process, Orphan) or ((code == STOPPED or code < 0) and again):
            job.status = "pending"  # it resumes from its checkpoint, or says itself what is wrong with it
            return
        failure, how = how_it_ended(code, job.oom_kills, oom_kills())
        error = job.own_status(self.results).get("error")
        printed = job.log_text()
        job.fail(failure, error or f"{how}; {tail(printed, 3)}")
        if os.strerror(errno.ENOSPC) in printed or shutil.disk_usage(self.results).free < _FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.results))  # the next ones would fail alike
        diverged = bool(error and error.startswith("FloatingPointError"))
        one.verdict, one.error = ("diverged" if diverged else "failed"), f"{job.cell.label}: {job.error}"

    def _report(self, one: LiveTrial) -> None:
        """Report new steps to the pruner, in order, until it wants the trial to end; see `curve.steps`."""
        width = len(self.request.datasets)
        values = [curve.values() for curve in one.curves]
        whole = [job.status == "finished" for job in one.jobs]
        rows = [values[start : start + width] for start in range(0, len(values), width)]
        done = [all(whole[start : start + width]) for start in range(0, len(whole), width)]
        reached = steps(rows, done)
        for number, value in enumerate(reached, start=1):
            if number in one.reported:
                continue
            one.reported.add(number)
            one.trial.report(value, number)
            last = all(whole) and number == len(reached)  # nothing is left to be saved
            if not last and one.trial.should_prune():
                one.verdict = "pruned"
                return
        if all(whole):
            one.verdict = "complete"

    def _tell(self, one: LiveTrial) -> None:
        width, trial = len(self.request.datasets), one.trial
        value: float | None = None
        if one.verdict == "complete":
            finals = [curve.values()[-1] for curve in one.curves]
            scores = {d: sum(finals[k::width]) / len(finals[k::width]) for k, d in enumerate(self.request.datasets)}
            trial.set_user_attr("scores", scores)
            value = sum(scores.values()) / width
        elif one.verdict == "diverged":
            value = WORST
        trial.set_user_attr("ended", one.verdict)
        if one.error:
            trial.set_user_attr("error", one.error[-2000:])
        states = {"pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        with studies.quiet():
            try:
                self.study.tell(trial, value, state=states.get(str(one.verdict)))
            except RuntimeError:  # a grid that is used up asks for an end in this way; the trial is told
                if not self._on_a_grid:
                    raise
        self.live.remove(one)
        one.lock.close()
        self._say_how_it_ended(one, value)

    def _say_how_it_ended(self, one: LiveTrial, value: float | None) -> None:
        done, best = len(self.finished()), self.best()
        shown = f"{value:.2f}" if value is not None and value > WORST else ""
        leader = f"best {best.value:.2f} (trial {best.number})" if best else "no best yet"
        self._headline = f"[{done}/{self.limit}, {leader}]"
        values = ", ".join(f"{name} {_short(v)}" for name, v in one.values.items())
        self._print(f"[{done}/{self.limit}] trial {one.number} {one.verdict} {shown}  {leader}  {values}")
        if one.error:
            self._print(tail(one.error, 3), "red")

    def _stop(self) -> None:
        """End all runs; their trials stay running in the study, for the next tuner to take up."""
        end_all([job.process for one in self.live for job in one.at_work if job.process], _GRACE)
        for one in self.live:
            one.lock.close()

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    # --- what options are ---

    def settings(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values of a trial with the options in common, but for those of the protocol."""
        return {name: value for name, value in self._common.items() if name not in PROTOCOL} | values

    @property
    def protocol(self) -> dict[str, Any]:
        return {name: value for name, value in self._common.items() if name in PROTOCOL}

    @property
    def _common(self) -> dict[str, Any]:
        """The options of every trial as the file understood them, numbers as numbers."""
        config = self.defaults[self.request.datasets[0]]
        return {name: config.get(name, value) for name, value in self.request.options.items()}


def default_name(algo: str, chosen: Sequence[str]) -> str:
    """`iql-hoard-pendulum-mixed-v0`; of several datasets the first one's name and how many more there are."""
    more = f"-and-{len(chosen) - 1}-more" if len(chosen) > 1 else ""
    return f"{algo}-{dataset_slug(chosen[0])}{more}"[:80]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
