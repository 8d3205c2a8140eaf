"""The address of a run: what determines a result moves it, and nothing else does."""

from __future__ import annotations

import dataclasses
import json

import pandas as pd
import pytest
from helpers import ROOT, small

from hoard.records.meaning import meaning_hash
from hoard.runners import address as module
from hoard.runners.address import NEUTRAL, address
from hoard.runners.algorithms import available, import_file

CONFIG = {"dataset": "test/pendulum-v0", "seed": 3, "device": "cpu", "lr": 3e-4, "log_every": 100, "threads": 1}


def of(meaning: str = "m", data: str = "d", **changes: object) -> str:
    return address("iql", meaning, CONFIG | changes, data)


def test_options_that_change_no_number_do_not_move_it():
    assert of(log_every=7) == of()
    assert of(checkpoint_every=7) == of(checkpoint_every=8)
    assert of(device="cuda:0") == of(device="cuda:1") == of(device="cuda")


@pytest.mark.parametrize(
    "changes",
    [{"lr": 1e-3}, {"seed": 4}, {"dataset": "test/other-v0"}, {"device": "cuda"}, {"threads": 2}, {"new": None}],
    ids=str,
)
def test_options_that_may_change_a_number_do(changes):
    assert of(**changes) != of()


def test_file_data_and_epoch_do(monkeypatch):
    assert len({of(), of(meaning="n"), of(data="e")}) == 3
    before = of()
    monkeypatch.setattr(module, "EPOCH", module.EPOCH + 1)
    assert of() != before


@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("mujoco", "3.2.9", "3.3.0"),
        ("gymnasium", "1.9.1", "2.0.0"),
        ("torch", "2.99.0+cpu", "3.0.0"),
    ],
)
def test_versions_count_as_far_as_they_move_numbers(monkeypatch, name, same, other):
    def installed(changed: str):
        versions = {"mujoco": "3.2.1", "gymnasium": "1.1.0", "torch": "2.13.0"} | {name: changed}
        module.moving_versions.cache_clear()
        monkeypatch.setattr(module, "version", versions.__getitem__)
        return of()

    base = installed({"mujoco": "3.2.1", "gymnasium": "1.1.0", "torch": "2.13.0"}[name])
    assert installed(same) == base
    assert installed(other) != base
    module.moving_versions.cache_clear()


@pytest.fixture(autouse=True)
def _true_versions():
    module.moving_versions.cache_clear()
    yield
    module.moving_versions.cache_clear()


def test_comments_docstrings_and_layout_are_not_meaning():
    source = (ROOT / "algos" / "bc.py").read_text()
    body = source.split('"""', 2)[2]
    assert meaning_hash('"""Another docstring."""\n# a comment\n\n' + body) == meaning_hash(source)
    assert meaning_hash(source + "\nVALUE = 1\n") != meaning_hash(source)
    assert meaning_hash("x = [1,2]") == meaning_hash("x = [\n    1,\n    2,  # two\n]")
    assert meaning_hash("x = 1") != meaning_hash("x = 1.0")


def test_presets_and_search_space_are_not_meaning_unless_the_training_reads_them():
    """Their values stand in a run's config."""
    source = (ROOT / "algos" / "bc.py").read_text()
    end = 'if __name__ == "__main__":'
    plain = source.replace("SEARCH", "UNUSED").replace("PRESETS", "UNUSED_TOO")
    for name, change in (("PRESETS", 'PRESETS = {"mine": {"lr": 0.1}}'), ("SEARCH", "SEARCH = {}")):
        assert meaning_hash(source.replace(end, f"{change}\n{end}")) == meaning_hash(source)
        read = source.replace(end, f"READ = sorted({name})\n{end}")
        assert meaning_hash(read.replace(end, f"{change}\n{end}")) != meaning_hash(read)
        assert meaning_hash(plain.replace(end, f"{change}\n{end}")) == meaning_hash(plain)
    assert meaning_hash(source.replace('"log", 1e-4', '"log", 1e-5')) == meaning_hash(source)
    assert meaning_hash(plain.replace('"log", 1e-4', '"log", 1e-5')) != meaning_hash(plain)
    assert meaning_hash(source.replace("main(Config, train", "main(Config, other")) != meaning_hash(source)


@pytest.mark.parametrize("name", available())
def test_neutral_options_are_options_of_every_file(name):
    assert set(NEUTRAL) <= {
        field.name for field in dataclasses.fields(import_file(ROOT / "algos" / f"{name}.py").Config)
    }


def test_a_run_lies_at_its_address_and_a_changed_comment_finds_it(run_file, tiny, tmp_path):
    source = (ROOT / "algos" / "bc.py").read_text()
    fork = tmp_path / "fork.py"
    fork.write_text(source)
    args = small(tiny)
    run_file(fork, *args)
    fork.write_text(source.replace("def train(", "# one more remark\n\n\ndef train("))
    again = run_file(fork, *args, "--log-every", "20")
    assert again.returncode == 0
    (folder,) = (tmp_path / "results" / "runs").glob("*/*/*")
    assert "finished" in again.stdout or "finished" in again.stderr
    fork.write_text(source.replace("def train(", "MARK = 1\n\n\ndef train("))
    run_file(fork, *args)
    assert len(list((tmp_path / "results" / "runs").glob("*/*/*"))) == 2
    assert json.loads((folder / "config.json").read_text())["config"]["log_every"] == 10


def test_the_numbers_of_this_epoch(run_file, tiny, tmp_path):
    """A change of shared code that moves these must raise EPOCH, or runs made before it are taken for new ones.

    Compared with a tolerance that lets rounding on another processor pass.
    """
    online = {"updates": 0, "online_steps": 230, "start_steps": 210, "eval_every": 200}
    rounds = {"updates": None, "hidden": None, "batch_size": None, "online_steps": 300, "batch_steps": 300}
    options = {"bc": {}, "iql": {}, "sac": online, "hnpg": rounds | {"eval_every": 300}}
    got = {}
    for name, own in options.items():
        assert run_file(name, *small(tiny, **own)).returncode == 0
        (folder,) = (tmp_path / "results" / "runs" / name).glob("*/*")
        rows = pd.read_parquet(folder / "episodes.parquet")
        got[name] = rows[rows.final]["return"].tolist()
    expected = EPOCHS[module.EPOCH]
    assert got == {name: pytest.approx(values, rel=1e-3) for name, values in expected.items()}


# Final returns with seed 0, by epoch.
EPOCHS = {
    1: {
        "bc": [-1122.55, -1295.73, -1291.64],
        "iql": [-1632.70, -1518.72, -1530.76],
        "sac": [-1480.55, -1313.18, -1342.40],
        "hnpg": [-1516.51, -764.90, -971.17],
    }
}
