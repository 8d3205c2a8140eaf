"""The combination lock's data: who acted, how often it succeeded, and that rows are the environment's."""

import numpy as np
import pytest

from hoard.datasets import recipes
from hoard.datasets.minari import reader, writer
from hoard.datasets.recipes import catalogue, comblock
from hoard.datasets.recipes.catalogue import COMBLOCK_HORIZONS
from hoard.datasets.recipes.in_memory import dataset_of
from hoard.envs.comblock import DEAD, LockBatch, RichLockBatch, rotation

EPISODES = 20_000


@pytest.fixture(scope="module", params=(5, 10, 15, 30))
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
    codes = LockBatch(1, horizon, lock_seed=0).codes
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
    assert catalogue.find(dataset_id).args == (horizon, (), 0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("h7", (7, (), 0)),
        ("h10-paper", (10, ("paper",), 0)),
        ("h20-paper-rich-forced-unit-lock12", (20, ("paper", "rich", "forced", "unit"), 12)),
        ("h5-lock3", (5, (), 3)),
    ],
)
def test_variants_have_ids(name, arguments):
    dataset_id = f"hoard/comblock/{name}-v0"
    assert recipes.is_known(dataset_id)
    assert catalogue.is_in_memory(dataset_id)
    assert catalogue.find(dataset_id).args == arguments


@pytest.mark.parametrize("name", ["h0", "h05", "h100", "h5-rich-paper", "h5-rich-rich", "h5-lock0", "h5-lock01", "h5-"])
def test_other_spellings_have_not(name):
    assert not recipes.is_known(f"hoard/comblock/{name}-v0")


def small(*variants, lock_seed=0, horizon=6, episodes=4000):
    return comblock.record(horizon, variants, lock_seed, episodes=episodes, reference_episodes=5)


def latents(recording):
    return np.stack([episode.infos["latent"] for episode in recording.episodes])


def test_the_papers_rewards_are_a_bait_at_the_fall():
    recording = small("paper")
    rewards, latent = stacked(recording, "rewards"), latents(recording)
    falls = (latent[:, :-1] != DEAD) & (latent[:, 1:] == DEAD)
    falls[:, -1] |= (latent[:, -2] != DEAD) & (rewards[:, -1] < 1)
    assert set(rewards[~falls]) <= {0.0, 1.0}
    assert rewards[falls].mean() == pytest.approx(0.05, abs=0.01)
    assert recording.eval_env_spec.kwargs["reward_mode"] == "paper"


def test_forced_data_are_uniform_at_the_middle_step_alone():
    recording = small("forced")
    one_hot = np.isin(stacked(recording, "actions"), (0.0, 1.0)).all(axis=-1).mean(axis=0)
    assert one_hot[3] == 0
    assert one_hot[[0, 1, 2, 4, 5]] == pytest.approx(1 - 1 / 6, abs=0.03)


def test_rich_data_have_the_rich_locks_observations():
    recording = small("rich", episodes=50)
    observations = stacked(recording, "observations")
    assert observations.shape == (50, 7, 512)
    assert np.linalg.norm(observations, axis=-1) == pytest.approx(1, abs=1e-5)
    assert recording.eval_env_spec.id == "hoard/CombLockRich-v0"
    bank = RichLockBatch(1, 6)._bank
    assert all((bank[3 * h + latents(recording)[0, h]] == observations[0, h]).all(axis=-1).any() for h in range(7))


def test_the_unit_box_is_that_of_the_environment_and_changes_no_row():
    unit, plain = small("unit", episodes=40), small(episodes=40)
    assert (unit.action_space.low == 0).all()
    assert (unit.action_space.high == 1).all()
    env = unit.eval_env_spec.make()
    assert env.action_space == unit.action_space
    env.close()
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(stacked(unit, name), stacked(plain, name))


def test_every_lock_has_codes_and_data_of_its_own():
    recordings = [small(lock_seed=seed, episodes=40) for seed in (0, 1, 2)]
    for one, other in ((0, 1), (1, 2)):
        a, b = recordings[one], recordings[other]
        assert a.eval_env_spec.kwargs["lock_seed"] != b.eval_env_spec.kwargs["lock_seed"]
        assert not np.array_equal(stacked(a, "observations"), stacked(b, "observations"))
        assert not np.array_equal(stacked(a, "actions"), stacked(b, "actions"))


def test_in_memory_is_what_storing_and_reading_gives():
    recording = comblock.record(5, episodes=30, reference_episodes=2)
    writer.write("test/lock-v0", recording)
    stored, direct = reader.read("test/lock-v0"), dataset_of("test/lock-v0", recording)
    assert stored.content_hash == direct.content_hash
    assert stored.env_spec == direct.env_spec
    np.testing.assert_array_equal(stored.next_obs, direct.next_obs)
