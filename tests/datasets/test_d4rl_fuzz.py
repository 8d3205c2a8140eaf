"""Damaged files and odd ids by the thousand, always the same ones: a Dataset or a DatasetError, nothing else.

Every test ends by checking how many cases it has seen, so that a loop that runs empty is noticed.
"""

import itertools
import warnings

import h5py
import numpy as np
import pytest

from hoard import datasets
from hoard.datasets import Dataset, DatasetError
from hoard.datasets.d4rl import ids, table

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


def contents(n=24):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(n + 1, 3)).astype(np.float32)
    return {
        "observations": table[:-1],
        "next_observations": table[1:],
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": np.isin(np.arange(n), (5, 11)),
        "timeouts": np.isin(np.arange(n), (17,)),
    }


def write(path, arrays, **options):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **(options if np.ndim(array) else {}))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(table, "BASE_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("no_proxy", "*")


class Judge:
    """Loads an id and counts: `loaded`, `refused`."""

    def __init__(self, path):
        self.path, self.loaded, self.refused = path, 0, 0

    def __call__(self, *names, suffix=""):
        """The file must load into finite numbers, or be refused by its name and, if given, one of `names`."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                data = datasets.load(f"d4rl:{self.path}{suffix}")
        except DatasetError as error:
            message = str(error)
        else:
            message = ""
        if message:
            self.refused += 1
            assert str(self.path) in message
            assert not names or any(name in message for name in names), (names, message)
            return None
        self.loaded += 1
        assert isinstance(data, Dataset)
        assert np.isfinite(data.obs).all()
        assert np.isfinite(data.reward).all()
        return data


@pytest.fixture
def judge(tmp_path):
    return Judge(tmp_path / "fuzz.hdf5")


@pytest.mark.parametrize(("options", "step"), [({}, 29), ({"compression": "gzip", "chunks": True}, 37)])
def test_truncated_anywhere(judge, options, step):
    write(judge.path, contents(), **options)
    raw = judge.path.read_bytes()
    lengths = sorted({*range(0, len(raw), step), *range(16), *range(len(raw) - 16, len(raw))})
    for length in lengths:
        judge.path.write_bytes(raw[:length])
        judge("not a readable HDF5 file")
    assert judge.refused == len(lengths) >= 190


def test_one_byte_changed_anywhere(judge):
    """A changed number loads as that number; nothing else may happen."""
    write(judge.path, contents())
    raw = judge.path.read_bytes()
    rng = np.random.default_rng(1)
    places = range(0, len(raw), 15)
    for place in places:
        damaged = bytearray(raw)
        damaged[place] ^= int(rng.integers(1, 256))
        judge.path.write_bytes(damaged)
        judge(suffix="+full" if place % 2 else "")
    assert judge.loaded + judge.refused == len(places) >= 300
    assert min(judge.loaded, judge.refused) > 20


def test_blocks_of_noise(judge):
    write(judge.path, contents(), compression="gzip")
    raw = judge.path.read_bytes()
    rng = np.random.default_rng(2)
    for _ in range(200):
        damaged = bytearray(raw)
        start, size = int(rng.integers(len(raw))), int(rng.integers(1, 64))
        damaged[start : start + size] = rng.bytes(len(damaged[start : start + size]))
        judge.path.write_bytes(damaged)
        judge()
    assert judge.loaded + judge.refused == 200
    assert judge.refused > 20


VALUES = {
    "text": np.array([b"x"] * 24),
    "unicode": np.array(["x"] * 24, dtype=h5py.string_dtype()),
    "complex": np.ones(24, np.complex64),
    "compound": np.zeros(24, [("a", "f4")]),
    "scalar": np.float32(1),
    "nothing": np.zeros(0, np.float32),
    "one": np.zeros(1, np.float32),
    "short": np.zeros(23, np.float32),
    "long": np.zeros((25, 3), np.float32),
    "no columns": np.zeros((24, 0), np.float32),
    "four dims": np.zeros((24, 2, 2, 2), np.float32),
    "empty": h5py.Empty("f4"),
    "nan": np.full((24, 3), np.nan, np.float32),
    "inf": np.full(24, np.inf),
    "huge": np.full((24, 2), 1e300),
    "bytes": np.zeros((24, 3), np.uint8),
    "big endian": np.ones((24, 2), ">f8"),
    "half": np.ones((24, 3), np.float16),
    "twos": np.full(24, 2),
    "column": np.ones((24, 1), bool),
    "ragged": np.array([np.zeros(2, np.float32)] * 24 + [None], object)[:-1],
}


def with_value(path, key, value):
    with h5py.File(path, "a") as file:
        if key in file:
            del file[key]
        if isinstance(value, np.ndarray) and value.dtype == object:
            if h5py.check_string_dtype(value.dtype):
                file.create_dataset(key, data=value)
            else:
                file.create_dataset(key, (24,), dtype=h5py.vlen_dtype(np.float32))
        else:
            file.create_dataset(key, data=value)


def test_every_key_with_every_wrong_value(judge):
    cases = 0
    for key, (kind, value), suffix in itertools.product(KEYS, VALUES.items(), ("", "+full")):
        write(judge.path, contents())
        with_value(judge.path, key, value)
        before = judge.refused
        # Names of fields: as the file calls it, or as the checks of all datasets do.
        singular = key.rstrip("s") if key in ("actions", "rewards") else key
        judge(key, singular, suffix=suffix)
        cases += 1
        if kind in ("text", "complex", "compound", "ragged", "nothing", "short", "long", "empty"):
            assert judge.refused == before + 1, (key, kind)
    assert cases == judge.loaded + judge.refused == len(KEYS) * len(VALUES) * 2


def test_missing_and_extra_keys(judge):
    for count in range(len(KEYS) + 1):
        for missing in itertools.combinations(KEYS, count):
            write(judge.path, {key: array for key, array in contents().items() if key not in missing})
            with h5py.File(judge.path, "a") as file:
                file["metadata/policy/fc0/weight"] = np.zeros((2, 2))
                file["infos/qpos"] = np.zeros(3)  # of any length: nobody reads it
                file["extra"] = "text"
            for suffix in ("", "+full", "+as=pen-human-v0"):
                data = judge(*missing, suffix=suffix)
                required = set(missing) & set(KEYS[:4])
                assert (data is None) >= bool(required)
    assert judge.loaded + judge.refused == 3 * 2 ** len(KEYS)
    assert judge.loaded == 2 + 1 + 4  # with and without what the way of reading can do without


def test_shapes_that_no_bytes_stand_behind(judge):
    """A file of a kilobyte that says it holds a terabyte must not be believed, nor fill the memory."""
    cases = 0
    for key, exponent, chunks in itertools.product(KEYS, (6, 9, 12, 15), (None, True)):
        write(judge.path, {name: array for name, array in contents().items() if name != key})
        with h5py.File(judge.path, "a") as file:
            shape = (10**exponent, 3) if "observations" in key or key == "actions" else (10**exponent,)
            file.create_dataset(key, shape, np.float32, chunks=chunks and (1000, *shape[1:]))
        judge(key)
        cases += 1
    assert judge.refused == cases == 48


def test_links_out_of_the_file(judge, tmp_path):
    secret = tmp_path / "other.hdf5"
    write(secret, contents())
    raw = tmp_path / "raw.bin"
    raw.write_bytes(contents()["rewards"].tobytes())
    layout = h5py.VirtualLayout((24,), np.float32)
    layout[:] = h5py.VirtualSource(str(secret), "rewards", (24,))
    for kind in ("external link", "virtual", "external storage", "dangling", "group", "named type"):
        write(judge.path, {name: array for name, array in contents().items() if name != "rewards"})
        with h5py.File(judge.path, "a") as file:
            if kind == "external link":
                file["rewards"] = h5py.ExternalLink(str(secret), "/rewards")
            elif kind == "virtual":
                file.create_virtual_dataset("rewards", layout)
            elif kind == "external storage":
                file.create_dataset("rewards", (24,), np.float32, external=[(str(raw), 0, 96)])
            elif kind == "dangling":
                file["rewards"] = h5py.SoftLink("/nowhere")
            elif kind == "group":
                file.create_group("rewards")
            else:
                file["rewards"] = np.dtype("f4")
        judge("rewards")
    assert judge.refused == 6


def test_random_flags_and_lengths(judge):
    rng = np.random.default_rng(3)
    for _ in range(200):
        n = int(rng.integers(0, 30))
        arrays = {key: array[:n] for key, array in contents(30).items()}
        rate = rng.choice([0, 0.1, 0.5, 1.0], 2)
        arrays["terminals"], arrays["timeouts"] = rng.random(n) < rate[0], rng.random(n) < rate[1]
        if rng.random() < 0.3:
            arrays[str(rng.choice(KEYS))] = np.zeros((n + 1, 3), np.float32)
        if n:
            poisoned = arrays[str(rng.choice(KEYS[:3]))]
            if len(poisoned) and rng.random() < 0.3:
                poisoned.reshape(-1)[rng.integers(poisoned.size)] = rng.choice([np.nan, np.inf, -np.inf])
        write(judge.path, arrays)
        judge(suffix=str(rng.choice(["", "+full", "+as=maze2d-umaze-v1", "+as=maze2d-umaze-v1+full"])))
    assert judge.loaded + judge.refused == 200
    assert min(judge.loaded, judge.refused) > 30


IDS = [
    "", "+", "+full", "+as=hopper-medium-v2", " ", "\n", "\0", ".", "..", "/", "//", "~", "~root", "../..",
    "hopper-medium-v2 ", "hopper-medium-v2\n", "hopper-medium-v2\0", "hopper-medium-v2/", "hopper-medium-v2/..",
    "./hopper-medium-v2", "../hopper-medium-v2", "HOPPER-MEDIUM-V2", "hopper_medium-v2", "hopper-medium-v2.hdf",
    "hopper-medium", "hopper-medium-v", "hopper-medium-v02", "hopper-medium-v٢", "hopper‐medium‐v2",
    "hopper-medium-v2+FULL", "hopper-medium-v2++full", "hopper-medium-v2+full+", "hopper-medium-v2+full ",
    "hopper-medium-v2+as=", "hopper-medium-v2?full", "hopper-medium-v2#full", "hopper-medium-v2:full",
    "d4rl:hopper-medium-v2", "d4rl:d4rl:x", "file:///etc/passwd", "http://127.0.0.1:9/x.hdf5", "http://h/x.hdf5+full",
    "/etc/passwd", "/etc/passwd\0.hdf5", "/dev/null", "/dev/zero.hdf5", "/proc/self/mem.hdf5", "\\\\host\\x.hdf5",
    "x.hdf5/..", "x.hdf5/../y.hdf5", "x.hdf5+as=../x", "x.hdf5+as=hopper-medium-v2/..", "x.hdf5+full/../y.hdf5",
    "~nobody-here/x.hdf5", "x" * 300 + ".hdf5", "x" * 70_000, "+" * 1000, "a+" * 500 + ".hdf5", "$HOME/x.hdf5",
    "%2e%2e/x.hdf5", "\ud800.hdf5", "é.hdf5", "x\n.hdf5", "*.hdf5", "[.hdf5", "{}.hdf5", "%s.hdf5", "con.h5",
]  # fmt: skip


def test_ids(tmp_path):
    """Tricks in ids: refused, with no file made anywhere."""
    root = tmp_path / "d4rl"
    root.mkdir()
    write(tmp_path / "hopper-medium-v2.hdf5", contents())  # just outside the folder
    edited = [
        name[:k] + extra + name[k:]
        for name in ("hopper-medium-v2", "pen-human-v1")
        for k in range(len(name) + 1)
        for extra in ("x", "../", "\0")
    ]
    before = sorted(tmp_path.rglob("*"))
    for text in [*IDS, *edited]:
        for door in (datasets.check_id, datasets.ensure, datasets.load):
            with pytest.raises(DatasetError) as caught:
                door(f"d4rl:{text}")
            assert str(caught.value).startswith(f"d4rl:{text}")
    assert sorted(tmp_path.rglob("*")) == before
    assert len(IDS) + len(edited) == 68 + 90


def test_damage_under_a_published_name_leaves_the_users_file_alone(tmp_path):
    """By hash: whatever is wrong with it, a published file that is not itself is refused and stays."""
    folder = tmp_path / "d4rl"
    folder.mkdir()
    cases = 0
    for name in ("hopper-medium-v2", "door-human-v1", "antmaze-umaze-v2"):
        path = folder / table.ENTRIES[name].file_name
        for content in (b"", b"x", b"\x89HDF\r\n\x1a\n", b"<html>", bytes(5000)):
            path.write_bytes(content)
            with pytest.raises(DatasetError, match="it is not D4RL's") as caught:
                datasets.load(f"d4rl:{name}")
            assert str(path) in str(caught.value)
            assert path.read_bytes() == content
            cases += 1
    assert cases == 15
    assert len(list(folder.iterdir())) == 3
    assert ids.folder() == folder
