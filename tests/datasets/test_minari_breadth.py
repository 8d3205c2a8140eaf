"""Minari sets of every kind of space in every storage, and what becomes of damaged, foreign and hostile ones."""

import copy
import functools
import hashlib
import itertools
import json
import shutil
import warnings

import gymnasium as gym
import h5py
import numpy as np
import pytest
from dataset_toys import ACTIONS, SPACES, edit_metadata, store, tagged_buffers, toy
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer
from minari.dataset._storages import arrow_storage

from hoard import datasets
from hoard.datasets import DatasetError, discrete
from hoard.datasets.minari import hub, references
from hoard.datasets.minari.metadata import metadata_of
from hoard.datasets.minari.store import path_of

FORMATS = ("hdf5", "arrow", "parquet")
numbers = itertools.count()  # a new id for each example: Minari does not overwrite


# --- a slow second encoder ---


def stacked(space, rows):
    """`rows` of samples in Minari's layout: the structure of the space with all rows in every leaf."""
    if isinstance(space, spaces.Dict):
        return {key: stacked(part, [row[key] for row in rows]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(part, [row[i] for row in rows]) for i, part in enumerate(space.spaces))
    return list(rows) if isinstance(space, spaces.Text) else np.array(rows).astype(space.dtype)


def numbers_of(space, value):
    """One value as a list of numbers, straight from the documented rules."""
    if isinstance(space, spaces.Text):
        return []
    if isinstance(space, spaces.Dict):
        return [number for key in sorted(space.spaces) for number in numbers_of(space[key], value[key])]
    if isinstance(space, spaces.Tuple):
        return [number for part, inner in zip(space.spaces, value) for number in numbers_of(part, inner)]
    if isinstance(space, spaces.Discrete):
        return [float(value == space.start + i) for i in range(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        entries = zip(space.nvec.flat, space.start.flat, np.asarray(value).flat)
        return [float(entry == start + i) for n, start, entry in entries for i in range(n)]
    return [float(number) for number in np.asarray(value, np.float32).flat]


def episodes_of(space, actions, lengths, seed):
    """Random episodes as (observation samples, action samples, rewards, terminated, truncated)."""
    space.seed(seed)
    actions.seed(seed + 1)
    rng = np.random.default_rng(seed)
    for steps in lengths:
        flags = np.zeros((2, steps), bool)
        flags[:, -1] = rng.integers(2, size=2)
        obs = [space.sample() for _ in range(steps + 1)]
        yield obs, [actions.sample() for _ in range(steps)], rng.normal(size=steps), *flags


def buffers_of(space, actions, episodes):
    return [
        EpisodeBuffer(k, None, None, stacked(space, obs), stacked(actions, act), reward, terminated, truncated, {})
        for k, (obs, act, reward, terminated, truncated) in enumerate(episodes)
    ]


# --- round trip ---

boxes = st.builds(
    lambda shape, dtype: spaces.Box(0, 200, shape, dtype),
    st.lists(st.integers(1, 3), max_size=2).map(tuple),
    st.sampled_from([np.float32, np.float64, np.uint8, np.int64]),
)
indices = st.one_of(
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-3, 3)),
    st.builds(
        lambda sizes, start: spaces.MultiDiscrete(sizes, start=[start] * len(sizes)),
        st.lists(st.integers(1, 4), min_size=1, max_size=3),
        st.integers(-2, 2),
    ),
    st.integers(1, 4).map(spaces.MultiBinary),
)
names = st.sampled_from(["b", "a", "image", "direction", "Z"])
observation_spaces = st.recursive(
    boxes | indices,
    lambda inner: (
        st.dictionaries(names, inner, min_size=1, max_size=3).map(spaces.Dict)
        | st.lists(inner, min_size=1, max_size=2).map(lambda parts: spaces.Tuple(tuple(parts)))
    ),
    max_leaves=4,
)
action_spaces = indices | st.integers(1, 3).map(lambda n: spaces.Box(-1.0, 1.0, (n,), np.float32))


@settings(max_examples=90, deadline=None)
@given(
    observation_spaces,
    action_spaces,
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.sampled_from(FORMATS),
    st.integers(0, 2**31),
)
def test_every_space_in_every_storage_comes_back_exactly(space, actions, lengths, data_format, seed):
    dataset_id = f"toys/trip{next(numbers)}-v0"
    episodes = list(episodes_of(space, actions, lengths, seed))
    store(dataset_id, buffers_of(space, actions, episodes), space, actions, data_format)
    data = datasets.load(dataset_id)
    assert data.lengths.tolist() == lengths
    got = zip(data.obs, data.action, data.next_obs, data.reward, data.terminated, data.truncated)
    for obs, act, *rest in episodes:
        for t, (reward, terminated, truncated) in enumerate(zip(*rest)):
            row = next(got)
            for ours, value in zip(row, (numbers_of(space, obs[t]), numbers_of(actions, act[t]))):
                assert ours.tolist() == value
            assert row[2].tolist() == numbers_of(space, obs[t + 1])
            assert (row[3], row[4], row[5]) == (np.float32(reward), terminated, truncated)
    assert next(got, None) is None
    if not isinstance(actions, spaces.Box):
        assert data.action_space.original == actions
    shutil.rmtree(path_of(dataset_id))


def minigrid():
    """The observation space of Minari's Minigrid sets."""
    return spaces.Dict(
        {
            "direction": spaces.Discrete(4),
            "image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
            "mission": spaces.Text(14, charset="go to the lamp"),
        }
    )


@pytest.mark.parametrize("data_format", FORMATS)
def test_missions_are_left_out(data_format):
    space, actions = minigrid(), spaces.Discrete(7)
    episodes = list(episodes_of(space, actions, [3, 1], 0))
    store("minigrid/toy-v0", buffers_of(space, actions, episodes), space, actions, data_format)
    data = datasets.load("minigrid/toy-v0")
    assert (data.obs_dim, data.action_dim) == (4 + 7 * 7 * 3, 7)
    np.testing.assert_array_equal(data.observations[0], numbers_of(space, episodes[0][0][0]))
    np.testing.assert_array_equal(data.observations[-1], numbers_of(space, episodes[1][0][1]))
    assert discrete.left_out(metadata_of("minigrid/toy-v0")["observation_space"]) == ["mission"]


@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_an_episode_longer_than_a_record_batch(data_format, monkeypatch):
    """Minari's own reader takes each batch of 32,768 rows for an episode, and its writer may shuffle them."""
    write = arrow_storage.ds.write_dataset
    monkeypatch.setattr(arrow_storage.ds, "write_dataset", functools.partial(write, preserve_order=True))
    store("toys/long-v0", tagged_buffers([40_000, 2]), data_format=data_format)
    with pytest.warns(UserWarning, match="episode 0 has 40001 rows; .*may be shuffled"):
        data = datasets.load("toys/long-v0")
    assert data.lengths.tolist() == [40_000, 2]
    np.testing.assert_array_equal(data.next_obs[:40_000, 1], np.arange(1, 40_001))
    np.testing.assert_array_equal(data.obs[40_001], [1, 1])


def test_large_images_are_read_unless_they_are_jpeg():
    space = spaces.Box(0, 255, (32, 33, 3), np.uint8)
    episodes = list(episodes_of(space, ACTIONS, [2], 0))
    from minari import create_dataset_from_buffers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        create_dataset_from_buffers(
            "toys/raw-v0",
            buffers_of(space, ACTIONS, episodes),
            observation_space=space,
            action_space=ACTIONS,
            jpeg_encoding=False,
        )
    np.testing.assert_array_equal(datasets.load("toys/raw-v0").obs[1], numbers_of(space, episodes[0][0][1]))
    store("toys/jpeg-v0", buffers_of(space, ACTIONS, episodes), space)
    with pytest.raises(DatasetError, match=r"toys/jpeg-v0: .*JPEG-encoded images"):
        datasets.load("toys/jpeg-v0")


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("actions", [spaces.Text(5), spaces.Dict({"a": ACTIONS}), spaces.Box(-1.0, 1.0, (2, 2))])
def test_other_action_spaces_are_refused(actions, data_format):
    episodes = list(episodes_of(SPACES["float64"], actions, [2], 0))
    folder = store(
        "toys/odd-v0", buffers_of(SPACES["float64"], actions, episodes), SPACES["float64"], actions, data_format
    )
    with pytest.raises(DatasetError, match=r"toys/odd-v0: action space .*only a flat Box, Discrete") as caught:
        datasets.load("toys/odd-v0")
    assert str(folder) in str(caught.value)


def test_a_space_of_text_alone_is_refused():
    space = spaces.Dict({"mission": spaces.Text(4, charset="ab")})
    store("toys/text-v0", buffers_of(space, ACTIONS, list(episodes_of(space, ACTIONS, [2], 0))), space)
    with pytest.raises(DatasetError, match=r"toys/text-v0: observation space .* holds nothing but text"):
        datasets.load("toys/text-v0")


@pytest.mark.parametrize("where", ["observations", "actions"])
@pytest.mark.parametrize("value", [5, -1, 2**40])
def test_an_index_outside_its_space_is_refused(where, value):
    space = spaces.Discrete(5)
    episodes = list(episodes_of(space, space, [2, 3], 0))
    folder = store("toys/outside-v0", buffers_of(space, space, episodes), space, space)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        file[f"episode_1/{where}"][2] = value
    with pytest.raises(DatasetError, match=rf"episode 1 in .*: {where} do not fit their space.*does not hold {value}"):
        datasets.load("toys/outside-v0")


def test_a_space_too_wide_for_one_hot_is_refused():
    store("toys/wide-v0", buffers_of(spaces.Discrete(5), ACTIONS, episodes_of(spaces.Discrete(5), ACTIONS, [2], 0)))
    wide = json.dumps({"type": "Discrete", "dtype": "int64", "start": 0, "n": 10**15})
    for name in ("observation_space", "action_space"):
        folder = path_of("toys/wide-v0") / "data"
        edit_metadata(folder, **{name: wide})
        with pytest.raises(DatasetError, match=rf"{name.replace('_', ' ')} Discrete\(10+\) .*at most 4096"):
            datasets.load("toys/wide-v0")
        edit_metadata(folder, **{name: '{"type": "Discrete", "start": 0, "n": 5}'})


# --- discrete actions are for looking, not for training ---


def test_algorithms_refuse_discrete_actions_by_name():
    space = spaces.MultiDiscrete([2, 3])
    data = toy(actions=discrete.OneHot(space))
    assert data.action_dim == 5
    with pytest.raises(DatasetError, match=r"^toy-v0: its action space is MultiDiscrete.*need a Box action space"):
        discrete.require_box_actions(data)
    discrete.require_box_actions(toy())


def test_one_hot_spaces_are_equal_only_with_equal_origins():
    assert discrete.OneHot(spaces.Discrete(4)) == discrete.OneHot(spaces.Discrete(4))
    assert discrete.OneHot(spaces.Discrete(4)) != discrete.OneHot(spaces.MultiDiscrete([2, 2]))
    assert discrete.OneHot(spaces.Discrete(4)) != spaces.Box(0.0, 1.0, (4,))


# --- reference returns ---


def mujoco(dataset_id, env_id, **metadata):
    spec = gym.spec(env_id)
    store(dataset_id, tagged_buffers([2, 1]), env_spec=spec.to_json(), **metadata)
    return datasets.load(dataset_id)


def test_mujoco_sets_take_the_shipped_references():
    data = mujoco("mujoco/hopper/medium-v0", "Hopper-v5")
    assert (data.ref_min, data.ref_max) == (16.669, 3234.3)
    assert data.normalized_score(3234.3) == 100
    assert mujoco("mujoco/walker2d/medium-v0", "Walker2d-v5").ref_max == 6847.793  # of mujoco/walker2d/expert-v0
    assert mujoco("mujoco/standup/x-v0", "HumanoidStandup-v5").ref_max is None  # nobody to name for the expert


def test_shipped_references_apply_to_nothing_else():
    assert mujoco("toys/hopper-v0", "Hopper-v5").ref_min is None
    assert mujoco("mujoco/hopper/old-v0", "Hopper-v4").ref_min is None
    own = mujoco("mujoco/hopper/own-v0", "Hopper-v5", ref_min_score=1.0, ref_max_score=2.0)
    assert (own.ref_min, own.ref_max) == (1.0, 2.0)
    changed = copy.deepcopy(gym.spec("Hopper-v5"))  # the registry hands out its own object
    changed.kwargs = {"ctrl_cost_weight": 1.0}
    assert references.reference("mujoco/hopper/x-v0", changed) is None
    short = copy.deepcopy(gym.spec("Hopper-v5"))
    short.max_episode_steps = 10
    assert references.reference("mujoco/hopper/x-v0", short) is None


@pytest.mark.parametrize("env_id", ["Hopper-v5", "InvertedPendulum-v5", "Walker2d-v5"])
def test_random_returns_are_what_is_measured(env_id):
    entry = references.MUJOCO[env_id]
    returns = references.measure_random(env_id)
    assert abs(returns.mean() - entry.random) < 4 * entry.standard_error  # other simulator versions, other digits
    assert returns.std(ddof=1) / 10 == pytest.approx(entry.standard_error, rel=0.3)


def test_every_reference_names_its_source():
    for env_id, entry in references.MUJOCO.items():
        gym.spec(env_id)
        assert entry.source.startswith("expert: " if entry.expert else "no expert: ")
        assert entry.expert is None or entry.expert > entry.random


@pytest.mark.parametrize("env_id", references.PUBLISHED)
def test_published_returns_agree_with_the_shipped_ones(env_id):
    random, expert = references.PUBLISHED[env_id]
    entry = references.MUJOCO[env_id]
    assert abs(random - entry.random) < 5 * entry.standard_error
    assert expert > random
    by_d4rl = "D4RL's reference for" in entry.source
    assert by_d4rl == (env_id in ("Hopper-v5", "HalfCheetah-v5"))
    assert (entry.expert == expert) != by_d4rl


# --- hostile files ---


def test_code_named_by_a_dataset_is_not_run(tmp_path):
    """env_spec names what Gymnasium imports and calls: a dataset must not choose that freely."""
    trap = tmp_path / "made"
    spec = json.loads(gym.spec("Pendulum-v1").to_json())
    evil = spec | {"id": "Evil-v0", "entry_point": "os:mkdir", "kwargs": {"path": str(trap)}}
    folder = store("toys/evil-v0", tagged_buffers([2]), env_spec=json.dumps(evil))
    with pytest.warns(UserWarning, match=r"toys/evil-v0: environment Evil-v0 is set aside.*os:mkdir"):
        assert datasets.load("toys/evil-v0").env_spec is None
    wrapped = spec | {"additional_wrappers": [{"name": "W", "entry_point": "os:mkdir", "kwargs": {"path": str(trap)}}]}
    edit_metadata(folder, env_spec=json.dumps(wrapped))
    with pytest.warns(UserWarning, match=r"its W would run os:mkdir"):
        assert datasets.load("toys/evil-v0").env_spec is None
    edit_metadata(folder, env_spec=json.dumps(evil), observation_space=None)  # Minari would make it to see its spaces
    with pytest.raises(DatasetError, match="observation_space is None"):
        datasets.load("toys/evil-v0")
    assert not trap.exists()


# --- fuzz: every case is a DatasetError that names the dataset, or a well-formed dataset ---

LENGTHS = (3, 1, 4)
FUZZ_SPACE = spaces.Dict({"where": spaces.Box(-9.0, 9.0, (2,), np.float64), "room": spaces.Discrete(3)})
FUZZ_ACTIONS = spaces.MultiDiscrete([3, 2])


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fuzz_store(dataset_id, data_format):
    episodes = episodes_of(FUZZ_SPACE, FUZZ_ACTIONS, LENGTHS, 0)
    return store(dataset_id, buffers_of(FUZZ_SPACE, FUZZ_ACTIONS, episodes), FUZZ_SPACE, FUZZ_ACTIONS, data_format)


def outcome(dataset_id, root):
    """'refused' or 'loaded'; anything else is a failure. Nothing on the disk may change."""
    before = digest(root)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = datasets.load(dataset_id)
        except DatasetError as error:
            named, result = str(error), "refused"
        else:
            assert len(data) == data.lengths.sum() == sum(LENGTHS)
            assert np.isfinite(data.observations).all()
            assert set(np.unique(data.action)) <= {0.0, 1.0}
            assert (data.action.sum(axis=1) == 2).all()
            named, result = dataset_id, "loaded"
    assert dataset_id in named
    assert digest(root) == before
    return result


def byte_damage(rng, raw):
    """Damaged copies of a file: cut, overwritten, shifted, emptied, or another kind of file."""
    size = len(raw)
    for cut in np.unique(np.concatenate([[0, 1, 7, 8, size - 1], rng.integers(0, size, 18)])):
        yield raw[: int(cut)]
    for _ in range(20):
        changed = bytearray(raw)
        for at in rng.integers(0, size, rng.integers(1, 9)):
            changed[at] = rng.integers(256)
        yield bytes(changed)
    for _ in range(8):
        at, length = int(rng.integers(size)), int(rng.integers(1, 400))
        yield raw[:at] + bytes(length) + raw[at + length :]
        yield raw[:at] + raw[at + length :]
        yield raw[:at] + rng.bytes(length) + raw[at:]
    yield from (b"<html>404</html>", raw[::-1], raw + raw, b"\x89HDF\r\n\x1a\n")


def metadata_damage(raw):
    """Every field missing, and every field with values that do not belong there."""
    strange = [None, True, -1, 0, 1.5, 10**30, "", "x", "../../x", "\0", [], {}, [[1]], {"type": "Box"}, float("nan")]
    fields = json.loads(raw)
    for key in fields:
        yield json.dumps({k: v for k, v in fields.items() if k != key})
        for value in strange:
            yield json.dumps(fields | {key: value})
    for text in ('{"type": "Box"}', '{"type": "Discrete", "n": 0, "start": 0}', '{"type": "Tuple", "subspaces": {}}'):
        for key in ("observation_space", "action_space"):
            yield json.dumps(fields | {key: text})
    for text in (
        '{"id": 1}',
        '{"id": "X-v0", "entry_point": "x:y"}',
        '{"id": "Pendulum-v1", "additional_wrappers": 3}',
    ):
        yield json.dumps(fields | {"env_spec": text})


def fields_of(node, prefix=""):
    for name, child in node.items():
        yield f"{prefix}{name}"
        if isinstance(child, h5py.Group):
            yield from fields_of(child, f"{prefix}{name}/")


def field_damage(name):
    """Changes to one array or group of the main file."""

    def delete(file):
        del file[name]

    def replace(value):
        def change(file):
            old = file[name][()] if isinstance(file[name], h5py.Dataset) else None
            del file[name]
            file[name] = value(old) if callable(value) and old is not None else np.zeros(2)

        return change

    yield delete
    yield lambda file: file.move(name, name + "x")
    yield replace(lambda old: old[:-1])
    yield replace(lambda old: np.concatenate([old, old[-1:]]))
    yield replace(lambda old: old[:0])
    yield replace(lambda old: np.stack([old, old]))
    yield replace(lambda old: old.astype(np.float64) + 0.5)
    yield replace(lambda old: np.full(old.shape, np.nan))
    yield replace(lambda old: np.full(old.shape, 10**6))
    yield replace(lambda old: np.full(old.shape, b"text"))
    yield replace(lambda old: np.float64(1))


def test_fuzzed_folders_are_refused_or_harmless(root, capsys):
    seen = {"refused": 0, "loaded": 0}

    def count(dataset_id):
        seen[outcome(dataset_id, root)] += 1

    for data_format in FORMATS:
        dataset_id, rng = f"fuzz/{data_format}-v0", np.random.default_rng(7)
        folder = fuzz_store(dataset_id, data_format)
        assert outcome(dataset_id, root) == "loaded"
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        parts = [path for path in files if path.suffix != ".json" and "/0/" not in str(path)]
        for path in [folder / "metadata.json", *parts]:
            raw = path.read_bytes()
            for damaged in byte_damage(rng, raw):
                path.write_bytes(damaged)
                count(dataset_id)
            path.write_bytes(raw)
        path = folder / "metadata.json"
        raw = path.read_bytes()
        for text in metadata_damage(raw):
            path.write_text(text)
            count(dataset_id)
        path.write_bytes(raw)
        for path in files:  # a missing file, and a folder in its place
            if path.parent == folder or path.suffix != ".json":
                raw = path.read_bytes()
                path.unlink()
                count(dataset_id) if path.name != "metadata.json" else None
                path.mkdir()
                count(dataset_id) if path.name != "metadata.json" else None
                path.rmdir()
                path.write_bytes(raw)
        assert outcome(dataset_id, root) == "loaded"
    main = root / "fuzz" / "hdf5-v0" / "data" / "main_data.hdf5"
    raw = main.read_bytes()
    with h5py.File(main) as file:
        damages = [change for name in fields_of(file) for change in field_damage(name)]
    for change in damages:
        with h5py.File(main, "a") as file:
            change(file)
        count("fuzz/hdf5-v0")
        main.write_bytes(raw)
    with capsys.disabled():
        print(f"\nfuzzed Minari folders: {sum(seen.values())} cases, {seen}")
    assert sum(seen.values()) >= 1000
    assert seen["refused"] > 600


@pytest.mark.parametrize("data_format", FORMATS)
def test_a_damaged_download_is_not_kept(root, monkeypatch, data_format):
    def broken(dataset_id):
        folder = fuzz_store(dataset_id, data_format)
        part = next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".json")
        part.write_bytes(part.read_bytes()[:-200])

    monkeypatch.setattr(hub.minari, "download_dataset", broken)
    with pytest.raises(DatasetError, match=r"hub/cut-v0: .*the Minari hub did not give it .*damaged or incomplete"):
        datasets.load("hub/cut-v0")
    assert digest(root).keys() == {str(root / ".hub-cut-v0.lock")}


def test_fuzzed_ids_reach_nothing(tmp_path, monkeypatch, root):
    """Ids made of the pieces that path tricks are made of: refused, or looked for inside the root and nowhere else."""
    pieces = [
        "..",
        ".",
        "/",
        "//",
        "\\",
        "~",
        "x",
        "-v0",
        "-v",
        "\0",
        "\n",
        " ",
        "%2e%2e",
        "C:",
        "é",
        "hoard/",
        "d4rl:",
    ]
    outside = store("toys/x-v0", tagged_buffers([2]))
    shutil.move(outside.parent, tmp_path / "x-v0")  # beside the root: `../x-v0` would lead here

    def offline(dataset_id):
        raise DatasetError(f"{dataset_id}: no network")

    monkeypatch.setattr(hub, "download", offline)
    before = digest(tmp_path)
    rng, cases = np.random.default_rng(3), 0
    for _ in range(600):
        dataset_id = "".join(rng.choice(pieces, size=rng.integers(1, 7))) + ("-v0" if rng.random() < 0.7 else "")
        with pytest.raises(DatasetError) as caught:
            datasets.load(dataset_id)
        assert dataset_id in str(caught.value) or repr(dataset_id) in str(caught.value)
        cases += 1
    assert cases == 600
    assert digest(tmp_path).keys() - before.keys() <= {str(p) for p in root.glob(".*.lock")}  # locks, never data
