"""The reader of D4RL's files against `d4rl.qlearning_dataset`, written out as the loop it is."""

import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoard import datasets
from hoard.datasets import DatasetError, d4rl

DOOR = Path(__file__).resolve().parents[3] / "shared" / "data" / "d4rl_door_human_replayed.hdf5"


def contents(n=10, terminals=(3, 8), timeouts=(6, 8)):
    """Row i holds i; the defaults are the golden case."""
    i = np.arange(n)
    return {
        "observations": np.stack([i, -i], axis=1).astype(np.float32),
        "actions": (i[:, None] / 100).astype(np.float32),
        "rewards": i.astype(np.float32),
        "terminals": np.isin(i, terminals),
        "timeouts": np.isin(i, timeouts),
    }


def write(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return f"d4rl:{path}"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "toy.hdf5"


def qlearning_dataset(file):
    """The loop of the package; s' is the next row, whatever lies there."""
    rows = []
    for i in range(len(file["rewards"]) - 1):
        if file["timeouts"][i]:
            continue
        obs = file["observations"]
        rows.append((obs[i], file["actions"][i], obs[i + 1], file["rewards"][i], bool(file["terminals"][i])))
    return rows


def test_the_golden_case(path):
    data = datasets.load(write(path, contents()))
    assert data.reward.tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert data.obs[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert data.next_obs[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 8]
    assert data.reward[data.terminated].tolist() == [3]
    assert data.reward[data.truncated].tolist() == [5, 7]
    assert data.lengths.tolist() == [4, 2, 1]
    np.testing.assert_allclose(data.action[:, 0], data.reward / 100)
    assert {data.observations.dtype, data.action.dtype, data.reward.dtype} == {np.dtype(np.float32)}


def test_the_reward_of_a_terminal_row_survives(path):
    """As in antmaze, where every reward that is not 0 lies on such a row (D2)."""
    arrays = contents(9, terminals=(2, 5), timeouts=(7,)) | {"rewards": np.array([0, 0, 1, 0, 0, 1, 0, 0, 0])}
    data = datasets.load(write(path, arrays))
    assert data.reward.sum() == 2
    np.testing.assert_array_equal(data.reward[data.terminated], [1, 1])


patterns = st.integers(2, 30).flatmap(
    lambda n: st.tuples(*(st.lists(st.booleans(), min_size=n, max_size=n) for _ in range(2)))
)


@settings(max_examples=100, deadline=None)
@given(patterns)
def test_any_pattern_of_flags_reads_as_the_package_reads_it(flags):
    terminals, timeouts = map(np.array, flags)
    file = contents(len(terminals)) | {"terminals": terminals, "timeouts": timeouts}
    expected = qlearning_dataset(file)
    with tempfile.TemporaryDirectory() as folder:
        dataset_id = write(Path(folder) / "toy.hdf5", file)
        if not expected:
            with pytest.raises(DatasetError, match="no complete transition"):
                datasets.load(dataset_id)
            return
        data = datasets.load(dataset_id)
    for i, (obs, action, next_obs, reward, terminated) in enumerate(expected):
        np.testing.assert_array_equal(data.obs[i], obs)
        np.testing.assert_array_equal(data.next_obs[i], next_obs)
        np.testing.assert_array_equal(data.action[i], action)
        assert (data.reward[i], data.terminated[i]) == (reward, terminated)
    assert len(data) == len(expected)
    # No pair crosses an episode of the file unless it terminated (D3), and no episode of ours spans two of the file's.
    of_row = np.cumsum(np.append(0, (terminals | timeouts)[:-1]))
    episode, after = of_row[data.rows], of_row[data.rows + 1]
    assert (data.terminated | (episode == after)).all()
    for k in range(data.num_episodes):
        assert len(set(episode[data.starts[k] : data.starts[k + 1]])) == 1
    assert len(set(episode)) == data.num_episodes
    ends = data.starts[1:] - 1
    assert (data.terminated ^ data.truncated)[ends].all()


def test_columns_and_other_number_types_are_accepted(path):
    plain = contents()
    other = {
        "observations": plain["observations"].astype(np.float64),
        "actions": plain["actions"].astype(np.float64),
        "rewards": plain["rewards"][:, None].astype(np.int64),
        "terminals": plain["terminals"][:, None].astype(np.uint8),
        "timeouts": plain["timeouts"][:, None].astype(np.float32),
    }
    one, two = datasets.load(write(path, plain)), datasets.load(write(path.with_name("two.h5"), other))
    assert one.content_hash == two.content_hash


def without(name):
    return {key: array for key, array in contents().items() if key != name}


def changed(name, index, value):
    arrays = contents()
    arrays[name][index] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        *((without(name), f"has no '{name}'") for name in contents()),
        (without("timeouts"), "episode ends are unknown .v0 files"),
        *((contents() | {name: np.array([b"x"] * 10)}, f"'{name}'.* not an array of numbers") for name in contents()),
        (contents() | {"rewards": np.zeros(9)}, "common length.*'rewards': 9"),
        (contents() | {"timeouts": np.zeros(11, bool)}, "common length.*'timeouts': 11"),
        (contents() | {"observations": np.zeros(10)}, r"'observations'.*shape \(10,\), expected 2-d"),
        (contents() | {"rewards": np.zeros((10, 2))}, r"'rewards'.*shape \(10, 2\), expected 1-d"),
        (contents() | {"actions": np.float32(1)}, r"'actions'.*shape \(\), expected 2-d"),
        (contents(1), "length of at least 2"),
        (contents(4, timeouts=(0, 1, 2)), "no complete transition"),
        (changed("observations", (9, 1), np.nan), "observations holds NaN or infinity, first at row 9"),
        (changed("actions", (2, 0), -np.inf), "action holds NaN or infinity, first at transition 2"),
        (changed("rewards", 7, np.nan), "reward holds NaN or infinity, first at transition 6"),
    ],
)
def test_bad_arrays_are_refused_by_file_and_key(path, arrays, message):
    with pytest.raises(DatasetError, match=message) as caught:
        datasets.load(write(path, arrays))
    assert str(path) in str(caught.value)


def test_a_group_in_place_of_an_array(path):
    write(path, without("rewards"))
    with h5py.File(path, "a") as file:
        file.create_group("rewards")
    with pytest.raises(DatasetError, match=r"'rewards'.* not an array of numbers"):
        datasets.load(f"d4rl:{path}")


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:7], lambda _: b"<html>404</html>"]
)
def test_a_file_that_is_no_whole_hdf5_file(path, damage):
    dataset_id = write(path, contents(2000))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match="not a readable HDF5 file") as caught:
        datasets.load(dataset_id)
    assert str(path) in str(caught.value)


# --- names ---


@pytest.mark.parametrize(
    ("name", "env", "refs"),
    [
        ("hopper-medium-v2", "Hopper-v4", (-20.272305, 3234.3)),
        ("halfcheetah-medium-replay-v2", "HalfCheetah-v4", (-280.178953, 12135.0)),
        ("walker2d-full-replay-v2", "Walker2d-v4", (1.629008, 4592.3)),
    ],
)
def test_a_name_is_looked_up_in_the_folder_of_d4rl(tmp_path, monkeypatch, name, env, refs):
    file_name = name.replace("-", "_").replace("_v2", "-v2.hdf5")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "mine"))
    write(tmp_path / "mine" / file_name, contents())
    data = datasets.load(f"d4rl:{name}")
    assert (data.env_spec.id, data.ref_min, data.ref_max) == (env, *refs)
    assert data.env_spec.max_episode_steps == 1000
    assert file_name in data.source
    monkeypatch.delenv("D4RL_DATASET_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DatasetError, match=f"put D4RL's file {file_name} into {tmp_path}/.d4rl/datasets"):
        datasets.load(f"d4rl:{name}")
    write(tmp_path / ".d4rl" / "datasets" / file_name, contents())
    assert datasets.load(f"d4rl:{name}").content_hash == data.content_hash


def test_the_environment_belongs_to_the_file_name(tmp_path):
    known = datasets.load(write(tmp_path / "hopper_medium-v2.hdf5", contents()))
    assert (known.env_spec.id, known.ref_max) == ("Hopper-v4", 3234.3)
    other = datasets.load(write(tmp_path / "hopper-mine.hdf5", contents()))
    assert (other.env_spec, other.ref_min, other.ref_max) == (None, None, None)


def test_a_path_may_be_relative_or_start_at_home(tmp_path, monkeypatch):
    write(tmp_path / "toy.hdf5", contents())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(datasets.load("d4rl:toy.hdf5")) == len(datasets.load("d4rl:~/toy.hdf5")) == 7


@pytest.mark.parametrize("name", ["hopper-medum-v2", "hopper-medium-v0", "", "../hopper-medium-v2", "door-human-v1"])
def test_an_unknown_name_lists_the_nearest(name):
    with pytest.raises(DatasetError, match=r"unknown name; nearest: (d4rl:[a-z0-9-]+-v2, ){2}d4rl:[a-z0-9-]+-v2; or"):
        datasets.check_id(f"d4rl:{name}")


def test_the_nearest_name_comes_first():
    with pytest.raises(DatasetError, match="nearest: d4rl:hopper-medium-v2,"):
        datasets.load("d4rl:hopper-medum-v2")


@pytest.mark.parametrize(
    "name", ["gone.hdf5", "gone.h5", "~nobody-here/x.hdf5", "x\0.hdf5", "x" * 5000 + ".hdf5", ".hdf5"]
)
def test_a_path_without_a_file(name):
    with pytest.raises(DatasetError, match="there is no file"):
        datasets.load(f"d4rl:{name}")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "folder.hdf5").mkdir()
    with pytest.raises(DatasetError, match="there is no file"):
        datasets.load(f"d4rl:{tmp_path}/folder.hdf5")


def test_every_name_has_its_environment_and_references():
    assert len(d4rl.NAMES) == len(set(d4rl.NAMES)) == 18
    assert {name.split("-")[0] for name in d4rl.NAMES} == {"halfcheetah", "hopper", "walker2d"}


# --- real data ---


@pytest.mark.skipif(not DOOR.is_file(), reason="the sample file is not beside this repository")
def test_the_door_sample_has_its_golden_sums():
    data = datasets.load(f"d4rl:{DOOR}")
    assert (len(data), data.num_episodes) == (6704, 25)
    sums = [array.sum(dtype=np.float64) for array in (data.obs, data.action, data.reward, data.next_obs)]
    np.testing.assert_allclose(sums, [53222.7535, -18312.9255, 19630.2152, 53455.8128], atol=1e-4)
    assert data.reward[0] == pytest.approx(-0.2873746, abs=1e-7)
    assert not data.terminated.any()
    assert data.truncated.sum() == 25
    assert (data.lengths.min(), data.lengths.max()) == (222, 299)


def test_parity_with_the_package(monkeypatch, path):
    monkeypatch.setitem(sys.modules, "mujoco_py", None)  # its import fails in a way that d4rl does not expect
    monkeypatch.setenv("D4RL_SUPPRESS_IMPORT_ERROR", "1")
    package = pytest.importorskip("d4rl")
    rng = np.random.default_rng(0)
    files = [contents(60) | {name: rng.random(60) < 0.2 for name in ("terminals", "timeouts")} for _ in range(20)]
    if DOOR.is_file():
        with h5py.File(DOOR) as real:
            files.append({name: real[name][()] for name in contents()})
    for file in files:
        theirs, ours = package.qlearning_dataset(None, dataset=file), datasets.load(write(path, file))
        names = {
            "observations": ours.obs,
            "actions": ours.action,
            "next_observations": ours.next_obs,
            "rewards": ours.reward,
            "terminals": ours.terminated,
        }
        for name, array in names.items():
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    assert package.get_normalized_score("hopper-medium-v2", 1000.0) * 100 == pytest.approx(
        100 * (1000.0 + 20.272305) / (3234.3 + 20.272305)
    )
