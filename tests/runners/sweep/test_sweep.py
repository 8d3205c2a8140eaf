"""Sweeps: killed, interrupted, crowded, crashing, asked for wrongly."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

from hoard.cli import main
from hoard.records.errors import BadInput
from hoard.runners import algorithms
from hoard.runners.address import address
from hoard.runners.sweep import suite as suites
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import SuiteError, parse_seeds, read, select

SUITE = """
description = "a test"
seeds = 2
datasets = ["test/pendulum-v0"]
[options]
updates = 300
hidden = [16]
batch_size = 32
log_every = 20
eval_every = 50
eval_episodes = 2
final_eval_episodes = 3
checkpoint_every = 40
[method.iql]
[method.bc]
"""


@pytest.fixture
def suite_file(tmp_path, tiny):
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path


@pytest.fixture
def algos(tmp_path, monkeypatch):
    """A folder of algorithm files that a test may add to."""
    folder = tmp_path / "algos"
    folder.mkdir()
    for name in ("iql", "bc"):
        shutil.copy(ROOT / "algos" / f"{name}.py", folder)
    monkeypatch.setattr(algorithms, "FOLDER", folder)
    return folder


def bench(*args: object) -> list[str]:
    return [sys.executable, "-m", "hoard.cli", "bench", *map(str, args)]


def rows_of(results: Path) -> dict[str, bytes]:
    return {str(p.relative_to(results)): p.read_bytes() for p in results.glob("runs/*/*/*/episodes.parquet")}


def updates_done(results: Path) -> int:
    return sum(json.loads(p.read_text())["update"] for p in results.glob("runs/*/*/*/status.json"))


def until(condition, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


@pytest.fixture
def interruptible():
    """A shell starts background jobs with SIGINT ignored and their children inherit that; here Ctrl-C must count."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
def test_killed_interrupted_and_resumed_equals_undisturbed(suite_file, tmp_path):
    """SIGKILL to the process tree, SIGKILL to the sweep alone, Ctrl-C, then to the end: every row equal to the bit."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = subprocess.run(bench(suite_file, "--results", straight), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "report.html" in done.stdout

    for signal_number, tree, after in (
        (signal.SIGKILL, True, 60),
        (signal.SIGKILL, False, 350),
        (signal.SIGINT, True, 700),
    ):
        log = tmp_path / f"after-{after}.txt"
        with log.open("w") as out:
            sweep = subprocess.Popen(bench(suite_file, "--results", broken), stdout=out, start_new_session=True)
        # Cells that outlived the sweep before may be that far while this one still imports: wait for its first line.
        until(lambda: ("to run" in log.read_text() and updates_done(broken) >= after) or sweep.poll() is not None)  # noqa: B023
        assert sweep.poll() is None, "the sweep ended before it could be disturbed"
        (os.killpg if tree else os.kill)(sweep.pid, signal_number)  # alone, its cells outlive it and are waited for
        assert sweep.wait(timeout=120) == (-9 if signal_number == signal.SIGKILL else 130)
    states = [json.loads(p.read_text())["status"] for p in broken.glob("runs/*/*/*/status.json")]
    assert "finished" not in states or len(set(states)) > 1

    done = subprocess.run(bench(suite_file, "--results", broken), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows_of(straight)) == 4
    assert rows_of(broken) == rows_of(straight)
    tables = [(r / "small" / "episodes.parquet").read_bytes() for r in (straight, broken)]
    assert tables[0] == tables[1]

    before = {p: p.stat().st_mtime_ns for p in broken.glob("runs/*/*/*/*")}
    again = subprocess.run(bench(suite_file, "--results", broken), capture_output=True, text=True, timeout=120)
    assert "4 finished before, 0 to run" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in broken.glob("runs/*/*/*/*")} == before


def test_a_crashing_cell_costs_itself_only(suite_file, algos, tmp_path, capsys):
    """A Python error, a dead interpreter and a file that cannot be imported are listed; the others finish."""
    source = (algos / "bc.py").read_text()
    start = "def train(cfg: Config, run: Run) -> None:\n"
    (algos / "raises.py").write_text(source.replace(start, start + "    raise KeyError('lost')\n"))
    (algos / "dies.py").write_text(source.replace(start, start + "    import os; os.abort()\n"))
    (algos / "unreadable.py").write_text("def (")
    suite = select(read(str(suite_file)), ["bc", "raises", "dies", "unreadable"], seeds="1")
    sweep = Sweep(suite, tmp_path / "results", jobs=2, command="test")
    assert sweep.run() == 1
    printed = " ".join(capsys.readouterr().out.split())
    status = {job.cell.method: job.status for job in sweep.work}
    assert status == {"bc": "finished", "raises": "failed", "dies": "failed", "unreadable": "failed"}
    for words in (
        "FAILED (error) raises",
        "KeyError: 'lost'",
        "FAILED (killed) dies",
        "FAILED (refused) unreadable",
        "SyntaxError",
    ):
        assert words in printed
    cells = json.loads((tmp_path / "results" / "small" / "cells.json").read_text())["cells"]
    errors = {cell["method"]: cell["error"] for cell in cells}
    assert "lost" in errors["raises"]
    assert "SIGABRT" in errors["dies"]
    assert "SyntaxError" in errors["unreadable"]


def test_a_fork_equals_its_original_to_the_bit(suite_file, algos, tmp_path):
    """cp algos/iql.py algos/my_iql.py is all it takes; settings of the suite for iql reach it too."""
    shutil.copy(algos / "iql.py", algos / "my_iql.py")
    suite_file.write_text(SUITE.replace("[method.iql]", "[method.iql]\noptions = { beta = 7.0 }"))
    suite = select(read(str(suite_file)), ["iql", "my_iql"], seeds="1", overrides={"updates": "60"})
    sweep = Sweep(suite, tmp_path / "results", jobs=2, command="test")
    assert sweep.run() == 0
    one, two = rows_of(tmp_path / "results").values()
    assert one == two
    assert {job.run.split("/")[1] for job in sweep.work} == {"iql", "my_iql"}
    assert all(job.overrides["beta"] == 7.0 and job.overrides["updates"] == 60 for job in sweep.work)


def test_a_file_edited_during_the_sweep_is_refused(suite_file, algos, tmp_path, monkeypatch):
    """What was planned is what runs: no cell trains to the end at an address nobody looks at."""
    sweep = Sweep(select(read(str(suite_file)), ["bc"], seeds="1"), tmp_path / "results", 1, "test")
    prepare = sweep.prepare

    def edited():
        prepare()
        (algos / "bc.py").write_text((algos / "bc.py").read_text() + "\nEDITED = True\n")

    monkeypatch.setattr(sweep, "prepare", edited)
    assert sweep.run() == 1
    assert "was the file edited while it ran?" in sweep.work[0].error
    assert not (tmp_path / "results" / "runs").exists()


def test_a_cell_stopped_from_outside_is_not_success(suite_file, algos, tmp_path, capsys):
    source = (algos / "bc.py").read_text()
    hook = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
    assert hook in source
    (algos / "bc.py").write_text(
        source.replace(hook, hook + "        import os, signal\n        os.kill(os.getpid(), signal.SIGTERM)\n")
    )
    sweep = Sweep(select(read(str(suite_file)), ["bc"], seeds="1"), tmp_path / "results", 1, "test")
    assert sweep.run() == 1
    assert sweep.work[0].status == "interrupted"
    assert "INTERRUPTED bc" in capsys.readouterr().out


def test_two_sweeps_in_one_folder_are_refused(suite_file, tmp_path):
    folder = tmp_path / "results" / "small"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 4711")
        lock.flush()
        with pytest.raises(BadInput, match=r"another process \(process 4711\) is working in .*another sweep"):
            Sweep(read(str(suite_file)), tmp_path / "results", 1, "test")
    Sweep(read(str(suite_file)), tmp_path / "results", 1, "test")  # released with the process


def test_a_cell_at_work_elsewhere_is_waited_for(suite_file, algos, tmp_path, monkeypatch):
    """Two suites share a cell: the second sweep waits for the first one's process and then finds it finished."""
    results = tmp_path / "results"
    source = (algos / "bc.py").read_text()
    hook = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
    waits = "        import time\n        while not (run.folder / 'go').exists():\n            time.sleep(0.01)\n"
    assert hook in source
    (algos / "bc.py").write_text(source.replace(hook, hook + waits))
    suite = select(read(str(suite_file)), ["bc"], seeds="1")
    args = suite.cells()[0].args
    other = subprocess.Popen(
        [sys.executable, str(algos / "bc.py"), *args, "--results", str(results)], stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: list(results.glob("runs/*/*/*/.lock")))
        sweep = Sweep(suite, results, 1, "test")
        find = sweep._next

        def found():
            if (job := find()) is None and sweep._todo:  # it has met the lock: let the other one go on
                (results / sweep._todo[0].run / "go").touch()
            return job

        monkeypatch.setattr(sweep, "_next", found)
        assert sweep.run() == 0
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
        other.wait()
    assert "finished before" in sweep.work[0].log.read_text()  # started once, when the other had ended


def test_a_dataset_that_cannot_be_had_fails_its_own_cells(suite_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path))
    damaged = tmp_path / "damaged.hdf5"
    damaged.write_bytes(b"\x89HDF\r\n\x1a\n cut short")
    suite = select(read(str(suite_file)), ["bc"], ["test/pendulum-v0", f"d4rl:{damaged}"], "1", {"updates": "20"})
    sweep = Sweep(suite, tmp_path / "results", 2, "test")
    assert sweep.run() == 1
    assert [job.status for job in sweep.work] == ["finished", "failed"]
    assert "not a readable HDF5 file" in sweep.work[1].error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "updatez=5"], "--updates"),
        (["--set", "updates"], "OPTION=VALUE"),
        (["--datasets", "hoard/pendulum/mixd-v0"], "hoard/pendulum/mixed-v0"),
        (["--algos", "iqll"], "iql"),
        (["--seeds", "none"], "seeds 'none'"),
        (["--jobs", "0"], "--jobs 0"),
        (["--set", "seed=7"], "'seed' is not an option of a suite"),
        (["--set", "dataset=test/pendulum-v0"], "'dataset' is not an option of a suite"),
        (["--set", "results=elsewhere"], "'results' is not an option of a suite"),
        (["--algos", "../tests/helpers"], "no algorithm '../tests/helpers'"),
        (["--seed", "3"], "--seed"),
    ],
)
def test_wrong_requests_are_refused_before_anything_runs(suite_file, tmp_path, args, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", str(suite_file), "--results", str(tmp_path / "results"), *args])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results" / "runs").exists()


def test_bench_says_whose_settings_a_fork_took_over(suite_file, tmp_path, capsys):
    for name, text in (("my_bc", (ROOT / "algos" / "bc.py").read_text()), ("td3_bc", "x = 1\n")):
        (tmp_path / f"{name}.py").write_text(text)
        args = ["--algos", str(tmp_path / f"{name}.py"), "--set", "nonsense=1", "--results", str(tmp_path / "results")]
        with pytest.raises(SystemExit):  # it ends before anything runs
            main(["bench", str(suite_file), *args])
        assert ("my_bc: a fork with bc's settings" in capsys.readouterr().out) == (name == "my_bc")


def test_unknown_suites_and_unwritable_results(suite_file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for args, message in (
        (["bench", "quickk"], "quick"),
        (["bench", str(suite_file), "--results", str(tmp_path / "file")], "is not writable"),
        (["report", "nothing", "--results", str(tmp_path)], "nor a folder nothing"),
        (["data", "info", "hoard/pendulum/mixd-v0"], "hoard/pendulum/mixed-v0"),
    ):
        with pytest.raises(SystemExit) as end:
            main(args)
        assert end.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seeds = 2", "seeds = 0"), "seeds '0'"),
        (("seeds = 2", ""), "'seeds' is needed"),
        (("[method.bc]", "[method.bc]\nalgos = 'x'"), "unknown key 'algos'"),
        (("description", "descriptoin"), "unknown key 'descriptoin'"),
        (("seeds = 2", "seeds = 2\nmetric = 'best'"), "metric must be"),
        (("[options]", "[options"), "small.toml"),
        (("[method.bc]", "[method.bc]\ndatasets = ['test/pendulum-v1']"), "nearest: test/pendulum-v0"),
        (("[method.bc]", "[method.bc]\nseeds = '0,1'"), "method.bc: seeds must be a count"),
        (("updates = 300", "updates = 300\nseed = 7"), "options: 'seed' is not an option of a suite"),
        (("[method.bc]", "[method.bc]\noptions = { dataset = 'x' }"), "'dataset' is not an option of a suite"),
        (("[method.bc]", "[method.'../../evil']"), "method '../../evil': a name has letters"),
        (('["test/pendulum-v0"]', '["test/pendulum-v0", "test/pendulum-v0"]'), "datasets: .* stands there twice"),
        (("[method.bc]", "[method.bc.dataset.'test/pendulum-v1']\nlr = 1"), "nearest: test/pendulum-v0"),
    ],
)
def test_suite_files_are_checked(suite_file, change, message):
    suite_file.write_text(SUITE.replace(*change))
    with pytest.raises(SuiteError, match=message.replace("'", ".")):
        read(str(suite_file))


def test_later_sections_of_a_suite_win(suite_file):
    suite_file.write_text(
        SUITE
        + '[dataset."test/pendulum-v0"]\nupdates = 1\nlr = 0.1\n'
        + '[method.wide]\nalgo = "iql"\noptions = { lr = 0.2 }\n[method.wide.dataset."test/pendulum-v0"]\nlr = 0.3\n'
    )
    suite = read(str(suite_file))
    cells = {cell.method: cell.options for cell in suite.cells() if cell.seed == 0}
    assert [cells[m]["lr"] for m in ("iql", "bc", "wide")] == [0.1, 0.1, 0.3]
    assert cells["iql"]["updates"] == 1
    chosen = select(suite, ["wide"], seeds="1", overrides={"lr": "0.4"})
    assert [cell.options["lr"] for cell in chosen.cells()] == ["0.4"]
    assert [m.name for m in select(suite, ["iql"]).methods] == ["iql"]
    assert [m.name for m in select(suite, ["iql"]).methods] == ["iql"]
    suite_file.write_text(SUITE.replace("[method.bc]", '[method.clone]\nalgo = "bc"'))
    assert [m.name for m in select(read(str(suite_file)), ["bc"]).methods] == ["clone"]  # an algorithm: all its methods


def test_a_method_may_be_limited_to_some_datasets(suite_file):
    text = SUITE.replace('["test/pendulum-v0"]', '["test/pendulum-v0", "test/other-v0"]')
    suite_file.write_text(text.replace("[method.bc]", '[method.bc]\ndatasets = ["test/other-v0"]'))
    suite = read(str(suite_file))
    assert {(c.method, c.dataset) for c in suite.cells()} == {
        ("iql", "test/pendulum-v0"),
        ("iql", "test/other-v0"),
        ("bc", "test/other-v0"),
    }
    chosen = select(suite, ["bc"], ["test/pendulum-v0"], "1")  # what is asked for by name is run
    assert [(c.method, c.dataset) for c in chosen.cells()] == [("bc", "test/pendulum-v0")]


def test_a_method_may_be_limited_to_some_seeds(suite_file):
    suite_file.write_text(SUITE.replace("[method.bc]", "[method.bc]\nseeds = 1"))
    suite = read(str(suite_file))
    assert [(c.method, c.seed) for c in suite.cells()] == [("iql", 0), ("bc", 0), ("iql", 1)]
    chosen = select(suite, ["bc"], seeds="2,3")
    assert [(c.method, c.seed) for c in chosen.cells()] == [("bc", 2), ("bc", 3)]


def test_seeds():
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("4,9") == (4, 9)
    assert parse_seeds("7,") == (7,)
    for wrong in ("0", "-1", "1,1", "x", "1,-2"):
        with pytest.raises(SuiteError):
            parse_seeds(wrong)


@pytest.mark.parametrize("name", suites.available())
def test_shipped_suites_fit_their_algorithm_files(name):
    """Every option of every cell is one the file knows."""
    from hoard.runners.sweep.plan import answer

    addresses = []
    for cell in select(read(name), seeds="1").cells():
        file = algorithms.find(cell.algo)
        told = answer(algorithms.import_file(file), file.name, cell.args, list(cell.options))
        assert "error" not in told, told
        addresses.append(address(cell.algo, "meaning", told["config"], "0"))
    assert len(set(addresses)) == len(addresses)


def test_an_algorithm_may_be_a_path(suite_file, tmp_path, monkeypatch):
    """On the command line and in a suite, where it is relative to the suite's file; settings of its kin reach it."""
    (tmp_path / "elsewhere").mkdir()
    fork = tmp_path / "elsewhere" / "my_bc.py"
    shutil.copy(ROOT / "algos" / "bc.py", fork)
    suite_file.write_text(SUITE.replace("[method.bc]", "[method.bc]\noptions = { top_fraction = 0.5 }"))
    suite = select(read(str(suite_file)), ["bc", str(fork)], seeds="1", overrides={"updates": "40"})
    sweep = Sweep(suite, tmp_path / "results", 2, "test")
    assert sweep.run() == 0
    one, two = rows_of(tmp_path / "results").values()
    assert one == two
    assert [(job.cell.method, job.overrides["top_fraction"]) for job in sweep.work] == [("bc", 0.5), ("my_bc", 0.5)]
    suite_file.write_text(SUITE.replace("[method.bc]", "[method.mine]\nalgo = 'elsewhere/my_bc.py'"))
    monkeypatch.chdir("/")
    assert [m.algo for m in read(str(suite_file)).methods] == ["iql", str(fork)]
    suite_file.write_text(SUITE.replace("[method.bc]", "[method.mine]\nalgo = 'elsewhere/no_bc.py'"))
    with pytest.raises(BadInput, match="no algorithm file"):
        read(str(suite_file))


def test_cores_of_a_cell_step_its_evaluations(suite_file, tmp_path):
    """With `cpus` in its resources a cell is told so; the run is the same."""
    suite, results = select(read(str(suite_file)), algos=["bc"], seeds="0,"), tmp_path / "results"
    assert Sweep(suite, results, 2, "test").run() == 0
    suite_file.write_text("resources = { cpus = 2 }\n" + suite_file.read_text())
    wide = Sweep(select(read(str(suite_file)), algos=["bc"], seeds="0,"), tmp_path / "wide", 2, "test")
    assert wide.run() == 0
    (run,) = results.glob("runs/*/*/*")
    (again,) = (tmp_path / "wide").glob("runs/*/*/*")
    assert run.name == again.name
    assert (run / "episodes.parquet").read_bytes() == (again / "episodes.parquet").read_bytes()
    commands = [json.loads((folder / "provenance.json").read_text())["command"] for folder in (run, again)]
    assert "--eval-processes" not in commands[0]
    assert commands[1][commands[1].index("--eval-processes") + 1] == "2"
    (job,) = wide.work
    job.packed = 3
    assert "--eval-processes" not in job.args(tmp_path)


def test_two_cells_that_would_be_one_run_are_refused(suite_file, tmp_path):
    suite_file.write_text(SUITE + '[method.again]\nalgo = "bc"\n')
    sweep = Sweep(select(read(str(suite_file)), seeds="1"), tmp_path / "results", 1, "test")
    with pytest.raises(BadInput, match=r"again .* and bc .* are the same run"):
        sweep.run()
    assert not (tmp_path / "results" / "runs").exists()


def test_an_option_nobody_has_names_suite_and_method(suite_file, tmp_path, capsys):
    suite_file.write_text(SUITE.replace("[method.bc]", "[method.bc]\noptions = { expectile = 0.7 }"))
    with pytest.raises(SystemExit) as end:
        main(["bench", str(suite_file), "--results", str(tmp_path / "results")])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert str(suite_file) in message
    assert "method bc (bc.py)" in message
    assert "--expectile" in message


def test_a_partial_call_keeps_the_cells_of_a_fuller_one(suite_file, tmp_path):
    results = tmp_path / "results"
    whole = select(read(str(suite_file)), seeds="1", overrides={"updates": "40"})
    assert Sweep(whole, results, 2, "test").run() == 0
    (kept,) = (results / "runs" / "iql").glob("*/*/provenance.json")
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"revisions": ["0123abcd"]}))
    part = select(read(str(suite_file)), ["bc"], seeds="1", overrides={"updates": "40"})
    assert Sweep(part, results, 2, "test").run() == 0
    record = json.loads((results / "small" / "cells.json").read_text())
    assert {(c["method"], c["selected"], c["status"]) for c in record["cells"]} == {
        ("bc", True, "finished"),
        ("iql", False, "finished"),
    }
    assert "0123abcd" in record["provenance"]["revision"].split(", ")


def test_another_suite_of_the_same_name_is_refused(suite_file, tmp_path):
    results = tmp_path / "results"
    Sweep(select(read(str(suite_file)), ["bc"], seeds="1", overrides={"updates": "40"}), results, 1, "test").run()
    (tmp_path / "other").mkdir()
    other = shutil.copy(suite_file, tmp_path / "other" / "small.toml")
    with pytest.raises(BadInput, match="another suite called 'small'"):
        Sweep(read(str(other)), results, 1, "test")


def test_a_failure_is_said_to_be_of_its_kind(suite_file, algos, tmp_path):
    source = (algos / "bc.py").read_text()
    hook = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
    for name, line in (
        ("diverges", "        buffer.action *= float('nan')\n"),
        ("killed", "        import os\n        os.kill(os.getpid(), 9)\n"),
        ("raises", "        raise KeyError('lost')\n"),
    ):
        (algos / f"{name}.py").write_text(source.replace(hook, line + hook))
    suite = select(read(str(suite_file)), ["diverges", "killed", "raises"], seeds="1")
    sweep = Sweep(suite, tmp_path / "results", 2, "test")
    assert sweep.run() == 1
    cells = json.loads((tmp_path / "results" / "small" / "cells.json").read_text())["cells"]
    assert {c["method"]: c["failure"] for c in cells} == {"diverges": "diverged", "killed": "killed", "raises": "error"}
    (killed,) = [c["error"] for c in cells if c["method"] == "killed"]
    assert "SIGKILL; perhaps by the kernel, for lack of memory" in killed


def test_a_full_disk_ends_the_sweep_in_one_line(suite_file, tmp_path, monkeypatch, capsys):
    sweep = Sweep(select(read(str(suite_file)), ["bc"], seeds="1"), tmp_path / "results", 1, "test")

    def full(work):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sweep.record, "write", full)
    assert sweep.run() == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "the sweep cannot go on: [Errno 28] No space left on device" in out
    assert "Traceback" not in out


def test_cores_are_counted_where_affinity_is_unknown(monkeypatch):
    from hoard.runners.sweep.local import cores

    assert cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == (os.cpu_count() or 1)
