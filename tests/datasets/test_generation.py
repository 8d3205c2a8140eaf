"""Generation: once, whole or not at all, whatever happens to the process."""

import os
import signal
import subprocess
import sys
import textwrap

import minari
import numpy as np
import pytest
from dataset_toys import rows_by_h5py
from minari.dataset._storages.hdf5_storage import HDF5Storage
from minari.namespace import list_local_namespaces

from hoard import datasets
from hoard.datasets import DatasetError
from hoard.datasets.minari import writer
from hoard.datasets.minari.metadata import metadata_of
from hoard.datasets.minari.store import is_stored, stored_ids
from hoard.datasets.recipes import pendulum

ID = "hoard/pendulum/mixed-v0"
# What a child process runs before its own lines: a short version of the recipe.
SHORT = """
import os, signal, sys, time
from hoard import datasets
from hoard.datasets import recipes
from hoard.datasets.recipes import pendulum
dataset_id = "hoard/pendulum/mixed-v0"
recipes.generate = lambda dataset_id, progress: pendulum.record(progress, episodes=4, reference_episodes=1)
"""


def left_behind(root):
    return [path for path in root.rglob("*") if path.suffix != ".lock"]


@pytest.fixture
def short(monkeypatch):
    def generate(dataset_id, progress=None):
        calls.append(dataset_id)
        return pendulum.record(progress, episodes=4, reference_episodes=1)

    calls = []
    monkeypatch.setattr(datasets.recipes, "generate", generate)
    return calls


def child(code, tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", SHORT + textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )


def test_first_use_generates_and_the_second_reads(root, short):
    ticks = []
    data = datasets.load(ID, lambda done, total: ticks.append((done, total)))
    assert data.lengths.tolist() == [200] * 4
    assert ticks[-1] == (1200, 1200)
    assert datasets.load(ID).content_hash == data.content_hash
    assert datasets.ensure(ID) is False
    assert short == [ID]
    assert [path.name for path in root.iterdir() if path.suffix != ".lock"] == ["hoard"]


def test_the_file_holds_the_recording_to_the_bit(root, short):
    recording = pendulum.record(episodes=4, reference_episodes=1)
    data = datasets.load(ID)
    rows = list(rows_by_h5py(root / ID / "data", recording.observation_space))
    assert len(rows) == len(data) == 800
    for k, episode in enumerate(recording.episodes):
        np.testing.assert_array_equal(data.episode(k).observations, episode.observations)
        np.testing.assert_array_equal(data.episode(k).action, episode.actions)
        np.testing.assert_array_equal(data.episode(k).reward, episode.rewards.astype(np.float32))
        np.testing.assert_array_equal(data.episode(k).truncated, episode.truncations)
    assert (data.ref_min, data.ref_max) == (recording.ref_min_score, recording.ref_max_score)
    assert data.env_spec == recording.eval_env_spec
    assert data.action_space == recording.action_space


def test_minari_itself_reads_what_was_written(short):
    datasets.ensure(ID)
    theirs = minari.load_dataset(ID)
    assert (theirs.total_episodes, theirs.total_steps) == (4, 800)
    assert list(minari.list_local_datasets()) == [ID]
    assert list_local_namespaces() == ["hoard", "hoard/pendulum"]
    assert theirs.recover_environment(eval_env=True).spec.id == "Pendulum-v1"
    assert len(theirs.storage.metadata["description"]) > 100


def test_a_recipe_that_fails_half_way_leaves_nothing(root, monkeypatch):
    def fail(done, total):
        if done > 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        datasets.load(ID, fail)
    assert not left_behind(root)
    assert not is_stored(ID)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["update_episodes", "update_metadata", "rename"])
def test_a_write_that_fails_half_way_leaves_nothing(root, short, monkeypatch, error, step):
    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        if step == "rename":
            patch.setattr(os, "rename", fail)
        else:
            patch.setattr(HDF5Storage, step, fail)
        expected = DatasetError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            datasets.load(ID)
        if expected is DatasetError:
            assert "disk full" in str(caught.value)
            assert str(root / ID) in str(caught.value)
    assert not (root / ID).exists()
    assert not [
        path for path in root.rglob("*") if path.name.endswith(("hdf5", "metadata.json")) and "data" in path.parts
    ]
    assert not list(root.glob(".*tmp*"))
    assert datasets.load(ID).num_episodes == 4


def test_the_episodes_behind_reference_returns_are_on_record(root):
    writer.write("test/short-v0", pendulum.record(episodes=1, reference_episodes=2))
    assert metadata_of("test/short-v0")["num_episodes_average_score"] == 2


def test_writing_over_a_dataset_is_refused(root, short):
    datasets.ensure(ID)
    with pytest.raises(DatasetError, match="exists already"):
        writer.write(ID, pendulum.record(episodes=1, reference_episodes=1))
    assert datasets.load(ID).num_episodes == 4


def test_a_killed_generation_is_done_again(root, short, tmp_path):
    """The first process is killed inside the full recipe, the second between writing and renaming."""
    code = """
        import importlib
        importlib.reload(recipes)  # the full recipe
        datasets.load(dataset_id, lambda done, total: print(done, flush=True))
    """
    process = child(code, tmp_path)
    assert process.stdout.readline().strip() == "2000"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not is_stored(ID)

    process = child("os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\ndatasets.load(dataset_id)", tmp_path)
    assert process.wait() == -signal.SIGKILL
    assert not is_stored(ID)
    assert len(list(root.glob(".*tmp*/data/main_data.hdf5"))) == 1
    assert ID not in stored_ids()

    data = datasets.load(ID)
    assert short == [ID]
    assert data.num_episodes == 4
    assert not list(root.glob(".*tmp*"))


def test_two_processes_make_one_dataset(root, tmp_path):
    code = """
        inner = recipes.generate
        def generate(*args):
            print("generating", flush=True)
            time.sleep(1.5)  # the other process arrives meanwhile
            return inner(*args)
        recipes.generate = generate
        made = datasets.ensure(dataset_id)
        data = datasets.load(dataset_id)
        print(made, data.num_episodes, data.content_hash, flush=True)
    """
    processes = [child(code, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(len(lines) for lines in outputs) == [1, 2]
    last = sorted(lines[-1].split() for lines in outputs)
    assert [line[0] for line in last] == ["False", "True"]
    assert last[0][1:] == last[1][1:]
    assert last[0][1] == "4"


def test_a_recipe_prints_no_notice_of_its_libraries():
    """In a process of its own: what is printed on import is printed once."""
    code = "from hoard.datasets.recipes.catalogue import find; find('hoard/pointmaze/umaze-1k-v0')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
