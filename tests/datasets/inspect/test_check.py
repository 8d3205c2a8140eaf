"""`check`: data that deserves it fails each question; what cannot be asked is skipped with a reason."""

import dataclasses

import gymnasium as gym
import h5py
import numpy as np
import pytest
from dataset_toys import ACTIONS, edit_metadata, store, tagged_buffers, toy
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

from hoard import datasets
from hoard.datasets import DatasetError, discrete
from hoard.datasets.inspect.check import COPIES, check, inspect
from hoard.datasets.minari import writer
from hoard.datasets.minari.metadata import metadata_of
from hoard.datasets.minari.store import path_of
from hoard.datasets.recipes import maze2d, pendulum, pointmaze, stitch

NAMES = [
    "episodes", "finite", "ends", "observations", "actions", "time limit", "references", "duplicates", "second reader",
    "environment", "replay",
]  # fmt: skip


def answers(findings):
    return {finding.name: finding.status for finding in findings}


def asked(name, data, metadata=None, **options):
    return next(finding for finding in inspect(data, metadata, **options) if finding.name == name)


def failed(findings):
    return [finding.name for finding in findings if finding.status == "failed"]


@pytest.fixture
def recording():
    return pendulum.record(episodes=10, reference_episodes=2)


def damaged(change, recording):
    """A stored pendulum set after `change(file)`, checked."""
    writer.write("toys/pendulum-v0", recording)
    with h5py.File(path_of("toys/pendulum-v0") / "data" / "main_data.hdf5", "a") as file:
        change(file)
    return {finding.name: finding for finding in check("toys/pendulum-v0")}


# --- good data ---


def test_a_recipe_passes_everything(recording):
    writer.write("toys/pendulum-v0", recording)
    findings = check("toys/pendulum-v0")
    assert [finding.name for finding in findings] == ["readable", *NAMES]
    assert set(answers(findings).values()) == {"ok"}
    assert findings[-1].text.startswith("200 of 200 steps replayed in Pendulum-v1")


@pytest.mark.parametrize(
    ("make", "env_id"),
    [
        (lambda: pointmaze.record("umaze", 1500, reference_episodes=1), "PointMaze_UMaze-v3"),
        (lambda: maze2d.record("umaze", 1500, reference_episodes=1), "hoard/Maze2d-UMaze-v0"),
        (lambda: stitch.record(trajectories=2, reference_episodes=1), "hoard/StitchMaze-v0"),
    ],
    ids=["pointmaze", "maze2d", "stitch"],
)
def test_mazes_are_replayed_exactly(make, env_id):
    writer.write("toys/maze-v0", make())
    findings = {finding.name: finding for finding in check("toys/maze-v0", sample=100)}
    assert findings["replay"].text.startswith(f"100 of 100 steps replayed in {env_id}")
    assert [name for name, finding in findings.items() if finding.status != "ok"] == []


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Hopper-v4", "Walker2d-v5", "InvertedPendulum-v5"])
def test_mujoco_robots_are_replayed(env_id):
    data = rollouts(env_id)
    finding = asked("replay", data, sample=60)
    assert finding.status == "ok"
    assert f"steps replayed in {env_id}" in finding.text
    data.reward[:] += 0.5
    assert asked("replay", data, sample=60).status == "failed"


def rollouts(env_id, episodes=4, steps=30):
    env = gym.make(env_id)
    env.action_space.seed(0)
    buffers = []
    for seed in range(episodes):
        observations, actions, rewards, done = [env.reset(seed=seed)[0]], [], [], False
        while not done:
            actions.append(env.action_space.sample())
            obs, reward, terminated, _, _ = env.step(actions[-1])
            observations.append(obs)
            rewards.append(float(reward))
            done = terminated or len(actions) == steps
        end = np.arange(len(actions)) == len(actions) - 1
        flags = (end, end & False) if terminated else (end & False, end)
        buffers.append(
            EpisodeBuffer(seed, seed, None, np.array(observations), np.array(actions), np.array(rewards), *flags, {})
        )
    store("toys/robot-v0", buffers, env.observation_space, env.action_space, env_spec=env.spec.to_json())
    env.close()
    return datasets.load("toys/robot-v0")


# --- damage in the files ---


def test_an_unreadable_dataset_is_a_finding(recording):
    found = damaged(lambda file: file.__delitem__("episode_3/rewards"), recording)
    assert found["readable"].status == "failed"
    assert "episode 3" in found["readable"].text
    assert {found[name].status for name in NAMES} == {"skipped"}


def test_rewards_that_are_not_the_environments(recording):
    def shift(file):
        for group in file.values():
            group["rewards"][1:] = group["rewards"][:-1]  # the classic mistake: r(s_t-1, a_t-1) beside s_t

    found = damaged(shift, recording)
    assert failed(found.values()) == ["replay"]
    assert "replayed steps differ, first step" in found["replay"].text


def test_observations_that_are_shifted_by_one(recording):
    def shift(file):
        for group in file.values():
            group["observations"][:-1] = group["observations"][1:]

    assert failed(damaged(shift, recording).values()) == ["replay"]


def test_actions_outside_their_space(recording):
    found = damaged(lambda file: file["episode_2/actions"].__setitem__(5, 2.5), recording)
    assert "1 of 2,000 actions lie outside their space, first in row 405" in found["actions"].text
    assert found["actions"].status == "failed"


def test_observations_outside_their_space(recording):
    found = damaged(lambda file: file["episode_0/observations"].__setitem__((7, 2), 9.0), recording)
    assert "1 of 2,010 observations lie outside their space, first in row 7" in found["observations"].text


def test_an_episode_put_in_many_times(recording):
    copies = int(COPIES * 10) + 2
    episodes = [
        dataclasses.replace(recording.episodes[0], id=k) if k < copies else recording.episodes[k] for k in range(10)
    ]
    writer.write("toys/copies-v0", dataclasses.replace(recording, episodes=episodes))
    found = {finding.name: finding for finding in check("toys/copies-v0")}
    assert failed(found.values()) == ["duplicates"]
    assert f"{copies - 1} of 10 episodes" in found["duplicates"].text
    few = [dataclasses.replace(recording.episodes[0], id=k) if k < 2 else recording.episodes[k] for k in range(10)]
    writer.write("toys/few-v0", dataclasses.replace(recording, episodes=few))
    found = {finding.name: finding for finding in check("toys/few-v0")}
    assert found["duplicates"].status == "ok"
    assert found["duplicates"].text.startswith("1 of 10 episodes and 200 of 2,000 steps")


def test_two_episodes_merged_into_one(recording):
    """Longer than the limit that ended the others."""
    first, second, *rest = recording.episodes
    merged = EpisodeBuffer(
        0, 0, None,
        np.concatenate([first.observations[:-1], second.observations]),
        *(np.concatenate([getattr(first, n), getattr(second, n)]) for n in ("actions", "rewards", "terminations")),
        np.arange(400) == 399, {},
    )  # fmt: skip
    rest = [dataclasses.replace(episode, id=k + 1) for k, episode in enumerate(rest)]
    writer.write("toys/merged-v0", dataclasses.replace(recording, episodes=[merged, *rest]))
    found = {finding.name: finding for finding in check("toys/merged-v0")}
    assert found["time limit"].status == "failed"
    assert "1 episodes are longer than the 200 steps of Pendulum-v1 that cut 8 others" in found["time limit"].text


def test_long_demonstrations_are_no_damage():
    store("toys/human-v0", tagged_buffers([250, 220]), env_spec=gym.spec("Pendulum-v1").to_json())
    finding = asked("time limit", datasets.load("toys/human-v0"), metadata_of("toys/human-v0"))
    assert finding.status == "ok"
    assert "were not applied: 2 episodes are longer" in finding.text


# --- damage in the arrays, which the reader would have refused ---


def test_arrays_damaged_after_loading():
    for name, index in (("observations", (2, 0)), ("action", (1, 1)), ("reward", 4)):
        data = toy()
        getattr(data, name)[index] = np.nan
        assert f"{name} holds 1 NaN or infinite" in asked("finite", data).text
    for name in ("terminated", "truncated"):
        data = toy()
        getattr(data, name)[0] = True
        assert asked("ends", data).text == f"{name} is set inside an episode at 1 steps, first at step 0"
    data = toy()
    data.rows[1] += 1
    assert asked("episodes", data).text == "observations are not contiguous, first in episode 0"
    data = toy()
    data.rows[3:] -= 2  # episode 1 would begin on a row inside episode 0
    assert asked("episodes", data).text == "episode 1 starts inside the one before it"
    assert failed(inspect(toy(env_spec=None))) == []


def test_shared_border_rows_are_contiguous():
    """As D4RL files are read, and as walks that are never reset are recorded."""
    data = toy(lengths=(2, 2), observations=np.zeros((5, 2), np.float32), rows=np.arange(4))
    finding = asked("episodes", data)
    assert finding.status == "ok"
    assert "1 start on the last row of the one before" in finding.text


def test_flags_are_counted():
    data = toy(terminated=(1,))
    data.truncated[3] = True
    data.truncated[-1] = False
    text = asked("ends", data).text
    assert "1 terminated, 2 truncated, 1 of them both" in text
    assert "1 without a flag" in text


def test_one_hot_actions():
    space = discrete.OneHot(spaces.Discrete(2))
    data = toy(actions=space)
    data.action[:, 0] = 1
    assert asked("actions", data).status == "ok"
    for name in ("environment", "replay"):
        assert asked(name, data).status == "skipped"
    data.action[3, 0] = 0.5
    assert asked("actions", data).status == "failed"


# --- environments ---


def test_an_environment_that_does_not_fit():
    assert asked("environment", toy()).text == "Pendulum-v1 gives 3 numbers, the data has 2"
    wide = asked("environment", toy(obs_dim=3, actions=spaces.Box(-1.0, 1.0, (1,), np.float32)))
    assert wide.status == "failed"
    assert "actions of the data are" in wide.text


@pytest.mark.parametrize(
    ("fields", "name", "why"),
    [
        ({"env_spec": None}, "environment", "no evaluation environment is known"),
        ({"env_spec": None}, "time limit", "no time limit is known"),
        ({"env_spec": None}, "replay", "not possible because no environment is known"),
        ({"env_spec": gym.spec("Ant-v5")}, "replay", "not possible because the recorded observations do not hold"),
        ({"ref_min": None, "ref_max": None}, "references", "no reference returns"),
        ({}, "observations", "the file records no observation space"),
        ({}, "second reader", "Minari's reader does not read this format"),
        ({"env_spec": gym.spec("CartPole-v1")}, "environment", "CartPole-v1 cannot be made here: TypeError"),
    ],
)
def test_what_cannot_be_asked_is_skipped_with_a_reason(fields, name, why):
    finding = asked(name, toy(**fields))
    assert finding.status == "skipped"
    assert why in finding.text


def test_a_hidden_goal_that_was_not_recorded():
    recording = stitch.record(trajectories=1, reference_episodes=1)
    bare = [dataclasses.replace(episode, infos={}) for episode in recording.episodes]
    writer.write("toys/maze-v0", dataclasses.replace(recording, episodes=bare))
    finding = next(f for f in check("toys/maze-v0") if f.name == "replay")
    assert finding.status == "skipped"
    assert "no infos['goal']" in finding.text


# --- ids and repetition ---


def test_ids():
    with pytest.raises(DatasetError, match="nearest: hoard/pendulum/mixed-v0"):
        check("hoard/pendulum/mixd-v0")
    with pytest.raises(DatasetError, match="not on this disk; `hoard data make toys/gone-v0`"):
        check("toys/gone-v0")


def test_the_sample_follows_the_seed(recording):
    writer.write("toys/pendulum-v0", recording)
    data, metadata = datasets.load("toys/pendulum-v0"), metadata_of("toys/pendulum-v0")
    data.reward[::50] += 1.0

    def first(seed):
        return asked("replay", data, metadata, sample=150, seed=seed).text

    assert first(1) == first(1)
    assert len({first(seed) for seed in range(4)}) > 1


def test_a_reader_that_disagrees_is_seen(recording, monkeypatch):
    writer.write("toys/pendulum-v0", recording)
    data, metadata = datasets.load("toys/pendulum-v0"), metadata_of("toys/pendulum-v0")
    data.reward[:] += 1e-3
    finding = asked("second reader", data, metadata)
    assert finding.status == "failed"
    assert "reward of episode" in finding.text


def test_metadata_without_an_environment():
    store("toys/plain-v0", tagged_buffers([2, 3]), actions=ACTIONS)
    folder = path_of("toys/plain-v0") / "data"
    edit_metadata(folder, env_spec=None)
    findings = check("toys/plain-v0")
    assert failed(findings) == []
    assert answers(findings)["replay"] == "skipped"
