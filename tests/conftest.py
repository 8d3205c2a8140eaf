"""Shared by all tests: a datasets folder of their own, and a small stored dataset to train on."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
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
    from hoard.datasets import minari_store
    from hoard.datasets.recipes import pendulum

    minari_store.write(TINY, pendulum.record(episodes=10, reference_episodes=2))
    return TINY


@pytest.fixture
def run_file(tmp_path):
    """Run an algorithm file's main in this process: run_file("iql", "--seed", "1") -> returncode, stdout, stderr.

    Starting Python and torch costs seconds; the tests of the command line itself use `command` and a real process.
    """

    def call(algo: str | Path, *args: str, results: Path | None = None) -> SimpleNamespace:
        from hoard.runners.main import main
        from hoard.runners.plan import import_file

        file = algo if isinstance(algo, Path) else ROOT / "algos" / f"{algo}.py"
        module = import_file(file)
        out, err = io.StringIO(), io.StringIO()
        options = [*args, "--results", str(results or tmp_path / "results")]
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with streams[0], streams[1], pytest.raises(SystemExit) as end:
            main(module.Config, module.train, module.PRESETS, options)
        return SimpleNamespace(returncode=end.value.code, stdout=out.getvalue(), stderr=err.getvalue())

    return call


def command(algo: str | Path, *args: str, results: Path) -> list[str]:
    """The command line of an algorithm file, by name in algos/ or by path."""
    file = algo if isinstance(algo, Path) else ROOT / "algos" / f"{algo}.py"
    return [sys.executable, str(file), *args, "--results", str(results)]


def small(dataset: str, **options: object) -> list[str]:
    """Options of a run that takes a second: 60 updates of a small network, two evaluations."""
    values: dict[str, object] = {
        "dataset": dataset,
        "updates": 60,
        "hidden": 16,
        "batch_size": 32,
        "log_every": 10,
        "eval_every": 30,
        "eval_episodes": 2,
        "final_eval_episodes": 3,
        "checkpoint_every": 20,
        **options,
    }
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", *str(value).split(" "))]
