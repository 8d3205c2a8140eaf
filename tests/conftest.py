"""Shared by all tests: a datasets folder of their own, and a small stored dataset to train on."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT

TINY = "test/pendulum-v0"


@pytest.fixture(scope="session", autouse=True)
def _own_datasets(tmp_path_factory):
    """Nothing a test stores or reads may be the user's."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(tmp_path_factory.mktemp("minari"))
    yield
    if before is None:
        del os.environ["MINARI_DATASETS_PATH"]
    else:
        os.environ["MINARI_DATASETS_PATH"] = before


@pytest.fixture(scope="session")
def tiny(_own_datasets) -> str:
    """Id of a Pendulum dataset of 10 episodes, evaluated in Pendulum-v1."""
    from hoard.datasets.minari import writer
    from hoard.datasets.recipes import pendulum

    writer.write(TINY, pendulum.record(episodes=10, reference_episodes=2))
    return TINY


@pytest.fixture
def run_file(tmp_path):
    """Run an algorithm file's main in this process: run_file("iql", "--seed", "1") -> returncode, stdout, stderr.

    Starting Python and torch costs seconds; the tests of the command line itself use `command` and a real process.
    """

    def call(algo: str | Path, *args: str, results: Path | None = None) -> SimpleNamespace:
        from hoard.runners import main
        from hoard.runners.algorithms import import_file

        file = algo if isinstance(algo, Path) else ROOT / "algos" / f"{algo}.py"
        module = import_file(file)
        out, err = io.StringIO(), io.StringIO()
        options = [*args, "--results", str(results or tmp_path / "results"), "--keep-checkpoint", "true"]
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with streams[0], streams[1], pytest.raises(SystemExit) as end:
            main(module.Config, module.train, module.PRESETS, options)
        return SimpleNamespace(returncode=end.value.code, stdout=out.getvalue(), stderr=err.getvalue())

    return call
