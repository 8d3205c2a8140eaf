"""Cells as tasks of a Ray cluster whose nodes share this file system and this environment.

A task asks for the CPUs, GPUs and memory that the suite names; where it names none, for as many CPUs as its cell has
threads. Ray itself retries nothing: the sweep does, from the checkpoint, and waits for the lock of a cell that outlived
its worker.
"""

from __future__ import annotations

from typing import Any

from hoard.records.errors import STOPPED, BadInput
from hoard.runners.sweep.job import Job, Start
from hoard.runners.sweep.limits import Resources
from hoard.runners.sweep.remote import Cluster, RemoteProcess, Watch, lost, order_of


def threads_of(command: list[str]) -> int:
    """The value of a cell's option `threads`, which is 1 where it is not given."""
    return int(command[command.index("--threads") + 1]) if "--threads" in command else 1


def demand(command: list[str], resources: Resources) -> dict[str, float]:
    """What a cell takes of a node, by Ray's names."""
    asked = {"CPU": resources.cpus or threads_of(command), "GPU": resources.gpus, "memory": resources.memory}
    return {name: value for name, value in asked.items() if value}


class RayTask(RemoteProcess):
    """A cell as a Ray task."""

    def __init__(self, ray: Any, reference: Any) -> None:
        super().__init__()
        self._ray, self._reference = ray, reference

    def look(self) -> dict[str, Any] | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return self._ray.get(self._reference)
        except self._ray.exceptions.TaskCancelledError:
            return {"code": STOPPED, "ending": None}
        except self._ray.exceptions.RayTaskError as error:  # the cell could not even be started there
            return {"code": 1, "ending": ("error", f"Ray's task failed: {error.cause!r}")}
        except self._ray.exceptions.RayError as error:
            return lost(f"its worker or its node went away ({type(error).__name__})")

    def terminate(self) -> None:
        self._ray.cancel(self._reference)

    def kill(self) -> None:
        self._ray.cancel(self._reference, force=True)


class RayCluster(Cluster):
    """The cluster of RAY_ADDRESS, or one that is started on this machine. Raises BadInput without the extra `ray`."""

    def __init__(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise BadInput("--engine ray needs the extra: pip install 'hoard[ray]'") from error
        self._ray = ray
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        self._task = ray.remote(max_retries=0)(_watched)
        self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    @property
    def cpus(self) -> int:
        """Of the whole cluster."""
        return max(int(self._ray.cluster_resources().get("CPU", 1)), 1)

    def __call__(self, start: Start) -> RayTask:
        asked = demand(start.command, start.resources)
        task = self._task.options(
            num_cpus=asked["CPU"], num_gpus=asked.get("GPU", 0), memory=asked.get("memory"), name=start.log.stem
        )
        return RayTask(self._ray, task.remote(order_of(start)))

    def cannot_have(self, job: Job) -> str | None:
        asked = demand(job.cell.args, job.cell.resources)
        if any(all(node.get(name, 0) >= value for name, value in asked.items()) for node in self._nodes):
            return None
        words = {"CPU": "{:g} CPUs", "GPU": "{:g} GPUs", "memory": "{:.0f} bytes of memory"}
        shown = [words[name].format(value) for name, value in asked.items()]
        return f"no node of the Ray cluster has {' and '.join(shown)}"


def _watched(order: dict[str, Any]) -> dict[str, Any]:
    return Watch(order).wait()
