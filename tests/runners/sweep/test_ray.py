"""Cells on a Ray cluster: two nodes on this machine, one of which is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from helpers import ROOT

from hoard.runners.sweep.limits import Limits
from hoard.runners.sweep.ray import threads_of
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import read

SUITE = """
description = "a test"
seeds = 4
datasets = ["test/pendulum-v0"]
[options]
updates = 300
hidden = [16]
batch_size = 32
log_every = 20
eval_every = 100
eval_episodes = 2
final_eval_episodes = 3
checkpoint_every = 20
[method.slow]
algo = "slow.py"
"""
HOOK = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"


@pytest.fixture
def suite_file(tmp_path, tiny):
    source = (ROOT / "algos" / "bc.py").read_text()
    assert HOOK in source
    (tmp_path / "slow.py").write_text(source.replace(HOOK, "        import time\n        time.sleep(0.02)\n" + HOOK))
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path


def rows_of(results: Path) -> dict[str, bytes]:
    return {str(p.relative_to(results)): p.read_bytes() for p in results.glob("runs/*/*/*/episodes.parquet")}


@pytest.fixture
def cluster(monkeypatch):
    """A head and a second node, of one CPU each, as two raylets on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of an earlier test in this process
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = made.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield second
    ray.shutdown()
    made.shutdown()


def beneath(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_a_lost_node_costs_a_retry(cluster, suite_file, tmp_path):
    """Killed with its cell in mid-flight: the cell goes on elsewhere from its checkpoint, and the rows are the same."""
    from hoard.runners.sweep.ray import cluster_cpus, launch_ray

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert Sweep(read(str(suite_file)), straight, 2, "test").run() == 0
    launcher = launch_ray()
    assert cluster_cpus() == 2
    lost: list[int] = []

    def lose() -> None:
        """Once a cell on the second node has a checkpoint, the node and all that runs on it are gone."""
        raylet = next(info.process for info in cluster.all_processes["raylet"])
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not lost:
            pids = {process.pid for process in beneath(raylet.pid)}
            for file in broken.glob("runs/*/*/*/status.json"):
                if json.loads(file.read_text())["pid"] in pids and (file.parent / "checkpoint.pt").exists():
                    found = [raylet.pid, *pids]
                    for pid in found:
                        os.kill(pid, signal.SIGKILL)
                    lost.extend(found)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=lose)
    thread.start()
    sweep = Sweep(read(str(suite_file)), broken, 2, "test", launcher, Limits(backoff=0.1))
    status = sweep.run()
    thread.join()
    assert lost, "no cell ran on the second node"
    assert status == 0
    assert sum(job.attempts for job in sweep.work) > len(sweep.work)
    journal = [json.loads(line) for line in (broken / "small" / "journal.jsonl").read_text().splitlines()]
    assert {line["now"]["failure"] for line in journal if line["event"] == "retry"} == {"lost"}
    logs = "".join(path.read_text() for path in (broken / "small" / "logs").iterdir())
    assert "resuming after update" in logs
    assert rows_of(broken) == rows_of(straight)
    assert len(rows_of(straight)) == 4


@pytest.mark.parametrize(
    ("command", "threads"), [(["python", "bc.py", "--seed", "3"], 1), (["python", "bc.py", "--threads", "4"], 4)]
)
def test_a_task_asks_for_the_threads_of_its_cell(command, threads):
    assert threads_of(command) == threads
