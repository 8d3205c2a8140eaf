"""Finished runs are copied to and from a place that fsspec knows."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import fsspec
import pytest
from helpers import SMALL_SUITE

from hoard.cli import main
from hoard.records import cells
from hoard.records.errors import BadInput
from hoard.records.locks import lock_folder
from hoard.runners.sweep.limits import Limits
from hoard.runners.sweep.mirror import Damaged, Mirror, fetch_suite
from hoard.runners.sweep.schedule import Sweep
from hoard.runners.sweep.suite import read


def files_of(results: Path) -> dict[str, bytes]:
    """Those of the runs, without locks and hidden ones."""
    found = (path for path in results.glob("runs/*/*/*/*") if not path.name.startswith("."))
    return {str(path.relative_to(results)): path.read_bytes() for path in found}


def never(*_: object):
    raise AssertionError("a cell was started")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny):
    """Results of the small suite and a copy of them in memory, both made once."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "small.toml").write_text(SMALL_SUITE)
    mirror = Mirror("memory://box/r", folder / "results")
    assert Sweep(read(str(folder / "small.toml")), folder / "results", 2, "test", mirror=mirror).run() == 0
    return folder


@pytest.fixture(scope="module")
def kept(made):
    return {name: file.getvalue() for name, file in fsspec.filesystem("memory").store.items()}


@pytest.fixture
def store(kept):
    """The store in memory with the copy, as it was made."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    found.pipe(kept)
    yield found
    found.store.clear()


def again(made, results: Path, launcher=never) -> Sweep:
    mirror = Mirror("memory://box/r", results)
    return Sweep(read(str(made / "small.toml")), results, 2, "test", launcher, Limits(retries=0), mirror=mirror)


def test_what_one_machine_finished_another_need_not_run(made, store, tmp_path, capsys):
    assert again(made, tmp_path).run() == 0
    assert "2 finished cells brought from memory://box/r" in " ".join(capsys.readouterr().out.split())
    assert files_of(tmp_path) == files_of(made / "results")
    assert len(files_of(tmp_path)) >= 2 * 6


def test_cells_are_copied_as_they_finish(made, tmp_path):
    url = f"file://{tmp_path}/disk"
    results = tmp_path / "results"
    suite = ["bench", str(made / "small.toml"), "--results", str(results), "--mirror", url, "--seeds", "1"]
    with pytest.raises(SystemExit) as end:
        main(suite)
    assert end.value.code == 0
    copied = files_of(tmp_path / "disk")
    manifest = next(json.loads(copied.pop(name)) for name in list(copied) if name.endswith("manifest.json"))
    assert copied == files_of(results)
    assert set(manifest["files"]) == {Path(name).name for name in copied}
    with pytest.raises(SystemExit) as end:
        main(["report", f"{url}/small", "--results", str(tmp_path / "elsewhere")])
    assert end.value.code == 0
    assert (tmp_path / "elsewhere" / "fetched" / "small" / "report.html").is_file()


def run_in(store) -> str:
    """The folder of one of the runs in memory."""
    return sorted(name for name in store.store if name.endswith("manifest.json"))[0].removesuffix("/manifest.json")


def change(store, name: str, old: bytes, new: bytes) -> None:
    content = store.cat_file(name)
    assert old in content
    store.pipe_file(name, content.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("episodes.parquet", b"PAR1", b"PAR2", "episodes.parquet is not what was copied"),
        ("manifest.json", b'"status.json"', b'"../../status.json"', "../../status.json leaves the folder"),
        ("manifest.json", b"{", b"[", "Expecting"),
    ],
)
def test_a_damaged_copy_is_told(store, tmp_path, name, old, new, message):
    change(store, f"{run_in(store)}/{name}", old, new)
    run = run_in(store).removeprefix("/box/r/")
    with pytest.raises(Damaged, match=f"memory://box/r/{run}: .*{re.escape(message)}"):
        Mirror("memory://box/r", tmp_path).get(run)
    assert not (tmp_path / run).exists()
    with pytest.raises(BadInput, match="run the suite again with --mirror memory://box/r to copy it anew"):
        fetch_suite("memory://box/r/small", tmp_path)


@pytest.mark.parametrize("run", ["../../../elsewhere/x", "runs/bc/../../..", "/runs/bc/x/0-1", "runs/bc", ""])
def test_a_record_that_names_other_places_is_refused(made, store, tmp_path, run):
    record = json.loads(store.cat_file("/box/r/small/cells.json"))
    record["cells"][0]["run"] = run
    store.pipe_file("/box/r/small/cells.json", json.dumps(record).encode())
    with pytest.raises(BadInput, match="run '"):
        fetch_suite("memory://box/r/small", tmp_path / "here")
    assert not (tmp_path / "here" / "small").exists()


def test_each_machine_adds_its_cells_to_the_record(made, store, tmp_path):
    record = json.loads(store.cat_file("/box/r/small/cells.json"))
    elsewhere = [{**cell, "seed": 7, "run": None, "status": "failed"} for cell in record["cells"][:1]]
    unfinished = [{**cell, "status": "pending"} for cell in record["cells"][1:]]
    theirs = record | {"cells": elsewhere + unfinished, "provenance": record["provenance"] | {"revision": "0123abcd"}}
    store.pipe_file("/box/r/small/cells.json", json.dumps(theirs).encode())
    assert again(made, tmp_path).run() == 0
    together = json.loads(store.cat_file("/box/r/small/cells.json"))
    assert {(cell["seed"], cell["status"]) for cell in together["cells"]} == {
        (7, "failed"), *((cell["seed"], "finished") for cell in record["cells"])
    }  # fmt: skip
    assert set(together["provenance"]["revision"].split(", ")) == {"0123abcd", record["provenance"]["revision"]}
    folder = fetch_suite("memory://box/r/small", tmp_path / "reader")
    assert len(cells.read(folder)["cells"]) == len(record["cells"]) + 1


def test_another_suite_of_this_name_is_not_overwritten(made, store, tmp_path, capsys):
    record = json.loads(store.cat_file("/box/r/small/cells.json"))
    store.pipe_file("/box/r/small/cells.json", json.dumps(record | {"metric": "return"}).encode())
    assert again(made, tmp_path).run() == 1
    assert "metric is 'return' in the record that is there" in " ".join(capsys.readouterr().out.split())
    assert json.loads(store.cat_file("/box/r/small/cells.json"))["metric"] == "return"


def test_a_sweep_makes_a_damaged_copy_anew(made, store, tmp_path, capsys):
    run = run_in(store).removeprefix("/box/r/")
    store.pipe_file(f"{run_in(store)}/status.json", b"{}")
    started = []

    class Copied:
        """Stands in for the run: it leaves what the run left before."""

        pid = None

        def __init__(self, start) -> None:
            started.append(start.command[start.command.index("--planned") + 1])
            shutil.copytree(made / "results" / run, tmp_path / run, dirs_exist_ok=True)

        def poll(self) -> int:
            return 0

    assert again(made, tmp_path, Copied).run() == 0
    assert started == [run]
    assert f"is not used: memory://box/r/{run}: status.json is not what was copied" in " ".join(
        capsys.readouterr().out.split()
    )
    assert Mirror("memory://box/r", tmp_path / "third").get(run)


def test_a_run_that_is_not_what_its_address_says_is_not_used(store, tmp_path):
    """Its files are those that were copied, but it was made with another batch size."""
    folder = run_in(store)
    run = folder.removeprefix("/box/r/")
    change(store, f"{folder}/config.json", b'"batch_size": 32', b'"batch_size": 64')
    manifest = json.loads(store.cat_file(f"{folder}/manifest.json"))
    manifest["files"]["config.json"] = hashlib.sha256(store.cat_file(f"{folder}/config.json")).hexdigest()
    store.pipe_file(f"{folder}/manifest.json", json.dumps(manifest).encode())
    with pytest.raises(Damaged, match=r"made by what has the address runs/bc/"):
        Mirror("memory://box/r", tmp_path).get(run)
    assert not list(tmp_path.glob("runs/*/*/*"))


def test_a_folder_that_is_worked_in_is_left_alone(store, tmp_path):
    run = run_in(store).removeprefix("/box/r/")
    (tmp_path / run).mkdir(parents=True)
    with lock_folder(tmp_path / run):
        assert not Mirror("memory://box/r", tmp_path).get(run)
    assert Mirror("memory://box/r", tmp_path).get(run)


def test_a_copy_that_is_not_whole_counts_for_nothing(store, tmp_path):
    store.rm(f"{run_in(store)}/manifest.json")
    assert len(Mirror("memory://box/r", tmp_path)._there) == 1


def test_a_store_that_fails_costs_no_cell(made, store, tmp_path, monkeypatch, capsys):
    """The sweep says so at its end, and its exit status too; the next call copies what is missing."""
    store.store.clear()

    def full(*_: object, **__: object) -> None:
        raise OSError("no more room in the box")

    monkeypatch.setattr(type(store), "pipe_file", full)
    assert again(made, made / "results").run() == 1
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("no more room in the box") == 3  # two runs and the record
    assert "not copied to memory://box/r, the same command tries again" in out
    monkeypatch.undo()
    assert again(made, made / "results").run() == 0
    assert len(Mirror("memory://box/r", tmp_path)._there) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bench", "--mirror", "nosuch://box"], "nosuch://box cannot be opened: Protocol not known: nosuch"),
        (["report", "nosuch://box/small"], "nosuch://box cannot be opened"),
        (["report", "memory://box/r/none"], "no suite at memory://box/r/none"),
    ],
)
def test_places_that_are_none_are_refused(store, tmp_path, args, message, capsys):
    with pytest.raises(SystemExit) as end:
        main([*args, "--results", str(tmp_path / "results")])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
