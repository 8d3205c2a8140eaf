"""The replay buffer against a plain list of what was put into it."""

import io

import numpy as np
import pytest
import torch
from dataset_toys import toy
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from hoard.datasets import ReplayBuffer
from hoard.datasets.actions import ActionScaler

FIELDS = ("obs", "action", "reward", "next_obs", "terminated")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def offline(lengths=(3, 1, 4), **fields):
    """A dataset whose actions tell its transitions apart, with actions below 0.5 (online ones are above)."""
    steps = sum(lengths)
    actions = np.stack([np.arange(steps) / 1000, np.zeros(steps)], axis=1).astype(np.float32)
    return toy(lengths, action=actions, **fields)


class Walk:
    """Online steps with unique contents, fed to a buffer; `steps` remembers (obs, action, r, next_obs, term, e, t)."""

    def __init__(self, first_episode):
        self.steps, self.episode, self.t = [], first_episode, 0

    def __call__(self, buffer, terminated=False, truncated=False):
        n = len(self.steps)
        step = ([self.episode, self.t], [0.5 + n / 1000, 0.5], -float(n), [self.episode, self.t + 1], terminated)
        self.steps.append((*step, self.episode, self.t))
        obs, action, reward, next_obs, _ = step
        buffer.add(np.array(obs), np.array(action), reward, np.array(next_obs), terminated, truncated)
        self.t += 1
        if terminated or truncated:
            self.episode, self.t = self.episode + 1, 0


def grown(steps, capacity, lengths=(3, 1, 4), ends=()):
    """A buffer after `steps` online steps; `ends` maps some of them to "terminated" or "truncated"."""
    buffer = ReplayBuffer(offline(lengths), online_capacity=capacity)
    walk = Walk(len(lengths))
    for n in range(steps):
        walk(buffer, **({dict(ends)[n]: True} if n in dict(ends) else {}))
    return buffer, walk


# --- contents ---


def test_a_buffer_holds_every_row_of_its_dataset_and_room_for_the_budget():
    data = offline([3, 1, 4], terminated=[1])
    buffer = ReplayBuffer(data, online_capacity=5)
    assert len(buffer) == len(data) == 8
    assert {len(getattr(buffer, name)) for name in ("rows", "action", "reward", "terminated", "episode")} == {8 + 5}
    assert len(buffer.observations) == len(data.observations) + 2 * 5
    batch = buffer.gather(torch.arange(8))
    for name in FIELDS:
        assert batch[name].dtype == torch.float32
        np.testing.assert_array_equal(batch[name], getattr(data, name))


def test_a_buffer_does_not_write_into_its_dataset():
    data = offline()
    before = data.observations.copy(), data.reward.copy()
    buffer = ReplayBuffer(data, online_capacity=1)
    buffer.observations.zero_()
    buffer.reward.zero_()
    np.testing.assert_array_equal(data.observations, before[0])
    np.testing.assert_array_equal(data.reward, before[1])


def test_extra_fields_follow_their_transitions():
    data = offline()
    buffer = ReplayBuffer(data, extra={"rtg": data.returns_to_go()})
    batch = buffer.sample(64, generator())
    index = (batch["action"][:, 0] * 1000).round().long()
    np.testing.assert_allclose(batch["rtg"], data.returns_to_go()[index.numpy()])
    sequences = buffer.sample_sequences(32, 3, generator())
    index = (sequences["action"][..., 0] * 1000).round().long()
    np.testing.assert_allclose(sequences["rtg"], data.returns_to_go()[index.numpy()] * sequences["mask"].numpy())
    with pytest.raises(ValueError, match="3 values for 8"):
        ReplayBuffer(data, extra={"rtg": np.zeros(3)})
    with pytest.raises(ValueError, match="online"):
        ReplayBuffer(data, online_capacity=1, extra={"rtg": data.returns_to_go()})


def test_a_buffer_without_a_dataset():
    with pytest.raises(ValueError, match="obs_dim"):
        ReplayBuffer(None, online_capacity=3)
    buffer = ReplayBuffer(None, online_capacity=3, obs_dim=2, action_dim=2)
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1, generator())
    walk = Walk(0)
    walk(buffer)
    np.testing.assert_array_equal(buffer.sample(4, generator())["next_obs"], [[0, 1]] * 4)
    with pytest.raises(ValueError, match="online_capacity"):
        ReplayBuffer(offline()).add([0, 0], [0, 0], 0.0, [0, 0], False, False)


@settings(max_examples=50, deadline=None)
@given(
    steps=st.integers(0, 20),
    capacity=st.integers(1, 8),
    ends=st.dictionaries(st.integers(0, 19), st.sampled_from(["terminated", "truncated"])),
)
def test_the_online_part_holds_the_latest_steps(steps, capacity, ends):
    buffer, walk = grown(steps, capacity, ends=ends)
    data = offline()
    kept = walk.steps[-capacity:]
    assert len(buffer) == len(data) + len(kept)
    batch = buffer.gather(torch.arange(len(buffer)))
    for name in FIELDS:  # the dataset's part is never overwritten
        np.testing.assert_array_equal(batch[name][: len(data)], getattr(data, name))
    rows = {
        tuple(row)
        for row in torch.cat([batch[n].reshape(len(buffer), -1) for n in FIELDS], dim=1)[len(data) :].tolist()
    }
    flat = [np.hstack([*step[:5]]).astype(np.float32) for step in kept]
    assert rows == {tuple(row.tolist()) for row in flat}


def test_termination_on_the_last_allowed_step_is_kept():
    """The step that reaches the time limit may terminate, too: only `terminated` decides (D7)."""
    buffer = ReplayBuffer(offline(), online_capacity=4)
    walk = Walk(3)
    walk(buffer)
    walk(buffer, terminated=True, truncated=True)
    walk(buffer, truncated=True)
    np.testing.assert_array_equal(buffer.gather(8 + torch.arange(3))["terminated"], [0, 1, 0])
    np.testing.assert_array_equal(buffer.episode[8:], [3, 3, 4, -1])
    np.testing.assert_array_equal(buffer.timestep[8:11], [0, 1, 0])


# --- drawing ---


@pytest.mark.parametrize("ratio", [0, 0.1, 1 / 3, 0.5, 0.9, 1])
@pytest.mark.parametrize("batch", [1, 7, 30, 256])
def test_ratios_are_exact(ratio, batch):
    buffer, _ = grown(5, 5)
    draws = [buffer.sample(batch, generator(seed), ratio) for seed in range(3)]
    for sample in draws:
        from_data = int((sample["action"][:, 1] == 0).sum())
        assert from_data == round(ratio * batch)
        assert len(sample["obs"]) == batch
        sequences = buffer.sample_sequences(batch, 2, generator(), ratio)
        assert int((sequences["action"][:, 0, 1] == 0).sum()) == round(ratio * batch)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match="offline_ratio"):
        grown(1, 1)[0].draw(4, generator(), ratio)


def test_a_part_that_must_supply_and_is_empty_is_named():
    empty = ReplayBuffer(offline(), online_capacity=3)
    with pytest.raises(ValueError, match="2 online transitions"):
        empty.draw(4, generator(), 0.5)
    assert len(empty.draw(4, generator(), 1.0)) == 4
    online = ReplayBuffer(None, online_capacity=3, obs_dim=2, action_dim=2)
    Walk(0)(online)
    with pytest.raises(ValueError, match="4 offline transitions"):
        online.draw(4, generator(), 1.0)
    assert len(online.draw(4, generator(), 0)) == 4


@pytest.mark.parametrize("ratio", [None, 0.5])
@pytest.mark.parametrize("sequences", [False, True])
def test_sampling_uses_the_given_generator_and_nothing_else(ratio, sequences):
    buffer, _ = grown(4, 6)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002

    def sample(source):
        return buffer.sample_sequences(16, 3, source, ratio) if sequences else buffer.sample(16, source, ratio)

    source = generator(3)
    one, two, again = sample(source), sample(source), sample(generator(3))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["action"], two["action"])
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_sampling_is_uniform_over_everything_stored():
    buffer, _ = grown(9, 4)
    counts = torch.bincount(buffer.draw(60_000, generator()), minlength=12)
    assert len(counts) == len(buffer) == 12
    # 5000 expected each, standard deviation 68
    assert (counts - 5000).abs().max() < 5 * 68
    mixed = torch.bincount(buffer.draw(60_000, generator(), 0.5), minlength=12)
    assert mixed[:8].sum() == mixed[8:].sum() == 30_000
    assert (mixed[:8] - 3750).abs().max() < 5 * 60
    assert (mixed[8:] - 7500).abs().max() < 5 * 75


# --- sequences ---


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    steps=st.integers(0, 18),
    capacity=st.integers(1, 7),
    ends=st.dictionaries(st.integers(0, 17), st.sampled_from(["terminated", "truncated"])),
    length=st.integers(1, 6),
    ratio=st.sampled_from([None, 0.0, 0.5, 1.0]),
)
def test_windows_are_runs_of_one_episode(lengths, steps, capacity, ends, length, ratio):
    buffer, walk = grown(steps, capacity, lengths, ends)
    data = offline(lengths)
    # Every stored transition in order, with (episode, t) and the slot it lies in.
    ring = [None] * min(steps, capacity)
    for n, step in enumerate(walk.steps):
        ring[n % capacity] = step
    stored = [
        (data.obs[i], data.action[i], data.reward[i], data.next_obs[i], data.terminated[i], e, t)
        for i, (e, t) in enumerate(zip(data.episode_index, data.timestep))
    ] + ring
    where = {round(float(step[1][0]) * 1000): i for i, step in enumerate(stored)}
    if ratio is not None and ratio < 1 and not ring:
        return
    batch = buffer.sample_sequences(24, length, generator(steps), ratio)
    for b in range(24):
        mask = batch["mask"][b]
        real = int(mask.sum())
        assert real >= 1
        assert mask.tolist() == [1.0] * real + [0.0] * (length - real)
        start = where[round(float(batch["action"][b, 0, 0]) * 1000)]
        for j in range(length):
            if j < real:
                for name, value in zip((*FIELDS, None, "timestep"), stored[start + j]):
                    if name:
                        np.testing.assert_allclose(batch[name][b, j], np.asarray(value, np.float32), rtol=1e-6)
                assert stored[start + j][5] == stored[start][5]
                assert stored[start + j][6] == stored[start][6] + j
            else:
                assert all(not batch[name][b, j].any() for name in (*FIELDS, "timestep"))
        # A window stops early only where its episode, its part of the buffer or the ring's order ends.
        if real < length:
            after = start + real
            end_of_part = after in (len(data), len(stored))
            assert end_of_part or stored[after][5:] != (stored[start][5], stored[start][6] + real)


def test_a_window_stops_at_the_seam_inside_one_long_episode():
    """Seven steps of one episode in a ring of five: slots hold t = 5, 6, 2, 3, 4."""
    buffer, _ = grown(7, 5)
    assert buffer.timestep[8:].tolist() == [5, 6, 2, 3, 4]
    batch = buffer.sample_sequences(64, 5, generator(), 0.0)
    runs = {tuple(t[m.bool()].tolist()) for t, m in zip(batch["timestep"], batch["mask"])}
    assert runs == {(5, 6), (6,), (2, 3, 4), (3, 4), (4,)}


def test_a_window_stops_at_the_seam_where_the_older_steps_count_on():
    """An episode as long as the ring, then two steps of the next: slots hold t = 0, 1 of one and 2, 3 of the other."""
    buffer, _ = grown(6, 4, ends={3: "truncated"})
    assert buffer.timestep[8:].tolist() == [0, 1, 2, 3]
    assert buffer.episode[8:].tolist() == [4, 4, 3, 3]
    batch = buffer.sample_sequences(64, 4, generator(), 0.0)
    runs = {tuple(t[m.bool()].tolist()) for t, m in zip(batch["timestep"], batch["mask"])}
    assert runs == {(0, 1), (1,), (2, 3), (3,)}


def test_a_window_stops_at_the_last_step_though_older_contents_lie_behind():
    """A buffer that held more steps takes over the state of a younger one."""
    buffer, _ = grown(6, 6)
    state = grown(2, 6)[0].state_dict()
    buffer.load_state_dict(state)
    batch = buffer.sample_sequences(64, 4, generator(), 0.0)
    runs = {tuple(t[m.bool()].tolist()) for t, m in zip(batch["timestep"], batch["mask"])}
    assert runs == {(0, 1), (1,)}


# --- resume ---


@settings(max_examples=40, deadline=None)
@given(
    before=st.integers(0, 12),
    after=st.integers(0, 12),
    capacity=st.integers(1, 6),
    ends=st.dictionaries(st.integers(0, 23), st.sampled_from(["terminated", "truncated"])),
)
def test_a_restored_buffer_continues_identically(before, after, capacity, ends):
    buffer, walk = grown(before, capacity, ends=ends)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    other = ReplayBuffer(offline(), online_capacity=capacity)
    Walk(3)(other, truncated=True)  # what it holds is replaced
    other.load_state_dict(torch.load(file, weights_only=True))
    for n in range(before, before + after):
        flags = {ends[n]: True} if n in ends else {}
        steps, episode, t = list(walk.steps), walk.episode, walk.t
        walk(buffer, **flags)
        walk.steps, walk.episode, walk.t = steps, episode, t
        walk(other, **flags)
    assert len(buffer) == len(other)
    one, two = (b.gather(torch.arange(len(b))) for b in (buffer, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for seed in range(3):
        one, two = (b.sample_sequences(16, 3, generator(seed)) for b in (buffer, other))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_state_is_a_snapshot():
    buffer, walk = grown(2, 2)
    state = buffer.state_dict()
    for _ in range(2):
        walk(buffer)
    other = ReplayBuffer(offline(), online_capacity=2)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.reward[8:], [0, -1])
    walk(other)
    np.testing.assert_array_equal(state["reward"], [0, -1])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: ReplayBuffer(offline(), online_capacity=2), "online_capacity 3, this buffer 2"),
        (lambda: ReplayBuffer(offline(), online_capacity=9), "online_capacity 3, this buffer 9"),
        (lambda: ReplayBuffer(offline([2, 1]), online_capacity=3), "offline_size 8, this buffer 3"),
    ],
)
def test_a_state_of_another_size_is_refused(other, message):
    buffer, _ = grown(5, 3)
    with pytest.raises(ValueError, match=message):
        other().load_state_dict(buffer.state_dict())


# --- units of actions and rewards ---

WIDE = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))


def in_wide_bounds(steps=8, seed=0):
    actions = np.random.default_rng(seed).uniform(WIDE.low, WIDE.high, (steps, 2)).astype(np.float32)
    return toy((3, 1, steps - 4), actions=WIDE, action=actions)


@settings(max_examples=50, deadline=None)
@given(
    clip=st.sampled_from([0.0, 1e-5, 0.1, 0.5]),
    scale=st.floats(-5, 5, width=32),
    shift=st.floats(-5, 5, width=32),
    seed=st.integers(0, 1000),
)
def test_actions_are_stored_in_the_unit_box_and_rewards_scaled(clip, scale, shift, seed):
    data = in_wide_bounds(seed=seed)
    options = {"clip_actions": clip, "reward_scale": scale, "reward_shift": shift}
    buffer = ReplayBuffer(data, online_capacity=3, **options)
    unit = ActionScaler(WIDE.low, WIDE.high).to_unit(torch.tensor(data.action))
    expected = unit.clamp(-1 + clip, 1 - clip) if clip else unit
    assert torch.equal(buffer.action[:8], expected)
    assert torch.equal(buffer.reward[:8], scale * (torch.tensor(data.reward) + shift))
    action, reward = np.array([-1.0, 0.25]), float(np.random.default_rng(seed).normal())
    buffer.add([0, 0], action, reward, [0, 1], False, False)
    stored = torch.tensor(action, dtype=torch.float32)
    assert torch.equal(buffer.action[8], stored.clamp(-1 + clip, 1 - clip) if clip else stored)
    assert buffer.reward[8] == np.float32(scale * (reward + shift))
    empty = ReplayBuffer(None, online_capacity=1, obs_dim=2, action_dim=2, **options)
    empty.add([0, 0], action, reward, [0, 1], False, False)
    assert torch.equal(empty.action[0], buffer.action[8])
    assert torch.equal(empty.reward[0], buffer.reward[8])


def test_unit_bounds_change_nothing_to_the_bit():
    actions = np.random.default_rng(0).uniform(-1, 1, (8, 2)).astype(np.float32)
    data = toy(action=actions)
    assert ReplayBuffer(data).action.numpy().tobytes() == actions.tobytes()
    assert ReplayBuffer(data, scale_actions=False).action.numpy().tobytes() == actions.tobytes()


def test_actions_may_stay_in_environment_units():
    data = in_wide_bounds()
    np.testing.assert_array_equal(ReplayBuffer(data, scale_actions=False).action, data.action)
    endless = toy(actions=spaces.Box(-np.inf, np.inf, (2,), np.float32))
    with pytest.raises(ValueError, match="cannot be scaled"):
        ReplayBuffer(endless)
    assert len(ReplayBuffer(endless, scale_actions=False)) == 8


@pytest.mark.parametrize("clip", [-0.1, 1.0, float("nan")])
def test_a_margin_outside_the_box_is_refused(clip):
    with pytest.raises(ValueError, match="clip_actions"):
        ReplayBuffer(offline(), clip_actions=clip)


# --- statistics ---


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(0, 12), capacity=st.integers(1, 2000))
def test_statistics_count_what_is_stored_and_no_empty_slot(steps, capacity):
    buffer, walk = grown(steps, capacity)
    seen = np.concatenate([offline().obs, [obs for obs, *_ in walk.steps[-capacity:]] or np.empty((0, 2))])
    mean, std = buffer.obs_stats()
    np.testing.assert_allclose(mean, seen.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, seen.std(axis=0), rtol=1e-4, atol=1e-5)
    table = buffer.observations[buffer.rows[: len(buffer)]]
    assert torch.equal(mean, table.mean(dim=0))
    assert torch.equal(std, table.std(dim=0, unbiased=False))


def test_an_empty_buffer_has_no_statistics():
    with pytest.raises(ValueError, match="empty"):
        ReplayBuffer(None, online_capacity=3, obs_dim=2, action_dim=2).obs_stats()


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(0, 9), clip=st.sampled_from([0.0, 0.01]), scale=st.sampled_from([1.0, 10.0]))
def test_the_state_of_a_scaled_buffer_comes_back(steps, clip, scale):
    def make():
        return ReplayBuffer(
            in_wide_bounds(), online_capacity=4, clip_actions=clip, reward_scale=scale, reward_shift=-1.0
        )

    buffer, copy = make(), make()
    rng = np.random.default_rng(0)
    for _ in range(steps):
        obs = rng.normal(size=(2, 2))
        buffer.add(obs[0], rng.uniform(-1, 1, 2), rng.normal(), obs[1], rng.random() < 0.3, False)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    copy.load_state_dict(torch.load(file, weights_only=True))
    assert len(copy) == len(buffer)
    index = torch.arange(len(buffer))
    for name, values in buffer.gather(index).items():
        assert torch.equal(copy.gather(index)[name], values), name
    for one in (buffer, copy):  # and they go on alike
        one.add([1, 1], [1.0, -1.0], 2.0, [2, 2], True, False)
    assert torch.equal(copy.sample(16, generator())["action"], buffer.sample(16, generator())["action"])
