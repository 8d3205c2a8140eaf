"""Cells as tasks of a Ray cluster whose nodes share this file system and this environment.

A task asks for as many CPUs as its cell has threads. Ray itself retries nothing: the sweep does, from the checkpoint,
and waits for the lock of a cell that outlived its worker.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from hoard.records.errors import STOPPED, BadInput
from hoard.runners.sweep.job import Launcher
from hoard.runners.sweep.local import UNKNOWN, environment


def threads_of(command: list[str]) -> int:
    """The value of a cell's option `threads`, which is 1 where it is not given."""
    return int(command[command.index("--threads") + 1]) if "--threads" in command else 1


def cluster_cpus() -> int:
    """CPUs of the whole cluster that `launch_ray` connected to."""
    import ray

    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def launch_ray() -> Launcher:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine. Raises BadInput without the extra `ray`."""
    try:
        import ray
    except ImportError as error:
        raise BadInput("--ray needs the extra: pip install 'hoard[ray]'") from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)

    @ray.remote(num_cpus=1, max_retries=0)
    def cell(command: list[str], log: str, folder: str) -> int:
        with open(log, "ab") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment(), cwd=folder
            )
            try:
                return process.wait()
            except KeyboardInterrupt:  # how a cancelled task is told
                process.terminate()
                process.wait()
                return STOPPED

    class Task:
        pid: int | None = None  # it is another machine's

        def __init__(self, command: list[str], log: Path, _: Mapping[str, str]) -> None:
            asked = cell.options(num_cpus=threads_of(command))
            self._reference = asked.remote(command, str(log.resolve()), str(Path.cwd()))

        def poll(self) -> int | None:
            ready, _ = ray.wait([self._reference], timeout=0)
            if not ready:
                return None
            try:
                return ray.get(self._reference)
            except ray.exceptions.TaskCancelledError:
                return STOPPED
            except ray.exceptions.RayError:  # a worker or a node went away with the cell; its checkpoint did not
                return UNKNOWN

        def terminate(self) -> None:
            ray.cancel(self._reference)

        def kill(self) -> None:
            ray.cancel(self._reference, force=True)

    return Task
