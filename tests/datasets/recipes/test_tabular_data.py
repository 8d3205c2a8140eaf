"""The expert sets of the finite MDPs: reproducible, legal, and as good as the soft expert is expected to be."""

from __future__ import annotations

import numpy as np
import pytest

from hoard.datasets import recipes
from hoard.datasets.recipes import tabular as recipe
from hoard.envs import make_env, tabular


@pytest.mark.parametrize("problem", list(recipe.TABULAR))
def test_expert_data(problem):
    seen = []
    recording = recipes.generate(f"hoard/{problem}/expert-v0", lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60_000, 60_000)
    again = recipe.record(problem, episodes=3)
    for a, b in zip(again.episodes, recording.episodes):  # more episodes are other draws: only the start is common
        assert (a.observations[0] == b.observations[0]).all()
    twice = recipe.record(problem)
    for a, b in zip(twice.episodes, recording.episodes, strict=True):
        assert (a.observations == b.observations).all()
        assert (a.actions == b.actions).all()

    mdp = make_env(recording.eval_env_spec).unwrapped.mdp
    expert = tabular.soft_expert(mdp, recipe.TEMPERATURE)
    returns = []
    for episode in recording.episodes:
        states, actions = episode.observations.argmax(1), episode.actions.argmax(1)
        assert (episode.observations.sum(1) == 1).all()
        assert (states == episode.infos["state"]).all()
        assert (mdp.transition[states[:-1], actions, states[1:]] > 0).all()
        assert (mdp.reward[np.arange(20), states[:-1], actions] == episode.rewards).all()
        assert (expert[np.arange(20), states[:-1], actions] > 0).all()
        assert episode.truncations.tolist() == [False] * 19 + [True]
        assert not any(episode.terminations)
        returns.append(sum(episode.rewards))
    value = mdp.start @ tabular.evaluate_policy(mdp, expert)[0]
    assert abs(np.mean(returns) - value) < 5 * np.std(returns) / np.sqrt(len(returns))
    assert recording.ref_max_score == pytest.approx(mdp.start @ tabular.value_iteration(mdp)[1][0])
    uniform = tabular.evaluate_policy(mdp, tabular.uniform_policy(mdp))
    assert recording.ref_min_score == pytest.approx(mdp.start @ uniform[0])
    assert recording.ref_min_score < value < recording.ref_max_score


def test_the_policy_behind_the_data_is_known_for_these_sets_alone():
    mdp = tabular.double_chain()
    expert = recipe.expert_policy("hoard/doublechain/expert-v0", mdp)
    assert (expert == tabular.soft_expert(mdp, recipe.TEMPERATURE)).all()
    recording = recipe.record("doublechain", episodes=400)
    taken = np.mean([episode.actions[0].argmax() for episode in recording.episodes])
    p = expert[0, 15, 1]
    assert abs(taken - p) < 5 * np.sqrt(p * (1 - p) / 400) + 1e-9
    for other in ("test/doublechain-v0", "hoard/doublechain/expert-v1", "hoard/comblock/h5-v0"):
        assert recipe.expert_policy(other, mdp) is None
