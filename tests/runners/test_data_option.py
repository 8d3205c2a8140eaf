"""The option `data` in whole runs."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers import small
from resume import assert_same_run, checkpoint, kill, only_run


@pytest.mark.parametrize("algo", ["bc", "rcsl", "iql", "td3_bc", "prdc"])
def test_a_run_trains_on_what_was_asked_for(tiny, run_file, tmp_path, algo):
    """Neither plug-in leaves the optimiser where the plain data do, nor where another plug-in does."""
    asked = ["all", "weight=return:0.2", "weight=advantage:0.2", "top=0.5"]
    if algo in ("iql", "td3_bc", "prdc"):
        asked += ["hubl=rank:0.3", "hubl=constant:0.3"]
    seen = set()
    for number, data in enumerate(asked):
        results = tmp_path / str(number)
        done = run_file(algo, *small(tiny, data=data), results=results)
        assert done.returncode == 0, done.stdout + done.stderr
        last = pd.read_parquet(only_run(results) / "metrics.parquet").iloc[-1]
        seen.add(tuple(last.filter(like="losses/")))
    assert len(seen) == len(asked)


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed_with_weights_and_blending(tiny, run_file, tmp_path):
    data = "weight=return:0.2,hubl=rank:0.3"
    args = small(tiny, data=data, updates=3000, checkpoint_every=500, eval_every=1000)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("iql", *args, results=straight).returncode == 0
    kill("iql", args, broken, update=700)
    assert "resuming after update" in run_file("iql", *args, results=broken).stdout
    assert_same_run(straight, broken)
    assert checkpoint(only_run(straight))


def test_bad_data_is_said_at_once(tiny, run_file, tmp_path):
    done = run_file("bc", *small(tiny, data="hubl=rank:0.1"))
    assert done.returncode != 0
    assert "bootstraps no value" in done.stdout + done.stderr
    done = run_file("bc", *small(tiny, data="weights=return"), results=tmp_path / "other")
    assert done.returncode == 2
    assert "there is no plug-in 'weights'" in done.stderr
