"""Plug-ins of the data layer: what they make of a dataset, and that buffers draw and store it so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_toys import toy
from scipy.stats import chisquare

from hoard.algos import iql, moorl
from hoard.datasets import DatasetError, ReplayBuffer, plugins
from hoard.records.errors import BadInput
from hoard.runners.config import check

LENGTHS = (3, 1, 4, 2)


def dataset(**fields):
    rng = np.random.default_rng(0)
    steps = sum(LENGTHS)
    return toy(LENGTHS, reward=rng.normal(size=steps).astype(np.float32), **fields)


def draws(buffer, count=40_000, ratio=None):
    index = buffer.draw(count, torch.Generator().manual_seed(1), ratio)
    return np.bincount(index.numpy(), minlength=len(buffer))


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_return_weights_are_a_softmax_of_the_scaled_return_over_transitions(temperature):
    data = plugins.apply(dataset(), f"weight=return:{temperature}")
    scaled = (data.returns - data.returns.min()) / (data.returns.max() - data.returns.min())
    per_step = np.exp(scaled / temperature)[data.episode_index]
    assert data.weight / data.weight.sum() == pytest.approx(per_step / per_step.sum())
    assert data.weight.mean() == pytest.approx(1)


def test_advantage_weights_take_out_what_the_first_observation_predicts():
    data = dataset()
    first = np.stack([episode.observations[0] for episode in data.episodes()])
    # Returns that are linear in the first observation, but for one episode's bonus.
    reward = np.zeros(len(data), np.float32)
    reward[data.starts[1:] - 1] = 3 * first[:, 0] - 2
    with pytest.raises(DatasetError, match="every episode has the same advantage, nothing to weigh"):
        plugins.apply(replace(data, reward=reward), "weight=advantage")
    reward[0] += 1
    data = replace(data, reward=reward)
    weight = plugins.apply(data, "weight=advantage:0.5").weight
    gain = data.returns
    design = np.c_[first.astype(np.float64), np.ones(len(first))]
    left = gain - design @ np.linalg.pinv(design) @ gain
    expected = np.exp((left - left.min()) / (left.max() - left.min()) / 0.5)[data.episode_index]
    assert weight == pytest.approx(expected / expected.mean())


@pytest.mark.parametrize("ratio", [None, 1.0])
def test_transitions_are_drawn_by_their_weights(ratio):
    data = plugins.apply(dataset(), "weight=return:0.5")
    counts = draws(ReplayBuffer(data), ratio=ratio)
    assert chisquare(counts, data.weight / data.weight.sum() * counts.sum()).pvalue > 1e-3


def test_an_online_step_counts_as_much_as_an_average_one_of_the_dataset():
    data = plugins.apply(dataset(), "weight=return:0.5")
    buffer = ReplayBuffer(data, online_capacity=5)
    for _ in range(5):
        buffer.add(np.zeros(data.obs_dim), np.zeros(data.action_dim), 0.0, np.zeros(data.obs_dim), False, False)
    counts = draws(buffer)
    wanted = np.append(data.weight, np.ones(5))
    assert chisquare(counts, wanted / wanted.sum() * counts.sum()).pvalue > 1e-3
    online = draws(buffer, ratio=0.0)
    assert online[: len(data)].sum() == 0
    assert chisquare(online[len(data) :]).pvalue > 1e-3


def test_a_draw_at_the_very_end_is_a_transition(monkeypatch):
    data = plugins.apply(dataset(), "weight=return:0.01")  # all but one episode's weights are next to nothing
    buffer = ReplayBuffer(data)
    for u in (0.0, 1 - 2**-53):
        monkeypatch.setattr(torch, "rand", lambda *_, u=u, **__: torch.tensor([u], dtype=torch.float64))
        assert 0 <= buffer.draw(1, torch.Generator()).item() < len(data)


@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_hubl_stores_its_rewards_and_discounts(strength):
    gamma, scale, shift = 0.9, 2.0, -1.0
    data = plugins.apply(dataset(), f"hubl=constant:{strength}")
    buffer = ReplayBuffer(data, discount=gamma, reward_scale=scale, reward_shift=shift)
    rewards, stops = [], []
    for episode in data.episodes():
        r = scale * (episode.reward.astype(np.float64) + shift)
        for t in range(len(r)):
            h = sum(gamma**k * x for k, x in enumerate(r[t + 1 :]))
            rewards.append(r[t] + gamma * strength * h)
            stops.append(1 - (1 - strength) * (1 - float(episode.terminated[t])))
    assert buffer.reward.numpy() == pytest.approx(np.array(rewards), abs=1e-5)
    assert buffer.terminated.numpy() == pytest.approx(np.array(stops), abs=1e-6)
    assert np.array_equal(data.reward, dataset().reward)  # what labels and scores are made of stays


def test_hubl_by_rank_trusts_better_episodes_more():
    data = plugins.apply(dataset(), "hubl=rank:0.4")
    by_episode = data.blend[data.starts[:-1]]
    assert by_episode[np.argsort(data.returns)] == pytest.approx(0.4 * np.array([0.25, 0.5, 0.75, 1.0]))


def test_hubl_needs_a_value_that_is_bootstrapped():
    with pytest.raises(ValueError, match="data hubl: this algorithm bootstraps no value"):
        ReplayBuffer(plugins.apply(dataset(), "hubl=rank:0.1"))
    with pytest.raises(BadInput, match="offline_terminals must be true"):
        check(moorl.Config(data="hubl=rank:0.1", offline_terminals=False))


def test_plug_ins_are_applied_from_left_to_right():
    data = dataset()
    first = plugins.apply(data, "top=0.5,weight=return")
    assert first.num_episodes == 2
    assert first.weight == pytest.approx(plugins.apply(data.top_episodes(0.5), "weight=return").weight)
    last = plugins.apply(data, "weight=return,top=0.5,hubl=constant:0.1")
    assert last.weight.mean() == pytest.approx(1)
    assert len(last.blend) == len(last)
    assert plugins.apply(data, "all") is data


def test_what_determines_the_numbers_is_in_the_content_hash():
    data = dataset()
    texts = ("all", "weight=return", "weight=return:0.2", "weight=advantage", "hubl=rank:0.1", "hubl=constant:0.1")
    assert len({plugins.apply(data, text).content_hash for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best=0.1", "there is no plug-in 'best'; there are top=F"),
        ("", "there is no plug-in ''; there are top=F"),
        ("top=0", "top=0: write top=F with 0 < F <= 1"),
        ("top=", "write top=F"),
        ("weight=reward", "write weight=return"),
        ("weight=return:0", "write weight=return"),
        ("weight=return:inf", "write weight=return"),
        ("hubl=rank", "write hubl=constant:A"),
        ("hubl=rank:nan", "write hubl=constant:A"),
        ("hubl=rank:2", "write hubl=constant:A"),
        ("top=0.5,top=0.1", "'top' stands there twice"),
    ],
)
def test_what_is_no_plug_in_is_refused(text, message):
    with pytest.raises(BadInput, match="data") as error:
        check(iql.Config(data=text))
    assert message in str(error.value)


@pytest.mark.parametrize("field", ["weight", "blend"])
def test_weights_that_do_not_fit_are_refused(field):
    for values in (np.ones(3), np.full(10, -1.0), np.full(10, np.nan)):
        with pytest.raises(DatasetError, match=f"{field} must be 10 numbers"):
            dataset(**{field: values})
