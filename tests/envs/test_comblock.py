"""The combination lock: its dynamics, payments and observations, one episode or thousands at a time."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from scipy.linalg import hadamard

from hoard.envs import make_batch, make_env
from hoard.envs.comblock import DEAD, GOOD_A, GOOD_B, LockBatch, RichLockBatch, bank, latent_actions

CERTAIN = 50.0  # a one-hot action of this height leaves softmax(a / 0.1) no choice


def right(lock):
    return CERTAIN * np.eye(10)[lock.right_actions()]


def wrong(lock):
    return CERTAIN * np.eye(10)[(lock.right_actions() + 1) % 10]


def put(lock, latent, h):
    """All episodes in one latent state at step h."""
    lock.reset(0)
    lock.latent, lock.h = np.full(lock.n, latent), h


@pytest.mark.filterwarnings("ignore:.*A Box observation space m", "ignore:.*symmetric and normalized space")
@pytest.mark.parametrize("reward_mode", ["released", "paper"])
def test_gymnasium_checker_passes(reward_mode):
    env = gym.make("hoard/CombLock-v0", horizon=4, reward_mode=reward_mode, lock_seed=3)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize(
    ("horizon", "obs_dim"), [(4, 8), (5, 16), (10, 16), (12, 16), (13, 32), (15, 32), (30, 64), (50, 64), (100, 128)]
)
def test_observations_have_the_next_power_of_two(horizon, obs_dim):
    assert LockBatch(2, horizon).reset(0).shape == (2, obs_dim)


@pytest.mark.parametrize("h", [0, 3, 5])
def test_observation_is_a_rotated_noisy_two_hot_vector(h):
    lock = LockBatch(40_000, horizon=5)
    put(lock, GOOD_B, h)
    obs = lock.observe()
    rotation = hadamard(16)
    z = obs @ rotation / 16  # Hadamard matrices are symmetric and H H = D
    mean, std = np.zeros(16), np.zeros(16)
    mean[GOOD_B] += 1
    mean[3 + h] += 1
    std[:8] = 0.1
    np.testing.assert_allclose(z.mean(axis=0), mean, atol=5 * 0.1 / np.sqrt(lock.n))
    np.testing.assert_allclose(z.std(axis=0), std, atol=2e-3)
    assert obs.dtype == np.float32
    np.testing.assert_allclose((obs - obs.mean(axis=0)).std(axis=0), 0.1 * np.sqrt(8), rtol=0.02)


def test_latent_actions_follow_the_softmax():
    action = np.random.default_rng(0).normal(scale=0.1, size=10)
    p = np.exp(action / 0.1) / np.exp(action / 0.1).sum()
    n = 200_000
    chosen = latent_actions(np.tile(action, (n, 1)), np.random.default_rng(1).random(n))
    counts = np.bincount(chosen, minlength=10) / n
    np.testing.assert_allclose(counts, p, atol=5 * np.sqrt(0.25 / n))


def test_actions_of_any_size_do_not_overflow():
    extreme = np.array([[1e6] + [0.0] * 9, [-1e6] * 9 + [0.0], [0.0] * 10])
    assert latent_actions(extreme, np.array([0.999, 0.0, 1 - 2**-53])).tolist() == [0, 9, 9]


def test_start_is_either_good_state():
    lock = LockBatch(40_000)
    lock.reset(0)
    assert set(lock.latent) == {GOOD_A, GOOD_B}
    assert lock.latent.mean() == pytest.approx(0.5, abs=0.0125)


@pytest.mark.parametrize("latent", [GOOD_A, GOOD_B])
def test_right_actions_swap_half_of_the_time_and_wrong_ones_kill(latent):
    lock = LockBatch(40_000, lock_seed=1)
    put(lock, latent, 2)
    assert (lock.right_actions() == lock.codes[latent, 2]).all()
    lock.step(right(lock))
    assert set(lock.latent) == {GOOD_A, GOOD_B}
    assert lock.latent.mean() == pytest.approx(0.5, abs=0.0125)
    for k in range(1, 10):
        put(lock, latent, 2)
        lock.step(CERTAIN * np.eye(10)[(lock.right_actions() + k) % 10])
        assert (lock.latent == DEAD).all()


def test_the_dead_stay_dead_and_are_shown_the_code_of_state_1():
    lock = LockBatch(10)
    put(lock, DEAD, 1)
    assert (lock.right_actions() == lock.codes[1, 1]).all()
    lock.step(right(lock))
    assert (lock.latent == DEAD).all()


@pytest.mark.parametrize(
    ("mode", "latent", "h", "act", "pays"),
    [  # expected reward of one step at horizon 5: 1 for success, 0.1 w.p. 0.5 as consolation
        ("released", GOOD_A, 4, right, 1.0),
        ("released", GOOD_B, 4, right, 1.0),
        ("released", GOOD_A, 4, wrong, 0.05),
        ("released", DEAD, 4, right, 0.05),
        ("released", GOOD_A, 3, wrong, 0.0),
        ("released", GOOD_A, 3, right, 0.0),
        ("released", DEAD, 3, wrong, 0.0),
        ("paper", GOOD_B, 4, right, 1.0),
        ("paper", GOOD_A, 4, wrong, 0.05),
        ("paper", GOOD_A, 0, wrong, 0.05),
        ("paper", GOOD_A, 3, right, 0.0),
        ("paper", DEAD, 4, right, 0.0),
        ("paper", DEAD, 2, wrong, 0.0),
    ],
)
def test_payments(mode, latent, h, act, pays):
    lock = LockBatch(20_000, reward_mode=mode)
    put(lock, latent, h)
    _, reward, ended, success = lock.step(act(lock))
    assert set(np.unique(reward)) == ({0.0, 0.1} if pays == 0.05 else {pays})
    assert reward.mean() == pytest.approx(pays, abs=0.002)
    assert ended == (h == 4)
    np.testing.assert_array_equal(success, reward == 1)
    if ended:  # a success keeps its label, without a switch; everyone else ends dead
        assert (lock.latent == (latent if pays == 1 else DEAD)).all()


def test_optimal_play_always_succeeds_and_uniform_play_hardly_ever():
    lock = LockBatch(4000, horizon=10)
    lock.reset(0)
    for _ in range(10):
        _, reward, ended, success = lock.step(right(lock))
    assert ended
    assert success.all()
    assert (reward == 1).all()
    rng = np.random.default_rng(0)
    lock.reset(1)
    for _ in range(10):
        _, reward, _, success = lock.step(rng.random((lock.n, 10)))
    assert not success.any()
    with pytest.raises(RuntimeError, match="reset"):
        lock.step(np.zeros((lock.n, 10)))


class Given:
    """A generator that serves given arrays instead of drawing."""

    def __init__(self, tape):
        self.tape = iter(tape)

    def random(self, shape):
        return next(self.tape).reshape(shape)

    standard_normal = random


@pytest.mark.parametrize("mode", ["released", "paper"])
def test_a_batch_is_single_episodes_given_the_same_randomness(mode, monkeypatch):
    n, horizon = 6, 4
    rng = np.random.default_rng(0)
    shapes = [(n, 1), (n, horizon + 3)] + [(n, 3), (n, horizon + 3)] * horizon
    tape = [rng.random(s) if k % 2 == 0 else rng.normal(size=s) for k, s in enumerate(shapes)]
    actions = rng.random((horizon, n, 10))
    actions[:, :4] = -1.0  # four of the six play the codes of the latent state, below

    def play(lock, tape, which):
        monkeypatch.setattr(np.random, "default_rng", lambda seed: seed)
        out = [lock.reset(Given(tape))]
        for h in range(horizon):
            action = actions[h, which].copy()
            knows = action[:, 0] < 0
            action[knows] = np.eye(10)[lock.right_actions()[knows]]
            out += lock.step(action)
        monkeypatch.undo()
        return out

    make = lambda n: LockBatch(n, horizon, mode, lock_seed=5)  # noqa: E731
    together = play(make(n), tape, slice(None))
    assert together[-1].any()
    assert not together[-1].all()
    for i in range(n):
        alone = play(make(1), [draws[i : i + 1] for draws in tape], slice(i, i + 1))
        for whole, one in zip(together, alone):
            if isinstance(one, bool):
                assert whole == one
            else:
                np.testing.assert_allclose(whole[i : i + 1], one, rtol=1e-6)


def test_environment_reports_time_latent_state_and_success():
    env = gym.make("hoard/CombLock-v0", horizon=3, lock_seed=2, max_episode_steps=3)
    obs, info = env.reset(seed=0)
    lock = env.unwrapped.lock
    assert (info["time_step"], info["latent"], info["success"]) == (0, lock.latent[0], False)
    for h in range(3):
        assert env.observation_space.contains(obs)
        obs, reward, terminated, _, info = env.step(right(lock)[0].astype(np.float32).clip(-5, 5))
        assert (info["time_step"], info["latent"]) == (h + 1, lock.latent[0])
        assert terminated == (h == 2)
        assert info["success"] == (h == 2)
    assert reward == 1
    env.close()


def test_same_lock_seed_same_codes_same_seed_same_episode():
    a, b = (gym.make("hoard/CombLock-v0", horizon=5, lock_seed=7) for _ in range(2))
    np.testing.assert_array_equal(a.unwrapped.lock.codes, b.unwrapped.lock.codes)
    assert (LockBatch(1, 5, lock_seed=8).codes != a.unwrapped.lock.codes).any()
    np.testing.assert_array_equal(a.reset(seed=1)[0], b.reset(seed=1)[0])
    action = np.full(10, 0.3, np.float32)
    np.testing.assert_array_equal(a.step(action)[0], b.step(action)[0])
    assert not np.array_equal(a.reset(seed=2)[0], b.reset(seed=1)[0])


def test_bad_constants_are_refused():
    with pytest.raises(ValueError, match="reward_mode 'dense'"):
        LockBatch(1, reward_mode="dense")
    with pytest.raises(ValueError, match="horizon 0"):
        LockBatch(1, horizon=0)


def test_make_batch_builds_what_the_specification_says():
    env = make_env("hoard/CombLock-v0", horizon=6, reward_mode="paper", lock_seed=9, max_episode_steps=6)
    for spec in (env.spec, env.env.spec):
        batch = make_batch(spec, 12)
        assert (batch.n, batch.horizon, batch.reward_mode) == (12, 6, "paper")
        np.testing.assert_array_equal(batch.codes, env.unwrapped.lock.codes)
        assert batch.reset(0).shape == (12, *env.observation_space.shape)
    env.close()


def test_make_batch_gives_none_where_episodes_would_differ():
    assert make_batch(gym.spec("Pendulum-v1"), 3) is None
    assert make_batch(gym.make("hoard/CombLock-v0", horizon=6, max_episode_steps=4).spec, 3) is None
    wrapped = gym.wrappers.RescaleAction(gym.make("hoard/CombLock-v0", horizon=6, max_episode_steps=6), -1, 1)
    assert make_batch(wrapped.spec, 3) is None


# --- the rich lock ---


@pytest.mark.filterwarnings("ignore:.*A Box observation space m", "ignore:.*symmetric and normalized space")
def test_rich_environment_passes_the_checker_and_has_a_batch():
    env = make_env("hoard/CombLockRich-v0", horizon=3, split="test", max_episode_steps=3)
    check_env(gym.make("hoard/CombLockRich-v0", horizon=3).unwrapped, skip_render_check=True)
    batch = make_batch(env.spec, 5)
    assert isinstance(batch, RichLockBatch)
    assert batch.reset(0).shape == (5, *env.observation_space.shape) == (5, 512)
    env.close()


@pytest.mark.parametrize(("split", "members"), [("train", 500), ("test", 100)])
def test_rich_observations_are_the_banks_vectors_of_their_class(split, members):
    lock = RichLockBatch(3000, horizon=3, split=split)
    whole = bank(12, 0, lock.noise, lock._clutter, split)
    assert whole.shape == (12, members, 512)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=-1), 1, rtol=1e-5)
    for h, latent in ((0, GOOD_A), (2, DEAD), (3, GOOD_B)):
        put(lock, latent, h)
        obs = lock.observe()
        own = whole[3 * h + latent]
        index = (obs @ own.T).argmax(axis=1)
        np.testing.assert_array_equal(obs, own[index])
        assert len(set(index)) > 0.9 * members  # every member of the class is used


def test_rich_dynamics_are_the_locks_and_banks_differ_by_split_and_seed():
    plain, rich = LockBatch(200, 4, lock_seed=3), RichLockBatch(200, 4, lock_seed=3)
    np.testing.assert_array_equal(plain.codes, rich.codes)
    rich.reset(0)
    for _ in range(4):
        _, reward, _, success = rich.step(right(rich))
    assert success.all()
    assert (reward == 1).all()
    banks = [bank(6, seed, 1.2, 0.2, split) for seed in (0, 1) for split in ("train", "test")]
    assert len({b[0, 0].tobytes() for b in banks}) == 4
    with pytest.raises(ValueError, match="split 'valid'"):
        bank(6, 0, 1.2, 0.2, "valid")


def test_rich_classes_are_the_same_in_both_splits_and_overlap():
    """The nearest class mean of the train split names most of the test split, but not all."""
    train, test = (bank(33, 0, 1.2, 0.2, split) for split in ("train", "test"))
    means = train.mean(axis=1)
    distance = ((test[:, :, None] - means) ** 2).sum(axis=-1)
    right_class = (distance.argmin(axis=-1) == np.arange(33)[:, None]).mean()
    assert 0.6 < right_class < 0.85
