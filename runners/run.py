"""One run: what an algorithm's `train(cfg, run)` works with.

A run killed at any moment and started again continues from its last checkpoint, which holds weights, optimisers,
generators, pending log values and every result row so far; on CPU it ends with the same bits as a run never killed.

A run has up to three kinds of stages, in this order: any number of preparatory `phase`s, each counted for itself; the
main `loop` of gradient updates on the data; and an `online` stage, counted in environment steps. Every episode of the
training environment starts from a seed of its own, derived from run seed and episode number, and the online stage
writes checkpoints between episodes only: no state of an environment has to be saved, and a resumed run meets the same.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from hoard.datasets import Dataset
from hoard.records import folder as names
from hoard.records.errors import BadInput
from hoard.records.files import clear_scratch, read_json, write_atomic, write_json
from hoard.records.locks import lock_folder
from hoard.records.schema import SCHEMA_VERSION
from hoard.runners import checkpoint, guide, provenance
from hoard.runners.config import RunConfig, resolve_device
from hoard.runners.evaluate import Evaluator, Policy, evaluation_generator, evaluation_seed
from hoard.runners.policy import save_policy
from hoard.runners.recorder import Recorder
from hoard.runners.task import task_of
from hoard.runners.training_env import TrainingBatch, TrainingEnv, training_batch


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written."""


class Run:
    """One training in its folder. Raises Busy if another process holds the folder. Close it when done (`with run:`).

    `dataset`, `device` and `generator` are what an algorithm trains with: everything random in it is drawn from
    `generator`. `config` is the resolved config as JSON values, `overrides` what of it departs from the defaults,
    `source` the text of the algorithm file `algo`. `eval_processes`, this one among them, step the environments of an
    evaluation.
    """

    def __init__(
        self,
        folder: Path,
        cfg: RunConfig,
        dataset: Dataset,
        *,
        algo: str,
        source: str,
        config: dict[str, Any],
        overrides: dict[str, Any],
        eval_processes: int = 1,
    ) -> None:
        self.folder, self.cfg, self.dataset, self.algo = folder, cfg, dataset, algo
        self.task = task_of(dataset)
        self.device = torch.device(resolve_device(cfg.device))
        self.update = 0  # gradient updates done, those of preparatory phases aside
        self.env_step = 0  # environment steps spent on training
        self.stop_requested = False
        self.total_updates = cfg.updates
        self.total_env_steps: int = getattr(cfg, "online_steps", 0)
        self.stage = ""  # a phase's name, "" for the main loop, "online"
        self._stage_total = 0  # rounds that the present stage will have
        self._config = config
        self._phases: dict[str, dict[str, Any]] = {}  # count and done of each phase begun
        self._training_env: TrainingEnv | None = None
        self._step_before = 0  # env_step before the present round of the online stage
        self._registered: dict[str, Any] = {}
        self._evaluator: Evaluator | None = None
        self._eval_processes = eval_processes
        self._resumed: dict[str, Any] | None = None
        self._checkpoint_proven = False

        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(folder)
        clear_scratch(folder)
        self.recorder = Recorder(folder)

        # One seed, two streams: `generator` for everything that trains. The global torch stream is not drawn from here,
        # but it is seeded and kept in the checkpoint, so that a fork that uses it still resumes exactly.
        torch.manual_seed(cfg.seed)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(int(np.random.SeedSequence([cfg.seed, 1]).generate_state(1, np.uint64)[0] >> 1))
        try:
            self._read_checkpoint()
            write_json(folder / names.CONFIG, {"algo": algo, "config": config, "overrides": overrides})
            write_atomic(folder / names.ALGORITHM, lambda scratch: scratch.write_text(source))
            self._write_provenance()
            self._write_status("running")
        except BaseException:
            self._lock.close()
            raise

    # --- what an algorithm calls ---

    @property
    def episode_limit(self) -> int:
        """Steps after which the evaluation environment truncates an episode."""
        return self.task.episode_limit

    def register(self, **objects: Any) -> None:
        """Name everything that must survive a kill: modules, optimisers, buffers; anything with a state_dict.

        A dictionary of such objects is taken apart. Call once, before training. If the run was interrupted, each object
        is restored here.
        """
        if self._registered:
            raise RuntimeError("register everything in one call")
        for name, thing in objects.items():
            parts = (
                {f"{name}.{key}": part for key, part in thing.items()} if isinstance(thing, Mapping) else {name: thing}
            )
            self._registered |= parts
        if (state := self._resumed) is None:
            return
        if set(state["objects"]) != set(self._registered):
            raise RuntimeError(
                f"{self.folder}: the checkpoint holds {sorted(state['objects'])}, not {sorted(self._registered)}"
            )
        for name, thing in self._registered.items():
            thing.load_state_dict(state["objects"][name])
        if self._training_env is not None and state["training_env"] is not None:
            self._training_env.load_state_dict(state["training_env"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self._resumed = None

    def phase(self, name: str, updates: int) -> Iterator[int]:
        """Yield 1..`updates`, the rounds of a preparatory stage that remain; see `end_phase` for ending it earlier.

        What a round is (an update, a batch of rollouts) is the algorithm's choice; log, checkpoint and stop work as in
        `loop`, counted in rounds. A phase that was finished before a kill yields nothing. Raises ValueError for a name
        that is taken and RuntimeError when the main loop has begun.
        """
        if name in ("", "online"):
            raise ValueError(f"'{name}' cannot name a phase")
        state = self._phases.setdefault(name, {"count": 0, "done": False})
        if not state["done"] and (self.update or self.env_step):
            raise RuntimeError(f"phase '{name}' comes after the main loop has begun")
        if not state["done"]:
            yield from self._rounds(name, state["count"], updates)

    def end_phase(self) -> None:
        """Make the present round the last one of the present phase: early stopping. It is saved as finished."""
        if self.stage not in self._phases:
            raise RuntimeError("end_phase is called inside the loop over run.phase(...)")
        self._phases[self.stage]["done"] = True

    def loop(self, updates: int) -> Iterator[int]:
        """Yield the number of each remaining update, 1..updates; log, checkpoint and stop between them.

        Raises FloatingPointError, naming metric and update, if a logged value is not finite.
        """
        self.total_updates = updates
        if not self.env_step:  # the online stage counts its updates on from here
            yield from self._rounds("", self.update, updates)

    def training_env(self, scale_actions: bool = True) -> TrainingEnv:
        """The environment for the online stage, as the evaluation has it; see `TrainingEnv`. Call before `register`."""
        if self._registered:
            raise RuntimeError("call run.training_env() before run.register(...): it has a state to restore")
        self._need_environment()
        if self._training_env is None:
            plan = guide.parse(getattr(self.cfg, "guide", "none"))
            leader = guide.Guide(plan, self.task, self.cfg.seed, str(self.device)) if plan else None
            self._training_env = TrainingEnv(
                self.task, self.cfg.seed, self.device, self._stepped, scale_actions, leader
            )
        return self._training_env

    def training_batch(self, n: int) -> TrainingBatch | None:
        """n episodes in lockstep for the online stage, or None where the environment cannot do that."""
        self._need_environment()
        return training_batch(self.task, n, self.cfg.seed, self._spend)

    def online(self, steps: int) -> Iterator[None]:
        """Yield until `steps` environment steps are spent, in `training_env` or `training_batch`; each round some.

        `log_every`, `eval_every` and `checkpoint_every` count environment steps here; a checkpoint that is due waits
        for the end of the training environment's episode.
        """
        self.total_env_steps = steps
        if self.env_step >= steps:
            return
        self._begin("online", self.env_step, steps)
        due = False
        with self._progress(steps, self.env_step, "environment steps") as advance:
            while self.env_step < steps:
                self._step_before = self.env_step
                yield
                if self.env_step == self._step_before:
                    raise RuntimeError("a round of run.online(...) spent no environment step")
                last = self.env_step >= steps
                if self._crossed(50) or last:
                    advance(self.env_step)
                if self._crossed(self.cfg.log_every) or last:
                    self._flush_metrics()
                due |= self._crossed(self.cfg.checkpoint_every) or self.stop_requested or last
                if due and (last or self._training_env is None or self._training_env.between_episodes):
                    self.save_checkpoint()
                    due = False
                    if self.stop_requested and not last:
                        raise Stopped

    def log(self, metrics: dict[str, Tensor], updates: int = 1) -> None:
        """Keep this round's detached 0-d metrics; their window means are written every `log_every` rounds.

        In the online stage `updates` says how many gradient updates the round made: they are counted here. Nothing is
        copied from the device until the window ends.
        """
        if self.stage == "online":
            self.update += updates
        self.recorder.log(self.count, metrics)

    @property
    def evaluation_due(self) -> bool:
        """True every `eval_every` updates and after the last one; environment steps in the online stage."""
        if self.stage == "online":
            return self._crossed(self.cfg.eval_every) or self.env_step >= self.total_env_steps
        return self.update % self.cfg.eval_every == 0 or self.update == self.total_updates

    @property
    def evaluation_final(self) -> bool:
        """Whether an evaluation now is the last one, whose episodes are the score."""
        if self.total_env_steps:
            return self.env_step >= self.total_env_steps
        return self.update == self.total_updates

    def evaluate(self, policy: Policy, variant: str = "") -> list[dict[str, Any]]:
        """Roll out and record episodes: `eval_episodes`, or `final_eval_episodes` after the last update.

        `policy` is a module with `act(obs)` or `act(obs, history)`, or a function of both (`hoard.runners.evaluate`).
        `variant` "" is the headline policy, which is kept after the last evaluation; any other name marks a further
        policy of the same run. Episode seeds depend on run seed, update (online: environment step) and episode alone;
        no training randomness is used.
        """
        if self.stage in self._phases:
            raise RuntimeError(f"phase '{self.stage}': evaluations belong to the main loop and the online stage")
        final = self.evaluation_final
        count = self.cfg.final_eval_episodes if final else self.cfg.eval_episodes
        self.recorder.pending_values(self._unit)  # a broken loss is named as such, before a broken policy acts
        training_time = self.recorder.training_time
        with self.recorder.evaluation():
            if self._evaluator is None:
                self._evaluator = Evaluator(self.task, self.device, self._eval_processes)
            seeds = [evaluation_seed(self.cfg.seed, self.update, k, self.env_step) for k in range(count)]
            generator = evaluation_generator(self.cfg.seed, self.update, self.env_step, self.device)
            rows = self._evaluator(policy, seeds, generator)
        shared = {
            "schema_version": SCHEMA_VERSION,
            "variant": variant,
            "update": self.update,
            "env_step": self.env_step,
            "final": final,
        }
        self.recorder.add_evaluation(
            shared | {"training_time": training_time}, [shared | row | {"episode": k} for k, row in enumerate(rows)]
        )
        if final and not variant and isinstance(policy, nn.Module):
            save_policy(self.folder, policy, self.algo, self._config, self.task)
        self._report(rows, variant)
        return rows

    def say(self, text: str) -> None:
        """One plain line on standard output and in the run's log.txt."""
        self.recorder.say(text)

    def save_table(self, name: str, columns: pa.Table) -> None:
        """Keep a further table of this run, as `name`.parquet in its folder."""
        self.recorder.write_table(name, columns)

    # --- stages ---

    def _rounds(self, stage: str, done: int, total: int) -> Iterator[int]:
        self._begin(stage, done, total)
        phase = self._phases.get(stage)
        with self._progress(total, done, f"{stage} updates" if phase else "updates") as advance:
            for number in range(done + 1, total + 1):
                if phase is None:
                    self.update = number
                else:
                    phase["count"] = number
                    phase["done"] = number == total
                yield number
                last = number == total or (phase is not None and phase["done"])
                if number % 50 == 0 or last:
                    advance(number)
                if number % self.cfg.log_every == 0 or last:
                    self._flush_metrics()
                if self.stop_requested and not (last and phase is None):
                    self.save_checkpoint()
                    raise Stopped
                if number % self.cfg.checkpoint_every == 0 or last:
                    self.save_checkpoint()
                if last:
                    return

    def _begin(self, stage: str, done: int, total: int) -> None:
        if not self._registered:
            raise RuntimeError("call run.register(...) before training: nothing would survive a kill")
        self.stage, self._stage_total = stage, total
        self.recorder.begin_window(done)

    def _need_environment(self) -> None:
        if self.dataset.env_spec is None:
            raise ValueError(f"{self.dataset.id}: no environment is known for this dataset, so nothing online")

    def _spend(self, steps: int) -> None:
        self.env_step += steps

    def _stepped(self, finished_return: float | None) -> None:
        self._spend(1)
        if finished_return is not None:
            self.log({"online/return": torch.tensor(finished_return)}, updates=0)

    def _crossed(self, every: int) -> bool:
        """Whether the present round of the online stage reached or passed a multiple of `every` environment steps."""
        return self.env_step // every != self._step_before // every

    @property
    def count(self) -> int:
        """What the present stage has done: updates, rounds of a phase, or environment steps."""
        if self.stage == "online":
            return self.env_step
        return self._phases[self.stage]["count"] if self.stage else self.update

    @property
    def position(self) -> tuple[int, int]:
        """How far the run is, in an order: its present stage, and what that has done."""
        stages = [*self._phases, "", "online"]
        return stages.index(self.stage), self.count

    @property
    def _unit(self) -> str:
        return {"": "update", "online": "environment step"}.get(self.stage, f"{self.stage} update")

    @property
    def progress_text(self) -> str:
        """How far the run is, in words."""
        if self.env_step:
            return f"environment step {self.env_step}"
        unfinished = [f"{name} update {state['count']}" for name, state in self._phases.items() if not state["done"]]
        return unfinished[-1] if unfinished else f"update {self.update}"

    @contextlib.contextmanager
    def _progress(self, total: int, done: int, unit: str) -> Iterator[Callable[[int], None]]:
        with Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        ) as bar:
            if not bar.disable:
                console = bar.console
                self.recorder.print = lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
            task = bar.add_task("", total=total, completed=done)
            yield lambda completed: bar.update(task, completed=completed)

    # --- records ---

    def _flush_metrics(self) -> None:
        head = {
            "phase": self.stage,
            "update": self.count if self.stage in self._phases else self.update,
            "env_step": self.env_step,
        }
        if self.recorder.flush(head, self.count, self._unit):
            self._write_status("running")

    def _report(self, rows: list[dict[str, Any]], variant: str) -> None:
        returns, scores = ([row[key] for row in rows] for key in ("return", "score"))
        where = f"update {self.update}/{self.total_updates}"
        if self.stage == "online":
            where = f"step {self.env_step}/{self.total_env_steps}"
        text = f"{where}  return {np.mean(returns):.2f}"
        if not np.isnan(scores).any():
            text += f"  score {np.mean(scores):.1f}"
        text += f"  ({len(rows)} episodes{', ' + variant if variant else ''})  {self.recorder.wall_time:.0f} s"
        self.say(text)
        name = f"eval/{variant}/" if variant else "eval/"
        self.recorder.track(self.count, {f"{name}return": np.mean(returns), f"{name}score": np.mean(scores)})

    def _write_status(self, status: str, error: str | None = None) -> None:
        progress = {
            "phase": self.stage,
            "phase_update": self.count,
            "phase_updates": self._stage_total,
            "update": self.update,
            "updates": self.cfg.updates,
            "env_step": self.env_step,
            "env_steps": self.total_env_steps,
        }
        self.recorder.write_status(status, progress, error)

    def _write_provenance(self) -> None:
        file = self.folder / names.PROVENANCE
        revisions = [provenance.code_revision()]
        if self._resumed is not None and file.exists():  # work of several code revisions is said to be that
            revisions = list(dict.fromkeys([*read_json(file)["revisions"], *revisions]))
        cuda = self.device.type == "cuda"
        made = {
            "revisions": revisions,
            "dataset": provenance.data_facts(self.dataset),
            "env": self.dataset.env_spec.id if self.dataset.env_spec else None,
            "versions": provenance.library_versions(),
            "device": torch.cuda.get_device_name(self.device) if cuda else provenance.machine(),
            "threads": torch.get_num_threads(),
            "command": provenance.command(),
        }
        write_json(file, made)

    # --- checkpoints ---

    def save_checkpoint(self) -> None:
        """Write everything the run would need after a kill. Raises FloatingPointError rather than save a broken run."""
        self.recorder.pending_values(self._unit)
        state = {
            "update": self.update,
            "env_step": self.env_step,
            "phases": self._phases,
            "training_env": self._training_env.state_dict() if self._training_env is not None else None,
            "objects": {name: checkpoint.state_of(thing) for name, thing in self._registered.items()},
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "records": self.recorder.state_dict(),
        }
        checkpoint.save(self.folder / names.CHECKPOINT, state, prove=not self._checkpoint_proven)
        self._checkpoint_proven = True
        self.recorder.write_metrics()

    def _read_checkpoint(self) -> None:
        path = self.folder / names.CHECKPOINT
        if not path.exists():
            self.recorder.discard()
            return
        try:
            state = checkpoint.load(path)
        except RuntimeError as error:
            raise BadInput(f"{error}; delete {self.folder} to start this run again") from error
        self.update, self.env_step, self._phases = state["update"], state["env_step"], state["phases"]
        self.recorder.load_state_dict(state["records"], self.device)
        self._resumed = state
        self.say(f"resuming after {self.progress_text}")

    # --- end ---

    def finish(self, keep_checkpoint: bool = False) -> None:
        """Write the last rows and mark the run finished; its resume checkpoint has done its duty then."""
        self.recorder.write_evaluations()
        self.recorder.write_metrics()
        self._write_status("finished")
        if not keep_checkpoint:
            (self.folder / names.CHECKPOINT).unlink(missing_ok=True)

    def fail(self, status: str, error: str | None = None) -> None:
        """Record why the run ended early; `status` is 'failed' or 'interrupted'."""
        self._write_status(status, error)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        if self._evaluator is not None:
            self._evaluator.close()
        if self._training_env is not None:
            self._training_env.close()
        self.recorder.close()
        self._lock.close()
