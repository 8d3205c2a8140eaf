"""Files of one's own: another environment, reference returns, what the reader leaves out, actions out of bounds."""

import sys
import warnings

import gymnasium as gym
import h5py
import numpy as np
import pytest
from dataset_toys import store, tagged_buffers

from hoard import datasets
from hoard.datasets import DatasetError
from hoard.datasets.inspect import card

MODULE = """
import gymnasium as gym
import numpy as np

class Line(gym.Env):
    observation_space = gym.spaces.Box(-9.0, 9.0, (3,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 1.0, False, False, {}

gym.register("OwnLine-v0", entry_point="own_line:Line", max_episode_steps=5)
gym.register("OwnEndless-v0", entry_point="own_line:Line")
gym.register("OwnClass-v0", entry_point=Line, max_episode_steps=5)
"""


@pytest.fixture
def file(tmp_path):
    """20 rows of Pendulum's shapes; row 9 is a time-out."""
    rng = np.random.default_rng(0)
    arrays = {
        "observations": rng.normal(size=(20, 3)).astype(np.float32),
        "actions": rng.uniform(-2, 2, (20, 1)).astype(np.float32),
        "rewards": np.arange(20, dtype=np.float32),
        "terminals": np.zeros(20, bool),
        "timeouts": np.arange(20) == 9,
    }
    path = tmp_path / "own.hdf5"
    with h5py.File(path, "w") as h5:
        for name, array in arrays.items():
            h5[name] = array
    return path


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_line.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_line", None)
    for name in ("OwnLine-v0", "OwnEndless-v0", "OwnClass-v0"):
        gym.registry.pop(name, None)


def quietly(dataset_id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return datasets.load(dataset_id)


def test_an_environment_of_gymnasium_with_reference_returns(file):
    data = quietly(f"d4rl:{file}+as=Pendulum-v1+ref=-1200,-150.5")
    assert (data.env_spec.id, data.env_spec.max_episode_steps) == ("Pendulum-v1", 200)
    assert (data.action_space.low.item(), data.action_space.high.item()) == (-2, 2)
    assert (data.ref_min, data.ref_max) == (-1200, -150.5)
    assert data.normalized_score(-150.5) == 100
    assert not data.actions_out_of_bounds().any()


def test_an_environment_without_reference_returns_has_no_score(file):
    data = quietly(f"d4rl:{file}+as=Pendulum-v1")
    assert (data.ref_min, data.ref_max) == (None, None)


def test_an_environment_of_ones_own_module(file, module):
    data = quietly(f"d4rl:{file}+as=own_line:OwnLine-v0+ref=0,5")
    assert data.env_spec.id == "OwnLine-v0"
    assert len(data) == 18


def test_the_limit_of_the_environment_cuts_files_without_timeouts(file, module):
    with h5py.File(file, "a") as h5:
        del h5["timeouts"]
    with pytest.raises(DatasetError, match=r"episode ends are unknown .*\+as=ENVIRONMENT"):
        datasets.load(f"d4rl:{file}")
    assert quietly(f"d4rl:{file}+as=own_line:OwnLine-v0").lengths.tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("+as=Pendulum-v7", r"\+as=Pendulum-v7: unknown name; nearest: .*nearest environments: .*Pendulum-v1"),
        ("+as=no_such_package:Env-v0", "cannot import no_such_package: No module named"),
        ("+as=own_line:OwnEndless-v0", "has no time limit"),
        ("+as=own_line:OwnClass-v0", "entry point as text"),
        ("+ref=0,1", r"\+ref=LOW,HIGH goes with \+as=ENVIRONMENT"),
        ("+as=hopper-medium-v2+ref=0,1", "hopper-medium-v2 has its own references"),
        *((f"+as=Pendulum-v1+ref={text}", r"as \+ref=-20,3200") for text in ("", "1", "1,2,3", "a,b", "2,1", "0,inf")),
        ("+as=Pendulum-v1+ref=0,1+ref=0,2", "each once"),
    ],
)
def test_what_cannot_be_meant(file, module, options, message):
    with pytest.raises(DatasetError, match=message):
        datasets.check_id(f"d4rl:{file}{options}")


def test_an_environment_that_does_not_fit(file):
    with pytest.raises(DatasetError, match=r"'observations' has shape \('N', 3\), Hopper-v5 needs \('N', 11\)"):
        datasets.load(f"d4rl:{file}+as=Hopper-v5")


def test_rows_left_out_are_told_and_on_the_card(file):
    with pytest.warns(UserWarning, match=r"2 of the file's 20 rows are left out by D4RL's rule"):
        data = datasets.load(f"d4rl:{file}+as=Pendulum-v1")
    assert len(data) == 18
    assert data.top_episodes(0.5).notes == data.notes
    content = card.describe(data)
    assert content["notes"] == list(data.notes)
    assert "2 of the file's 20 rows are left out" in card.as_text(content)
    assert "notes" not in card.as_text(card.describe(quietly("hoard/gridworld/expert-v0")))


def test_actions_out_of_bounds_are_told_once_a_process(file):
    with pytest.warns(UserWarning, match="outside the bounds") as told:
        data = datasets.load(f"d4rl:{file}")  # of an unknown environment: bounds -1 and 1
    text = next(str(one.message) for one in told if "outside the bounds" in str(one.message))
    outside = np.abs(data.action) > 1
    assert f"{100 * outside.mean():.3g} % of the action values, in {outside.sum()} of 18 steps" in text
    assert f"`hoard data check d4rl:{file}`" in text
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            datasets.load(f"d4rl:{file}")
    assert sum("outside the bounds" in str(one.message) for one in told) == 1


def test_actions_within_bounds_are_not_told(root):
    store("toys/fine-v0", tagged_buffers([3, 2]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.load("toys/fine-v0")
