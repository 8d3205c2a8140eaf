"""OGBench's sets: ids, reading against the package's own reader, what is made here, and the environments' seeds."""

from __future__ import annotations

import functools
import http.server
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch

from hoard import datasets
from hoard.datasets import DatasetError
from hoard.datasets.ogbench import generate as making
from hoard.datasets.ogbench import ids, reader

ogbench = pytest.importorskip("ogbench")
MAZE = "ogbench:pointmaze-medium-navigate-3k-singletask-task2-v0"
CUBE = "ogbench:cube-single-noisy-1k-singletask-task1-v0"


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory):
    """OGBench's folder, empty at first; what one test has made is there for the next."""
    path = tmp_path_factory.mktemp("ogbench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OGBENCH_DATASET_DIR", str(path))
        yield path


def make_file(dataset_id):
    datasets.ensure(dataset_id)
    return ids.parse(dataset_id).path


# --- ids ---


def test_ids_say_environment_data_task_and_length():
    request = ids.parse("ogbench:antmaze-large-explore-singletask-v0")
    assert (request.env, request.kind, request.task, request.thousands) == ("antmaze-large", "explore", None, None)
    assert request.env_id == "antmaze-large-singletask-v0"
    assert request.url.endswith("/ogbench/antmaze-large-explore-v0.npz")
    request = ids.parse("ogbench:puzzle-4x4-play-singletask-task5-v0")
    assert request.env_id == "puzzle-4x4-singletask-task5-v0"
    assert ids.parse(MAZE).path.name == "pointmaze-medium-navigate-3k-v0.npz"
    for name in ids.known_ids():
        ids.parse(name)


def test_every_published_environment_is_one_of_the_packages():
    from hoard.envs.ogbench import register

    register()
    for env in ids.PUBLISHED:
        for task in (None, *range(1, ids.TASKS + 1)):
            gym.spec(ids.Request(env, "", task, None).env_id)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ogbench:cube-single-play-v0", "Goal-conditioned"),
        ("ogbench:visual-cube-single-play-singletask-v0", "pixel-based sets are not supported"),
        ("ogbench:cube-single-navigate-singletask-v0", "nearest: ogbench:cube-single-"),
        ("ogbench:cube-single-play-singletask-task6-v0", "task 1 to 5"),
        ("ogbench:cube-single-play-0k-singletask-v0", "unknown name"),
        ("ogbench:antmaze-large-navigate-100k-singletask-v0", "a length asks for data made here, which there are for"),
        ("ogbench:../cube-single-play-singletask-v0", "unknown name"),
    ],
)
def test_what_is_no_name_is_refused(name, message):
    with pytest.raises(DatasetError) as error:
        datasets.check_id(name)
    assert message in str(error.value)


# --- reading ---


@pytest.mark.parametrize("name", [MAZE, CUBE])
def test_transitions_equal_the_packages_own(name):
    """Its regular form of the same file, relabelled by the package: rows, rewards and masks."""
    from hoard.envs.ogbench import register

    path = make_file(name)
    data = datasets.load(name)
    register()
    theirs = ogbench.load_dataset(str(path), add_info=True)
    env_id = ids.parse(name).env_id
    ogbench.relabel_utils.relabel_dataset(env_id, gym.make(env_id), theirs)
    assert np.array_equal(data.obs, theirs["observations"])
    assert np.array_equal(data.next_obs, theirs["next_observations"])
    assert np.array_equal(data.action, theirs["actions"])
    assert np.array_equal(data.reward, theirs["rewards"])
    assert np.array_equal(data.terminated, theirs["masks"] == 0)
    assert data.terminated.any() or name == CUBE
    # A trajectory's last state is never a first one, and every trajectory's end is an episode's.
    assert np.array_equal(np.flatnonzero(theirs["terminals"])[:-1] + 1, [s for s in data.starts if s % 1000 == 0][1:-1])


def test_an_episode_ends_where_its_task_is_done():
    data = datasets.load(MAZE)
    ends = data.starts[1:] - 1
    assert (data.terminated[ends] | data.truncated[ends]).all()
    assert (data.reward[data.terminated] == 0).all()
    assert (data.reward[~data.terminated] == -1).all()
    assert np.array_equal(np.flatnonzero(data.truncated), [999, 1999, 2999])


def test_the_reward_of_a_replayed_row_is_the_environments():
    """r belongs to s in both: put the environment into a row's state, act, and it pays that row's reward."""
    data, path = datasets.load(MAZE), make_file(MAZE)
    with np.load(path) as file:
        qpos = file["qpos"][~file["terminals"]]
    env = gym.make(data.env_spec)
    for row in [*np.flatnonzero(data.terminated)[:3], *range(0, 3000, 400)]:
        env.reset(seed=1)
        env.unwrapped.set_xy(qpos[row])
        obs, reward, terminated, _, info = env.step(data.action[row])
        assert reward == data.reward[row]
        assert terminated == data.terminated[row] == info["success"]
        assert obs == pytest.approx(data.next_obs[row], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("qpos"), "has no 'qpos'"),
        (lambda a: a.update(actions=a["actions"][:-1]), "actions in .* has shape"),
        (lambda a: a.update(terminals=np.zeros_like(a["terminals"])), "ends inside a trajectory"),
        (lambda a: a.update(terminals=np.ones_like(a["terminals"])), "no transitions"),
        (lambda a: a.update(observations=np.full_like(a["observations"], np.nan)), "NaN or infinity"),
    ],
)
def test_damage_is_named(tmp_path, monkeypatch, change, message):
    with np.load(make_file(MAZE)) as file:
        arrays = dict(file)
    change(arrays)
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path))
    path = ids.parse(MAZE).path
    path.parent.mkdir()
    np.savez(path, **arrays)
    with pytest.raises(DatasetError, match=message):
        datasets.load(MAZE)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match="cannot be read"):
        datasets.load(MAZE)


# --- made here ---


@pytest.mark.parametrize("name", ["ogbench:pointmaze-medium-stitch-2k-singletask-v0", CUBE])
def test_bytes_depend_on_the_id_alone(tmp_path, monkeypatch, name):
    before = make_file(name).read_bytes()
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path))
    request = ids.parse(name)
    request.path.parent.mkdir()
    (request.path.parent / f".making-{request.path.stem}-killed").mkdir()
    np.random.seed(4)  # noqa: NPY002 - the caller's global stream is neither used nor moved
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    making.generate(name, request, processes=2)
    assert request.path.read_bytes() == before
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    assert [path.name for path in request.path.parent.iterdir()] == [request.path.name]


def test_a_longer_set_starts_with_the_shorter_one():
    short, long = (
        np.load(make_file(f"ogbench:pointmaze-medium-navigate-{n}k-singletask-v0"), allow_pickle=False) for n in (2, 3)
    )
    for name in short.files:
        assert np.array_equal(short[name], long[name][: len(short[name])])


def test_mazes_are_walked_as_asked():
    with np.load(make_file("ogbench:pointmaze-medium-stitch-2k-singletask-v0")) as file:
        walks = file["observations"].reshape(-1, 201, 2)
    reach = np.abs(walks - walks[:, :1]).sum(-1).max(1)
    assert len(walks) == 10
    assert (reach < 4 * 4 + 8).all()  # four cells of 4, noise on start and goal
    with np.load(make_file(MAZE)) as file:
        walks = file["observations"].reshape(-1, 1001, 2)
    assert len(walks) == 3
    assert (np.ptp(walks, axis=1) > 12).any()  # on to goals far away
    maze = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    cells, corners = making.free_cells(maze)
    assert cells == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1)]
    assert corners == [(1, 1), (1, 3), (2, 3), (3, 1)]
    assert making.cells_at_distance(maze, (3, 1), 4) == [(1, 3)]
    assert making.cells_at_distance(maze, (3, 1), 9) == []


def test_noisy_and_play_differ_as_published():
    """One action in ten of `noisy` is uniform, and its gripper noise clips; a plan's actions are smooth."""
    steps = {}
    for kind in ("play", "noisy"):
        with np.load(make_file(f"ogbench:cube-single-{kind}-1k-singletask-v0")) as file:
            assert file["observations"].shape == (1001, 28)
            steps[kind] = np.abs(np.diff(file["actions"][:, :3], axis=0)).mean()
    assert steps["noisy"] > 1.5 * steps["play"]


def test_a_process_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(making.sys, "executable", "/bin/false")
    with pytest.raises(DatasetError, match="a process that made trajectories failed: status 1"):
        datasets.ensure(MAZE)
    assert not ids.parse(MAZE).path.exists()


def test_what_a_process_says_at_length_does_not_hang_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path))
    talk = tmp_path / "python"
    talk.write_text("#!/bin/sh\nyes warning | head -c 200000 >&2\necho it broke >&2\nexit 3\n")
    talk.chmod(0o755)
    monkeypatch.setattr(making.sys, "executable", str(talk))
    with pytest.raises(DatasetError, match="a process that made trajectories failed: it broke"):
        datasets.ensure(MAZE)


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match=r"cannot be written"):
        datasets.ensure(MAZE)


# --- environments ---


@pytest.mark.parametrize("env_id", ["pointmaze-teleport-singletask-v0", "cube-single-singletask-task2-v0"])
def test_a_reset_seed_fixes_the_episode(env_id):
    from hoard.envs import make_env
    from hoard.envs.ogbench import spec_of

    actions = np.random.default_rng(0).uniform(-1, 1, (60, 5)).astype(np.float32)

    def episode(env, seed):
        np.random.seed()  # noqa: NPY002
        seen = [env.reset(seed=seed)[0]]
        return np.array(seen + [env.step(a[: env.action_space.shape[0]])[0] for a in actions])

    env, other = make_env(spec_of(env_id)), make_env(spec_of(env_id))
    first = episode(env, 5)
    assert not np.array_equal(first, episode(env, 6))
    assert np.array_equal(first, episode(env, 5))
    assert np.array_equal(first, episode(other, 5))


def test_a_run_reports_success(run_file, tmp_path, monkeypatch):
    import pandas as pd
    from helpers import small
    from resume import only_run

    make_file(MAZE)
    done = run_file("iql", *small(MAZE, reward_mode="none"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pd.read_parquet(only_run(tmp_path / "results") / "episodes.parquet")
    assert rows["success"].notna().all()
    assert (rows["return"] < 0).all()


# --- fetching ---


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with a published set, in place of OGBench's."""
    served = tmp_path / "served"
    served.mkdir()
    (served / "pointmaze-medium-navigate-v0.npz").write_bytes(make_file(MAZE).read_bytes())
    (served / "scene-play-v0.npz").write_bytes(b"no archive")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(ids, "BASE_URL", f"http://127.0.0.1:{running.server_port}/")
        monkeypatch.setenv("OGBENCH_DATASET_DIR", str(tmp_path / "here"))
        yield served
        running.shutdown()


def test_a_published_set_is_fetched_and_loads(server):
    name = "ogbench:pointmaze-medium-navigate-singletask-task2-v0"
    assert datasets.ensure(name)
    assert not datasets.ensure(name)
    assert len(datasets.load(name)) == 3000
    assert (
        datasets.load("ogbench:pointmaze-medium-navigate-singletask-task1-v0").content_hash
        != datasets.load(name).content_hash
    )


def test_what_cannot_be_fetched_says_what_to_do(server):
    with pytest.raises(DatasetError) as error:
        datasets.ensure("ogbench:cube-single-play-singletask-v0")
    assert "answered 404" in str(error.value)
    assert "by hand and put it into" in str(error.value)
    with pytest.raises(DatasetError, match=r"is no npz archive .* put aside as scene-play-v0\.npz\.rejected"):
        datasets.ensure("ogbench:scene-play-singletask-v0")


def test_actions_that_are_not_the_environments_are_refused():
    data = datasets.load(MAZE)
    assert data.action_space.shape == (2,)
    from hoard.runners.evaluate import Evaluator
    from hoard.runners.task import task_of

    rows = Evaluator(task_of(data))(lambda obs, history: torch.zeros(len(obs), 2), [3], torch.Generator())
    assert rows[0]["success"] is False
    assert reader.read(MAZE).content_hash == data.content_hash
