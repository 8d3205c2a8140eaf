"""Cells as Slurm jobs, one each, submitted with submitit; for trying out, as jobs of submitit's local executor.

A job runs `in_job`: it watches its cell and leaves a file that says how the cell ended. By that file, or else by what
Slurm says of the job, this sweep or a later one learns of it. Slurm starts nothing again (`--no-requeue`): the sweep
does, from the checkpoint, also when a job's time was up or its node was taken away, of which Slurm warns with a signal.
An interrupted sweep leaves its jobs to Slurm, and the next one adopts them.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from hoard.records.errors import STOPPED, BadInput
from hoard.records.files import read_json, write_json
from hoard.records.suggest import nearest
from hoard.runners.sweep import local
from hoard.runners.sweep.job import Job, Start
from hoard.runners.sweep.limits import GRACE, Limits, Resources
from hoard.runners.sweep.ray import threads_of
from hoard.runners.sweep.remote import Cluster, RemoteProcess, Watch, lost, order_of

JOBS = 100  # queued and running at a time, where `--jobs` is not given
_NEEDED = ("sbatch", "srun", "sacct", "scancel")
_OURS = {  # parameters of submitit that follow from something else
    "cpus_per_task": "`resources` in the suite",
    "gpus_per_node": "`resources` in the suite",
    "mem": "`resources` in the suite or --memory-limit",
    "job_name": "the suite's name",
    "nodes": "one for each cell",
    "ntasks_per_node": "one for each cell",
    "stderr_to_stdout": "the log of the cell",
    "array_parallelism": "--jobs",
    "additional_parameters": "parameters of their own",
    "srun_args": "the cell",
    "use_srun": "the warning before a job's end",
    "num_gpus": "`resources` in the suite",
    "map_count": "--jobs",
}
_LISTS = ("setup", "teardown")  # lines of the batch script: one can be given
_BESIDE = 256 << 20  # bytes for the process that watches a cell
# States in which a job is gone for good, since none is queued again; any other may pass.
_GONE = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
)  # fmt: skip
_UNKNOWN_FOR = 1800.0  # seconds after which a job that Slurm does not know is gone


# --- in the job ---


def in_job(order: dict[str, Any], ending: str) -> None:
    """Run a cell, and write to the file `ending` how it ended. Signals end it with a checkpoint."""
    import submitit

    warning = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
    # Whether the sweep asked for it, the sweep knows.
    taken = "lost", "Slurm took the job's place away, or its time was up; the cell wrote a checkpoint if it could"
    early: list[int] = []
    for number in (signal.SIGTERM, warning):
        signal.signal(number, lambda received, _: early.append(received))
    # The warning goes to all processes of the job, and would end a cell at once.
    watch = Watch(order, deaf_to=warning)
    for number in (signal.SIGTERM, warning):
        signal.signal(number, lambda *_: watch.end(taken))
    if early:
        watch.end(taken)
    write_json(Path(ending), watch.wait())


# --- in the sweep ---


def parse_parameters(pairs: list[str]) -> tuple[str, dict[str, Any]]:
    """Kind of executor and parameters for submitit from `KEY=VALUE`s. Raises BadInput for what is none."""
    try:
        from submitit import SlurmExecutor
    except ImportError as error:
        raise BadInput("--engine slurm needs the extra: pip install 'hoard[slurm]'") from error
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or not value:
            raise BadInput(f"--slurm {pair}: write KEY=VALUE, for instance partition=gpu or time=240")
        given[name.replace("-", "_")] = value
    cluster = given.pop("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise BadInput(f"--slurm cluster={cluster}: there are slurm, and local, submitit's executor for trying out")
    known = sorted({*SlurmExecutor._valid_parameters()} - set(_OURS))
    for name, value in given.items():
        if name in _OURS:
            raise BadInput(f"--slurm {name}: it follows from {_OURS[name]}")
        if name not in known:
            raise BadInput(f"--slurm {name}: not known to submitit; nearest: {nearest(name, known)}")
        if name in ("time", "signal_delay_s"):
            if not value.isdecimal() or int(value) < 1:
                unit = "minutes" if name == "time" else "seconds"
                raise BadInput(f"--slurm {name}={value}: write a number of {unit} from 1")
            given[name] = int(value)
        elif name in _LISTS:
            given[name] = [value]
        elif name == "exclusive" and value.lower() in ("true", "yes"):
            given[name] = True
    return cluster, given


class SlurmCell(RemoteProcess):
    """A cell as a job. `ending` is the file in which the job says how it ended."""

    def __init__(self, cluster: SlurmCluster, known: dict[str, Any]) -> None:
        super().__init__()
        self._cluster, self._known = cluster, known
        self._ending_file = Path(known["ending"])
        self._gone_at: float | None = None
        self._told_to_end = False
        self.pause = cluster.pause

    @property
    def identity(self) -> dict[str, Any]:
        return self._known

    def look(self) -> dict[str, Any] | None:
        if self._ending_file.exists():
            told = read_json(self._ending_file)
            asked = self._told_to_end and told["ending"] and told["ending"][0] == "lost"
            return {"code": STOPPED, "ending": None} if asked else told
        state = self._cluster.gone(self._known)
        if state is None:
            self._gone_at = None
            return None
        self._gone_at = self._gone_at or time.monotonic()
        if time.monotonic() - self._gone_at < self._cluster.settle:  # on a shared disk files show late
            return None
        if self._told_to_end:
            return {"code": STOPPED, "ending": None}
        job = self._known["job"]
        told = lost(f"job {job} ended as {state}; see {self._cluster.folder / job}")
        if state == "OUT_OF_MEMORY":
            told["ending"] = "out of memory", told["ending"][1]
        return told

    def terminate(self) -> None:
        self._told_to_end = True
        self._cluster.end(self._known)

    def kill(self) -> None:
        self._told_to_end = True
        self._cluster.end(self._known, at_once=True)


class NoJob(RemoteProcess):
    """A cell whose job was not accepted this time."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self._why = why

    def look(self) -> dict[str, Any]:
        return lost(f"its job was not accepted: {self._why}")

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class SlurmCluster(Cluster):
    """Jobs of a suite. `folder`, for what submitit writes, must be on a disk that all nodes share.

    `kind` is "slurm", or "local" for submitit's local executor. Raises BadInput without a length for the jobs, and
    where there is no Slurm.
    """

    keeps_cells = True

    def __init__(self, folder: Path, suite: str, limits: Limits, kind: str, parameters: dict[str, Any]) -> None:
        self.folder, self.kind = folder.resolve(), kind
        self._name, self._parameters = f"hoard-{suite}", dict(parameters)
        if "time" in parameters:
            self._minutes = self._parameters.pop("time")
        elif limits.seconds is not None:
            self._minutes = math.ceil((limits.seconds + GRACE) / 60) + 2
        else:
            raise BadInput("--engine slurm needs the length of a job: --time-limit, or --slurm time=MINUTES")
        missing = [] if kind == "local" else [name for name in _NEEDED if shutil.which(name) is None]
        if missing:
            raise BadInput(f"--engine slurm: this machine has no {', '.join(missing)}; start it where there is Slurm")
        self.counts_cells = kind == "slurm"  # Slurm finds the room; here nobody does
        self.pause, self.settle = (5.0, 60.0) if kind == "slurm" else (0.2, 1.0)
        self._executors: dict[tuple[Resources, int, int | None], Any] = {}
        self._local_jobs: dict[str, Any] = {}
        self._unknown_since: dict[str, float] = {}
        self._accepted = False

    def __call__(self, start: Start) -> RemoteProcess:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        ending = self.folder / f"{secrets.token_hex(8)}.json"
        try:
            job = self._executor(start).submit(in_job, order_of(start), str(ending))
        except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
            if not self._accepted:  # the first one: it is how they are asked for
                raise BadInput(f"sbatch refuses: {error}") from error
            return NoJob(str(error))
        self._accepted = True
        known = {"cluster": self.kind, "job": job.job_id, "ending": str(ending)}
        if self.kind == "local":
            self._local_jobs[job.job_id] = job  # it collects the process
            known["controller"] = local.identity(int(job.job_id))
        return SlurmCell(self, known)

    def _executor(self, start: Start) -> Any:
        """submitit's executor for cells of this kind."""
        import submitit

        asked = start.resources
        memory = max(asked.memory or 0, start.limits.memory or 0) or None
        cpus = asked.cpus or threads_of(start.command)
        key = asked, cpus, memory
        if key not in self._executors:
            executor = submitit.AutoExecutor(self.folder / "%j", cluster=self.kind)
            own: dict[str, Any] = {"slurm_additional_parameters": {"no-requeue": True}}
            # A step gets the CPUs of its job only if it asks for them, since Slurm 22.05.
            own["slurm_srun_args"] = [f"--cpus-per-task={cpus}"]
            executor.update_parameters(
                name=self._name,
                timeout_min=self._minutes,
                cpus_per_task=cpus,
                gpus_per_node=int(asked.gpus) if asked.gpus else None,
                mem_gb=math.ceil((memory + _BESIDE) / (1 << 20)) / 1024 if memory else None,
                **own,
                **{f"slurm_{name}": value for name, value in self._parameters.items()},
            )
            self._executors[key] = executor
        return self._executors[key]

    def cannot_have(self, job: Job) -> str | None:
        gpus = job.cell.resources.gpus
        if gpus and self.kind == "local":
            return f"gpus = {gpus}: submitit's local executor deals out none"
        if gpus and gpus != int(gpus):
            return f"gpus = {gpus}: Slurm gives whole ones only"
        return None

    def gone(self, known: dict[str, Any]) -> str | None:
        """The state in which a job left; None while it is queued or runs, or may be."""
        if self.kind == "local":
            if job := self._local_jobs.get(known["job"]):
                job.done()
            return None if local.adopt(known["controller"]) else "gone"
        import submitit

        state = submitit.SlurmJob.watcher.get_state(known["job"]).split()[0]  # "CANCELLED by 1000"
        if state != "UNKNOWN":
            self._unknown_since.pop(known["job"], None)
            return state if state in _GONE else None
        since = self._unknown_since.setdefault(known["job"], time.monotonic())
        return state if time.monotonic() - since > _UNKNOWN_FOR else None

    def end(self, known: dict[str, Any], at_once: bool = False) -> None:
        """Ask a job to end, or kill it."""
        if self.kind == "slurm":
            subprocess.run(["scancel", *(["--signal=KILL"] if at_once else []), known["job"]], check=False)
        elif process := local.adopt(known["controller"]):
            if at_once:
                process.kill()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(known["job"]), signal.SIGTERM)

    def adopt(self, known: dict[str, Any] | None) -> SlurmCell | None:
        if not known or known.get("cluster") != self.kind:
            return None
        cell = SlurmCell(self, known)
        return cell if not Path(known["ending"]).exists() and self.gone(known) is None else None

    def farewell(self, count: int) -> str:
        how = f"`scancel --name={self._name}`" if self.kind == "slurm" else "SIGTERM"
        return f"{count} cells go on as jobs; the same command adopts them; {how} ends them with a checkpoint"
