"""Many runs: a suite's cells, each its own process, N at a time; what is finished is skipped.

The sweep knows an algorithm by its file and its command line; what it must ask the file, it asks in a process of its
own (`plan`). Killed at any moment, the same command goes on: finished cells are found by their address, interrupted
ones resume from their checkpoints, and cells that outlived their sweep are adopted. One sweep at a time works in a
suite's folder (a lock that the kernel releases with the process), and one process at a time in a run's folder: that is
what keeps a cell from being run twice at once, whatever the record says.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from hoard import datasets
from hoard.records.errors import BUSY, FAILED, OK, STOPPED, BadInput, Busy
from hoard.records.files import writable
from hoard.records.folder import status_of
from hoard.records.locks import is_locked, lock_folder
from hoard.runners.progress import generation_bar
from hoard.runners.sweep import local, packs, prepare, view
from hoard.runners.sweep.ahead import making_ahead
from hoard.runners.sweep.gpus import Gpus
from hoard.runners.sweep.job import Job, Launcher, Process, Start, end_all, how_it_ended, start_here, tail
from hoard.runners.sweep.limits import GRACE, TRANSIENT, Limits
from hoard.runners.sweep.local import oom_kills
from hoard.runners.sweep.mirror import Damaged, Mirror
from hoard.runners.sweep.record import Record
from hoard.runners.sweep.remote import Cluster, RemoteProcess
from hoard.runners.sweep.suite import Suite

_FULL = 1 << 20  # bytes: a disk with less room is full
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOOK = 0.5  # seconds between two looks at what the cells take
_BUSY_WAIT = 1.0  # seconds until a cell that another process had is tried again


class Sweep:
    """Runs a suite into `results`, `jobs` cells at a time; one that asks for several CPUs counts as so many.

    Raises BadInput before anything starts if the request is wrong.
    """

    def __init__(
        self,
        suite: Suite,
        results: Path,
        jobs: int,
        command: str,
        launcher: Launcher | None = None,
        limits: Limits | None = None,
        gpus: Sequence[str] = (),
        per_gpu: int = 1,
        mirror: Mirror | None = None,
        pack: int = 1,
    ) -> None:
        if jobs < 1:
            raise BadInput(f"--jobs {jobs}: must be at least 1")
        if pack < 1:
            raise BadInput(f"--pack {pack}: must be at least 1")
        self.suite, self.results, self.jobs = suite, results, jobs
        self.folder = results / suite.name
        self.launch = launcher or start_here
        self.cluster = launcher if isinstance(launcher, Cluster) else None
        self.limits = limits or Limits()
        self._gpus = Gpus(gpus, per_gpu)
        self._mirror = mirror
        self._pack = pack
        self.console = Console()
        self.work = prepare.jobs_of(suite, self.folder)
        self._refuse_what_nobody_has()
        writable(self.folder)
        writable(self.folder / "logs")
        try:
            self._lock = lock_folder(self.folder, f"process {os.getpid()}")
        except Busy as error:
            raise BadInput(f"{error}: another sweep; wait for it or stop it") from None
        except OSError as error:  # a full disk
            raise BadInput(f"cannot write into {self.folder}: {error}") from error
        self.record = Record(self.folder, results, suite, command)
        self._counts: Counter[str] = Counter()
        self._running: list[Job] = []
        self._todo: deque[Job] = deque()
        self._later: list[tuple[float, int, Job]] = []  # a heap by the time when each may start
        self._next_look = 0.0
        self._noted = False

    # --- before the first run ---

    def _refuse_what_nobody_has(self) -> None:
        """Raise BadInput for a cell that would wait for ever, or would not get what its suite says it needs."""
        for job in self.work:
            asked, label = job.cell.resources, f"{job.cell.method} on {job.cell.dataset}"
            if self.cluster:
                if why := self.cluster.cannot_have(job):
                    raise BadInput(f"{label}: {why}")
            elif asked.gpus and not self._gpus.free:
                raise BadInput(f"{label} asks for gpus = {asked.gpus}: give --gpus, which says which there are")
            elif self._gpus.free and self._gpus.at_once(asked) == 0:
                raise BadInput(f"{label} asks for gpus = {asked.gpus}: --gpus has {len(self._gpus.free)}")
            if self._places(job) > self.jobs:
                raise BadInput(f"{label} asks for cpus = {asked.cpus}: that is more than --jobs {self.jobs}")

    def _places(self, job: Job) -> int:
        """How many of `jobs` a cell counts as."""
        return 1 if self.cluster and self.cluster.counts_cells else job.cell.resources.cpus or 1

    def prepare(self) -> None:
        """Get the datasets and learn every cell's address. A dataset that cannot be had fails its own cells.

        Raises BadInput, before anything is made or fetched, if an algorithm file does not take a cell's options, and
        if two cells would be one run.
        """
        configs = prepare.ask_the_files(self.suite, self.work, self._pack)
        if self.cluster is None and not self._gpus.free and self.jobs > 1 and prepare.share_a_gpu(configs):
            self._note(
                f"without --gpus every cell of device auto takes the first GPU, up to {self.jobs} at a time; "
                "--gpus 0,1 deals out the first two"
            )
        self._get_data()
        prepare.find_runs(self.work, configs, self.results)
        if self._mirror:
            self._meet(self._mirror)

    def _meet(self, mirror: Mirror) -> None:
        """Bring finished cells from the mirror, and copy to it those that are finished here alone."""
        brought = 0
        for job in self.work:
            if job.run is None or job.status not in ("pending", "finished"):
                continue
            try:
                if job.status == "pending" and mirror.get(job.run):
                    job.status = "finished"
                    brought += 1
            except Damaged as error:
                self._note(f"the copy of {job.cell.label} is not used: {error}")
            if job.status == "finished":
                mirror.put(job.run)
        if brought:
            self.console.print(f"{brought} finished cells brought from {mirror.url}", highlight=False, soft_wrap=True)

    def _note(self, text: str) -> None:
        self.console.print(f"note: {text}", style="yellow", markup=False, soft_wrap=True)

    def _leave(self, mirror: Mirror) -> bool:
        """Wait for the last copies; whether all were made."""
        wrong = mirror.close(self.suite.name)
        for line in wrong:
            self._note(f"not copied to {mirror.url}, the same command tries again: {line}")
        return not wrong

    def _get_data(self) -> None:
        by_dataset: dict[str, list[Job]] = {dataset_id: [] for dataset_id in self.suite.datasets}
        for job in self.work:
            if job.status == "pending":
                by_dataset[job.cell.dataset].append(job)
        wanted = {dataset_id: jobs for dataset_id, jobs in by_dataset.items() if jobs}
        with making_ahead(list(wanted), self.jobs):
            for dataset_id, jobs in wanted.items():
                try:
                    with generation_bar(self.console, dataset_id) as progress:
                        data = datasets.load(dataset_id, progress)
                except datasets.DatasetError as error:
                    for job in jobs:
                        job.fail("refused", str(error))
                    self.console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
                    continue
                for job in jobs:
                    job.data_hash = data.content_hash

    # --- the runs ---

    def run(self) -> int:
        """Run what is not finished. Returns 0 if now all is, 130 if stopped, 1 otherwise."""
        try:
            with interruptible():
                return self._run()
        except KeyboardInterrupt:
            self.console.print("stopped; the same command goes on from here", highlight=False, soft_wrap=True)
            return STOPPED
        except OSError as error:  # a full disk, a folder that went away
            self.console.print(
                f"the sweep cannot go on: {error}; its cells were stopped and resume with the same command",
                style="bold red", markup=False, soft_wrap=True,
            )  # fmt: skip
            return FAILED
        finally:
            self.record.journal.close()
            self._lock.close()

    def _run(self) -> int:
        self.prepare()
        skipped = sum(job.status == "finished" for job in self.work)
        self._todo.extend(job for job in self.work if job.status == "pending")
        self._counts.update(job.status for job in self.work)
        self.console.print(
            f"suite {self.suite.name}: {len(self.work)} cells, {skipped} finished before, {len(self._todo)} to run, "
            f"{self.jobs} at a time; results in {self.results}",
            highlight=False,
            soft_wrap=True,
        )
        try:
            self._take_over()
            self.record.begin(self.work)
            if note := self.record.other_code(self.work):
                self.console.print(note, style="yellow", markup=False, soft_wrap=True)
            self._work_off()
        except KeyboardInterrupt:
            if self.cluster and self.cluster.keeps_cells and self._running:
                self.console.print(self.cluster.farewell(len(self._running)), highlight=False, soft_wrap=True)
            else:
                self._stop()
            raise
        except BaseException:  # a full disk: no cell is left running without its sweep
            self._stop()
            raise
        finally:
            self.record.write(self.work)
            copied = self._leave(self._mirror) if self._mirror else True
        for job in (unfinished := [job for job in self.work if job.status != "finished"]):
            log = f"  (log: {job.log})" if job.process else ""
            how = f" ({job.failure})" if job.failure else ""
            self.console.print(
                f"\n{job.status.upper()}{how} {job.cell.label}{log}", style="bold red", markup=False, soft_wrap=True
            )
            text = job.log_text() if job.process and not job.over else job.error or ""
            self.console.print(tail(text), markup=False, highlight=False, soft_wrap=True)
        return FAILED if unfinished or not copied else OK

    def _set(self, job: Job, status: str) -> None:
        self._counts[job.status] -= 1
        self._counts[status] += 1
        job.status = status

    def _take_over(self) -> None:
        """Adopt the cells that outlived the sweep before this one; end those of them that are not wanted now."""
        wanted = {(job.cell.method, job.cell.dataset, job.cell.seed): job for job in self._todo}
        unwanted = []
        for key, entry in self.record.left_running():
            known = entry.get("process")
            process: Process | None = local.adopt(known)
            if process is None and self.cluster:
                process = self.cluster.adopt(known)
            if process is None:
                continue
            job = wanted.get(key)
            if job is None or job.run != entry["run"]:
                unwanted.append(process)
                continue
            job.process, job.identity = process, entry["process"]
            job.started, job.attempts = entry["process"]["started"], 1
            job.log_start = entry["process"]["log_start"]
            job.gpu = entry["process"].get("gpu")
            self._gpus.take(job.gpu.split(",") if job.gpu else [], job.cell.resources)
            self._set(job, "running")
            self._todo.remove(job)
            self._running.append(job)
        if self._running:
            self.console.print(f"{len(self._running)} cells of an earlier sweep still run: adopted", highlight=False)
        at_work = Counter(job.process.pid for job in self._running if job.process)
        for job in self._running:
            if job.packed and job.process:
                job.company = at_work[job.process.pid]
        unwanted = [process for process in unwanted if process.pid is None or process.pid not in at_work]  # of a pack
        if unwanted:
            self.console.print(f"{len(unwanted)} cells of an earlier sweep are not wanted now: ended", highlight=False)
            end_all(unwanted, GRACE)

    def _work_off(self) -> None:
        live = Live(console=self.console, refresh_per_second=4, transient=True) if self.console.is_terminal else None
        try:
            if live:
                live.start()
            while self._todo or self._later or self._running:
                while self._later and self._later[0][0] <= time.time():
                    self._todo.append(heapq.heappop(self._later)[2])
                while job := self._next():
                    self._start([job, *self._company(job)])
                ended = self._collect()
                self._hold_limits()
                if live:
                    shown = [(job, self._status(job)) for job in self._running]
                    live.update(view.live(self.suite.name, self._counts, shown))
                if not ended:
                    time.sleep(0.1)
        finally:
            if live:
                live.stop()

    def _next(self) -> Job | None:
        """Take the first job that no other process is at work on (a cell that outlived its sweep, another suite).

        None if there is none, or no room for it: smaller ones do not overtake, else a large one might wait to the end.
        """
        processes = {id(job) if job.process is None else job.process.pid or id(job): job for job in self._running}
        free = self.jobs - sum(map(self._places, processes.values()))
        if free < 1:
            return None
        for job in self._todo:
            assert job.run is not None
            if is_locked(self.results / job.run):
                continue
            if self._places(job) > free or (self._gpus.free and self._gpus.find(job.cell.resources) is None):
                return None
            self._todo.remove(job)
            return job
        return None

    def _company(self, job: Job) -> list[Job]:
        """Take further seeds of a packed job, to share its process."""
        if not job.packed:
            return []
        alike = [
            other
            for other in self._todo
            if (other.cell.method, other.cell.dataset) == (job.cell.method, job.cell.dataset)
            and not is_locked(self.results / str(other.run))
        ][: self._pack - 1]
        for other in alike:
            self._todo.remove(other)
        return alike

    def _start(self, jobs: list[Job]) -> None:
        """Start a job, or several packed ones in one process."""
        for job in jobs:
            job.note_launch()
            job.attempts += 1
            job.over = job.kill_at = job.failure = job.error = None
            job.company = len(jobs)
        first = jobs[0]
        first.gpu = self._take_gpus(first)
        env = {} if first.gpu is None else {"CUDA_VISIBLE_DEVICES": first.gpu}
        asked = first.cell.resources
        limits = self.limits.of(asked)
        processes: Sequence[Process]
        if first.packed:
            processes = packs.start(self.launch, jobs, self.results, env, limits)
        else:
            processes = [self.launch(Start(first.command(self.results), first.log, env, asked, limits))]
        if (note := getattr(self.launch, "note", None)) and not self._noted:
            self._noted = True
            self.console.print(f"note: each cell starts as a fresh process, since {note}", style="yellow", markup=False)
        for job, process in zip(jobs, processes, strict=True):
            self._started(job, process)

    def _started(self, job: Job, process: Process) -> None:
        job.process = process
        self._running.append(job)
        self._set(job, "running")
        if isinstance(process, RemoteProcess):
            known = process.identity
        else:
            known = local.identity(process.pid) if process.pid else None
        job.identity = known and known | {"started": job.started, "log_start": job.log_start, "gpu": job.gpu}
        self.record.change("started", job, self.work)

    def _take_gpus(self, job: Job) -> str | None:
        """Names of the accelerators that a cell gets; None where the sweep deals out none."""
        if not self._gpus.free:
            return None
        names = self._gpus.find(job.cell.resources) or []
        self._gpus.take(names, job.cell.resources)
        return ",".join(names)

    def _give_back(self, job: Job) -> None:
        """Free the accelerators of a cell that has ended, or leave them to others in its process."""
        assert job.process
        pid = job.process.pid
        left = [other for other in self._running if job.packed and other.process and other.process.pid == pid]
        if left and job.gpu:
            left[0].gpu = job.gpu
        elif job.gpu:
            self._gpus.take(job.gpu.split(","), job.cell.resources, back=True)

    def _collect(self) -> bool:
        """Settle the cells that have ended; whether there were any."""
        ended = False
        for job in list(self._running):
            assert job.process
            if (code := job.process.poll()) is None:
                continue
            ended = True
            self._running.remove(job)
            self._give_back(job)
            if isinstance(job.process, RemoteProcess):
                job.over = job.over or job.process.ending
            if code == BUSY:  # another suite was quicker: come back later
                self._set(job, "pending")
                job.attempts -= 1
                self._put_off(job, _BUSY_WAIT)
                self.record.change("busy", job, self.work)
                continue
            status, failure, error = self._ending(job, code)
            again = failure in TRANSIENT and job.attempts <= self.limits.retries
            self._set(job, "pending" if again else status)
            job.failure, job.error = failure, error
            self.record.change("retry" if again else status, job, self.work)
            if status == "finished" and self._mirror:
                self._mirror.put(str(job.run))
            if again:
                wait = self.limits.wait(job.attempts)
                self._put_off(job, wait)
                text = f"again in {wait:.0f} s: {job.cell.label}: {error}"
            else:
                text = view.line(job, self._counts, self._status(job))
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            if failure and self._disk_is_full(job):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.results))  # the next would fail alike
        return ended

    def _put_off(self, job: Job, seconds: float) -> None:
        heapq.heappush(self._later, (time.time() + seconds, id(job), job))

    def _status(self, job: Job) -> dict[str, Any]:
        return status_of(self.results / job.run) if job.run else {"status": "pending"}

    def _ending(self, job: Job, code: int) -> tuple[str, str | None, str | None]:
        """Status, kind of failure and error of a cell whose process ended with `code`."""
        status = self._status(job)
        if status["status"] == "finished" and code in (OK, local.UNKNOWN):
            return "finished", None, None
        own = job.own_status(self.results)
        error = own.get("error")
        if job.over:
            failure, how = job.over
            return "failed", failure, how
        if code == STOPPED or (code == local.UNKNOWN and own.get("status") == "interrupted"):
            return "interrupted", None, None
        if code == local.UNKNOWN:
            failure, how = ("error", "") if error else ("lost", "it ended while no sweep watched it")
        else:
            failure, how = how_it_ended(code, job.oom_kills, oom_kills())
        if error and error.startswith("FloatingPointError"):
            failure = "diverged"
        printed = tail(job.log_text(), 3)
        return "failed", failure, error or (f"{how}; {printed}" if printed else how)

    def _disk_is_full(self, job: Job) -> bool:
        printed = job.log_text()
        return any(os.strerror(number) in printed for number in _NO_ROOM) or (
            shutil.disk_usage(self.results).free < _FULL
        )

    # --- limits ---

    def _hold_limits(self) -> None:
        """End cells that are over a limit: at the time limit with a checkpoint, at the memory limit at once."""
        now = time.time()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        for job in self._running:
            assert job.process
            if job.process.pid is None:  # elsewhere, where it is watched
                continue
            if job.over:
                if job.kill_at is not None and now >= job.kill_at:
                    job.process.kill()
                    job.kill_at = None
                continue
            limits = self.limits.of(job.cell.resources)
            job.over = limits.passed(job.started, job.process.pid, job.company)
            if job.over and job.over[0] == "time limit":
                job.kill_at = now + GRACE
                job.process.terminate()
            elif job.over:
                job.process.kill()

    # --- the end ---

    def _stop(self) -> None:
        """End what runs, with a checkpoint where it can; a second Ctrl-C, or the end of the grace time, kills."""
        end_all([job.process for job in self._running if job.process], GRACE)
        for job in self._running:
            done = job.process is not None and self._ending(job, job.process.poll() or OK)[0] == "finished"
            self._set(job, "finished" if done else "interrupted")  # one in its last evaluation goes to its end
            if done and self._mirror:
                self._mirror.put(str(job.run))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a request to end, or the loss of the terminal (but not under nohup), stop the sweep as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
