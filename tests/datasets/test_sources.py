"""The sources: quick to ask, alike in what they offer, and open to another one."""

import inspect
import subprocess
import sys
from pathlib import Path

import minari.namespace
import minari.storage
import pytest
from dataset_toys import toy

import hoard
from hoard import datasets
from hoard.datasets import DatasetError
from hoard.datasets.minari import store
from hoard.datasets.source import Source
from hoard.records.errors import BadInput

HEAVY = ("torch", "h5py", "minari", "gymnasium", "gymnasium_robotics", "mujoco", "pyarrow", "pandas", "scipy")
VERBS = [name for name, value in vars(Source).items() if inspect.isfunction(value) and name[0] != "_"]


def fresh(code):
    """What a new process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_asking_for_ids_imports_nothing_heavy():
    code = f"""
import sys
from hoard import datasets
ids = datasets.known_ids()
assert "hoard/pendulum/mixed-v0" in ids and "d4rl:hopper-medium-v2" in ids
for dataset_id in [*ids, "D4RL/door/human-v2", "hoard/hopper/medium-7k-v0"]:
    datasets.check_id(dataset_id)
    datasets.is_at_hand(dataset_id)
    datasets.progress_unit(dataset_id)
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    assert fresh(code) == "[]\n"


def test_loading_needs_no_torch_and_the_buffer_does():
    code = """
import sys
from hoard import datasets
data = datasets.load("hoard/gridworld/expert-v0")
before = "torch" in sys.modules
from hoard.datasets import ReplayBuffer
print(before, "torch" in sys.modules, len(ReplayBuffer(data)) == len(data), datasets.ReplayBuffer is ReplayBuffer)
"""
    assert fresh(code) == "False True True True\n"


def test_an_unknown_attribute_is_one():
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        datasets.Nonsense  # noqa: B018


@pytest.mark.parametrize("source", datasets.SOURCES, ids=lambda source: source.__name__)
def test_every_source_has_the_same_verbs(source):
    assert len(VERBS) == 8
    for verb in VERBS:
        expected = list(inspect.signature(getattr(Source, verb)).parameters)[1:]
        assert list(inspect.signature(getattr(source, verb)).parameters) == expected, verb
    assert isinstance(source.ID_FORM, str)


def test_the_kind_of_an_id_is_asked_in_one_place():
    """`datasets/__init__.py` tests no prefixes: that is what the sources are for."""
    text = Path(datasets.__file__).read_text()
    assert "startswith" not in text
    assert "PREFIX" not in text


def test_another_source_is_one_more_entry(monkeypatch):
    class Numbers:
        ID_FORM = "numbers:N"

        def __init__(self):
            self.made = []

        def owns(self, dataset_id):
            return dataset_id.startswith("numbers:")

        def known_ids(self):
            return ["numbers:3"]

        def check_id(self, dataset_id):
            if not dataset_id[8:].isdigit():
                raise DatasetError(f"{dataset_id}: no number")

        def is_at_hand(self, dataset_id):
            return dataset_id in self.made

        def progress_unit(self, dataset_id):
            return "numbers"

        def ensure(self, dataset_id, progress):
            self.made.append(dataset_id)
            return True

        def read(self, dataset_id, progress):
            return toy([int(dataset_id[8:])], id=dataset_id)

        def metadata(self, dataset_id):
            return {"n": dataset_id[8:]}

    monkeypatch.setattr(datasets, "SOURCES", (*datasets.SOURCES, Numbers()))
    assert datasets.known_ids()[-1] == "numbers:3"
    assert not datasets.is_at_hand("numbers:5")
    assert len(datasets.load("numbers:5")) == 5
    assert datasets.is_at_hand("numbers:5")
    assert datasets.metadata_of("numbers:5") == {"n": "5"}
    assert datasets.progress_unit("numbers:5") == "numbers"
    with pytest.raises(DatasetError, match="no number"):
        datasets.check_id("numbers:x")
    with pytest.raises(
        DatasetError, match=r"not hoard/\.\.\., d4rl:NAME, ogbench:NAME, a Minari id like .* or numbers:N; nearest"
    ):
        datasets.check_id("nonsense")


def test_a_dataset_error_is_bad_input_of_the_user():
    assert issubclass(DatasetError, BadInput)
    assert issubclass(DatasetError, ValueError)


def test_the_folder_is_minaris_own(tmp_path, monkeypatch):
    """`store` knows it without importing Minari."""
    for value in (str(tmp_path / "elsewhere"), None):
        if value is None:
            monkeypatch.delenv(store.ROOT)
        else:
            monkeypatch.setenv(store.ROOT, value)
        for dataset_id in ("", "x-v0", "D4RL/door/human-v2"):
            assert store.path_of(dataset_id) == minari.storage.get_dataset_path(dataset_id)
    assert store._NAMESPACE == minari.namespace.NAMESPACE_METADATA_FILENAME
    assert hoard.__version__


@pytest.mark.parametrize(
    ("dataset_id", "unit"),
    [
        ("hoard/pendulum/mixed-v0", "environment steps"),
        ("d4rl:hopper-medium-v2", "bytes"),
        ("ogbench:cube-single-noisy-singletask-task1-v0", "bytes"),
        ("ogbench:cube-single-noisy-100k-singletask-task1-v0", "environment steps"),
    ],
)
def test_what_progress_counts(dataset_id, unit):
    if dataset_id.startswith("ogbench"):
        pytest.importorskip("ogbench")
    assert datasets.progress_unit(dataset_id) == unit
