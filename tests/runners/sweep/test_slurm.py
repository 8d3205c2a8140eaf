"""Cells as jobs: with submitit's local executor, and by what is handed to commands that stand in for Slurm's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, SMALL_SUITE

from hoard.cli import main
from hoard.records import cells
from hoard.records.errors import STOPPED, BadInput
from hoard.runners.sweep import local
from hoard.runners.sweep.job import Start
from hoard.runners.sweep.limits import Limits, Resources
from hoard.runners.sweep.local import UNKNOWN
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.slurm import SlurmCluster, parse_parameters
from hoard.runners.sweep.suite import read

pytest.importorskip("submitit")

LONG = 300  # seconds for what takes ten on an idle machine
HOOK = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
WAIT = """        import time
        from pathlib import Path
        while run.update == 30 and not (Path(__file__).parent / "go").exists() and not run.stop_requested:
            time.sleep(0.05)
"""


@pytest.fixture
def suite_file(tmp_path, tiny):
    """Cells that wait for the file `go` after their first checkpoint."""
    source = (ROOT / "algos" / "bc.py").read_text()
    assert HOOK in source
    (tmp_path / "waits.py").write_text(source.replace(HOOK, WAIT + HOOK))
    path = tmp_path / "small.toml"
    path.write_text(SMALL_SUITE.replace("[method.bc]", "[method.waits]\nalgo = 'waits.py'\n"))
    return path


def until(true) -> None:
    deadline = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- submitit's local executor ---


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_its_jobs_and_the_next_adopts_and_retries_them(suite_file, tmp_path, capsys):
    """Of the two, one is then killed and one is warned, as before its time is up: both go on from their checkpoints."""
    results, go = tmp_path / "results", tmp_path / "go"
    args = ["bench", str(suite_file), "--results", str(results), "--engine", "slurm", "--jobs", "2"]
    with open(tmp_path / "printed", "w") as printed:
        first = subprocess.Popen(
            [sys.executable, "-m", "hoard.cli", *args, "--slurm", "cluster=local", "time=60"],
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
    until(lambda: len(list(results.glob("runs/*/*/*/checkpoint.pt"))) == 2 or first.poll() is not None)
    first.send_signal(signal.SIGINT)
    status, told = first.wait(timeout=LONG), (tmp_path / "printed").read_text()
    assert status == STOPPED, told
    assert "2 cells go on as jobs; the same command adopts them" in " ".join(told.split())
    pids = [json.loads(path.read_text())["pid"] for path in results.glob("runs/*/*/*/status.json")]
    watchers = [psutil.Process(pid).parent() for pid in pids]
    assert [cell["status"] for cell in cells.read(results / "small")["cells"]] == ["running"] * 2

    cluster = SlurmCluster(results / "small" / "slurm", "small", Limits(), "local", {"time": 60})
    sweep = Sweep(read(str(suite_file)), results, 2, "test", cluster, Limits(backoff=0.1))

    def meddle() -> None:
        try:
            until(lambda: len(sweep._running) == 2)
            for process in [psutil.Process(pids[0]), watchers[0]]:
                process.kill()
            watchers[1].send_signal(signal.SIGUSR2)
            until(lambda: not psutil.pid_exists(pids[1]) or psutil.Process(pids[1]).status() == psutil.STATUS_ZOMBIE)
        finally:
            go.touch()

    thread = threading.Thread(target=meddle)
    thread.start()
    assert sweep.run() == 0
    thread.join()
    assert "2 cells of an earlier sweep still run: adopted" in capsys.readouterr().out
    assert [job.attempts for job in sweep.work] == [2, 2]
    journal = [json.loads(line) for line in (results / "small" / "journal.jsonl").read_text().splitlines()]
    retries = sorted(line["now"]["error"] for line in journal if line["event"] == "retry")
    assert [error.split()[0] for error in retries] == ["Slurm", "job"]
    assert {line["now"]["failure"] for line in journal if line["event"] == "retry"} == {"lost"}
    logs = [path.read_text() for path in (results / "small" / "logs").iterdir()]
    assert sorted(text.count("resuming after update 20") + text.count("resuming after update 30") for text in logs) == [
        1,
        1,
    ]
    straight = tmp_path / "straight"
    assert Sweep(read(str(suite_file)), straight, 2, "test").run() == 0
    made, expected = (
        {path.parent.name: path.read_bytes() for path in folder.glob("runs/*/*/*/episodes.parquet")}
        for folder in (results, straight)
    )
    assert made == expected
    assert len(made) == 2


WAITS = (
    "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(130))\nprint('up', flush=True)\ntime.sleep(600)\n"
)


def job(cluster: SlurmCluster, folder: Path, program: str, **more):
    return cluster(Start([sys.executable, "-c", program], folder / "log", **more))


def end_of(cell) -> tuple[int, str | None]:
    until(lambda: cell.poll() is not None)
    return cell.poll(), cell.ending and cell.ending[0]


def test_jobs_end_as_cells_do(tmp_path):
    """One is asked to, one preempted, one reaches its limit, one is killed for good, one fails; each is told apart."""
    cluster = SlurmCluster(tmp_path / "slurm", "small", Limits(), "local", {"time": 60})
    asked, preempted = (job(cluster, tmp_path, WAITS) for _ in range(2))
    (tmp_path / "other").mkdir()
    long = job(cluster, tmp_path / "other", WAITS, limits=Limits(seconds=1))
    killed = job(cluster, tmp_path / "other", "import time\ntime.sleep(600)")
    fails = job(cluster, tmp_path / "other", "raise SystemExit(3)")
    assert cluster.adopt(asked.identity) is not None
    assert cluster.adopt({"host": "here", "pid": 3, "created": 0}) is None
    until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().count("up") == 2)
    asked.terminate()
    os.kill(int(preempted.identity["job"]), signal.SIGTERM)
    killed.kill()
    assert end_of(asked) == (STOPPED, None)
    assert end_of(preempted) == (130, "lost")
    assert end_of(long)[1] == "time limit"
    assert end_of(fails) == (3, None)
    assert end_of(killed) == (STOPPED, None)
    assert [cluster.adopt(cell.identity) for cell in (asked, long, fails, killed)] == [None] * 4
    assert local.adopt(asked.identity) is None


# --- commands that stand in for Slurm's ---


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster whose sbatch keeps what it is given, and whose jobs are in the state that the file `state` names."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "sbatch": f'cp "$1" {tmp_path}/batch; if [ -e {tmp_path}/full ]; then echo full >&2; exit 1; fi\n'
        "echo Submitted batch job 7",
        "sacct": f'echo "JobID|State|NodeList"; echo "7|$(cat {tmp_path}/state)|n1"',
        "scancel": f'echo "$@" >> {tmp_path}/cancelled',
        "srun": "",
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    import submitit

    monkeypatch.setattr(submitit.SlurmJob, "watcher", type(submitit.SlurmJob.watcher)(delay_s=0))
    made = SlurmCluster(
        tmp_path / "slurm", "small", Limits(), "slurm", {"time": 90, "partition": "gpu", "account": "me"}
    )
    made.settle = made.pause = 0.0
    return made


def test_a_job_asks_slurm_for_what_its_cell_needs(slurm, tmp_path):
    resources = Resources(cpus=2, gpus=1, memory=4 << 30)
    job(slurm, tmp_path, "", resources=resources, limits=Limits().of(resources))
    flags = {line.removeprefix("#SBATCH ") for line in (tmp_path / "batch").read_text().splitlines()}
    assert flags >= {
        "--partition=gpu", "--account=me", "--time=90", "--cpus-per-task=2", "--gpus-per-node=1", "--mem=4352MB",
        "--no-requeue", "--job-name=hoard-small",
    }  # fmt: skip
    assert "--cpus-per-task=2" in next(flag for flag in flags if flag.startswith("srun"))
    job(slurm, tmp_path, "")  # of a cell that asks for nothing: none of that is left over
    flags = {line.removeprefix("#SBATCH ") for line in (tmp_path / "batch").read_text().splitlines()}
    assert "--cpus-per-task=1" in flags
    assert not [flag for flag in flags if flag.startswith(("--mem", "--gpus"))]


@pytest.mark.parametrize(
    ("state", "failure"),
    [
        ("PENDING", None), ("RUNNING", None), ("COMPLETING", None), ("", None), ("NODE_FAIL", "lost"),
        ("TIMEOUT", "lost"), ("PREEMPTED", "lost"), ("CANCELLED by 1000", "lost"), ("COMPLETED", "lost"),
        ("OUT_OF_MEMORY", "out of memory"),
    ],
)  # fmt: skip
def test_a_job_that_left_no_word_is_known_by_its_state(slurm, tmp_path, state, failure):
    (tmp_path / "state").write_text(state)
    cell = job(slurm, tmp_path, "")
    adopted = slurm.adopt(cell.identity)
    if failure is None:
        assert cell.poll() is None
        assert adopted is not None
        assert adopted.identity == cell.identity
        return
    assert adopted is None
    assert cell.poll() == UNKNOWN
    assert cell.ending[0] == failure
    assert f"job 7 ended as {state.split()[0]}" in cell.ending[1]
    cell = job(slurm, tmp_path, "")
    Path(cell.identity["ending"]).write_text(json.dumps({"code": 130, "ending": ["time limit", "too long"]}))
    assert (cell.poll(), cell.ending) == (130, ("time limit", "too long"))


def test_what_is_asked_to_end_in_the_queue_is_no_loss(slurm, tmp_path):
    (tmp_path / "state").write_text("PENDING")
    cell = job(slurm, tmp_path, "")
    assert cell.poll() is None
    cell.terminate()
    (tmp_path / "state").write_text("CANCELLED by 0")
    assert (cell.poll(), cell.ending) == (STOPPED, None)
    cell.kill()
    assert (tmp_path / "cancelled").read_text() == "7\n--signal=KILL 7\n"


def test_a_full_queue_is_waited_for_and_a_wrong_request_is_not(slurm, tmp_path):
    (tmp_path / "full").touch()
    with pytest.raises(BadInput, match=r"sbatch refuses: [\s\S]*full"):
        job(slurm, tmp_path, "")
    (tmp_path / "full").unlink()
    job(slurm, tmp_path, "")
    (tmp_path / "full").touch()
    refused = job(slurm, tmp_path, "")
    assert refused.poll() == UNKNOWN
    assert refused.ending[0] == "lost"
    assert "its job was not accepted" in refused.ending[1]


# --- what is refused ---


def test_parameters_are_those_of_submitit():
    assert parse_parameters(["partition=gpu", "time=90", "exclusive=true", "setup=module load x"]) == (
        "slurm",
        {"partition": "gpu", "time": 90, "exclusive": True, "setup": ["module load x"]},
    )
    assert parse_parameters(["cluster=local"]) == ("local", {})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["partitoin=gpu"], "--slurm partitoin: not known to submitit; nearest: partition"),
        (["partition"], "--slurm partition: write KEY=VALUE"),
        (["time=1h"], "--slurm time=1h: write a number of minutes from 1"),
        (["mem=4G"], "--slurm mem: it follows from `resources` in the suite or --memory-limit"),
        (["cpus-per-task=4"], "--slurm cpus_per_task: it follows from `resources` in the suite"),
        (["cluster=lsf"], "--slurm cluster=lsf: there are slurm, and local"),
        (["cluster=local"], "--engine slurm needs the length of a job: --time-limit, or --slurm time=MINUTES"),
        (["time=9", "--cold"], "--cold is for this machine, not for --engine slurm"),
        (["time=9"], "--engine slurm: this machine has no sbatch, srun, sacct, scancel"),
        (
            ["time=9", "cluster=local"],
            "waits on test/pendulum-v0: gpus = 0.5: submitit's local executor deals out none",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(suite_file, tmp_path, args, message, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    suite_file.write_text(suite_file.read_text() + "resources = { gpus = 0.5 }\n")
    with pytest.raises(SystemExit) as end:
        main(["bench", str(suite_file), "--results", str(tmp_path / "results"), "--engine", "slurm", "--slurm", *args])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_slurm_takes_whole_gpus_only_and_its_parameters_go_with_it(slurm, suite_file, tmp_path, capsys):
    suite_file.write_text(suite_file.read_text() + "resources = { gpus = 0.5 }\n")
    with pytest.raises(BadInput, match=r"waits on test/pendulum-v0: gpus = 0.5: Slurm gives whole ones only"):
        Sweep(read(str(suite_file)), tmp_path / "results", 1, "test", slurm)
    with pytest.raises(SystemExit):
        main(["bench", str(suite_file), "--slurm", "time=9"])
    assert "--slurm goes with --engine slurm" in capsys.readouterr().err
