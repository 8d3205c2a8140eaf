"""GPUs are dealt out to the cells; no GPU is needed to see that."""

from __future__ import annotations

from collections import Counter

import pytest
from helpers import ROOT

from hoard.cli import main
from hoard.runners.sweep.limits import Limits
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

        def __init__(self, command, log, more) -> None:
            self.gpu, self.left = more["CUDA_VISIBLE_DEVICES"], 2 + len(starts) % 3
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
        read(str(suite_file)), tmp_path / "results", 4, "test", Process, Limits(1, backoff=0.01), ["0", "GPU-x"] * 2
    )
    assert sweep.run() == 1
    assert len(starts) == 12
    assert most == {"0": 2, "GPU-x": 2}
    assert sweep._gpus == {"0": 2, "GPU-x": 2}


@pytest.mark.parametrize("warm", [False, True])
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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--per-gpu", "2"], "--per-gpu needs --gpus"),
        (["--gpus", "0,0"], "--gpus 0,0: write different ones"),
        (["--gpus", ""], "write different ones"),
        (["--gpus", "0", "--per-gpu", "0"], "--per-gpu 0: must be at least 1"),
        (["--gpus", "0,1", "--jobs", "3"], "--jobs 3: 2 accelerators with 1 cells on each are fewer places"),
        (["--gpus", "0", "--ray"], "--gpus is for this machine"),
    ],
)
def test_wrong_lists_of_gpus_are_refused(suite_file, tmp_path, args, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", str(suite_file), "--results", str(tmp_path / "results"), *args])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
