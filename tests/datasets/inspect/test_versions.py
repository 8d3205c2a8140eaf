"""Which rows of a dataset are replayed in other versions, and from which state."""

from itertools import pairwise

import gymnasium as gym
import h5py
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

import hoard.envs  # noqa: F401
from hoard import datasets
from hoard.datasets import DatasetError
from hoard.datasets.inspect import versions as table
from hoard.datasets.minari import writer
from hoard.datasets.recipes import Recording
from hoard.envs import mujoco_recording, mujoco_versions

AS = "+as=hopper-random-v2"


@pytest.fixture(scope="module")
def steps():
    return mujoco_recording.record("Hopper-v4", 300, seed=0)


@pytest.fixture
def file(steps, tmp_path):
    mujoco_recording.write(steps, str(tmp_path / "hopper.hdf5"))
    return tmp_path / "hopper.hdf5"


def v4(comparison):
    replay = comparison["replays"][0]
    assert replay["world"] == "v4"
    return replay


def test_random_steps_of_an_environment():
    comparison = table.compare("Hopper-v4", 150)
    assert [replay["world"] for replay in comparison["replays"]] == list(mujoco_versions.WORLDS)
    assert v4(comparison)["steps"] == 150
    assert v4(comparison)["obs"]["max"] < 1e-9
    assert set(comparison) == {"id", "gymnasium", "mujoco", "replays"}


@pytest.mark.parametrize("full", ["", "+full"])
def test_a_d4rl_file(file, steps, full):
    replay = v4(table.compare(f"d4rl:{file}{AS}{full}", 1000))
    assert replay["steps"] == replay["from_infos"] == (300 if full else 299)
    assert replay["failing"]["steps"] == steps.terminated[: replay["steps"]].sum()
    assert replay["next_unknown"] == 0
    assert replay["obs"]["max"] < 1e-9  # float64 in the file, though the dataset is float32
    assert replay["reward"]["max"] < 1e-9


def test_a_d4rl_file_in_single_precision(steps, tmp_path):
    mujoco_recording.write(steps, str(tmp_path / "single.hdf5"), single=True)
    replay = v4(table.compare(f"d4rl:{tmp_path}/single.hdf5{AS}", 1000))
    assert 1e-9 < replay["obs"]["max"] < 1e-4
    with pytest.raises(FileExistsError):
        mujoco_recording.write(steps, str(tmp_path / "single.hdf5"))


def test_the_row_after_a_terminal_one_is_not_its_next_observation(file, steps):
    with h5py.File(file, "a") as h5:
        del h5["next_observations"], h5["infos"]
    replay = v4(table.compare(f"d4rl:{file}{AS}", 1000))
    assert replay["from_infos"] == 0
    assert replay["next_unknown"] == replay["failing"]["steps"] == steps.terminated[:-1].sum() > 0
    assert replay["obs"]["max"] < 1e-3
    assert replay["failing"]["reward_difference"] == pytest.approx(0, abs=1e-3)
    assert "next observations not recorded" in table.as_markdown([{"id": "x", "replays": [replay]}])


def store(steps, infos, dataset_id="test/hopper-v0"):
    """The steps as a Minari set, with or without the simulator's states."""
    spec = gym.spec("Hopper-v4")
    env = mujoco_versions.make("Hopper", "v4")
    starts = np.append(np.flatnonzero(steps.first), len(steps))
    episodes = []
    for k, (a, b) in enumerate(pairwise(starts)):
        observations = np.vstack([steps.observation[a:b], steps.next_observation[b - 1 : b]])
        ends = np.zeros((2, b - a), bool)
        ends[0 if steps.terminated[b - 1] else 1, -1] = True
        states = {n: np.vstack([getattr(steps, n)[a:b], getattr(steps, n)[b - 1 : b]]) for n in ("qpos", "qvel")}
        episodes.append(
            EpisodeBuffer(
                k, k, None, observations, steps.action[a:b], steps.reward[a:b], *ends, states if infos else {}
            )
        )
    space, actions = env.observation_space, env.action_space
    writer.write(dataset_id, Recording(episodes, space, actions, spec, spec, 0.0, 1.0, "random", "random steps"))
    return dataset_id


@pytest.mark.parametrize("infos", [True, False])
def test_a_minari_set(steps, infos):
    replay = v4(table.compare(store(steps, infos), 100))
    assert replay["steps"] + sum(replay["left_out"].values()) == 100
    assert replay["from_infos"] == (100 if infos else 0)
    assert replay["obs"]["max"] < 1e-4  # read in float32
    assert replay["reward"]["max"] < 1e-4


def test_the_seed_chooses_the_steps(file):
    one, same, other = (table.compare(f"d4rl:{file}{AS}", 50, seed) for seed in (0, 0, 1))
    assert one == same
    assert one["replays"] != other["replays"]


def test_other_data_is_refused(file):
    with pytest.raises(DatasetError, match=r"its environment is not known.*\+as=NAME"):
        table.compare(f"d4rl:{file}")
    with pytest.raises(DatasetError, match=r"CombLock.*only steps of Hopper, HalfCheetah, Walker2d, Ant can"):
        table.compare("hoard/comblock/h5-v0")
    with pytest.raises(DatasetError, match="Swimmer-v4: there are recordings of Hopper-v4, Hopper-v5"):
        table.compare("Swimmer-v4")
    with pytest.raises(DatasetError, match="HalfCheetah is observed by 17 numbers, these steps have 11"):
        table.compare(f"d4rl:{file}+as=halfcheetah-random-v2")
    with pytest.raises(DatasetError, match="nearest"):
        table.compare("d4rl:hoper-medium-v2")


def test_the_table(file):
    comparisons = [table.compare("HalfCheetah-v4", 20), table.compare(f"d4rl:{file}{AS}", 100)]
    head, line, *rows = table.as_markdown(comparisons).splitlines()
    assert len(rows) == 2 * len(mujoco_versions.WORLDS)
    assert {row.count("|") for row in (head, line, *rows)} == {14}
    assert rows[0].startswith("| `HalfCheetah-v4` | v4 | 20 | 0 | 0.0e+00 |")
    assert rows[0].endswith("| none fails |")
    fell = comparisons[1]["replays"][1]["failing"]["steps"]
    assert rows[5].endswith(f"| -1.000 ({fell}) |")


def test_the_dataset_is_left_as_it_was(file):
    data = datasets.load(f"d4rl:{file}{AS}")
    before = data.content_hash
    table.steps_of(data, np.arange(10))
    del data.__dict__["content_hash"]
    assert data.content_hash == before
