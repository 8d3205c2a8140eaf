"""Our reader against the d4rl package itself, where HOARD_D4RL_PYTHON names an interpreter that has it.

The package cannot share an environment with Gymnasium's present releases, so it runs in a process of its own and leaves
its answers in files; `.ci/d4rl-parity` makes that environment and runs this file.
"""

import json
import os
import subprocess
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest

from hoard import datasets
from hoard.datasets.d4rl import ids, table

PYTHON = os.environ.get("HOARD_D4RL_PYTHON")
DOOR = Path(__file__).resolve().parents[3] / "shared" / "data" / "d4rl_door_human_replayed.hdf5"
pytestmark = pytest.mark.skipif(not PYTHON, reason="HOARD_D4RL_PYTHON is not set; see .ci/d4rl-parity")


def toy(n, rng, timeouts=True, column=False, terminal_rate=0.1):
    flags = {"terminals": rng.random(n) < terminal_rate} | ({"timeouts": rng.random(n) < 0.1} if timeouts else {})
    arrays = {
        "observations": rng.normal(size=(n, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
    } | flags
    return {k: v[:, None] if column and k in ("rewards", "terminals") else v for k, v in arrays.items()}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Folder with files and the package's answers, and how each file is to be read: {name: id}."""
    folder = tmp_path_factory.mktemp("parity")
    rng = np.random.default_rng(0)
    files, limits = {}, {}
    for k in range(30):
        files[f"timeouts{k}"] = toy(int(rng.integers(5, 200)), rng, column=k % 3 == 0)
    # v0 sets: cut by the limits of pen (100), umaze (maze2d 300) and hopper (1000)
    for name, limit in (("pen-human-v0", 100), ("maze2d-umaze-v1", 300), ("hopper-medium-v0", 1000)):
        for k, rate in enumerate((0.0, 0.001, 0.005, 0.02, 0.2)):
            files[f"{name}.{k}"] = toy(int(rng.integers(2 * limit, 5 * limit)), rng, False, terminal_rate=rate)
            limits[f"{name}.{k}"] = limit
    if DOOR.is_file():
        with h5py.File(DOOR) as real:
            keys = ("observations", "actions", "rewards", "terminals", "timeouts")
            files["door"] = {key: real[key][()] for key in keys}
    for name, arrays in files.items():
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for key, array in arrays.items():
                file[key] = array
            if name in limits:
                file.attrs["limit"] = limits[name]
    oracle = Path(__file__).with_name("d4rl_oracle.py")
    subprocess.run([PYTHON, str(oracle), str(folder)], check=True, capture_output=True, text=True, timeout=600)
    return folder, {name: f"+as={name.rsplit('.', 1)[0]}" if name in limits else "" for name in files}


def test_every_row_is_the_packages(answers):
    folder, options = answers
    assert len(options) >= 45
    for name, option in options.items():
        theirs = np.load(folder / f"{name}.npz", allow_pickle=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing time-outs
            ours = datasets.load(f"d4rl:{folder}/{name}.hdf5{option}")
        pairs = {
            "observations": ours.obs,
            "actions": ours.action,
            "next_observations": ours.next_obs,
            "rewards": ours.reward,
            "terminals": ours.terminated,
        }
        assert set(theirs.files) == set(pairs)
        for key, array in pairs.items():
            assert theirs[key].dtype == array.dtype
            np.testing.assert_array_equal(array, theirs[key], err_msg=f"{name}: {key}")


def test_the_table_is_the_packages(answers):
    infos = json.loads((answers[0] / "infos.json").read_text())
    ours = {name: table.BASE_URL + entry.path for name, entry in table.ENTRIES.items()}
    assert ours == infos["urls"]
    for side, attribute in (("low", "ref_min"), ("high", "ref_max")):
        known = {name: getattr(entry, attribute) for name, entry in table.ENTRIES.items()}
        assert {name: value for name, value in known.items() if value is not None} == {
            name: value for name, value in infos[side].items() if value is not None and name in known
        }
    entry = table.ENTRIES["hopper-medium-v2"]
    assert (1000.0 - entry.ref_min) / (entry.ref_max - entry.ref_min) == pytest.approx(infos["example"], rel=1e-12)
    assert len(ids.NAMES) == 155
