"""Cells from a template are processes as fresh as any: the same bits, statuses, signals; nothing is shared."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from helpers import ROOT

from hoard.runners.sweep import local, warm
from hoard.runners.sweep.job import Start
from hoard.runners.sweep.limits import Limits
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import read
from hoard.runners.sweep.warm import WarmLauncher

SUITE = """
description = "a test"
seeds = 2
datasets = ["test/pendulum-v0"]
[options]
log_every = 10
eval_every = 30
eval_episodes = 2
final_eval_episodes = 3
checkpoint_every = 20
batch_size = 16
[method.iql]
options = { updates = 60, hidden = [16], normalize_obs = true }
[method.td3_bc]
options = { updates = 60, hidden = [16] }
[method.decision_transformer]
options = { updates = 30, width = 16, blocks = 1, heads = 1 }
[method.sac]
options = { updates = 0, online_steps = 300, start_steps = 50, hidden = [16], eval_every = 150 }
"""


@pytest.fixture(scope="module")
def launcher():
    made = WarmLauncher()
    yield made
    made.close()


@pytest.fixture
def script(tmp_path):
    """Write a script and start it as a cell: its process and its log."""

    def start(launcher: WarmLauncher, text: str, *args: str):
        number = len(list(tmp_path.glob("*.py")))
        file, log = tmp_path / f"script{number}.py", tmp_path / f"{number}.log"
        file.write_text(text)
        return launcher(Start([sys.executable, str(file), *args], log)), log

    return start


def code_of(process, timeout: float = 60.0) -> int:
    deadline = time.monotonic() + timeout
    while (code := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return code


def results_of(folder: Path) -> dict[str, object]:
    """All that a run leaves and that is no time of day."""
    found: dict[str, object] = {}
    for file in sorted(folder.glob("runs/*/*/*/*")):
        name = str(file.relative_to(folder))
        if file.name in ("episodes.parquet", "policy.safetensors", "policy.json", "config.json", "algorithm.py"):
            found[name] = file.read_bytes()
        elif file.name == "metrics.parquet":
            table = pq.ParquetFile(file).read().drop_columns(["wall_time", "updates_per_second"])
            found[name] = str(table.to_pylist())
        elif file.name == "provenance.json":
            found[name] = file.read_text().replace(str(folder), "")  # the command, versions, threads and all
    return found


@pytest.mark.slow
def test_warm_and_cold_cells_leave_the_same_bits(tmp_path, tiny):
    suite_file = tmp_path / "small.toml"
    suite_file.write_text(SUITE)
    launcher = WarmLauncher()
    try:
        for name, launch in (("cold", None), ("warm", launcher)):
            assert Sweep(read(str(suite_file)), tmp_path / name, 2, "test", launch).run() == 0
    finally:
        launcher.close()
    assert launcher.note is None
    cold, warm_ = results_of(tmp_path / "cold"), results_of(tmp_path / "warm")
    assert len(cold) >= 8 * 6
    assert warm_ == cold
    # Each one a process of its own.
    pids = [json.loads(p.read_text())["pid"] for p in (tmp_path / "warm").glob("runs/*/*/*/status.json")]
    assert len(set(pids)) == 8


def test_a_cell_is_told_what_a_fresh_process_is(launcher, script, tmp_path, monkeypatch):
    text = """
import json, os, signal, sys
print(json.dumps([__name__, __file__, sys.argv, sys.path[0], os.getcwd(), os.environ.get("TOLD"), os.getpid()]))
print(json.dumps([signal.getsignal(n) is h for n, h in (
    (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL), (signal.SIGCHLD, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL))]))
print(json.dumps([sys.stdin.read(), sorted(os.listdir("/proc/self/fd")) if sys.platform == "linux" else []]))
print("torch" in sys.modules, file=sys.stderr)
"""
    monkeypatch.setenv("TOLD", "yes")
    monkeypatch.chdir(tmp_path)
    process, log = script(launcher, text, "--seed", "3")
    assert code_of(process) == 0
    lines = log.read_text().splitlines()
    file = str(tmp_path / "script0.py")
    head = ["__main__", file, [file, "--seed", "3"], str(tmp_path), str(tmp_path), "yes", process.pid]
    assert json.loads(lines[0]) == head
    assert json.loads(lines[1]) == [True, signal.getsignal(signal.SIGHUP) is signal.SIG_DFL, True, True]  # as here
    stdin, descriptors = json.loads(lines[2])
    assert stdin == ""
    if descriptors:  # nothing of the template's is open, but for the descriptor that lists them
        assert descriptors[:3] == ["0", "1", "2"]
        assert len(descriptors) == 4
    assert lines[3] == "True"


@pytest.mark.parametrize(
    ("text", "code", "printed"),
    [
        ("import sys\nsys.exit(75)", 75, ""),
        ("raise KeyError('lost')", 1, "KeyError: 'lost'"),
        ("import atexit\natexit.register(print, 'at the end')", 0, "at the end"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", -11, ""),
        ("import os\nos.kill(os.getpid(), 9)", -9, ""),
        ("def (", 1, "SyntaxError"),
    ],
)
def test_statuses_are_those_of_a_fresh_process(launcher, script, text, code, printed):
    process, log = script(launcher, text)
    assert code_of(process) == code
    assert printed in log.read_text()
    assert process.poll() == code


def test_what_one_cell_changes_no_other_sees(launcher, script):
    change = "import sys, torch, numpy\ntorch.manual_seed(5)\nnumpy.changed = 1\nsys.path.clear()"
    assert code_of(script(launcher, change)[0]) == 0
    look = "import sys, torch, numpy\nprint(torch.initial_seed(), hasattr(numpy, 'changed'), len(sys.path) > 2)"
    look += "\nprint(numpy.random.rand())"
    logs = []
    for _ in range(2):
        process, log = script(launcher, look)
        assert code_of(process) == 0
        logs.append(log.read_text().splitlines())
    assert logs[0][0] == logs[1][0]
    assert logs[0][0].endswith(" False True")
    assert not logs[0][0].startswith("5 ")
    assert logs[0][1] != logs[1][1]  # the stream that belongs to nobody begins anywhere, as it does in fresh processes


WAIT = "import time\nprint('here', flush=True)\ntime.sleep(600)"


def until_here(log: Path) -> None:
    deadline = time.monotonic() + 60
    while "here" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_signals_reach_the_cell_they_are_meant_for(launcher, script):
    (one, first), (two, second), (three, third) = (script(launcher, WAIT) for _ in range(3))
    for log in (first, second, third):
        until_here(log)
    one.terminate()
    assert code_of(one) == -signal.SIGTERM
    two.kill()
    assert code_of(two) == -signal.SIGKILL
    assert three.poll() is None
    os.kill(three.pid, signal.SIGINT)  # as the terminal sends it to all
    assert code_of(three) in (1, 130, -signal.SIGINT)
    assert "KeyboardInterrupt" in third.read_text()


def test_cells_outlive_their_template_and_the_next_one_is_made(script):
    launcher = WarmLauncher()
    try:
        process, log = script(launcher, WAIT)
        assert isinstance(process, warm.WarmProcess), launcher.note  # else its parent would be these tests
        until_here(log)
        template = psutil.Process(process.pid).parent()
        template.kill()
        template.wait(20)
        assert process.poll() is None
        other, _ = script(launcher, "raise SystemExit(3)")
        assert code_of(other) == 3
        assert isinstance(other, warm.WarmProcess)
        process.kill()
        assert code_of(process) == local.UNKNOWN  # nobody was there to be told
    finally:
        launcher.close()


def test_cells_outlive_a_launcher_that_is_closed(script):
    launcher = WarmLauncher()
    process, log = script(launcher, WAIT)
    assert isinstance(process, warm.WarmProcess), launcher.note
    until_here(log)
    launcher.close()
    assert psutil.pid_exists(process.pid)
    process.kill()
    assert code_of(process) == local.UNKNOWN


def test_a_log_that_cannot_be_written_is_told_to_the_sweep(launcher, tmp_path):
    with pytest.raises(FileNotFoundError):
        launcher(Start([sys.executable, "script.py"], tmp_path / "gone" / "cell.log"))


def test_where_no_template_can_be_had_cells_start_cold(script, monkeypatch, tmp_path, tiny, capsys):
    """With a note. NumPy's threads, asked for by the environment, would not survive a fork."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads of libraries cannot be counted here")
    monkeypatch.setenv("JE_ARROW_MALLOC_CONF", "background_thread:true")
    launcher = WarmLauncher()
    process, log = script(launcher, "print('ran')")
    assert code_of(process) == 0
    assert isinstance(process, local.LocalProcess)
    assert log.read_text() == "ran\n"
    assert launcher.note == "what cells import has started 1 threads"
    suite_file = tmp_path / "small.toml"
    suite_file.write_text(SUITE.split("[method.iql]")[0] + "[method.bc]\noptions = { updates = 20, hidden = [8] }\n")
    assert Sweep(read(str(suite_file)), tmp_path / "results", 2, "test", launcher).run() == 0
    launcher.close()
    assert capsys.readouterr().out.count("note: each cell starts as a fresh process, since what cells import") == 1


def test_a_template_that_cannot_import_says_why(script, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch today')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    launcher = WarmLauncher()
    process, _ = script(launcher, "print('ran')")
    assert code_of(process) == 0
    assert launcher.note == "ImportError: no torch today"
    launcher.close()


def test_a_killed_warm_cell_is_retried_from_its_checkpoint(tmp_path, tiny):
    source = (ROOT / "algos" / "bc.py").read_text()
    hook = "        run.log(update(buffer.sample(cfg.batch_size, generator)))\n"
    assert hook in source
    line = "        import os\n        if run.update == 30 and not (run.folder / 'mark').exists():\n"
    line += "            (run.folder / 'mark').touch()\n            os.kill(os.getpid(), 9)\n"
    (tmp_path / "once.py").write_text(source.replace(hook, line + hook))
    shutil.copy(ROOT / "algos" / "bc.py", tmp_path / "never.py")
    options = "options = { updates = 60, hidden = [8] }"
    methods = "".join(f"[method.{name}]\nalgo = '{name}.py'\n{options}\n" for name in ("once", "never"))
    suite_file = tmp_path / "small.toml"
    suite_file.write_text(SUITE.split("[method.iql]")[0].replace("seeds = 2", "seeds = 1") + methods)
    launcher = WarmLauncher()
    sweep = Sweep(read(str(suite_file)), tmp_path / "results", 2, "test", launcher, Limits(backoff=0.05))
    assert sweep.run() == 0
    launcher.close()
    assert {job.cell.method: job.attempts for job in sweep.work} == {"once": 2, "never": 1}
    one, two = (path.read_bytes() for path in (tmp_path / "results").glob("runs/*/*/*/episodes.parquet"))
    assert one == two
