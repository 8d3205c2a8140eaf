"""One run: its folder, its randomness, its log, its evaluations, its checkpoint.

The folder is addressed by what determines the result: the algorithm file's content, the resolved config, the dataset's
hash and the seed. A run killed at any moment and started again continues from its last checkpoint, which holds the
weights, optimisers, generators, pending log values and every result row so far; on CPU it ends with the same bits as a
run never killed. Rows written after that checkpoint are forgotten with the updates that made them.

A run has up to three kinds of stages, in this order: any number of preparatory `phase`s, each counted for itself; the
main `loop` of gradient updates on the data; and an `online` stage, counted in environment steps. Every episode of the
training environment starts from a seed of its own, derived from run seed and episode number, and the online stage
writes checkpoints between episodes only: no state of an environment has to be saved, and a resumed run meets the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from hoard.datasets import Dataset
from hoard.records.files import clear_scratch, read_json, write_atomic, write_json
from hoard.runners.evaluate import Evaluator, Policy, evaluation_seed
from hoard.runners.training_env import TrainingEnv

SCHEMA_VERSION = 1
EPISODE_SCHEMA = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("variant", pa.string()),
        ("update", pa.int64()),
        ("env_step", pa.int64()),
        ("final", pa.bool_()),
        ("episode", pa.int32()),
        ("eval_seed", pa.int64()),
        ("return", pa.float64()),
        ("length", pa.int32()),
        ("success", pa.bool_()),
        ("score", pa.float64()),
    ]
)


class RunConfig(Protocol):
    """The fields of an algorithm's Config that the runner itself reads."""

    dataset: str
    seed: int
    device: str
    threads: int
    updates: int
    log_every: int
    eval_every: int
    eval_episodes: int
    final_eval_episodes: int
    checkpoint_every: int


class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written."""


class Busy(Exception):
    """Another process is working in this run's folder."""


def resolve_device(name: str) -> str:
    """`auto` means CUDA if there is one. Raises ValueError for a device torch cannot use here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from error
    return name


def source_hash(algo_file: Path) -> str:
    """SHA-256 of an algorithm file."""
    return hashlib.sha256(algo_file.read_bytes()).hexdigest()


def address(algo: str, source: str, config: dict[str, Any], data_hash: str) -> str:
    """`runs/<algorithm>/<dataset>/<seed>-<hash>`, relative to the results folder; `source` is the file's hash."""
    text = json.dumps([source, config, data_hash], sort_keys=True)
    slug = config["dataset"].replace("d4rl:", "d4rl-").strip("/").replace("/", "-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"runs/{algo}/{slug}/{config['seed']}-{digest}"


def is_busy(folder: Path) -> bool:
    """Whether a process holds the run in `folder`."""
    try:
        with open(folder / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def status_of(folder: Path) -> dict[str, Any]:
    """The run's status.json, or {'status': 'pending'} before its first start."""
    try:
        return read_json(folder / "status.json")
    except FileNotFoundError:
        return {"status": "pending"}


class Run:
    """What an algorithm's `train(cfg, run)` works with.

    Raises Busy if another process holds the folder. Close it when done (`with run:`).
    """

    def __init__(
        self,
        folder: Path,
        cfg: RunConfig,
        dataset: Dataset,
        config: dict[str, Any],
        overrides: dict[str, Any],
        algo_file: Path,
        source: str,
    ) -> None:
        self.folder, self.cfg, self.dataset = folder, cfg, dataset
        self.device = torch.device(resolve_device(cfg.device))
        self.update = 0  # gradient updates done, those of preparatory phases aside
        self.env_step = 0  # environment steps spent on training
        self.stop_requested = False
        self.trackers: tuple[Any, ...] = ()  # functions of (update, {name: value})
        self.total_updates = cfg.updates
        self.total_env_steps: int = getattr(cfg, "online_steps", 0)
        self.stage = ""  # a phase's name, "" for the main loop, "online"
        self._phases: dict[str, dict[str, Any]] = {}  # count and done of each phase begun
        self._training_env: TrainingEnv | None = None
        self._step_before = 0  # env_step before the present round of the online stage
        self._registered: dict[str, Any] = {}
        self._episodes: list[dict[str, Any]] = []
        self._metrics: list[dict[str, Any]] = []
        self._pending: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        self._evaluator: Evaluator | None = None
        self._bar: Progress | None = None
        self._wall_before = 0.0
        self._started = time.monotonic()
        self._window_start = (0, self._started)
        self._resumed_state: dict[str, Any] | None = None
        self._checkpoint_proven = False

        folder.mkdir(parents=True, exist_ok=True)
        self._lock = open(folder / ".lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise Busy(f"another process is working in {folder}") from None
        clear_scratch(folder)

        # One seed, two streams: `generator` for everything that trains. The global torch stream is not drawn from here,
        # but it is seeded and kept in the checkpoint, so that a fork that uses it still resumes exactly.
        torch.manual_seed(cfg.seed)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(int(np.random.SeedSequence([cfg.seed, 1]).generate_state(1, np.uint64)[0] >> 1))
        self._read_checkpoint()
        write_json(folder / "config.json", {"algo": algo_file.stem, "config": config, "overrides": overrides})
        made = provenance(algo_file, source, dataset, self.device)
        if self.update and (folder / "provenance.json").exists():  # work of several code revisions is said to be that
            before = read_json(folder / "provenance.json")
            made["revisions"] = list(dict.fromkeys([*before["revisions"], *made["revisions"]]))
        write_json(folder / "provenance.json", made)
        self._write_status("running")

    # --- what an algorithm calls ---

    def register(self, **objects: Any) -> None:
        """Name everything that must survive a kill: modules, optimisers, buffers; anything with a state_dict.

        Call once, before `loop`. If the run was interrupted, each object is restored here.
        """
        if self._registered:
            raise RuntimeError("register everything in one call")
        self._registered = objects
        if (state := self._resumed_state) is not None:
            if set(state["objects"]) != set(objects):
                raise RuntimeError(
                    f"{self.folder}: the checkpoint holds {sorted(state['objects'])}, not {sorted(objects)}"
                )
            for name, thing in objects.items():
                thing.load_state_dict(state["objects"][name])
            if self._training_env is not None and state["training_env"] is not None:
                self._training_env.load_state_dict(state["training_env"])
            self._restore_randomness(state)
            self._resumed_state = None

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

    def _rounds(self, stage: str, done: int, total: int) -> Iterator[int]:
        self._begin(stage, done)
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

    def training_env(self) -> TrainingEnv:
        """The environment for the online stage, as the evaluation has it; see `TrainingEnv`. Call before `register`."""
        if self._registered:
            raise RuntimeError("call run.training_env() before run.register(...): it has a state to restore")
        if self.dataset.env_spec is None:
            raise ValueError(f"{self.dataset.id}: no environment is known for this dataset, so nothing online")
        if self._training_env is None:
            self._training_env = TrainingEnv(self.dataset.env_spec, self.cfg.seed, self._stepped)
        return self._training_env

    def _stepped(self, finished_return: float | None) -> None:
        self.env_step += 1
        if finished_return is not None:
            self.log({"online/return": torch.tensor(finished_return)})

    def online(self, steps: int) -> Iterator[None]:
        """Yield until `steps` environment steps are spent. Each round must spend some: a step of `training_env`, or
        `env_step` raised by the algorithm that steps environments of its own, whole episodes at a time.

        `log_every`, `eval_every` and `checkpoint_every` count environment steps here; a checkpoint that is due waits
        for the end of the training environment's episode. The caller counts gradient updates: `run.update += 1`.
        """
        self.total_env_steps = steps
        if self.env_step >= steps:
            return
        self._begin("online", self.env_step)
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

    def _begin(self, stage: str, done: int) -> None:
        if not self._registered:
            raise RuntimeError("call run.register(...) before training: nothing would survive a kill")
        self.stage = stage
        self._window_start = (done, time.monotonic())

    @contextlib.contextmanager
    def _progress(self, total: int, done: int, unit: str) -> Iterator[Callable[[int], None]]:
        with Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        ) as bar:
            self._bar = bar
            task = bar.add_task("", total=total, completed=done)
            yield lambda completed: bar.update(task, completed=completed)

    def _crossed(self, every: int) -> bool:
        """Whether the present round of the online stage reached or passed a multiple of `every` environment steps."""
        return self.env_step // every != self._step_before // every

    @property
    def count(self) -> int:
        """What the present stage has done: updates, rounds of a phase, or environment steps."""
        if self.stage == "online":
            return self.env_step
        return self._phases[self.stage]["count"] if self.stage else self.update

    def log(self, metrics: dict[str, Tensor]) -> None:
        """Keep this round's detached 0-d metrics; their window means are written every `log_every` rounds.

        Nothing is copied from the device until then.
        """
        for name, value in metrics.items():
            self._pending[name].append((self.count, value))

    @property
    def episode_limit(self) -> int:
        """Steps after which the evaluation environment truncates an episode."""
        spec = self.dataset.env_spec
        if spec is None or spec.max_episode_steps is None:
            raise ValueError(f"{self.dataset.id}: its evaluation environment has no time limit")
        return spec.max_episode_steps

    @property
    def evaluation_due(self) -> bool:
        """True every `eval_every` updates and after the last one; environment steps in the online stage."""
        if self.stage == "online":
            return self._crossed(self.cfg.eval_every) or self.env_step >= self.total_env_steps
        return self.update % self.cfg.eval_every == 0 or self.update == self.total_updates

    @property
    def _final(self) -> bool:
        if self.total_env_steps:
            return self.env_step >= self.total_env_steps
        return self.update == self.total_updates

    def evaluate(self, policy: Policy, variant: str = "") -> list[dict[str, Any]]:
        """Roll out and record episodes: `eval_episodes`, or `final_eval_episodes` after the last update.

        `variant` "" is the headline policy; any other name marks a further policy of the same run. Episode seeds depend
        on run seed, update (online: environment step) and episode alone; no training randomness is used.
        """
        if self.stage in self._phases:
            raise RuntimeError(f"phase '{self.stage}': evaluations belong to the main loop and the online stage")
        final = self._final
        count = self.cfg.final_eval_episodes if final else self.cfg.eval_episodes
        self._pending_values()  # a broken loss is named as such, before a broken policy acts
        if self._evaluator is None:
            self._evaluator = Evaluator(self.dataset, self.device)
        seeds = [evaluation_seed(self.cfg.seed, self.update, k, self.env_step) for k in range(count)]
        rows = self._evaluator(policy, seeds)
        shared = {
            "schema_version": SCHEMA_VERSION,
            "variant": variant,
            "update": self.update,
            "env_step": self.env_step,
            "final": final,
        }
        for k, row in enumerate(rows):
            self._episodes.append(shared | row | {"episode": k})
        self._write_episodes()
        self._report(rows, variant)
        return rows

    # --- log ---

    def _flush_metrics(self) -> None:
        if not self._pending:
            return
        row: dict[str, Any] = {name: values.mean().item() for name, values in self._pending_values().items()}
        self._pending = defaultdict(list)
        now = time.monotonic()
        since, then = self._window_start
        self._window_start = (self.count, now)
        head = {
            "phase": self.stage,
            "update": self.count if self.stage in self._phases else self.update,
            "env_step": self.env_step,
            "wall_time": self.wall_time,
            "updates_per_second": (self.count - since) / max(now - then, 1e-9),
        }
        self._metrics.append(head | row)
        for tracker in self.trackers:
            tracker(self.count, row)
        self._write_status("running")

    def _pending_values(self) -> dict[str, Tensor]:
        """This window's values of each metric. Raises FloatingPointError for the first round that broke one."""
        out, broken = {}, []
        for name, entries in self._pending.items():
            values = out[name] = torch.stack([value.detach() for _, value in entries]).double().cpu()
            bad = torch.nonzero(~torch.isfinite(values))
            if len(bad):
                broken.append((entries[bad[0, 0]][0], name, values[bad[0, 0]].item()))
        if broken:
            count, name, value = min(broken, key=lambda item: item[0])
            where = {"": "update", "online": "environment step"}.get(self.stage, f"{self.stage} update")
            raise FloatingPointError(f"{name} is {value} at {where} {count}")
        return out

    def _report(self, rows: list[dict[str, Any]], variant: str) -> None:
        returns, scores = ([row[key] for row in rows] for key in ("return", "score"))
        where = f"update {self.update}/{self.total_updates}"
        if self.stage == "online":
            where = f"step {self.env_step}/{self.total_env_steps}"
        text = f"{where}  return {np.mean(returns):.2f}"
        if not np.isnan(scores).any():
            text += f"  score {np.mean(scores):.1f}"
        text += f"  ({len(rows)} episodes{', ' + variant if variant else ''})  {self.wall_time:.0f} s"
        self.say(text)
        name = f"eval/{variant}/" if variant else "eval/"
        values = {f"{name}return": np.mean(returns), f"{name}score": np.mean(scores)}
        for tracker in self.trackers:
            tracker(self.count, values)

    def say(self, text: str) -> None:
        """One plain line on standard output and in the run's log.txt."""
        if self._bar is not None and not self._bar.disable:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)
        with open(self.folder / "log.txt", "a") as file:
            file.write(text + "\n")

    @property
    def progress_text(self) -> str:
        """How far the run is, in words."""
        if self.env_step:
            return f"environment step {self.env_step}"
        unfinished = [f"{name} update {state['count']}" for name, state in self._phases.items() if not state["done"]]
        return unfinished[-1] if unfinished else f"update {self.update}"

    @property
    def wall_time(self) -> float:
        """Seconds of work that this result is made of; what was lost to a kill does not count."""
        return self._wall_before + time.monotonic() - self._started

    # --- files ---

    def _write_episodes(self) -> None:
        table = pa.Table.from_pylist(self._episodes, schema=EPISODE_SCHEMA)
        write_atomic(self.folder / "episodes.parquet", lambda path: pq.write_table(table, path))

    def _write_metrics(self) -> None:
        # Columns are the union over all rows: a metric that appears late is kept, with nulls before.
        names = list(dict.fromkeys(["update", *(name for row in self._metrics for name in row)]))
        table = pa.table({name: [row.get(name) for row in self._metrics] for name in names})
        write_atomic(self.folder / "metrics.parquet", lambda path: pq.write_table(table, path))

    def _write_status(self, status: str, error: str | None = None) -> None:
        value = {
            "schema_version": SCHEMA_VERSION,
            "status": status,
            "phase": self.stage,
            "phase_update": self.count,
            "update": self.update,
            "updates": self.cfg.updates,
            "env_step": self.env_step,
            "env_steps": self.total_env_steps,
            "wall_time": round(self.wall_time, 3),
            "pid": os.getpid(),
            "error": error,
        }
        write_json(self.folder / "status.json", value)

    def save_checkpoint(self) -> None:
        """Write everything the run would need after a kill. Raises FloatingPointError rather than save a broken run."""
        self._pending_values()
        state = {
            "schema_version": SCHEMA_VERSION,
            "update": self.update,
            "env_step": self.env_step,
            "phases": self._phases,
            "training_env": self._training_env.state_dict() if self._training_env is not None else None,
            "wall_time": self.wall_time,
            "objects": {name: thing.state_dict() for name, thing in self._registered.items()},
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "episodes": self._episodes,
            "metrics": self._metrics,
            "pending": {name: list(entries) for name, entries in self._pending.items()},
        }

        def write(path: Path) -> None:
            torch.save(state, path)
            if not self._checkpoint_proven:  # what cannot be read back is found out now, not after a kill
                self._load(path)
                self._checkpoint_proven = True

        write_atomic(self.folder / "checkpoint.pt", write)
        self._write_metrics()

    def _load(self, path: Path) -> dict[str, Any]:
        # To the CPU: load_state_dict moves what belongs on the device, and Adam's step counts belong on the CPU.
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RuntimeError(f"{path.name} cannot be read back: {error}") from error
        if state["schema_version"] != SCHEMA_VERSION:
            raise RuntimeError(f"{path.name} has schema version {state['schema_version']}, not {SCHEMA_VERSION}")
        return state

    def _read_checkpoint(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            for stale in ("episodes.parquet", "metrics.parquet"):
                (self.folder / stale).unlink(missing_ok=True)
            return
        try:
            state = self._load(path)
        except RuntimeError as error:
            raise RuntimeError(f"{error}; delete {self.folder} to start this run again") from error
        self.update, self.env_step, self._phases = state["update"], state["env_step"], state["phases"]
        self._episodes, self._metrics = state["episodes"], state["metrics"]
        for name, entries in state["pending"].items():
            self._pending[name] = [(update, value.to(self.device)) for update, value in entries]
        self._wall_before = state["wall_time"]
        self._resumed_state = state
        self.say(f"resuming after {self.progress_text}")

    def _restore_randomness(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    # --- end ---

    def finish(self) -> None:
        self._write_episodes()
        self._write_metrics()
        self._write_status("finished")

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
        for tracker in self.trackers:
            tracker.close()
        self._lock.close()


def provenance(algo_file: Path, source: str, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """What made this result: code revision, file and data hashes, library versions, machine class."""
    return {
        "revisions": [code_revision(algo_file.parent)],
        "algo_sha256": source,
        "dataset": {"id": dataset.id, "sha256": dataset.content_hash, "transitions": len(dataset)},
        "env": dataset.env_spec.id if dataset.env_spec else None,
        "versions": library_versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else machine(),
        "threads": torch.get_num_threads(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def library_versions() -> dict[str, str]:
    names = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "h5py")
    out = {"python": platform.python_version()}
    for name in ("hoard", *names):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "absent"
    return out


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"


def code_revision(folder: Path) -> str:
    """Git revision of the code, marked when the tree has uncommitted changes; 'unknown' outside a checkout."""
    try:
        git = ["git", "-C", str(folder)]
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
        return revision + ("+changes" if dirty.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
