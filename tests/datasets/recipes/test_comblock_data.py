"""The combination lock's data: who acted, how often it succeeded, and that rows are the environment's."""

import numpy as np
import pytest

from hoard.datasets import recipes
from hoard.datasets.minari import reader, writer
from hoard.datasets.recipes import catalogue, comblock
from hoard.datasets.recipes.catalogue import COMBLOCK_HORIZONS
from hoard.datasets.recipes.in_memory import dataset_of
from hoard.envs.comblock import DEAD, LockBatch, rotation

EPISODES = 20_000


@pytest.fixture(scope="module", params=COMBLOCK_HORIZONS)
def recording(request):
    return comblock.record(request.param, episodes=EPISODES, reference_episodes=20)


def stacked(recording, name):
    return np.stack([getattr(episode, name) for episode in recording.episodes])


def test_share_of_optimal_episodes(recording):
    horizon = len(recording.episodes[0])
    epsilon, certain = 1 / horizon, np.exp(10) / (np.exp(10) + 9)
    p = ((1 - epsilon) * certain + epsilon * 0.1) ** horizon
    optimal = stacked(recording, "rewards")[:, -1] == 1
    assert optimal.mean() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / EPISODES))
    assert f"{100 * optimal.mean():.1f} % of the" in recording.description


def test_rewards_are_the_released_ones(recording):
    rewards = stacked(recording, "rewards")
    assert (rewards[:, :-1] == 0).all()
    last = rewards[:, -1]
    assert set(last) == {0.0, 0.1, 1.0}
    assert last[last < 1].mean() == pytest.approx(0.05, abs=0.002)


def test_behaviour_is_epsilon_greedy(recording):
    horizon = len(recording.episodes[0])
    actions = stacked(recording, "actions")
    latent = np.stack([episode.infos["latent"] for episode in recording.episodes])[:, :-1]
    codes = LockBatch(1, horizon, lock_seed=comblock.LOCK_SEED).codes
    wanted = codes[np.minimum(latent, 1), np.arange(horizon)]
    greedy = (actions == np.eye(10)[wanted]).all(axis=-1)
    n = greedy.size
    assert greedy.mean() == pytest.approx(1 - 1 / horizon, abs=5 * np.sqrt(0.25 / n))
    assert greedy.mean(axis=0) == pytest.approx(1 - 1 / horizon, abs=5 * np.sqrt(0.25 / EPISODES))  # at every step
    other = actions[~greedy]
    assert other.min() >= 0
    assert other.max() <= 1
    np.testing.assert_allclose(other.mean(axis=0), 0.5, atol=0.02)
    np.testing.assert_allclose(other.std(axis=0), np.sqrt(1 / 12), atol=0.01)
    assert (latent == DEAD).any()


def test_episodes_are_whole_and_terminate(recording):
    horizon = len(recording.episodes[0])
    assert {len(e.rewards) for e in recording.episodes} == {horizon}
    terminations = stacked(recording, "terminations")
    assert terminations[:, -1].all()
    assert not terminations[:, :-1].any()
    assert not stacked(recording, "truncations").any()
    assert recording.eval_env_spec.max_episode_steps == horizon
    assert recording.action_space.contains(recording.episodes[0].actions[0])


def test_references(recording):
    assert recording.ref_max_score == 1
    assert 0.02 <= recording.ref_min_score <= 0.08


def test_observations_show_the_latent_states_recorded_beside_them(recording):
    """Undo the rotation: the largest of the first three numbers is the state, of the others the time."""
    horizon = len(recording.episodes[0])
    observations = stacked(recording, "observations")[:200]
    order = observations.shape[-1]
    z = observations @ rotation(order) / order
    latent = np.stack([episode.infos["latent"] for episode in recording.episodes[:200]])
    assert (z[..., :3].argmax(axis=-1) == latent).mean() > 0.999
    np.testing.assert_array_equal(z[..., 3:].argmax(axis=-1), np.tile(np.arange(horizon + 1), (200, 1)))


def test_two_generations_are_identical():
    one, two = (comblock.record(5, episodes=50, reference_episodes=2) for _ in range(2))
    for a, b in zip(one.episodes, two.episodes):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert one.description == two.description


def test_progress_counts_every_step():
    calls = []
    comblock.record(5, progress=lambda *c: calls.append(c), episodes=3000, reference_episodes=2)
    assert calls[-1][0] == calls[-1][1] == 3000 * 5 + 2 * 2 * 5
    assert max(np.diff([0, *(done for done, _ in calls)])) <= 2000


@pytest.mark.parametrize("horizon", COMBLOCK_HORIZONS)
def test_ids(horizon, monkeypatch):
    dataset_id = f"hoard/comblock/h{horizon}-v0"
    assert recipes.is_known(dataset_id)
    assert dataset_id in recipes.known_ids()
    assert catalogue.find(dataset_id).args == (horizon,)


def test_in_memory_is_what_storing_and_reading_gives():
    recording = comblock.record(5, episodes=30, reference_episodes=2)
    writer.write("test/lock-v0", recording)
    stored, direct = reader.read("test/lock-v0"), dataset_of("test/lock-v0", recording)
    assert stored.content_hash == direct.content_hash
    assert stored.env_spec == direct.env_spec
    np.testing.assert_array_equal(stored.next_obs, direct.next_obs)
