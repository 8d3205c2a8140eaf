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
from helpers import ROOT, SMALL_SUITE

from hoard.records.errors import BadInput
from hoard.runners.sweep.limits import Limits, Resources
from hoard.runners.sweep.ray import RayCluster, demand, threads_of
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import read

HOOK = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
# After its first checkpoint a cell waits for the file `go`: what is done to it meanwhile needs no luck with the time.
WAIT = """        import time
        from pathlib import Path
        while run.update == 30 and not (Path(__file__).parent / "go").exists():
            time.sleep(0.05)
"""
START = "def train(cfg: Config, run: Run) -> None:\n"
TELL = "    import os\n    run.say('sees ' + str(os.environ.get('CUDA_VISIBLE_DEVICES')))\n"
LONG = 400  # seconds for what takes ten on an idle machine


@pytest.fixture
def suite_file(tmp_path, tiny):
    source = (ROOT / "algos" / "bc.py").read_text()
    assert HOOK in source
    assert START in source
    (tmp_path / "waits.py").write_text(source.replace(HOOK, WAIT + HOOK).replace(START, START + TELL))
    path = tmp_path / "small.toml"
    path.write_text(SMALL_SUITE.replace("[method.bc]", "[method.waits]\nalgo = 'waits.py'\n"))
    return path


def rows_of(results: Path) -> dict[str, bytes]:
    return {str(p.relative_to(results)): p.read_bytes() for p in results.glob("runs/*/*/*/episodes.parquet")}


@pytest.fixture(scope="module")
def nodes():
    """A head and a second node, of one CPU each, as two raylets on this machine; the second says that it has a GPU."""
    if os.environ.get("HOARD_RAY") != "required":
        pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    # Ray makes its workers nice to all other processes, which on a busy machine leaves cells next to no time.
    config = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "worker_niceness": 0}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": config})
    second = made.add_node(num_cpus=1, num_gpus=1)
    made.wait_for_nodes(timeout=LONG)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = made.address
    yield second
    ray.shutdown()
    made.shutdown()
    del os.environ["RAY_ADDRESS"]
    if before is not None:
        os.environ["RAY_ADDRESS"] = before


def test_a_cell_gets_what_its_suite_asks_for_or_is_refused(nodes, suite_file, tmp_path):
    (tmp_path / "go").touch()
    text = suite_file.read_text().replace("seeds = 2", "seeds = 1")
    suite_file.write_text(text + 'resources = { gpus = 1, memory = "1M" }\n')
    sweep = Sweep(read(str(suite_file)), tmp_path / "results", 1, "test", RayCluster())
    assert sweep.run() == 1
    (job,) = sweep.work
    assert (job.failure, job.attempts) == ("memory limit", 1)
    suite_file.write_text(text + 'resources = { gpus = 1, memory = "2G" }\n')
    assert Sweep(read(str(suite_file)), tmp_path / "results", 1, "test", RayCluster()).run() == 0
    assert "sees 0" in (tmp_path / "results" / "small" / "logs" / "waits--test-pendulum-v0--0.log").read_text()
    suite_file.write_text(text + "resources = { cpus = 2, gpus = 1 }\n")
    with pytest.raises(BadInput, match=r"waits on test/pendulum-v0: no node of the Ray cluster has 2 CPUs and 1 GPUs"):
        Sweep(read(str(suite_file)), tmp_path / "results", 2, "test", RayCluster())


def test_a_lost_node_costs_a_retry(nodes, suite_file, tmp_path):
    """Killed with its cell in mid-flight: the cell goes on elsewhere from its checkpoint, and the rows are the same."""
    straight, broken, go = tmp_path / "straight", tmp_path / "broken", tmp_path / "go"
    go.touch()
    assert Sweep(read(str(suite_file)), straight, 2, "test").run() == 0
    go.unlink()
    cluster = RayCluster()
    assert cluster.cpus == 2
    lost: list[int] = []

    def lose() -> None:
        """When both cells wait, the second node and all that runs on it are gone."""
        raylet = next(info.process for info in nodes.all_processes["raylet"])
        deadline = time.monotonic() + LONG
        try:
            while len(list(broken.glob("runs/*/*/*/checkpoint.pt"))) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            found = [*psutil.Process(raylet.pid).children(recursive=True), psutil.Process(raylet.pid)]
            at_work = {json.loads(p.read_text())["pid"] for p in broken.glob("runs/*/*/*/status.json")}
            lost.extend(at_work & {process.pid for process in found})
            for process in reversed(found):
                process.send_signal(signal.SIGKILL)
        finally:
            go.touch()

    thread = threading.Thread(target=lose)
    thread.start()
    sweep = Sweep(read(str(suite_file)), broken, 2, "test", cluster, Limits(backoff=0.1))
    status = sweep.run()
    thread.join()
    assert len(lost) == 1
    assert status == 0
    assert sorted(job.attempts for job in sweep.work) == [1, 2]
    journal = [json.loads(line) for line in (broken / "small" / "journal.jsonl").read_text().splitlines()]
    assert {line["now"]["failure"] for line in journal if line["event"] == "retry"} == {"lost"}
    logs = "".join(path.read_text() for path in (broken / "small" / "logs").iterdir())
    assert logs.count("resuming after update 20") == 1
    assert rows_of(broken) == rows_of(straight)
    assert len(rows_of(straight)) == 2


@pytest.mark.parametrize(
    ("command", "threads"), [(["python", "bc.py", "--seed", "3"], 1), (["python", "bc.py", "--threads", "4"], 4)]
)
def test_a_task_asks_for_the_threads_of_its_cell(command, threads):
    assert threads_of(command) == threads
    assert demand(command, Resources()) == {"CPU": threads}
    assert demand(command, Resources(2, 0.5, 1 << 30)) == {"CPU": 2, "GPU": 0.5, "memory": 1 << 30}
