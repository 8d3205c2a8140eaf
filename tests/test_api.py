"""The Python API, as a user calls it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

import hoard
from hoard.envs import make_env
from hoard.records.errors import BadInput

QUICK = {
    "updates": 60, "hidden": (16,), "batch_size": 32, "log_every": 20, "eval_every": 30, "eval_episodes": 2,
    "final_eval_episodes": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    return hoard.train("iql", tiny, results=tmp_path_factory.mktemp("results"), **QUICK)


def test_a_finished_run_keeps_its_policy_and_drops_its_checkpoint(run, tiny):
    names = {path.name for path in run.iterdir()}
    assert {"policy.safetensors", "policy.json", "algorithm.py", "episodes.parquet"} <= names
    assert "checkpoint.pt" not in names
    assert (run / "algorithm.py").read_text() == (ROOT / "algos" / "iql.py").read_text()
    before = (run / "status.json").stat().st_mtime_ns
    assert hoard.train("iql", tiny, results=run.parents[3], **QUICK) == run  # finished before
    assert (run / "status.json").stat().st_mtime_ns == before


def test_the_policy_is_a_function_of_observations(run):
    policy = hoard.load_policy(run)
    env = make_env(policy.task.env_spec)
    obs, _ = env.reset(seed=1)
    one = policy(obs)
    assert one.shape == (1,)
    assert one.dtype == np.float32
    assert env.action_space.contains(one)
    many = policy(np.stack([obs, 0 * obs]))
    assert many.shape == (2, 1)
    assert many[0] == pytest.approx(one, rel=1e-5)
    with pytest.raises(ValueError, match=r"obs has shape \(4,\); this policy takes \(3,\) or \(n, 3\)"):
        policy(np.zeros(4))


def test_a_policy_that_looks_back_asks_for_rewards(tiny, tmp_path):
    policy = hoard.load_policy(hoard.train("rcsl", tiny, results=tmp_path, **QUICK))
    assert policy.uses_history
    policy(np.zeros(3))
    with pytest.raises(ValueError, match="policy\\(obs, reward\\)"):
        policy(np.zeros(3))
    policy(np.zeros(3), -1.0)
    policy.reset()
    policy(np.zeros(3))


def test_fresh_episodes_are_scored(run):
    rows = hoard.evaluate(run, episodes=4, seed=2)
    assert len(rows) == 4
    assert rows.eval_seed.is_unique
    assert hoard.evaluate(run, episodes=4, seed=2).equals(rows)
    trained = hoard.results(run)
    assert not set(rows.eval_seed) & set(trained.eval_seed)
    own = hoard.evaluate(run, episodes=4)  # of the run's own seed, 0
    assert not set(own.eval_seed) & (set(trained.eval_seed) | set(rows.eval_seed))
    with pytest.raises(BadInput, match="episodes 0"):
        hoard.evaluate(run, episodes=0)


def test_results_are_a_frame(run):
    rows = hoard.results(run)
    assert set(rows.algo) == {"iql"}
    assert rows.final.sum() == 3
    assert len(hoard.results(run.parents[3])) == len(rows)


def test_an_algorithm_may_be_a_file_anywhere(tiny, tmp_path):
    fork = tmp_path / "my_bc.py"
    fork.write_text((ROOT / "algos" / "bc.py").read_text())
    run = hoard.train(fork, tiny, results=tmp_path / "results", preset="bc10", **QUICK)
    assert run.parts[-3] == "my_bc"
    assert hoard.load_policy(run).config["top_fraction"] == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expectil": 0.9}, "no option 'expectil'; nearest: expectile"),
        ({"lr": -1.0}, "lr -1.0: must be above 0"),
        ({"preset": "corll"}, "it has: paper, corl"),
        ({"batch_size": 0}, "batch_size 0: must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny, tmp_path, options, message):
    with pytest.raises(BadInput, match=message):
        hoard.train("iql", tiny, results=tmp_path, **(QUICK | options))
    assert not (tmp_path / "runs").exists()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"there is no policy\.json"):
        hoard.load_policy(tmp_path)
    with pytest.raises(BadInput, match="no algorithm 'iqll' in algos/; nearest: iql"):
        hoard.train("iqll", "test/pendulum-v0", results=tmp_path)


def test_importing_hoard_is_light_and_the_version_is_the_packages():
    code = "import hoard, sys; print(hoard.__version__, sorted({'torch', 'pandas', 'gymnasium'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout.split(maxsplit=1) == [version, "[]\n"]


@pytest.mark.parametrize("command", [["suites"], ["data", "list"], ["--help"], ["diff", "iql", "bc", "--quiet"]])
def test_commands_that_need_no_torch_do_not_import_it(command):
    code = f"""
import sys
from hoard.cli import main
try:
    main({command!r})
except SystemExit as end:
    assert not end.code, end.code
assert not {{'torch', 'pandas', 'gymnasium'}} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
