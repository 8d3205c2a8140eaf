"""Locomotion: policies as they were trained, episodes that can be replayed, sets composed as they say."""

import hashlib
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
import train_locomotion_policies as locomotion_training
from gymnasium.envs.registration import EnvSpec
from helpers import ROOT
from safetensors import numpy as safetensors

from hoard import datasets
from hoard.datasets import DatasetError, recipes
from hoard.datasets.d4rl import table as d4rl_table
from hoard.datasets.inspect import check
from hoard.datasets.minari import reader, writer
from hoard.datasets.minari.metadata import infos_of, metadata_of
from hoard.datasets.recipes import locomotion, locomotion_policies
from hoard.datasets.recipes.catalogue import ROBOT_STEPS
from hoard.datasets.recipes.in_memory import dataset_of
from hoard.datasets.recipes.locomotion_policies import (
    TASKS,
    WEIGHTS,
    Actor,
    Stage,
    load_ladder,
    save_actors,
    stem,
)
from hoard.datasets.recipes.locomotion_replay import action_of, load_replay, make_replay, play, save_replay
from hoard.envs import flatten_space, make_env
from hoard.runners import algorithms
from hoard.runners.evaluate import training_seed

STEPS = 400
MEDIUM, EXPERT = 2, 3


def some_actor(task, rng, hidden=8, scale=0.3):
    sizes = [TASKS[task].obs_dim, hidden, hidden, 2 * TASKS[task].action_dim]
    weights = [scale * rng.standard_normal((b, a)) for a, b in itertools.pairwise(sizes)]
    biases = [scale * rng.standard_normal(b) for b in sizes[1:]]
    return Actor(tuple(w.astype(np.float32) for w in weights), tuple(b.astype(np.float32) for b in biases)).rounded()


def write(folder, task, actors, version=0, **changes):
    rungs = [{"rung": i, "step": 1000 * i} for i in range(len(actors) + 1)]
    training = {"options": {"seed": 0}, "versions": {"stable-baselines3": "2"}}
    digest = save_actors(folder / f"{stem(task, version)}.safetensors", actors)
    about = {"sha256": digest, "rungs": rungs, "training": training}
    (folder / f"{stem(task, version)}.json").write_text(json.dumps(about | changes))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A ladder of three untrained actors for each task."""
    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    for task in TASKS:
        write(folder, task, [some_actor(task, rng) for _ in range(EXPERT)])
    return folder


@pytest.fixture(scope="module")
def record(weights):
    return lambda task, level, steps=STEPS, **options: locomotion.record(
        task, level, steps=steps, weights=weights, **{"processes": 1} | options
    )


def same(one, two):
    assert (one.id, one.seed) == (two.id, two.seed)
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        a, b = getattr(one, name), getattr(two, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert one.infos.keys() == two.infos.keys()
    for key in one.infos:
        np.testing.assert_array_equal(one.infos[key], two.infos[key])
    return True


def rungs_of(recording):
    return [int(episode.infos["rung"][0]) for episode in recording.episodes]


# --- episodes ---


@pytest.mark.parametrize(
    ("task", "level"), [("hopper", "medium-replay"), ("walker2d", "medium"), ("halfcheetah", "random")]
)
def test_an_episode_is_what_the_environment_does_from_its_seed(record, task, level):
    """Replayed with all of Gymnasium's wrappers: every number and flag, row by row."""
    recording = record(task, level)
    env = gym.make(TASKS[task].env_id)
    for episode in recording.episodes[:1] + recording.episodes[-2:]:
        obs, _ = env.reset(seed=episode.seed)
        np.testing.assert_array_equal(episode.observations[0], obs.astype(np.float32))
        for t, action in enumerate(episode.actions):
            obs, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(episode.observations[t + 1], obs.astype(np.float32))
            assert episode.rewards[t] == np.float32(reward)
            assert (episode.terminations[t], episode.truncations[t]) == (terminated, truncated)
        assert terminated or truncated
    env.close()


def test_actions_answer_the_observation_beside_them(record, weights):
    ladder = load_ladder("hopper", folder=weights)
    recording = record("hopper", "medium-replay")
    places = {}
    for episode in recording.episodes:
        rung = int(episode.infos["rung"][0])
        k = places[rung] = places.get(rung, -1) + 1
        assert episode.seed == 1_000_000 * rung + k
        rng = np.random.default_rng((2**31, rung, k))
        if rung == 0:
            wanted = 2 * rng.random((1000, 3), dtype=np.float32)[: len(episode)] - 1
        else:
            noise = rng.standard_normal((1000, 3), dtype=np.float32)
            wanted = [ladder.actors[rung - 1].act(obs, z) for obs, z in zip(episode.observations[:-1], noise)]
        np.testing.assert_array_equal(episode.actions, wanted)
    assert places.keys() == {0, 1, MEDIUM}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("level", ROBOT_STEPS[0])
def test_episodes_are_whole(record, task, level):
    recording = record(task, level)
    for number, episode in enumerate(recording.episodes):
        steps = len(episode)
        assert episode.id == number
        assert 0 <= episode.seed < 2**31
        assert episode.observations.shape == (steps + 1, TASKS[task].obs_dim)
        assert episode.actions.shape == (steps, TASKS[task].action_dim)
        assert {x.dtype for x in (episode.observations, episode.actions, episode.rewards)} == {np.dtype(np.float32)}
        assert all(recording.action_space.contains(action) for action in episode.actions)
        assert not (episode.terminations[:-1] | episode.truncations[:-1]).any()
        assert episode.truncations[-1] == (steps == 1000)
        assert episode.terminations[-1] or steps == 1000
    assert len({episode.seed for episode in recording.episodes}) == len(recording.episodes)


def test_noise_has_the_spread_that_the_actor_says():
    actor = some_actor("walker2d", np.random.default_rng(1))
    obs = np.random.default_rng(2).standard_normal(17).astype(np.float32)
    mean, std = actor.distribution(obs)
    noise = np.random.default_rng(3).standard_normal((20_000, 6), dtype=np.float32)
    before = np.arctanh(np.array([actor.act(obs, z) for z in noise], np.float64))
    np.testing.assert_allclose(before.mean(axis=0), mean, atol=0.05 * std.max())
    np.testing.assert_allclose(before.std(axis=0), std, rtol=0.05)
    np.testing.assert_array_equal(actor.act(obs, np.zeros(6, np.float32)), np.tanh(mean))


# --- sets ---


def test_levels_are_the_rungs_they_say(record, weights):
    ladder = load_ladder("hopper", folder=weights)
    assert locomotion.parts(ladder, "random", 100) == [(0, 100)]
    assert locomotion.parts(ladder, "medium", 100) == [(MEDIUM, 100)]
    assert locomotion.parts(ladder, "medium-replay", 100) == [(0, 33), (1, 33), (MEDIUM, 34)]
    assert locomotion.parts(ladder, "medium-expert", 101) == [(MEDIUM, 50), (EXPERT, 51)]
    for level in ("medium-replay", "medium-expert"):
        recording = record("hopper", level, 3000)
        order = rungs_of(recording)
        assert order == sorted(order)
        for rung, share in locomotion.parts(ladder, level, 3000):
            lengths = [len(e) for e, other in zip(recording.episodes, order) if other == rung]
            assert sum(lengths[:-1]) < share <= sum(lengths)  # it ends with the episode that completes it
        assert all((e.infos["rung"] == rung).all() for e, rung in zip(recording.episodes, order))
        assert {len(e.infos["rung"]) - len(e) for e in recording.episodes} == {1}
    assert all(not e.infos for level in ("random", "medium") for e in record("hopper", level).episodes)


def test_medium_expert_begins_with_the_medium_set_and_longer_sets_with_shorter_ones(record):
    medium, longer = record("hopper", "medium"), record("hopper", "medium", 3 * STEPS)
    both = record("hopper", "medium-expert", 2 * STEPS)
    assert len(medium.episodes) < len(longer.episodes)
    for one, two, three in zip(medium.episodes, longer.episodes, both.episodes):
        assert same(one, two)
        assert one.seed == three.seed
        np.testing.assert_array_equal(one.actions, three.actions)
    assert rungs_of(both).count(MEDIUM) == len(medium.episodes)
    assert {EXPERT} == set(rungs_of(both)[len(medium.episodes) :])


def test_the_number_of_processes_changes_nothing(record):
    ticks = []
    one = record("hopper", "medium-replay", 1500)
    two = record("hopper", "medium-replay", 1500, processes=2, progress=lambda *tick: ticks.append(tick))
    assert len(one.episodes) == len(two.episodes)
    assert all(same(a, b) for a, b in zip(one.episodes, two.episodes))
    assert one.description == two.description
    assert ticks[-1] == (1500, 1500)


def test_a_worker_that_dies_is_said_and_one_that_is_left_ends(weights):
    ladder = load_ladder("hopper", folder=weights)
    shared = locomotion._Shared(ladder, 2, weights)
    try:
        episodes = shared.episodes(1)
        first = next(episodes)
        np.testing.assert_array_equal(
            first.observations, locomotion.record_episode(Stage("hopper"), ladder, 1, 0).observations
        )
        (_, dead), (connection, left) = shared.children.items()
        dead.kill()
        with pytest.raises(DatasetError, match="a process that made episodes in Hopper-v4 ended with status -9"):
            list(itertools.islice(episodes, 10_000))
        connection.close()  # as when the caller is killed
        assert left.wait(timeout=60) == 0
    finally:
        shared.close()


def test_two_generations_are_identical(record):
    one, two = record("walker2d", "medium-expert"), record("walker2d", "medium-expert")
    assert all(same(a, b) for a, b in zip(one.episodes, two.episodes))
    assert one.description == two.description


def test_progress_counts_the_steps_that_were_asked_for(record):
    ticks = []
    record("hopper", "medium-replay", 7000, progress=lambda *tick: ticks.append(tick))
    done, totals = zip(*ticks)
    assert set(totals) == {7000}
    assert done[-1] == 7000
    assert max(np.diff((0, *done))) <= 2000
    ticks.clear()
    record("halfcheetah", "medium-replay", 300, progress=lambda *tick: ticks.append(tick))  # 3000 steps are made
    assert ticks == [(300, 300)]


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_on_the_scale_of_d4rl(record, task):
    recording = record(task, "random")
    entry = d4rl_table.ENTRIES[f"{task}-random-v2"]
    assert (recording.ref_min_score, recording.ref_max_score) == (entry.ref_min, entry.ref_max)
    spec = EnvSpec.from_json(recording.eval_env_spec.to_json())
    assert (spec.id, spec.max_episode_steps, spec.kwargs) == (
        TASKS[task].env_id, entry.limit, gym.spec(spec.id).kwargs,
    )  # fmt: skip
    env = make_env(spec)
    assert env.action_space == recording.action_space
    assert env.observation_space == flatten_space(recording.observation_space)
    env.close()


def test_the_description_gives_the_scores_of_the_parts(record):
    recording = record("hopper", "medium-replay", 2000)
    returns = np.array([episode.rewards.sum(dtype=np.float64) for episode in recording.episodes])
    rungs = np.array(rungs_of(recording))
    for rung, name in ((0, "random"), (1, "rung 1 after 1,000 steps"), (2, "medium after 2,000 steps")):
        mean = returns[rungs == rung].mean()
        score = 100 * (mean + 20.272305) / (3234.3 + 20.272305)
        count = (rungs == rung).sum()
        pattern = f"{name}[^;]* in {count:,} episodes, mean return {mean:.1f}, D4RL score {score:.1f}"
        assert re.search(pattern, recording.description)
    assert "\n" not in recording.description
    assert "not D4RL's levels" in recording.description


def test_stored_and_read_it_is_the_same_and_every_check_passes(record, root_of_its_own):
    recording = record("walker2d", "medium-replay", 3000)
    writer.write("test/walker2d-v0", recording)
    stored = reader.read("test/walker2d-v0")
    assert stored.content_hash == dataset_of("test/walker2d-v0", recording).content_hash
    metadata = metadata_of("test/walker2d-v0")
    assert metadata["ref_max_score"] == d4rl_table.ENTRIES["walker2d-medium-v2"].ref_max
    assert "num_episodes_average_score" not in metadata  # nobody here has measured them
    findings = {finding.name: finding for finding in check.check("test/walker2d-v0")}
    assert {finding.status for finding in findings.values()} == {"ok"}, findings


@pytest.fixture
def root_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


# --- ids ---


def test_ids(monkeypatch):
    seen = []
    monkeypatch.setattr(locomotion, "record", lambda *args: seen.append(args))
    ids = [f"hoard/{task}/{level}-v0" for task in TASKS for level in ROBOT_STEPS[0]]
    newer = [f"hoard/{task}/{level}-v1" for task in TASKS for level in ROBOT_STEPS[1]]
    assert (len(ids), len(newer)) == (12, 15)
    assert {*ids, *newer} <= set(recipes.known_ids())
    given = ["hoard/hopper/medium-replay-1000k-v0", "hoard/walker2d/random-5k-v0", "hoard/hopper/medium-replay-30k-v1"]
    for dataset_id in (*ids, *newer, *given):
        assert recipes.is_known(dataset_id)
        assert not recipes.is_in_memory(dataset_id)
        recipes.generate(dataset_id)
    assert seen[0] == ("hopper", "random", 0, None, None)
    assert seen[-4:] == [
        ("walker2d", "expert", 1, None, None),
        ("hopper", "medium-replay", 0, 1_000_000, None),
        ("walker2d", "random", 0, 5000, None),
        ("hopper", "medium-replay", 1, 30_000, None),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        "hopper/expert-v0",
        "hopper/medium-v2",
        "hopper/medium",
        "hopper/medium-0k-v0",
        "hopper/medium-10000k-v0",
        "ant/medium-v0",
        "hopper-medium-v0",
    ],
)
def test_other_ids_are_refused(bad):
    assert not recipes.is_known(f"hoard/{bad}")
    with pytest.raises(ValueError, match="nearest"):
        recipes.generate(f"hoard/{bad}")


# --- files of weights ---


def test_actors_are_kept_as_they_are_used(tmp_path):
    actors = [some_actor("hopper", np.random.default_rng(seed)) for seed in range(3)]
    write(tmp_path, "hopper", actors)
    first = (tmp_path / "hopper.safetensors").read_bytes()
    write(tmp_path, "hopper", actors)
    assert (tmp_path / "hopper.safetensors").read_bytes() == first
    ladder = load_ladder("hopper", folder=tmp_path)
    assert (ladder.medium, ladder.expert) == (2, 3)
    assert [ladder.name(rung) for rung in range(4)] == ["random", "rung 1", "medium", "expert"]
    assert ladder.actor(0) is None
    for actor, stored in zip(actors, ladder.actors):
        for a, b in zip(actor.weights + actor.biases, stored.weights + stored.biases):
            np.testing.assert_array_equal(a, b)
            assert b.dtype == np.float32


def missing(folder):
    (folder / "hopper.safetensors").unlink()


def without_record(folder):
    (folder / "hopper.json").unlink()


def record_cut(folder):
    (folder / "hopper.json").write_text((folder / "hopper.json").read_text()[:40])


def record_without_hash(folder):
    (folder / "hopper.json").write_text(json.dumps({"rungs": []}))


def one_byte_changed(folder):
    data = bytearray((folder / "hopper.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "hopper.safetensors").write_bytes(bytes(data))


def of_another_robot(folder):
    write(folder, "hopper", [some_actor("walker2d", np.random.default_rng(0))] * 2)


def not_finite(folder):
    actor = some_actor("hopper", np.random.default_rng(0))
    actor.weights[1][0, 0] = np.nan
    write(folder, "hopper", [actor] * 2)


def layers_that_do_not_follow(folder):
    one, two = (some_actor("hopper", np.random.default_rng(0), hidden) for hidden in (8, 9))
    mixed = Actor((one.weights[0], two.weights[1], two.weights[2]), (one.biases[0], two.biases[1], two.biases[2]))
    write(folder, "hopper", [mixed] * 2)


def fewer_actors_than_said(folder):
    rng = np.random.default_rng(0)
    write(folder, "hopper", [some_actor("hopper", rng) for _ in range(2)], rungs=[{"step": 0}] * 5)


def only_one(folder):
    write(folder, "hopper", [some_actor("hopper", np.random.default_rng(0))])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (missing, "hopper.safetensors"),
        (without_record, "hopper.json"),
        (record_cut, "reinstall hoard"),
        (record_without_hash, "hopper.json has no field 'sha256'"),
        (one_byte_changed, "hopper.safetensors has SHA-256"),
        (of_another_robot, "rung 1 maps 17 numbers to 12, Hopper-v4 needs 11 and 6"),
        (not_finite, "rung 1 has weights that are not finite"),
        (layers_that_do_not_follow, "the layers of rung 1 do not follow one another"),
        (fewer_actors_than_said, "rung 3"),
        (only_one, "1 actors, expected two or more"),
    ],
)
def test_bad_weights_are_refused_by_name(tmp_path, damage, says):
    write(tmp_path, "hopper", [some_actor("hopper", np.random.default_rng(0))] * 2)
    damage(tmp_path)
    with pytest.raises(DatasetError, match=re.escape(says)):
        locomotion.record("hopper", "medium", steps=100, weights=tmp_path)


# --- replay ---


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    """Three episodes of HalfCheetah, 1,000 uniform random steps each, and the folder they are stored in."""
    folder, rng = tmp_path_factory.mktemp("replay"), np.random.default_rng(5)
    whole = rng.integers(-127, 128, (3000, 6), dtype=np.int8)
    made = make_replay(Stage("halfcheetah"), "halfcheetah", whole, [1000, 2000, 3000], [7, 11, 13])
    about = {"replay": {"sha256": save_replay(made, folder)}}
    actors = [some_actor("halfcheetah", rng) for _ in range(2)]
    write(folder, "halfcheetah", actors, version=1, **about)
    return made, folder


def replayed(folder, steps=None):
    return locomotion.record("halfcheetah", "medium-replay", 1, steps, weights=folder)


def test_a_replay_is_what_the_environment_did(replay):
    """Row by row, with all of Gymnasium's wrappers and none of the states that are kept."""
    made, folder = replay
    episodes = replayed(folder).episodes
    env = gym.make("HalfCheetah-v4")
    for k, episode in enumerate(episodes):
        assert episode.seed == (7, 11, 13)[k]
        obs, _ = env.reset(seed=episode.seed)
        np.testing.assert_array_equal(episode.observations[0], obs.astype(np.float32))
        for t, whole in enumerate(made.actions[1000 * k : 1000 * (k + 1)]):
            obs, reward, _, truncated, _ = env.step(whole.astype(np.float32) / np.float32(127))
            np.testing.assert_array_equal(episode.observations[t + 1], obs.astype(np.float32))
            assert episode.rewards[t] == np.float32(reward)
        assert truncated
        assert episode.truncations.tolist() == [False] * 999 + [True]
    assert k == 2
    env.close()


def test_a_length_takes_the_last_steps_of_a_replay(replay):
    _, folder = replay
    whole = replayed(folder)
    for steps, first in ((1, 2), (1000, 2), (1001, 1), (2000, 1), (3000, 0)):
        ticks = []
        part = locomotion.record(
            "halfcheetah", "medium-replay", 1, steps, lambda *tick, ticks=ticks: ticks.append(tick), weights=folder
        )
        assert [e.seed for e in part.episodes] == [e.seed for e in whole.episodes[first:]]
        np.testing.assert_array_equal(part.episodes[-1].observations, whole.episodes[-1].observations)
        assert ticks[-1] == (1000 * (3 - first),) * 2
    assert "the last of its first 3,000 steps: 2,000 steps in 2 episodes" in replayed(folder, 2000).description
    with pytest.raises(DatasetError, match=r"has 3,000 steps; its length may be at most 3k"):
        replayed(folder, 4000)


@pytest.mark.parametrize(("size", "fits"), [(1e-13, True), (1e-2, False)])
def test_a_replay_stays_on_its_path_where_the_simulator_rounds_otherwise(replay, monkeypatch, size, fits):
    """The states that are kept take back what differences have grown to; another simulator is refused."""
    made, folder = replay
    whole = replayed(folder)
    init, rng = Stage.__init__, np.random.default_rng(0)

    def rough(stage, task):
        init(stage, task)
        step, data = stage.env.step, stage.env.data

        def shaken(action):
            data.qvel[:] += size * rng.standard_normal(data.qvel.shape)
            return step(action)

        stage.env.step = shaken

    monkeypatch.setattr(Stage, "__init__", rough)
    if not fits:
        with pytest.raises(DatasetError, match=r"HalfCheetah-v4 cannot be made again .* episode 0, step 25 is in"):
            replayed(folder)
        return
    kept = replayed(folder)
    loose = play(Stage("halfcheetah"), 7, made.actions[:1000], None, "")[0]
    assert np.abs(loose.observations - whole.episodes[0].observations).max() > 0.1  # chaos, without these states
    for one, two in zip(kept.episodes, whole.episodes):
        np.testing.assert_allclose(one.observations, two.observations, atol=1e-3)
        np.testing.assert_allclose(one.rewards, two.rewards, atol=1e-3)
        np.testing.assert_array_equal(one.actions, two.actions)


def test_a_replay_ends_where_the_robot_falls():
    whole = np.random.default_rng(5).integers(-127, 128, (1000, 3), dtype=np.int8)
    env, length, terminated = Stage("hopper").env, 0, False
    env.reset(seed=3)
    while not terminated:
        terminated = env.step(action_of(whole[length]))[2]
        length += 1
    stage = Stage("hopper")
    made = make_replay(stage, "hopper", whole[:length], [length], [3]).episode(stage, 0)
    assert (len(made), made.terminated, made.truncated) == (length, True, False)
    with pytest.raises(DatasetError, match=f"episode 0 ends after {length} steps of {length + 1}"):
        make_replay(stage, "hopper", whole[: length + 1], [length + 1], [3])
    with pytest.raises(DatasetError, match=f"episode 0 goes on after its {length - 1} steps"):
        make_replay(stage, "hopper", whole[: length - 1], [length - 1], [3])


def replay_missing(file):
    file.unlink()


def replay_changed(file):
    file.write_bytes(file.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (replay_missing, "halfcheetah-v1.replay.safetensors"),
        (replay_changed, "is damaged: "),
        ({"actions": np.zeros((3000, 3), np.int8)}, "actions of shape (3000, 3), expected (3000, 6)"),
        ({"seeds": np.zeros(2, np.int64)}, "3 episodes with 2 seeds"),
        ({"ends": np.array([1000, 1000, 3000])}, "lengths from 0"),
        ({"states": np.zeros((116, 28))}, "116 states, expected 117"),
        ({"other": np.zeros(1)}, "does not fit"),
    ],
)
def test_a_bad_replay_is_refused_by_name(replay, tmp_path, damage, says):
    _, folder = replay
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    file, record = tmp_path / "halfcheetah-v1.replay.safetensors", tmp_path / "halfcheetah-v1.json"
    if callable(damage):
        damage(file)
    else:
        data = safetensors.save(safetensors.load_file(file) | damage)
        file.write_bytes(data)
        about = json.loads(record.read_text())
        record.write_text(json.dumps(about | {"replay": {"sha256": hashlib.sha256(data).hexdigest()}}))
    with pytest.raises(DatasetError, match=re.escape(says)):
        replayed(tmp_path)


# --- training ---


TINY = {"snapshot_every": 200, "batch_size": 8, "hidden": (8, 8), "start_steps": 100, "compile": False}


def test_a_small_training_from_start_to_dataset(tmp_path, capsys, root_of_its_own):
    config = locomotion_training.Train("hopper", tmp_path / "run", steps=1000, **TINY)
    locomotion_training.train(config)
    files = sorted(path.name for path in (tmp_path / "run").glob("*.safetensors"))
    assert files == ["actions.safetensors", *(f"step{step:08d}.safetensors" for step in range(200, 1001, 200))]
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    assert training["options"]["lr"] == 3e-4
    assert (training["steps_done"], training["updates_done"]) == (1000, 899)  # the last comes after it
    with pytest.raises(ValueError, match="holds a training with other lr; give --out another folder"):
        locomotion_training.train(replace(config, lr=1e-3))

    kept = safetensors.load_file(tmp_path / "run" / "actions.safetensors")
    actions, ends = kept["actions"], kept["ends"]
    assert (actions.shape, actions.dtype) == ((1000, 3), np.int8)
    assert actions.std() > 20  # it explores
    env = Stage("hopper").env
    returns = []
    for number, (start, end) in enumerate(itertools.pairwise([0, *ends])):  # the replay, from seeds and these bytes
        env.reset(seed=training_seed(0, number))
        rewards = []
        for action in action_of(actions[start:end]):
            _, reward, terminated, _, _ = env.step(action)
            rewards.append(float(reward))
        assert terminated or end - start == 1000
        returns.append([int(end), sum(rewards)])
    assert len(returns) > 10
    assert returns == training["episode_returns"]

    share = {"medium_score": -100.0, "expert_share": 0.4}  # what they have learnt in a second is no matter
    share |= {"shake": 0.01, "sturdy": -100.0}
    choice = locomotion_training.Choose("hopper", tmp_path / "run", tmp_path / "out", 3, 4, **share)
    locomotion_training.choose(choice)
    ladder = load_ladder("hopper", 1, tmp_path / "out")
    about = ladder.about
    assert [rung["step"] for rung in about["rungs"][:2]] == [0, 200]
    assert about["rungs"][2]["step"] in (800, 1000)
    assert [row["step"] for row in about["curve"]] == [200, 400, 600, 800, 1000]
    assert all(abs(row["shaken"] - row["d4rl_score"]) < 30 for row in about["curve"])
    assert about["rungs"][1]["episodes"] == about["rungs"][1]["mode"]["episodes"] == 4
    made = lambda level: locomotion.record("hopper", level, 1, 100, weights=tmp_path / "out")  # noqa: E731
    assert "medium after 200 steps of training" in made("medium").description
    assert "expert after" in made("expert").description
    assert "hoard" in made("medium").algorithm_name

    whole = locomotion.record("hopper", "medium-replay", 1, weights=tmp_path / "out")  # of its first 200 steps
    count = sum(end <= 200 for end in ends)
    assert [len(episode) for episode in whole.episodes] == np.diff(ends[:count], prepend=0).tolist()
    assert [episode.seed for episode in whole.episodes] == [training_seed(0, k) for k in range(count)]
    np.testing.assert_array_equal(
        np.concatenate([e.actions for e in whole.episodes]), action_of(actions[: ends[count - 1]])
    )
    for episode, (_, total) in zip(whole.episodes, returns):
        assert episode.rewards.sum(dtype=np.float64) == pytest.approx(total, abs=1e-4)
    assert about["replay"]["steps"] == sum(len(episode) for episode in whole.episodes)
    assert "the training's own steps until it had reached medium, all of its steps: " in whole.description
    assert "Actions those of one SAC training" in whole.description
    with pytest.raises(ValueError, match="is a training of hopper, not of walker2d"):
        locomotion_training.choose(locomotion_training.Choose("walker2d", tmp_path / "run", tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match="run `train` first"):
        locomotion_training.choose(locomotion_training.Choose("hopper", tmp_path, tmp_path / "out"))


def test_the_training_command_refuses_in_one_line(tmp_path):
    command = [sys.executable, locomotion_training.__file__, "choose", "hopper"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path} holds no training.json; run `train` first\n"


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, root_of_its_own, monkeypatch):
    made = {}
    for name in ("whole", "stopped"):
        config = locomotion_training.Train("hopper", tmp_path / name, steps=800, **TINY)
        if name == "stopped":

            def save_and_end(recorder, save=locomotion_training.Recorder.save):
                save(recorder)
                if recorder._run.env_step == 600:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(locomotion_training.Recorder, "save", save_and_end)
                with pytest.raises(KeyboardInterrupt):
                    locomotion_training.train(config)
        locomotion_training.train(config)
        made[name] = {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")}
    assert made["stopped"] == made["whole"]


def test_stored_actors_act_as_ours_do():
    sac = algorithms.import_file(algorithms.find("sac"))
    policy = sac.Actor(sac.Config(hidden=(32, 16)), 17, 6, torch.Generator().manual_seed(0))
    actor = locomotion_training.actor_of(policy)
    for obs in np.random.default_rng(0).standard_normal((20, 17)).astype(np.float32) * 3:
        with torch.no_grad():
            mean, log_std = policy(torch.as_tensor(obs)[None])
        ours = actor.distribution(obs)
        np.testing.assert_allclose(ours[0], mean[0], atol=1e-5)
        np.testing.assert_allclose(ours[1], log_std[0].exp(), rtol=1e-4)
        np.testing.assert_allclose(actor.act(obs, np.zeros(6, np.float32)), np.tanh(mean[0].numpy()), atol=1e-5)


def test_levels_are_chosen_from_the_scores():
    choose = locomotion_training.choose_levels
    assert choose([1, 5, 30, 45, 90, 70, 80, 100], 40, 0.25) == (3, 7)
    assert choose([1, 5, 30, 45, 90, 70, 80, 60], 40, 0.25) == (3, 6)  # the best of the last two, not of all
    assert choose([1, 41, 30, 45, 90, 70, 80, 100], 40, 0.25)[0] == 1
    with pytest.raises(ValueError, match=r"no sturdy snapshot before the expert's \(score 100.0\) has 40"):
        choose([1, 2, 3, 100], 40, 0.25)
    sturdy = [True, True, True, False, True, True, True, False]
    assert choose([1, 5, 30, 45, 90, 70, 80, 100], 40, 0.25, sturdy) == (4, 6)
    with pytest.raises(ValueError, match="none of the last 2 snapshots is sturdy"):
        choose([1, 5, 30, 45, 90, 70, 80, 100], 40, 0.25, [True] * 6 + [False] * 2)


def test_a_shaken_actor_is_one_percent_off():
    actor = some_actor("hopper", np.random.default_rng(1), hidden=64)
    changed = locomotion_training.shaken(actor, 0.01, np.random.default_rng(2))
    for before, after in zip((*actor.weights, *actor.biases), (*changed.weights, *changed.biases)):
        assert after.dtype == np.float32
        ratio = (after / before - 1)[before != 0]
        assert 0.005 < ratio.std() < 0.02
        assert abs(ratio).max() < 0.06


# --- what ships ---


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("task", TASKS)
def test_shipped_policies(task, version):
    ladder = load_ladder(task, version)
    about, rungs = ladder.about, ladder.about["rungs"]
    assert about["env_id"] == TASKS[task].env_id
    assert [rung["rung"] for rung in rungs] == list(range(ladder.expert + 1))
    steps = [rung["step"] for rung in rungs]
    assert steps == sorted(set(steps))
    for rung in rungs:
        assert rung["d4rl_score"] == pytest.approx(locomotion_policies.d4rl_score(task, rung["return"]), abs=0.01)
        assert rung["episodes"] == 100
    random, medium, expert = (rungs[i]["d4rl_score"] for i in (0, ladder.medium, ladder.expert))
    assert random < 3 < medium < expert
    curve, choice = about["curve"], about["choice"]
    scores = [row["d4rl_score"] for row in curve]
    if version == 0:
        assert ladder.medium >= 3  # its replay set has equal parts of each
        assert 0.25 < medium / expert < 0.75
        sturdy, best = None, max(scores[-round(choice["expert_share"] * len(scores)) :])
        wanted = choice["medium_share"] * best
    else:
        assert 25 < medium < 50  # a third of D4RL's expert was asked for
        sturdy = [row["shaken"] >= choice["sturdy"] * row["d4rl_score"] for row in curve]
        wanted = choice["medium_score"]
        assert choice["shake"] == 0.01
    picked = locomotion_training.choose_levels(scores, wanted, choice["expert_share"], sturdy)
    assert [curve[i]["step"] for i in picked] == [steps[ladder.medium], steps[ladder.expert]]


def test_the_docs_give_the_scores_on_record():
    page = (ROOT / "docs" / "datasets.md").read_text()
    table = page.partition("<!-- levels -->\n")[2].partition("<!-- /levels -->")[0].splitlines()[2:]
    wanted = []
    for version in (1, 0):
        ladders = [load_ladder(task, version) for task in TASKS]
        for name in ("medium", "expert"):
            rungs = [ladder.about["rungs"][getattr(ladder, name)] for ladder in ladders]
            cells = [f"{rung['d4rl_score']:.0f} ({rung['step'] // 1000}k steps)" for rung in rungs]
            wanted.append(f"| {name}, version {version} | {' | '.join(cells)} |")
        if version == 1:
            replays = [ladder.about["replay"] for ladder in ladders]
            cells = [f"{replay['steps']:,} steps" for replay in replays]
            wanted.append(f"| medium-replay, version 1 | {' | '.join(cells)} |")
    assert table == wanted


@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_replay_is_the_training_up_to_medium(task):
    """Its last episodes are played here; the tool compared the returns of all with the training's."""
    ladder = load_ladder(task, 1)
    replay, medium = load_replay(ladder, WEIGHTS), ladder.about["rungs"][ladder.medium]["step"]
    assert medium - 1000 < replay.ends[-1] == ladder.about["replay"]["steps"] <= medium
    assert replay.seeds.tolist() == [training_seed(0, k) for k in range(len(replay))]
    recording = locomotion.record(task, "medium-replay", 1, 5000)
    assert [e.seed for e in recording.episodes] == replay.seeds[replay.last(5000).start :].tolist()
    assert 5000 <= sum(len(e) for e in recording.episodes) < 6000


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_full_set_has_the_returns_on_record_and_passes_every_check(task, root_of_its_own):
    dataset_id = f"hoard/{task}/medium-replay-v0"
    data = datasets.load(dataset_id)
    assert 200_000 <= len(data) < 220_000
    failed = [finding for finding in check.check(dataset_id) if finding.status == "failed"]
    assert failed == []
    ladder = load_ladder(task)
    for rung in range(ladder.medium + 1):
        episodes = [k for k in range(data.num_episodes) if infos_of(dataset_id, k)["rung"][0] == rung]
        close_to_the_record(ladder, rung, data.returns[episodes])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_sets_of_version_1_have_the_returns_on_record_and_pass_every_check(task, root_of_its_own):
    ladder = load_ladder(task, 1)
    for level, rung in (("medium", ladder.medium), ("expert", ladder.expert)):
        close_to_the_record(ladder, rung, datasets.load(f"hoard/{task}/{level}-50k-v1").returns)
    replay = f"hoard/{task}/medium-replay-v1"
    data = datasets.load(replay)
    assert (len(data), data.num_episodes) == (ladder.about["replay"]["steps"], ladder.about["replay"]["episodes"])
    assert [finding for finding in check.check(replay) if finding.status == "failed"] == []


def close_to_the_record(ladder, rung, returns):
    recorded = ladder.about["rungs"][rung]
    error = np.hypot(returns.std(ddof=1) / np.sqrt(len(returns)), recorded["standard_error"])
    assert abs(returns.mean() - recorded["return"]) < 5 * error
