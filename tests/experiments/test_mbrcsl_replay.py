"""MBRCSL's rollouts in the real maze: the column that the replay adds, and what it leaves alone."""

import json

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT
from synthetic import script

from hoard.envs.mazes import replay_open_loop
from hoard.runners.task import Task

replay = script(ROOT / "experiments" / "paper-mbrcsl" / "replay.py")

MAZE = "hoard/StitchMaze-v0"
STARTS = np.array([[-0.5, 0.5, 0.0, 0.0], [-1.5, -0.5, 0.3, 0.0]], np.float32)
ACTIONS = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 30, 2)).astype(np.float32)


def leave(run, env_id=MAZE, bound=1.0, status="finished"):
    """A run's files: four rollouts, the first and the third trained on."""
    run.mkdir(parents=True)
    size = gym.spec(env_id).make().observation_space.shape[0]
    space = np.full(2, bound, np.float32)
    task = Task("test/maze-v0", size, -space, space, gym.spec(env_id), None, None)
    (run / "status.json").write_text(json.dumps({"status": status}))
    (run / "policy.json").write_text(json.dumps({"task": task.to_json()}))
    rows = [{"predicted_return": float(9 - k), "trained_on": k in (0, 2)} for k in range(4)]
    for k, number in enumerate((0, 2)):
        rows[number] |= {"start": STARTS[k].tolist(), "action": ACTIONS[k].flatten().tolist()}
    numbers = pa.list_(pa.float32())
    fields = [("predicted_return", pa.float64()), ("trained_on", pa.bool_()), ("start", numbers), ("action", numbers)]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), run / "rollouts.parquet")
    return run / "rollouts.parquet"


@pytest.mark.parametrize("bound", [1.0, 2.0])
def test_the_column_is_what_the_environment_pays(tmp_path, capsys, bound):
    """Actions are in [-1, 1] on file and in the environment's units in the maze."""
    file = leave(tmp_path / "runs" / "a", bound=bound)
    before = pq.read_table(file)
    replay.main([str(tmp_path)])
    real = replay_open_loop(MAZE, STARTS, bound * ACTIONS)
    column = pq.read_table(file)["replayed_return"].to_pylist()
    assert column[0::2] == pytest.approx(real)
    assert column[1::2] == [None, None]
    assert pq.read_table(file).drop(["replayed_return"]).equals(before)
    said = capsys.readouterr().out
    assert f"runs/a: replayed open-loop {real.mean():.1f} on average" in said
    assert f"predicted less real {8 - real.mean():+.1f}" in said
    content = file.read_bytes()
    replay.main([str(tmp_path)])
    assert "has been replayed before" in capsys.readouterr().out
    assert file.read_bytes() == content


def test_other_environments_and_unfinished_runs_are_left_alone(tmp_path, capsys):
    files = [leave(tmp_path / "a", env_id="Pendulum-v1"), leave(tmp_path / "b", status="running")]
    before = [file.read_bytes() for file in files]
    replay.main([str(tmp_path)])
    assert [file.read_bytes() for file in files] == before
    said = capsys.readouterr().out
    assert "a: cannot be replayed: Pendulum-v1" in said
    assert "b: is not finished" in said


def test_a_folder_without_rollouts_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        replay.main([str(tmp_path)])
    assert end.value.code == 2
    assert "no run in it kept a rollouts.parquet" in capsys.readouterr().err
