"""GPUs are dealt out to the cells; no GPU is needed to see that."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from helpers import ROOT

from hoard.cli import main
from hoard.runners.sweep import prepare
from hoard.runners.sweep.gpus import Gpus
from hoard.runners.sweep.limits import Limits, Resources
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import read, select
from hoard.runners.sweep.warm import WarmLauncher

SUITE = """
description = "a test"
seeds = 6
datasets = ["test/pendulum-v0"]
[options]
updates = 20
hidden = [16]
log_every = 20
eval_every = 20
eval_episodes = 2
final_eval_episodes = 2
checkpoint_every = 20
[method.tells]
algo = "tells.py"
"""


@pytest.fixture
def suite_file(tmp_path, tiny):
    start = "def train(cfg: Config, run: Run) -> None:\n"
    source = (ROOT / "algos" / "bc.py").read_text()
    assert start in source
    line = "    import os\n    run.say('sees ' + str(os.environ.get('CUDA_VISIBLE_DEVICES')))\n"
    (tmp_path / "tells.py").write_text(source.replace(start, start + line))
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return path


def test_no_gpu_has_more_cells_than_places(suite_file, tmp_path):
    """Also when cells fail and are started again."""
    at_work: Counter[str] = Counter()
    most: Counter[str] = Counter()
    starts = []

    class Process:
        pid = None

        def __init__(self, start) -> None:
            self.gpu, self.left = start.env["CUDA_VISIBLE_DEVICES"], 2 + len(starts) % 3
            starts.append(self.gpu)
            at_work[self.gpu] += 1
            most[self.gpu] = max(most[self.gpu], at_work[self.gpu])

        def poll(self) -> int | None:
            self.left -= 1
            if self.left > 0:
                return None
            at_work[self.gpu] -= 1
            return -9

        def terminate(self) -> None: ...

        def kill(self) -> None: ...

    sweep = Sweep(
        read(str(suite_file)), tmp_path / "results", 4, "test", Process, Limits(1, backoff=0.01), ["0", "GPU-x"], 2
    )
    assert sweep.run() == 1
    assert len(starts) == 12
    assert most == {"0": 2, "GPU-x": 2}
    assert sweep._gpus.free == {"0": 1, "GPU-x": 1}


@pytest.mark.parametrize("warm", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_cell_sees_its_own_gpu_alone(suite_file, tmp_path, warm, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    suite = select(read(str(suite_file)), seeds="2")
    launcher = WarmLauncher() if warm else None
    try:
        assert Sweep(suite, tmp_path / "results", 2, "test", launcher, None, ["3", "7"]).run() == 0
        alone = select(read(str(suite_file)), seeds="2,")
        assert Sweep(alone, tmp_path / "results", 1, "test", launcher).run() == 0
    finally:
        if launcher:
            launcher.close()
    seen = [path.read_text().splitlines()[0] for path in (tmp_path / "results").glob("runs/*/*/*/log.txt")]
    assert sorted(seen) == ["sees 3", "sees 7", "sees None"]


def test_parts_and_whole_gpus_are_dealt_out():
    """The one with most room first; whole ones only where nobody else is; all of it comes back."""
    gpus = Gpus(["0", "1", "2"], per_gpu=3)
    third, half, two, none = Resources(), Resources(gpus=0.5), Resources(gpus=2), Resources(gpus=0)
    assert [gpus.at_once(one) for one in (third, half, two, none, Resources(gpus=4))] == [9, 6, 1, None, 0]
    taken = []
    for asked, expected in (
        (third, ["0"]), (two, ["1", "2"]), (half, ["0"]), (half, None), (two, None), (third, None), (none, [])
    ):  # fmt: skip
        found = gpus.find(asked)
        assert found == expected
        gpus.take(found or [], asked)
        taken.append((found or [], asked))
    assert gpus.free == {"0": Fraction(1, 6), "1": 0, "2": 0}
    for names, asked in taken:
        gpus.take(names, asked, back=True)
    assert gpus.free == {"0": 1, "1": 1, "2": 1}
    gpus.take(["9"], half)  # of an adopted cell, when others are dealt out now
    assert "9" not in gpus.free


@pytest.mark.parametrize(
    ("resources", "args", "message"),
    [
        ("gpus = 0.5", [], "tells on test/pendulum-v0 asks for gpus = 0.5: give --gpus"),
        ("gpus = 2", ["--gpus", "0"], "tells on test/pendulum-v0 asks for gpus = 2: --gpus has 1"),
        ("cpus = 3", ["--jobs", "2"], "tells on test/pendulum-v0 asks for cpus = 3: that is more than --jobs 2"),
        ("gpus = 0.5", ["--gpus", "0", "--jobs", "3"], "--jobs 3: 1 accelerators have room for 2 at a time"),
    ],
)
def test_what_this_machine_has_not_is_refused(suite_file, tmp_path, resources, args, message, capsys):
    suite_file.write_text(SUITE + f"resources = {{ {resources} }}\n")
    with pytest.raises(SystemExit) as end:
        main(["bench", str(suite_file), "--results", str(tmp_path / "results"), *args])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gpus", "0,0"], "--gpus 0,0: write different ones"),
        (["--gpus", "0", "--jobs", "3"], "--jobs 3: 1 accelerators have room for 1 at a time"),
        (["--time-limit", "soon"], "--time-limit soon"),
    ],
)
def test_a_dry_run_refuses_what_the_sweep_would(suite_file, tmp_path, args, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", str(suite_file), "--results", str(tmp_path / "results"), "--dry-run", *args])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_cells_are_told_their_parts(suite_file, tmp_path):
    """In one sweep: half of a GPU, two whole ones, and none at all."""
    suite_file.write_text(
        SUITE.replace("seeds = 6", "seeds = 1").replace("[method.tells]", "[method.half]")
        + "resources = { gpus = 0.5 }\n"
        "[method.two]\nalgo = 'tells.py'\nresources = { gpus = 2 }\noptions = { lr = 0.1 }\n"
        "[method.none]\nalgo = 'tells.py'\nresources = { gpus = 0 }\noptions = { lr = 0.2 }\n"
    )
    sweep = Sweep(read(str(suite_file)), tmp_path / "results", 1, "test", None, None, ["3", "7"])
    assert sweep.run() == 0
    logs = {path.name.split("--")[0]: path.read_text() for path in (tmp_path / "results" / "small" / "logs").iterdir()}
    seen = {name: next(line for line in text.splitlines() if "sees" in line) for name, text in logs.items()}
    assert {name: line.split("sees")[1].strip() for name, line in seen.items()} == {
        "half": "3",
        "two": "3,7",
        "none": "",
    }
    assert sweep._gpus.free == {"3": 1, "7": 1}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--per-gpu", "2"], "--per-gpu needs --gpus"),
        (["--gpus", "0,0"], "--gpus 0,0: write different ones"),
        (["--gpus", ""], "write different ones"),
        (["--gpus", "0", "--per-gpu", "0"], "--per-gpu 0: must be at least 1"),
        (["--gpus", "0,1", "--jobs", "3"], "--jobs 3: 2 accelerators have room for 2 at a time"),
        (["--gpus", "0", "--engine", "ray"], "--gpus is for this machine, not for --engine ray"),
        (["--cold", "--engine", "ray"], "--cold is for this machine, not for --engine ray"),
        (["--dry-run", "--engine", "ray"], "--dry-run starts nothing on --engine ray, so give --jobs"),
    ],
)
def test_wrong_lists_of_gpus_are_refused(suite_file, tmp_path, args, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", str(suite_file), "--results", str(tmp_path / "results"), *args])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_gpu_that_cells_share_is_named(suite_file, tmp_path, monkeypatch, capsys):
    ask = prepare.ask_the_files
    for number, (device, jobs, gpus, said) in enumerate(
        (("cuda", 4, (), True), ("cuda", 1, (), False), ("cuda", 4, ("0", "1"), False), ("cpu", 4, (), False))
    ):

        def answers(*args, device=device):
            return {cell: config | {"device": device} for cell, config in ask(*args).items()}

        monkeypatch.setattr(prepare, "ask_the_files", answers)
        Sweep(read(str(suite_file)), tmp_path / str(number), jobs, "test", gpus=gpus).prepare()
        assert ("without --gpus every cell of device auto takes the first GPU" in capsys.readouterr().out) == said
