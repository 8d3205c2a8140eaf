"""A damaged dataset is a DatasetError that names the dataset, the file and the field: never another kind of error."""

import itertools
import json
import tracemalloc

import h5py
import numpy as np
import pytest
from dataset_toys import SPACES, edit_metadata, observations, random_buffers, store, tagged_buffers
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

from hoard import datasets
from hoard.datasets import DatasetError

ID = "toys/damaged-v0"
numbers = itertools.count()  # a new id for each example: Minari does not overwrite


@pytest.fixture
def folder():
    return store(ID, tagged_buffers([3, 2, 4]))


def refuses(folder, message, dataset_id=ID):
    with pytest.raises(DatasetError, match=message) as caught:
        datasets.load(dataset_id)
    assert dataset_id in str(caught.value)
    assert str(folder) in str(caught.value)


def without(name):
    def change(folder):
        metadata = json.loads((folder / "metadata.json").read_text())
        del metadata[name]
        (folder / "metadata.json").write_text(json.dumps(metadata))

    return change


def with_fields(**fields):
    return lambda folder: edit_metadata(folder, **fields)


def with_text(text):
    return lambda folder: (folder / "metadata.json").write_text(text)


def truncated(folder):
    path = folder / "metadata.json"
    path.write_text(path.read_text()[:-20])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, r"metadata\.json \(JSONDecodeError"),
        (with_text(""), r"metadata\.json \(JSONDecodeError"),
        (with_text("[]"), r"metadata\.json"),
        (with_text("{}"), r"metadata\.json \(no field 'data_format'"),
        (lambda folder: (folder / "metadata.json").write_bytes(b"\xff\xfe{"), r"metadata\.json \(UnicodeDecodeError"),
        *((without(n), rf"metadata\.json \(no field '{n}'") for n in ("data_format", "total_steps", "total_episodes")),
        (without("observation_space"), r"metadata\.json"),
        (with_fields(data_format="zip"), r"metadata\.json .*zip"),
        (with_fields(action_space="{"), r"metadata\.json \(JSONDecodeError"),
        (with_fields(observation_space='{"type": "Blob"}'), r"metadata\.json \(TypeError"),
        (with_fields(total_steps=8), r"rewards has 4 entries; metadata\.json leaves 1 to 3"),
        (with_fields(total_steps=10), r"has 9 steps, metadata\.json says 10 total_steps"),
        (with_fields(total_steps=10**18), r"no memory .*1000000000000000000 total_steps"),
        (with_fields(total_steps=10**30), r"no memory .*total_steps"),
        *((with_fields(total_steps=n), "total_steps is .*positive integer") for n in (0, -9, 9.0, "9", None, True)),
        (with_fields(total_episodes=2), r"main_data\.hdf5.* 3 episodes, metadata\.json says 2 total_episodes"),
        (with_fields(total_episodes=4), r"main_data\.hdf5.* 3 episodes, metadata\.json says 4 total_episodes"),
        (with_fields(total_episodes=0), "total_episodes is 0, expected a positive"),
        (with_fields(ref_min_score=1.0), "reference returns must be .* got 1.0 and None"),
        (with_fields(ref_min_score=1.0, ref_max_score=1.0), "reference returns"),
        (with_fields(ref_min_score="low", ref_max_score=1.0), r"metadata\.json .*could not convert .*low"),
        (with_fields(ref_min_score=float("nan"), ref_max_score=1.0), "reference returns"),
    ],
)
def test_metadata(folder, damage, message):
    damage(folder)
    refuses(folder, message)


@pytest.mark.parametrize("text", ["{", "[1]", '{"id": 3}'])
def test_an_unreadable_environment(folder, text):
    edit_metadata(folder, eval_env_spec=text)
    with pytest.raises(DatasetError, match=f"{ID}: env_spec in metadata.json cannot be read"):
        datasets.load(ID)


def loads_or_refuses(dataset_id):
    try:
        data = datasets.load(dataset_id)
    except DatasetError as error:
        message = str(error)
        assert dataset_id in message
    else:
        assert len(data) == 3


edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = "data_format jpeg_encoding total_steps total_episodes observation_space action_space env_spec eval_env_spec"


@settings(max_examples=60, deadline=None)
@given(edits)
def test_any_damage_to_the_bytes_of_metadata_is_refused_or_harmless(edits):
    dataset_id = f"toys/fuzzed{next(numbers)}-v0"
    path = store(dataset_id, tagged_buffers([2, 1])) / "metadata.json"
    raw = bytearray(path.read_bytes())
    for where, removed, inserted in edits:
        at = int(where * len(raw))
        raw[at : at + removed] = inserted
    path.write_bytes(raw)
    loads_or_refuses(dataset_id)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*keys.split(), "ref_min_score", "ref_max_score"]), values)
def test_any_value_in_metadata_is_refused_or_harmless(key, value):
    dataset_id = f"toys/fuzzed{next(numbers)}-v0"
    edit_metadata(store(dataset_id, tagged_buffers([2, 1])), **{key: value})
    loads_or_refuses(dataset_id)


# --- main_data.hdf5 ---


def resized(name, change):
    def damage(file):
        group = file["episode_1"]
        values = group[name][()]
        del group[name]
        group[name] = change(values)

    return damage


def poisoned(name, index, value):
    def damage(file):
        file[f"episode_2/{name}"][index] = value

    return damage


def removed(name):
    def damage(file):
        del file[name]

    return damage


def as_group(file):
    del file["episode_1/rewards"]
    file.create_group("episode_1/rewards/inner")


FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *((removed(f"episode_1/{n}"), rf"main_data\.hdf5 is damaged .*at episode 1: .*'{n}'") for n in FIELDS),
        (removed("episode_1"), r"main_data\.hdf5 .*2 episodes, metadata\.json says 3"),
        (lambda file: file.move("episode_1", "episode_7"), r"main_data\.hdf5 .*at episode 1: .*'episode_1'"),
        *(
            (resized(n, lambda v: v[:-1]), rf"episode 1 in .*: {n} has shape \(1(, 2)?,?\), expected \(2")
            for n in ("actions", "terminations", "truncations")
        ),
        (resized("rewards", lambda v: v[:-1]), r"episode 1 in .*: actions has shape \(2, 2\), expected \(1, 2\)"),
        (resized("rewards", lambda v: v[:0]), r"episode 1 in .*: rewards has 0 entries"),
        (resized("rewards", lambda v: np.zeros((2, 2))), r"episode 1 in .*: rewards has shape \(2, 2\)"),
        (
            resized("rewards", lambda v: np.float64(1)),
            r"episode 1 in .*: actions has shape \(2, 2\), expected \(1, 2\)",
        ),
        (resized("rewards", lambda v: np.array([b"1", b"2"])), r"episode 1 in .*: rewards holds \|S1, not numbers"),
        (resized("rewards", lambda v: ["one", "two"]), r"episode 1 in .*: rewards holds object, not numbers"),
        (resized("observations", lambda v: v[:-1]), r"episode 1 in .*: observations has 2 rows for 2 rewards"),
        (resized("observations", lambda v: v[:, :1]), r"episode 1 in .*: observations do not fit their space"),
        (resized("observations", lambda v: np.float64(1)), r"episode 1 in .*: observations do not fit"),
        (resized("observations", lambda v: ["a", "b", "c"]), r"episode 1 in .*: observations do not fit"),
        (resized("actions", lambda v: v[:, :1]), r"episode 1 in .*: actions has shape \(2, 1\), expected \(2, 2\)"),
        (resized("actions", lambda v: v[:, 0]), r"episode 1 in .*: actions has shape \(2,\), expected \(2, 2\)"),
        (as_group, r"main_data\.hdf5 is damaged .*at episode 1"),
        (poisoned("observations", (1, 1), np.nan), "observations holds NaN or infinity, first at row 8"),
        (poisoned("observations", (1, 1), 1e300), "observations holds NaN or infinity, first at row 8"),
        (poisoned("actions", (3, 0), np.nan), "action holds NaN or infinity, first at transition 8"),
        (poisoned("rewards", 0, -np.inf), "reward holds NaN or infinity, first at transition 5"),
        (poisoned("terminations", 1, True), "terminated is set at step 6, inside an episode"),
        (poisoned("truncations", 2, True), "truncated is set at step 7, inside an episode"),
    ],
)
def test_main_data(folder, damage, message):
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        damage(file)
    refuses(folder, message)


def test_a_missing_part_of_a_dict():
    space = SPACES["nested"]
    folder = store(ID, random_buffers([2, 2], space, 0), space)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_1/observations/z/x/w"]
    refuses(folder, r"main_data\.hdf5 is damaged .*at episode 1: .*'w'")


def test_parts_of_a_dict_of_different_lengths():
    space = SPACES["dict"]
    folder = store(ID, random_buffers([2, 2], space, 0), space)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        file["episode_1/observations/a"].resize((2, 1))
    refuses(folder, r"episode 1 in .*: observations do not fit their space Dict")


def test_a_missing_main_file(folder):
    (folder / "main_data.hdf5").unlink()
    refuses(folder, r"main_data\.hdf5 is missing; move .*damaged-v0 away")


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_a_truncated_main_file(fraction):
    dataset_id = f"toys/cut{next(numbers)}-v0"
    folder = store(dataset_id, tagged_buffers([3, 2]))
    path = folder / "main_data.hdf5"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(fraction * len(raw))])
    refuses(folder, r"main_data\.hdf5 is damaged or incomplete", dataset_id)


def test_a_main_file_of_another_kind(folder):
    (folder / "main_data.hdf5").write_text("<html>404</html>")
    refuses(folder, r"main_data\.hdf5 is damaged or incomplete")


# --- arrow and parquet ---


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_files_of_the_other_formats(data_format):
    folder = store(ID, tagged_buffers([3, 2, 4]), data_format=data_format)
    part = next(path for path in (folder / "1").iterdir() if path.suffix != ".json")
    raw = part.read_bytes()
    for damaged in (raw[: len(raw) // 2], b"", b"<html>404</html>"):
        part.write_bytes(damaged)
        refuses(folder, "damaged or incomplete")
    part.unlink()
    refuses(folder, r"has 7 steps, metadata\.json says 9 total_steps")
    part.write_bytes(raw)
    edit_metadata(folder, total_episodes=2)
    refuses(folder, r"3 episodes, metadata\.json says 2 total_episodes")
    edit_metadata(folder, total_episodes=3)
    assert datasets.load(ID).lengths.tolist() == [3, 2, 4]


# --- spaces ---


def in_spaces(space, actions, act):
    rng = np.random.default_rng(0)
    obs = observations(space, 3, rng)
    end = np.array([False, True])
    return store(ID, [EpisodeBuffer(0, None, None, obs, act, np.zeros(2), end, end, {})], space, actions)


def test_an_action_space_of_two_dimensions():
    folder = in_spaces(SPACES["box"], spaces.Box(-1.0, 1.0, (1, 2)), np.zeros((2, 1, 2), np.float32))
    refuses(folder, r"action space Box\(.*\(1, 2\).*only a flat Box")


def test_an_observation_space_without_numbers(folder):
    edit_metadata(folder, observation_space='{"type": "Dict", "subspaces": {}}')
    refuses(folder, "observation space Dict.* not supported")


@pytest.mark.parametrize("wrap", [lambda image: image, lambda image: spaces.Dict({"camera": image})])
def test_images(wrap):
    image = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    folder = in_spaces(wrap(image), spaces.Box(-1.0, 1.0, (1,)), np.zeros((2, 1), np.float32))
    refuses(folder, "JPEG")


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminations"])
def test_a_shape_without_data_behind_it_costs_no_memory(folder, name):
    """A file of a few kilobytes may declare arrays of any size that were never written."""
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        old = file[f"episode_1/{name}"]
        shape, dtype = (40_000_000, *old.shape[1:]), old.dtype
        del file[f"episode_1/{name}"]
        file.create_dataset(f"episode_1/{name}", shape, dtype, chunks=(1000, *shape[1:]))
    assert (folder / "main_data.hdf5").stat().st_size < 100_000
    tracemalloc.start()
    refuses(folder, rf"'{name}' has shape \(40000000.*holds no data for it")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_numbers_kept_in_another_file_are_not_followed(folder, tmp_path):
    (tmp_path / "other.bin").write_bytes(np.zeros(2).tobytes())
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        file.create_dataset(
            "episode_1/rewards", (2,), np.float64, external=[(str(tmp_path / "other.bin"), 0, h5py.h5f.UNLIMITED)]
        )
    refuses(folder, "'rewards' is kept in another file")
