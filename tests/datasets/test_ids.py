"""Ids: what is refused before the disk is touched, what the hub does not give, and what the root must allow."""

import os
from pathlib import Path

import minari
import pytest
from dataset_toys import store, tagged_buffers
from minari.namespace import list_local_namespaces

from hoard import datasets
from hoard.datasets import DatasetError
from hoard.datasets.d4rl.ids import NAMES
from hoard.datasets.minari import hub, reader, writer
from hoard.datasets.minari import store as stored

TRICKS = [
    "",
    "x",
    "-v0",
    "/-v0",
    ".-v0",
    "..",
    "../x-v0",
    "a/../../b-v0",
    "a/..-v0",
    "a/./b-v0",
    "a//b-v0",
    "/etc/passwd-v0",
    "~/x-v0",
    "a/-v0",
    "a\\..\\x-v0",
    "C:\\x-v0",
    "x\0-v0",
    "x-v0\0",
    "x-v0\n",
    " x-v0",
    "x y-v0",
    "x-v",
    "x-v0/",
    "x-v0/..",
    "hf://farama-minari/D4RL/door/human-v2",
    ".hidden/x-v0",
    "é-v0",
    "x-v٣",  # a digit in Arabic script
    "hoard/../x-v0",
    "hoard/pendulum/../pendulum/mixed-v0",
    "hoard/",
    "hoard//pendulum/mixed-v0",
    "hoard/pendulum/mixed-v0\n",
]


def snapshot(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("dataset_id", TRICKS, ids=ascii)
def test_tricks_are_refused_without_looking(tmp_path, monkeypatch, dataset_id):
    store("x-v0", tagged_buffers([2]))  # a dataset just outside the root below: it must not be reached
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari" / "inner"))
    (tmp_path / "minari" / "inner").mkdir()
    before = snapshot(tmp_path)

    def reached(*_):
        raise AssertionError("reached the disk or the network")

    for module, name in ((stored, "is_stored"), (hub, "download"), (reader, "read"), (writer, "write")):
        monkeypatch.setattr(module, name, reached)
    for door in (datasets.check_id, datasets.ensure, datasets.load):
        with pytest.raises(DatasetError, match=r"^unknown dataset '.*nearest: ") as caught:
            door(dataset_id)
        assert repr(dataset_id) in str(caught.value)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("dataset_id", "nearest"),
    [
        ("hoard/pendulum/mixd-v0", "hoard/pendulum/mixed-v0"),
        ("hoard/pendulum/mixed-v1", "hoard/pendulum/mixed-v0"),
        ("hoard/pointmaze/umaze-0k-v0", "hoard/pointmaze/umaze-v0"),
        ("d4rl:hopper-medium-v3", "d4rl:hopper-medium-v2"),
        ("hord/pendulum/mixed", "hoard/pendulum/mixed-v0"),
        ("toys/stored", "toys/stored-v0"),
    ],
)
def test_the_nearest_id_is_named_first(dataset_id, nearest):
    store("toys/stored-v0", tagged_buffers([1]))
    with pytest.raises(DatasetError, match=f"nearest: {nearest},"):
        datasets.load(dataset_id)


@pytest.mark.parametrize("dataset_id", ["D4RL/door/human-v2", "x-v0", "a/b.c_d/e-v12", "hoard/pointmaze/umaze-7k-v0"])
def test_good_ids_pass_without_looking(monkeypatch, dataset_id):
    monkeypatch.setattr(stored, "path_of", None)
    datasets.check_id(dataset_id)


def test_known_ids_lists_what_is_stored_once(root):
    store("toys/stored-v0", tagged_buffers([1]))
    store("plain-v1", tagged_buffers([1]), data_format="arrow")
    store("hoard/pendulum/mixed-v0", tagged_buffers([1]))
    for stray in (".toys-x-v0.tmp-1/data", "toys/.cache/data", "no version/data", "toys/broken-v0/data"):
        (root / stray).mkdir(parents=True)
        (root / stray / "metadata.json").write_text("{")
    (root / "toys" / "empty-v0" / "data").mkdir(parents=True)
    ids = datasets.known_ids()
    assert len(ids) == len(set(ids))
    recipes, names = datasets.recipes.known_ids(), ["d4rl:" + name for name in NAMES]
    singletask = datasets.ogbench.source.known_ids()
    assert ids == [*recipes, *names, *singletask, "plain-v1", "toys/broken-v0", "toys/stored-v0"]


# --- the hub ---


def unreachable(dataset_id):
    """What a broken download leaves: a folder with half of its files under Minari's root."""
    folder = Path(os.environ["MINARI_DATASETS_PATH"], dataset_id, "data")
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text("{}")
    raise ConnectionError("no route to host")


def left_behind(root):
    return [path for path in root.rglob("*") if path.suffix != ".lock"]


def test_a_hub_out_of_reach_says_what_to_do_and_leaves_nothing(root, monkeypatch):
    monkeypatch.setattr(minari, "download_dataset", unreachable)
    store("toys/stored-v0", tagged_buffers([1]))
    before = left_behind(root)
    for _ in range(2):
        with pytest.raises(DatasetError) as caught:
            datasets.load("toys/sub/storde-v0")
        message = str(caught.value)
        for part in (
            "ConnectionError: no route to host",
            str(root),
            "run `minari download toys/sub/storde-v0`",
            "Nearest ids at hand: toys/stored-v0",
        ):
            assert part in message
    assert left_behind(root) == before
    assert os.environ["MINARI_DATASETS_PATH"] == str(root)
    assert not stored.is_stored("toys/sub/storde-v0")


def test_a_root_that_was_not_set_stays_so(monkeypatch, tmp_path):
    monkeypatch.setattr(minari, "download_dataset", unreachable)
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    with pytest.raises(DatasetError, match=r"/home/\.minari/datasets"):
        datasets.load("toys/gone-v0")
    assert "MINARI_DATASETS_PATH" not in os.environ
    assert not left_behind(tmp_path / "home" / ".minari" / "datasets")


def test_what_the_hub_gives_is_stored_once(root, monkeypatch):
    calls = []

    def download(dataset_id):
        calls.append(dataset_id)
        store(dataset_id, tagged_buffers([2, 1]))

    monkeypatch.setattr(minari, "download_dataset", download)
    assert datasets.ensure("toys/remote/fetched-v0") is True
    assert datasets.ensure("toys/remote/fetched-v0") is False
    assert datasets.load("toys/remote/fetched-v0").lengths.tolist() == [2, 1]
    assert calls == ["toys/remote/fetched-v0"]
    assert [path.name for path in root.iterdir() if path.suffix != ".lock"] == ["toys"]
    assert list(minari.list_local_datasets()) == ["toys/remote/fetched-v0"]
    assert "toys/remote" in list_local_namespaces()


def test_a_hub_that_gives_nothing_is_not_believed(root, monkeypatch):
    monkeypatch.setattr(minari, "download_dataset", lambda _: None)
    with pytest.raises(DatasetError, match=r"no data/metadata\.json came"):
        datasets.load("toys/remote-v0")
    assert not left_behind(root)


def test_a_half_copied_folder_of_the_user_is_not_deleted(root, monkeypatch):
    monkeypatch.setattr(minari, "download_dataset", unreachable)
    for dataset_id in ("toys/copied-v0", "hoard/pendulum/mixed-v0"):
        file = root / dataset_id / "data" / "main_data.hdf5"
        file.parent.mkdir(parents=True)
        file.write_text("hours of copying")
        with pytest.raises(DatasetError, match=r"is there without data/metadata\.json; move it away"):
            datasets.load(dataset_id)
        assert file.read_text() == "hours of copying"


# --- the root ---


@pytest.mark.parametrize(
    ("dataset_id", "blocked"),
    [
        *(("toys/x-v0", name) for name in (".", "..", "toys")),
        *(("hoard/pendulum/mixed-v0", name) for name in (".", "..", "hoard", "hoard/pendulum")),
    ],
)
def test_a_file_in_place_of_a_folder(root, monkeypatch, dataset_id, blocked):
    """Root may write anywhere, so a file stands for a folder that cannot be written to."""
    monkeypatch.setattr(minari, "download_dataset", unreachable)
    monkeypatch.setattr(datasets.recipes, "generate", lambda *_: pytest.fail("generated in vain"))
    path = root / "below" if blocked == ".." else root
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(path))
    file = root if blocked in (".", "..") else root / blocked
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("not a folder")
    with pytest.raises(DatasetError, match="MINARI_DATASETS_PATH") as caught:
        datasets.load(dataset_id)
    assert dataset_id in str(caught.value)
    assert str(root) in str(caught.value)
    assert file.read_text() == "not a folder"
    with pytest.raises(DatasetError, match="nearest"):
        datasets.load("nonsense")


def test_a_name_too_long_for_the_file_system():
    with pytest.raises(DatasetError, match="too long"):
        datasets.load("x" * 300 + "-v0")
