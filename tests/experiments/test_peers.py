"""d3rlpy as an algorithm file, where HOARD_D3RLPY_PYTHON names an interpreter that has d3rlpy 2.8.1."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT
from resume import only_run

from hoard.runners.algorithms import import_file
from hoard.runners.policy import load_policy

FILE = ROOT / "experiments" / "peers" / "d3rlpy_peer.py"


@pytest.mark.skipif("HOARD_D3RLPY_PYTHON" not in os.environ, reason="needs d3rlpy; see .ci/d3rlpy-parity")
@pytest.mark.parametrize("method", ["iql", "bc"])
def test_a_run_of_the_peer(tiny, tmp_path, method):
    args = {"method": method, "dataset": tiny, "updates": 40, "eval-every": 20, "log-every": 20, "eval-episodes": 2}
    args |= {"final-eval-episodes": 3, "hidden": "16 8", "batch-size": 32, "results": tmp_path / "results"}
    words = [part for name, value in args.items() for part in (f"--{name}", *str(value).split())]
    done = subprocess.run([sys.executable, FILE, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path / "results")
    rows = pd.read_parquet(run / "episodes.parquet")
    assert rows.groupby(["update", "final"]).size().to_dict() == {(20, False): 2, (40, True): 3}
    action = load_policy(run)(np.zeros((1, 3), np.float32))
    assert np.isfinite(action).all()


def test_the_peers_policy_is_its_layers_with_relu_and_tanh():
    peer = import_file(FILE)
    cfg = peer.Config(hidden=(4,))
    actor = peer.Actor(cfg, 3, 2, torch.Generator())
    rng = np.random.default_rng(0)
    arrays = {"mean": rng.normal(size=3), "std": np.array([1.0, 2.0, 0.5])}
    for k, (a, b) in enumerate([(3, 4), (4, 2)]):
        arrays |= {f"weight{k}": rng.normal(size=(b, a)), f"bias{k}": rng.normal(size=b)}
    actor.load(arrays)
    obs = rng.normal(size=(5, 3))
    hidden = np.maximum((obs - arrays["mean"]) / arrays["std"] @ arrays["weight0"].T + arrays["bias0"], 0)
    wanted = np.tanh(hidden @ arrays["weight1"].T + arrays["bias1"])
    with torch.no_grad():
        got = actor.act(torch.as_tensor(obs, dtype=torch.float32))
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5)


def test_without_the_peer_the_run_says_what_is_missing(tiny, tmp_path):
    words = ["--dataset", tiny, "--results", str(tmp_path / "results")]
    env = {name: value for name, value in os.environ.items() if name != "HOARD_D3RLPY_PYTHON"}
    done = subprocess.run([sys.executable, FILE, *words], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode != 0
    assert "HOARD_D3RLPY_PYTHON must name a Python that has d3rlpy 2.8.1" in done.stdout + done.stderr
