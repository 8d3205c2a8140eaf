"""The reader of D4RL's files against `d4rl.qlearning_dataset`, written out as the loop it is."""

import csv
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoard import datasets
from hoard.datasets import DatasetError
from hoard.datasets.d4rl import evaluation, ids, reader, source, table, verify
from hoard.envs import d4rl as environments

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DOOR = SHARED / "d4rl_door_human_replayed.hdf5"
FILES = os.environ.get("HOARD_D4RL_FILES")  # a folder with D4RL's own files, for those who have them


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


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(table, "BASE_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def any_bytes(monkeypatch):
    """No published file is known by its hash, so toys may bear D4RL's names."""
    for entries in (table.ENTRIES, table.BY_FILE):
        for key, entry in entries.items():
            monkeypatch.setitem(entries, key, replace(entry, size=0, sha256=""))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "toy.hdf5"


def qlearning_dataset(file, limit=None):
    """The loop of the package; s' is the next row, whatever lies there. `limit` stands in for missing time-outs."""
    rows, step = [], 0
    for i in range(len(file["rewards"]) - 1):
        done = bool(file["terminals"][i])
        if file["timeouts"][i] if limit is None else step == limit - 1:
            step = 0
            continue
        step = 1 if done else step + 1  # 1, not 0: the package adds one on its way out
        obs = file["observations"]
        rows.append((obs[i], file["actions"][i], obs[i + 1], file["rewards"][i], done))
    return rows


def same_transitions(data, expected):
    assert len(data) == len(expected)
    for i, (obs, action, next_obs, reward, terminated) in enumerate(expected):
        np.testing.assert_array_equal(data.obs[i], obs)
        np.testing.assert_array_equal(data.next_obs[i], next_obs)
        np.testing.assert_array_equal(data.action[i], action)
        assert (data.reward[i], data.terminated[i]) == (reward, terminated)


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
    same_transitions(data, expected)
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
        (without("timeouts"), r"episode ends are unknown .v0 files: \+as=NAME"),
        *((contents() | {name: np.array([b"x"] * 10)}, f"'{name}'.* not an array of numbers") for name in contents()),
        (contents() | {"rewards": np.zeros(9)}, "common length.*'rewards': 9"),
        (contents() | {"timeouts": np.zeros(11, bool)}, "common length.*'timeouts': 11"),
        (contents() | {"observations": np.zeros(10)}, r"'observations'.*shape \(10,\), expected 2-d"),
        (contents() | {"rewards": np.zeros((10, 2))}, r"'rewards'.*shape \(10, 2\), expected 1-d"),
        (contents() | {"actions": np.float32(1)}, r"'actions'.*shape \(\), expected 2-d"),
        (contents() | {"actions": np.arange(10)}, r"'actions'.*shape \(10,\), expected 2-d"),
        (contents() | {"observations": np.zeros((10, 2, 2))}, r"'observations'.*shape \(10, 2, 2\), expected 2-d"),
        (contents() | {"terminals": np.arange(10)}, r"has 2 in 'terminals' at row 2, expected 0 or 1"),
        (contents() | {"timeouts": np.full(10, np.nan)}, r"has nan in 'timeouts' at row 0, expected 0 or 1"),
        (contents() | {"observations": np.zeros((10, 0))}, r"'observations'.*shape \(10, 0\)"),
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
def test_a_name_is_looked_up_in_the_folder_of_d4rl(tmp_path, monkeypatch, any_bytes, name, env, refs):
    file_name = name.replace("-", "_").replace("_v2", "-v2.hdf5")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "mine"))
    write(tmp_path / "mine" / file_name, contents())
    data = datasets.load(f"d4rl:{name}")
    assert (data.env_spec.id, data.ref_min, data.ref_max) == (env, *refs)
    assert data.env_spec.max_episode_steps == 1000
    assert file_name in data.source
    monkeypatch.delenv("D4RL_DATASET_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DatasetError, match=rf"by hand and put it into {tmp_path}/.d4rl/datasets as {file_name}"):
        datasets.load(f"d4rl:{name}")
    write(tmp_path / ".d4rl" / "datasets" / file_name, contents())
    assert datasets.load(f"d4rl:{name}").content_hash == data.content_hash


def test_the_environment_belongs_to_the_file_name(tmp_path, any_bytes):
    known = datasets.load(write(tmp_path / "hopper_medium-v2.hdf5", contents()))
    assert (known.env_spec.id, known.ref_max) == ("Hopper-v4", 3234.3)
    other = datasets.load(write(tmp_path / "hopper-mine.hdf5", contents()))
    assert (other.env_spec, other.ref_min, other.ref_max) == (None, None, None)
    mine = datasets.load(write(tmp_path / "hopper-mine.hdf5", contents()) + "+as=hopper-medium-v2")
    assert (mine.env_spec.id, mine.ref_max) == ("Hopper-v4", 3234.3)
    assert mine.id.endswith("hopper-mine.hdf5+as=hopper-medium-v2")


def test_a_file_that_only_has_the_name_is_refused_unless_it_is_said_to_be_your_own(tmp_path, monkeypatch):
    path = tmp_path / "d4rl" / "hopper_medium-v2.hdf5"
    own = write(path, contents())
    for dataset_id in (own, "d4rl:hopper-medium-v2"):
        with pytest.raises(
            DatasetError, match=r"bytes instead of 152,756,557: it is not D4RL's hopper_medium-v2"
        ) as caught:
            datasets.load(dataset_id)
        assert str(path) in str(caught.value)
        assert "d4rl:PATH.hdf5+as=hopper-medium-v2" in str(caught.value)
    assert path.is_file()
    assert len(datasets.load(own + "+as=hopper-medium-v2")) == 7
    # No hash is known of the v0 files.
    with pytest.warns(UserWarning, match=r"#19\)"):
        assert len(datasets.load(write(tmp_path / "d4rl" / "hopper_medium_expert.hdf5", contents()))) == 7


def test_one_changed_byte_is_found_and_the_check_is_made_once(tmp_path, monkeypatch):
    path = tmp_path / "d4rl" / "door-human-v1.hdf5"
    write(path, contents())
    raw = path.read_bytes()
    known = replace(table.ENTRIES["door-human-v1"], size=len(raw), sha256=verify.sha256_of(path))
    monkeypatch.setitem(table.ENTRIES, known.name, known)
    hashed = []
    original = verify.sha256_of
    monkeypatch.setattr(verify, "sha256_of", lambda path: hashed.append(path) or original(path))
    for _ in range(3):
        datasets.load("d4rl:door-human-v1")
    assert len(hashed) == 1
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(DatasetError, match=r"has SHA-256 [0-9a-f]{64} instead of"):
        datasets.load("d4rl:door-human-v1")
    assert path.read_bytes() != raw  # left where the user put it


def test_a_path_may_be_relative_or_start_at_home(tmp_path, monkeypatch):
    write(tmp_path / "toy.hdf5", contents())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(datasets.load("d4rl:toy.hdf5")) == len(datasets.load("d4rl:~/toy.hdf5")) == 7


@pytest.mark.parametrize("name", ["hopper-medum-v2", "hopper-medium-v7", "", "../hopper-medium-v2", "x/y", "maze2d"])
def test_an_unknown_name_lists_the_nearest(name):
    with pytest.raises(DatasetError, match=r"unknown name; nearest: (d4rl:[a-z0-9-]+-v\d, ){2}d4rl:[a-z0-9-]+-v\d; or"):
        datasets.check_id(f"d4rl:{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hopper-medium-v2+ful", r"unknown option '\+ful'; there is \+full"),
        ("hopper-medium-v2+", r"unknown option '\+'"),
        ("hopper-medium-v2+full+full", "once"),
        ("hopper-medium-v2+as=hopper-medium-v2", r"unknown option '\+as=.*goes with d4rl:PATH"),
        ("toy.hdf5+full=1", r"unknown option '\+full=1'"),
        ("toy.hdf5+as=hopper-medum-v2", r"\+as=hopper-medum-v2: unknown name; nearest: hopper-medium-v2"),
        ("toy.hdf5+as", r"\+as=: unknown name"),
        ("toy.hdf5+as=hopper-medium-v2+as=hopper-medium-v2", "each once"),
    ],
)
def test_unknown_options_are_refused(text, message):
    with pytest.raises(DatasetError, match=message):
        datasets.check_id(f"d4rl:{text}")


def test_a_plus_in_a_path_is_no_option(tmp_path):
    assert len(datasets.load(write(tmp_path / "a+full" / "b+c.hdf5+d.hdf5", contents()))) == 7


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


def test_the_table():
    assert len(ids.NAMES) == len(table.BY_FILE) == 155
    assert sum(entry.ref_min is not None for entry in table.ENTRIES.values()) == 147
    assert sum(bool(entry.sha256) for entry in table.ENTRIES.values()) == 41
    for entry in table.ENTRIES.values():
        assert (entry.ref_min is None) == (entry.ref_max is None)
        assert bool(entry.size) == bool(entry.sha256)
        assert entry.size == 0 or len(entry.sha256) == 64
        assert entry.limit > 0
        assert "/" not in entry.file_name
        assert table.defects(entry.name)[-1].issue == "#145, #204"


FIXED = {  # family: (environment of a name, its limit, observation size)
    "pen-cloned-v1": ("hoard/D4RL-Pen-v1", 100, 45),
    "relocate-expert-v0": ("hoard/D4RL-Relocate-v1", 200, 39),
    "hammer-human-v1": ("hoard/D4RL-Hammer-v1", 200, 46),
    "door-human-v0": ("hoard/D4RL-Door-v1", 200, 39),
    "maze2d-umaze-v1": ("hoard/D4RL-Maze2d-UMaze-v1", 300, 4),
    "maze2d-eval-large-dense-v1": ("hoard/D4RL-Maze2d-EvalLarge-v1", 800, 4),
    "maze2d-open-dense-v0": ("hoard/D4RL-Maze2d-Open-v1", 150, 4),
    "antmaze-umaze-diverse-v2": ("hoard/D4RL-AntMaze-UMaze-v2", 700, 29),
    "antmaze-large-play-v0": ("hoard/D4RL-AntMaze-Large-v2", 1000, 29),
    "ant-medium-v2": ("hoard/D4RL-Ant-v2", 1000, 111),
    "hopper-medium-v0": ("Hopper-v4", 1000, 11),
    "bullet-hopper-medium-v0": (None, None, 15),
    "kitchen-mixed-v0": (None, None, 60),
    "carla-lane-v0": (None, None, 8),
    "flow-merge-random-v0": (None, None, 8),
}


@pytest.mark.parametrize("name", FIXED)
def test_every_family_loads_and_says_where_it_is_evaluated(path, name):
    env_id, limit, dim = FIXED[name]
    rng = np.random.default_rng(0)
    arrays = contents(40, (9, 20), (30,)) | {"observations": rng.normal(size=(40, dim)).astype(np.float32)}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = datasets.load(f"{write(path, arrays)}+as={name}")
    entry = table.ENTRIES[name]
    same_transitions(data, qlearning_dataset(arrays))
    assert (data.ref_min, data.ref_max) == (entry.ref_min, entry.ref_max)
    texts = [str(warning.message) for warning in told]
    if env_id is None:
        assert data.env_spec is None
        assert any("loaded but not trained on" in text and evaluation.why_not(name) in text for text in texts)
        return
    assert evaluation.why_not(name) == ""
    assert (data.env_spec.id, data.env_spec.max_episode_steps) == (env_id, limit)
    assert data.env_spec.kwargs.get("reward_type", "sparse") == ("dense" if "dense" in name else "sparse")
    assert any("#199" in text for text in texts) == ("umaze-diverse" in name)
    assert any("jump by more" in text for text in texts) == ("antmaze" in name)


def test_every_published_name_has_an_environment_or_a_reason():
    for name, entry in table.ENTRIES.items():
        spec = evaluation.evaluation(entry, np.zeros((2, 111), np.float32))
        assert (spec is None) == bool(evaluation.why_not(name))
        if spec is not None:
            assert spec.max_episode_steps == entry.limit


def test_the_contact_forces_of_the_ant_follow_the_data(path):
    for value in (0.0, 0.5):
        obs = np.zeros((10, 111), np.float32)
        obs[4, 50] = value
        data = datasets.load(write(path, contents() | {"observations": obs}) + "+as=ant-medium-v2")
        assert data.env_spec.kwargs["contact_forces"] == (value > 0)


@pytest.mark.parametrize("shape", [(10,), (10, 1)])
def test_minigrid_images_and_actions(path, shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (10, 4, 4, 3)).astype(np.uint8)
    arrays = contents() | {"observations": images, "actions": (np.arange(10) % 7).reshape(shape)}
    with pytest.warns(UserWarning, match="discrete"):
        data = datasets.load(write(path, arrays) + "+as=minigrid-fourrooms-v0")
    np.testing.assert_array_equal(data.obs, images.reshape(10, -1)[data.rows])
    np.testing.assert_array_equal(data.action.argmax(axis=1), data.rows % 7)
    assert data.action.sum() == len(data)
    for bad in (np.full(10, 7), np.full(10, 0.5), np.full(10, -1), np.zeros((10, 2), int)):
        with pytest.raises(DatasetError, match=r"'actions'.*expected one number below 7"):
            datasets.load(write(path, arrays | {"actions": bad}) + "+as=minigrid-fourrooms-v0")


def test_files_from_before_the_exchange_of_hopper_v1_are_refused(path):
    for name, wrong, right in (("hopper-medium-v1", 3.47, 1.5), ("hopper-expert-v1", 1.5, 3.47)):
        rewards = np.full(10, wrong, np.float32)
        with pytest.raises(DatasetError, match=r"pays .* a step: it is from before January 2021.*#76"):
            datasets.load(write(path, contents() | {"rewards": rewards}) + f"+as={name}")
        assert len(datasets.load(write(path, contents() | {"rewards": 0 * rewards + right}) + f"+as={name}")) == 7


# --- files without time-outs ---


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 400), st.sampled_from([0.0, 0.01, 0.05, 0.3]), st.integers(0, 2**32 - 1))
def test_without_timeouts_the_limit_of_the_name_cuts_as_in_the_package(n, rate, seed):
    terminals = np.random.default_rng(seed).random(n) < rate
    file = contents(n) | {"terminals": terminals}
    del file["timeouts"]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = datasets.load(write(Path(folder) / "toy.hdf5", file) + "+as=pen-human-v0")
    same_transitions(data, qlearning_dataset(file, limit=100))


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7])
def test_any_limit(limit):
    for seed in range(40):
        terminals = np.random.default_rng(seed).random(30) < 0.25
        file = contents(30) | {"terminals": terminals}
        dropped = np.ones(30, bool)
        dropped[[int(reward) for *_, reward, _ in qlearning_dataset(file, limit)]] = False
        np.testing.assert_array_equal(reader._over_the_limit(terminals, limit)[:-1], dropped[:-1])


def test_the_golden_case_without_timeouts(monkeypatch, path):
    monkeypatch.setitem(table.ENTRIES, "pen-human-v0", replace(table.ENTRIES["pen-human-v0"], limit=4))
    with pytest.warns(UserWarning, match="no 'timeouts'; episodes are cut at 4 steps"):
        data = datasets.load(write(path, without("timeouts")) + "+as=pen-human-v0")
    assert data.reward.tolist() == [0, 1, 2, 4, 5, 6, 8]
    assert data.next_obs[:, 0].tolist() == [1, 2, 3, 5, 6, 7, 9]
    assert data.reward[data.terminated].tolist() == [8]


# --- +full ---


def with_next(file):
    """next_observations as they really were: behind an end, a state that is in no row."""
    own = np.roll(file["observations"], -1, axis=0)
    ends = file["terminals"] | file["timeouts"]
    ends[-1] = True
    own[ends] = 1000 + file["observations"][ends]
    return file | {"next_observations": own}


@settings(max_examples=60, deadline=None)
@given(patterns)
def test_full_keeps_every_transition_with_its_own_successor(flags):
    terminals, timeouts = map(np.array, flags)
    file = with_next(contents(len(terminals)) | {"terminals": terminals, "timeouts": timeouts})
    with tempfile.TemporaryDirectory() as folder:
        data = datasets.load(write(Path(folder) / "toy.hdf5", file) + "+full")
    np.testing.assert_array_equal(data.obs, file["observations"])
    np.testing.assert_array_equal(data.next_obs, file["next_observations"])
    np.testing.assert_array_equal(data.action, file["actions"])
    np.testing.assert_array_equal(data.reward, file["rewards"])
    np.testing.assert_array_equal(data.terminated, terminals)
    ends = terminals | timeouts
    ends[-1] = True
    np.testing.assert_array_equal(data.truncated, ends & ~terminals)
    np.testing.assert_array_equal(data.starts[1:] - 1, np.flatnonzero(ends))
    assert len(data.observations) == len(ends) + ends.sum()


def test_full_over_many_blocks(path, monkeypatch):
    monkeypatch.setattr(reader, "BLOCK", 7)
    rng = np.random.default_rng(1)
    n = 500
    file = with_next(contents(n) | {"terminals": rng.random(n) < 0.05, "timeouts": rng.random(n) < 0.05})
    with h5py.File(path, "w") as h5:
        for name, array in file.items():
            h5.create_dataset(name, data=array, chunks=(3, *array.shape[1:]), compression="gzip")
    data = datasets.load(f"d4rl:{path}+full")
    np.testing.assert_array_equal(data.obs, file["observations"])
    np.testing.assert_array_equal(data.next_obs, file["next_observations"])
    same_transitions(datasets.load(f"d4rl:{path}"), qlearning_dataset(file))


def test_full_is_refused_where_the_file_does_not_know(path):
    for name in ("", "+as=door-human-v1", "+as=antmaze-umaze-v2"):
        with pytest.raises(DatasetError, match=r"has no 'next_observations', so \+full cannot be had"):
            datasets.load(write(path, contents()) + name + "+full")
    with pytest.raises(DatasetError, match=r"has no 'timeouts', so \+full"):
        datasets.load(write(path, {k: v for k, v in with_next(contents()).items() if k != "timeouts"}) + "+full")
    file = with_next(contents())
    file["next_observations"][1] += 1
    with pytest.raises(
        DatasetError, match="'next_observations' differs from the next row inside an episode, first at row 1"
    ):
        datasets.load(write(path, file) + "+full")
    file["next_observations"] = np.zeros((10, 3), np.float32)
    with pytest.raises(DatasetError, match=r"'next_observations'.*shape \(10, 3\), expected 2 columns"):
        datasets.load(write(path, file) + "+full")


def endless_walk(reward_type, n=400):
    """A straight walk past umaze's goal at (1, 1); rewards as published: paid for the row's own observation."""
    x = np.linspace(0.0, 3.0, n)
    obs = np.stack([x, np.ones(n), np.ones(n), np.zeros(n)], axis=1).astype(np.float32)
    rewards = environments.maze2d_reward(obs[:, :2].astype(np.float64), (1, 1), reward_type).astype(np.float32)
    return contents(n, terminals=(), timeouts=(50, 51, 200)) | {"observations": obs, "rewards": rewards}


@pytest.mark.parametrize(("reward_type", "name"), [("sparse", "maze2d-umaze-v1"), ("dense", "maze2d-umaze-dense-v1")])
def test_full_maze2d_is_one_walk_paid_for_where_it_arrives(path, reward_type, name):
    file = endless_walk(reward_type)
    data = datasets.load(write(path, file) + f"+as={name}+full")
    assert len(data) == 399
    np.testing.assert_array_equal(data.next_obs[:-1], data.obs[1:])
    np.testing.assert_allclose(data.reward, file["rewards"][1:], atol=1e-6)
    assert np.flatnonzero(data.truncated).tolist() == [50, 51, 200, 398]
    assert not data.terminated.any()
    plain = datasets.load(f"d4rl:{path}+as={name}")
    same_transitions(plain, qlearning_dataset(file))
    file["rewards"] = np.roll(file["rewards"], 20)
    with pytest.raises(DatasetError, match=r"'rewards' are not those of maze2d-umaze.*goal at \(1, 1\)"):
        datasets.load(write(path, file) + f"+as={name}+full")


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


@pytest.mark.skipif(not DOOR.is_file(), reason="the sample file is not beside this repository")
def test_the_door_sample_can_be_evaluated_as_door():
    data = datasets.load(f"d4rl:{DOOR}+as=door-human-v1")
    assert data.env_spec.id == "hoard/D4RL-Door-v1"
    assert data.normalized_score(795.949) == pytest.approx(29.024, abs=1e-3)


@pytest.mark.skipif(not (SHARED / "d4rl_infos.csv").is_file(), reason="the lists are not beside this repository")
def test_the_table_equals_the_published_lists():
    with open(SHARED / "d4rl_infos.csv") as file:
        infos = {row["dataset"]: row for row in csv.DictReader(file)}
    assert set(infos) == set(ids.NAMES)
    for name, row in infos.items():
        entry = table.ENTRIES[name]
        assert row["url"] == f"http://rail.eecs.berkeley.edu/datasets/offline_rl/{entry.path}"
        published = [float(row[key]) if row[key] else None for key in ("ref_min_score", "ref_max_score")]
        assert [entry.ref_min, entry.ref_max] == published
    with open(SHARED / "d4rl_v2_sha256_from_tfds_checksums.tsv") as file:
        sums = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    known = {entry.file_name: entry for entry in table.ENTRIES.values() if entry.sha256}
    assert {name: (str(entry.size), entry.sha256) for name, entry in known.items()} == {
        name: (row["bytes"], row["sha256"]) for name, row in sums.items()
    }


# rows, transitions, terminated ones: from a public probe of the published files, the rows by arithmetic
FINGERPRINTS = {
    "halfcheetah-random-v2": (1000000, 999000, 0),
    "halfcheetah-medium-v2": (1000000, 999000, 0),
    "halfcheetah-expert-v2": (1000000, 999000, 0),
    "halfcheetah-medium-replay-v2": (202000, 201798, 0),
    "halfcheetah-medium-expert-v2": (2000000, 1998000, 0),
    "hopper-random-v2": (1000000, 999999, 45239),
    "hopper-medium-v2": (1000000, 999998, 2185),
    "hopper-expert-v2": (1000000, 999061, 89),
    "hopper-medium-replay-v2": (402000, 401598, 1639),
    "hopper-medium-expert-v2": (1999906, 1998966, 2274),
    "walker2d-random-v2": (1000000, 999999, 48907),
    "walker2d-medium-v2": (1000000, 999322, 513),
    "walker2d-expert-v2": (1000000, 999000, 1),
    "walker2d-medium-replay-v2": (302000, 301698, 791),
    "walker2d-medium-expert-v2": (1999995, 1998318, 514),
}


@pytest.mark.skipif(not FILES, reason="HOARD_D4RL_FILES names no folder with D4RL's files")
@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_published_files_have_their_counts(monkeypatch, name):
    monkeypatch.setenv("D4RL_DATASET_DIR", FILES or "")
    if not source.is_at_hand(f"d4rl:{name}"):
        pytest.skip(f"{name} is not in HOARD_D4RL_FILES")
    rows, *counts = FINGERPRINTS[name]
    data = datasets.load(f"d4rl:{name}")
    assert [len(data), data.terminated.sum()] == counts
    assert len(datasets.load(f"d4rl:{name}+full")) == rows
