"""Tabular DRBC: its plan against exact soft values, its bounds, its clone, whole runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from resume import assert_same_run, kill, only_run
from toys import flat_dataset

from hoard.algos import drbc_tabular as algo
from hoard.datasets import load, minari_store
from hoard.datasets.recipes import tabular as recipe
from hoard.envs import tabular

CHAIN = "test/chain-v0"


@pytest.fixture(scope="module")
def chain(_own_datasets) -> str:
    """30 demonstrations in the double chain."""
    if not minari_store.is_stored(CHAIN):
        minari_store.write(CHAIN, recipe.record("doublechain", episodes=30))
    return CHAIN


def known(mdp: tabular.FiniteMDP, n: float) -> algo.Model:
    """A model that has seen every transition n times its probability."""
    model = algo.Model(mdp.states, mdp.actions)
    model.counts = n * mdp.transition
    model.rewards = n * mdp.reward[0]
    return model


def stationary(seed: int = 0) -> tabular.FiniteMDP:
    mdp = tabular.random_mdp(states=5, actions=3, horizon=6, seed=seed)
    return tabular.FiniteMDP(mdp.transition, np.repeat(mdp.reward[:1], 6, axis=0), mdp.start)


def some_prior(mdp: tabular.FiniteMDP, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(mdp.actions), size=mdp.reward.shape[:2])


@pytest.mark.parametrize("weight", [0.05, 1.0])
def test_without_bonus_the_plan_of_a_known_model_is_exact(weight):
    mdp = stationary()
    prior = some_prior(mdp)
    plan = algo.make_plan(known(mdp, 100.0), prior, weight, bonus=0.0, delta=0.1)
    _, v, policy = tabular.soft_value_iteration(mdp, prior, weight)
    np.testing.assert_allclose(plan.policy, policy, rtol=1e-9)
    np.testing.assert_allclose(plan.value, v[0], rtol=1e-9)
    assert plan.width.max() < 1e-12
    assert plan.gap.max() < 1e-12


def sampled(mdp: tabular.FiniteMDP, episodes: int, seed: int = 0) -> algo.Model:
    model = algo.Model(mdp.states, mdp.actions)
    states, actions = tabular.sample_episodes(mdp, tabular.uniform_policy(mdp), episodes, np.random.default_rng(seed))
    for path, moves in zip(states, actions):
        for h, action in enumerate(moves):
            model.add(path[h], action, mdp.reward[h, path[h], action], path[h + 1])
    return model


@pytest.mark.parametrize("episodes", [0, 3, 30, 1000])
def test_with_the_full_bonus_values_are_enclosed_and_the_bound_holds(episodes):
    """Q_lo <= Q* <= Q_up, and what the policy lacks in the penalised problem is below G at every step and state."""
    mdp, weight = stationary(), 0.5
    prior = some_prior(mdp)
    plan = algo.make_plan(sampled(mdp, episodes), prior, weight, bonus=1.0, delta=0.1)
    q, v, _ = tabular.soft_value_iteration(mdp, prior, weight)
    assert (plan.value >= v[0] - 1e-9).all()
    lacking = v - tabular.evaluate_policy(mdp, plan.policy, prior, weight)
    assert (plan.gap >= lacking - 1e-9).all()
    # Q_up of the first step, from policy = prior * exp((Q_up - V_up) / w); Q_lo = Q_up - width.
    first = weight * np.log(plan.policy[0] / prior[0]) + plan.value[:, None]
    assert (first >= q[0] - 1e-9).all()
    assert (first - plan.width[0] <= q[0] + 1e-9).all()
    if episodes == 0:
        np.testing.assert_allclose(plan.policy, prior, rtol=1e-9)  # nothing known: every action looks alike
        assert plan.gap[0].min() == mdp.horizon


def test_the_bound_shrinks_with_data():
    mdp = stationary()
    gaps = [algo.make_plan(sampled(mdp, n), some_prior(mdp), 1.0, 0.05, 0.1).gap[0].mean() for n in (10, 100, 3000)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 2


def test_counts_and_state():
    model = algo.Model(3, 2)
    for following, reward in ((0, 1.0), (2, 0.0), (2, 0.5)):
        model.add(1, 0, reward, following)
    assert model.counts[1, 0].tolist() == [1, 0, 2]
    assert model.rewards[1, 0] == 1.5
    model.stopped = 40
    again = algo.Model(3, 2)
    again.load_state_dict(model.state_dict())
    assert (again.counts == model.counts).all()
    assert (again.rewards == model.rewards).all()
    assert again.stopped == 40


def test_the_clone_counts_the_chosen_demonstrations(chain):
    dataset = load(chain)
    states, actions = (x.reshape(30, 20) for x in (dataset.obs.argmax(1), dataset.action.argmax(1)))
    clone = algo.clone_of(dataset, algo.Config(demonstrations=0), 20)
    np.testing.assert_array_equal(clone, tabular.laplace_clone(states, actions, 31, 2))
    plain = algo.clone_of(dataset, algo.Config(demonstrations=0, smoothing=0.0), 20)
    assert set(plain[0, 3].tolist()) == {0.5}  # never there at the first step
    assert plain[0, 15].tolist() == [np.mean(actions[:, 0] == a) for a in (0, 1)]
    few = [algo.clone_of(dataset, algo.Config(demonstrations=3, seed=seed), 20) for seed in (0, 0, 1)]
    assert (few[0] == few[1]).all()
    assert (few[0] != few[2]).any()
    at_start = few[0][0, 15] * (3 + 2) - 1  # counts of three episodes
    assert at_start.sum() == pytest.approx(3)


def test_theorys_weight_grows_with_demonstrations():
    cfg = algo.Config(epsilon=0.5, kl_constant=0.1)
    assert algo.weight_of(cfg, 25, 4, 12, 100) == pytest.approx(0.5 / (0.1 * 25 * 4 * 12 / 100))
    assert algo.weight_of(cfg, 25, 4, 12, 200) == 2 * algo.weight_of(cfg, 25, 4, 12, 100)
    assert algo.weight_of(algo.Config(kl_weight=0.3), 25, 4, 12, 100) == 0.3


# --- whole runs ---

OPTIONS = {
    "demonstrations": 10, "online_steps": 400, "kl_weight": 0.1, "bonus": 0.02, "log_every": 100, "eval_every": 200,
    "eval_episodes": 3, "final_eval_episodes": 5, "checkpoint_every": 100,
}  # fmt: skip


def options(dataset: str, **more: object) -> list[str]:
    values = {"dataset": dataset, **OPTIONS, **more}
    return [part for k, v in values.items() for part in (f"--{k.replace('_', '-')}", str(v))]


def test_end_to_end(chain, run_file, tmp_path):
    done = run_file("drbc_tabular", *options(chain))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path / "results")
    rows = pd.read_parquet(folder / "episodes.parquet")
    points = rows.groupby(["variant", "update", "env_step", "final"]).size().to_dict()
    assert points == {
        ("", 1, 0, False): 3,
        ("", 11, 200, False): 3,
        ("", 21, 400, True): 5,
        ("model", 21, 400, True): 5,
    }
    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert metrics["learner/gap"].dropna().between(0, 20).all()
    exact = metrics["exact/suboptimality"].dropna()
    assert exact.between(-1e-9, 1.95).all()
    assert len(exact) == 3
    counts = torch.load(folder / "checkpoint.pt", weights_only=True)["objects"]["model"]["counts"]
    assert counts.to_dense().sum() == 400


def test_with_demonstrations_it_finds_the_far_end_sooner(chain, run_file, tmp_path):
    """Five episodes in the chain: the score of the estimated model's plan, held to the clone and to nothing."""

    def score(**more):
        scores = []
        for seed in range(3):
            results = tmp_path / f"{seed}{len(more)}"
            args = options(chain, seed=seed, demonstrations=30, online_steps=100, final_eval_episodes=20, **more)
            done = run_file("drbc_tabular", *args, results=results)
            assert done.returncode == 0, done.stdout + done.stderr
            rows = pd.read_parquet(only_run(results) / "episodes.parquet")
            scores.append(rows[rows.final & (rows.variant == "model")].score.mean())
        return np.mean(scores)

    with_clone, without = score(), score(prior="uniform")
    assert with_clone > without + 20


def test_the_clone_alone(chain, run_file, tmp_path):
    assert run_file("drbc_tabular", *options(chain, online_steps=0)).returncode == 0
    rows = pd.read_parquet(only_run(tmp_path / "results") / "episodes.parquet")
    assert rows.groupby(["update", "env_step", "final"]).size().to_dict() == {(1, 0, True): 5}


def test_killed_and_resumed_equals_undisturbed(chain, run_file, tmp_path):
    args = options(chain, online_steps=2000, checkpoint_every=300, eval_every=1000)
    assert run_file("drbc_tabular", *args, results=tmp_path / "straight").returncode == 0
    kill("drbc_tabular", args, tmp_path / "broken", env_step=500)
    resumed = run_file("drbc_tabular", *args, results=tmp_path / "broken")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resuming after environment step" in resumed.stdout
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


def test_other_data_and_wrong_options_are_refused(tiny, chain, run_file):
    done = run_file("drbc_tabular", *options(tiny))
    assert done.returncode == 1
    assert "not one-hot" in done.stdout
    assert "demonstrations 31" in run_file("drbc_tabular", *options(chain, demonstrations=31)).stdout
    assert "kl_weight 0.0" in run_file("drbc_tabular", *options(chain, kl_weight=0.0)).stdout
    with pytest.raises(ValueError, match="observations are not one-hot"):
        algo.clone_of(flat_dataset(), algo.Config(), 25)
