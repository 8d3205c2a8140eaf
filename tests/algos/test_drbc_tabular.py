"""Tabular DRBC: its plan against exact soft values, its bounds, its clone, whole runs."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from resume import assert_same_run, kill, only_run
from toys import flat_dataset

from hoard.algos import drbc_tabular as algo
from hoard.datasets import load
from hoard.datasets.minari import writer
from hoard.datasets.minari.store import is_stored
from hoard.datasets.recipes import tabular as recipe
from hoard.envs import tabular
from hoard.runners.evaluate import Evaluator, evaluation_generator
from hoard.runners.policy import load_policy

CHAIN = "test/chain-v0"


@pytest.fixture(scope="module")
def chain(_own_datasets) -> str:
    """30 demonstrations in the double chain."""
    if not is_stored(CHAIN):
        writer.write(CHAIN, recipe.record("doublechain", episodes=30))
    return CHAIN


def known(mdp: tabular.FiniteMDP, n: float, pooled: bool = True) -> algo.Model:
    """A model that has seen every transition n times its probability; pooled, with the rewards of the first step."""
    model = algo.Model(mdp.states, mdp.actions, 1 if pooled else mdp.horizon)
    model.counts[:] = n * mdp.transition
    model.rewards[:] = n * (mdp.reward[:1] if pooled else mdp.reward)
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


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_table_for_each_step_takes_what_changes_with_the_step(weight):
    mdp = tabular.random_mdp(states=5, actions=3, horizon=6, seed=0)  # rewards of every step are others
    prior = some_prior(mdp)
    plan = algo.make_plan(known(mdp, 100.0, pooled=False), prior, weight, bonus=0.0, delta=0.1)
    _, v, policy = tabular.soft_value_iteration(mdp, prior, weight)
    np.testing.assert_allclose(plan.policy, policy, rtol=1e-9)
    np.testing.assert_allclose(plan.value, v[0], rtol=1e-9)


def sampled(mdp: tabular.FiniteMDP, episodes: int, seed: int = 0, pooled: bool = True) -> algo.Model:
    model = algo.Model(mdp.states, mdp.actions, 1 if pooled else mdp.horizon)
    states, actions = tabular.sample_episodes(mdp, tabular.uniform_policy(mdp), episodes, np.random.default_rng(seed))
    for path, moves in zip(states, actions):
        for h, action in enumerate(moves):
            model.add(h, path[h], action, mdp.reward[h, path[h], action], path[h + 1])
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


# --- UCBVI ---


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("bonus", [0.03, 1.0])
def test_kl_weight_0_is_ucbvi(pooled, bonus):
    """Against a backup written out number by number: a hard maximum, ties shared, no prior, no quadratic term."""
    mdp, delta = stationary(), 0.1
    states, actions, horizon = mdp.states, mdp.actions, mdp.horizon
    paths, moves = tabular.sample_episodes(mdp, tabular.uniform_policy(mdp), 4, np.random.default_rng(0))
    model = sampled(mdp, 4, pooled=pooled)
    plan = algo.make_plan(model, some_prior(mdp), 0.0, bonus, delta)

    seen: dict[tuple, list] = {}
    for path, taken in zip(paths, moves):
        for h, a in enumerate(taken):
            key = (0 if pooled else h, path[h], a)
            seen.setdefault(key, []).append((mdp.reward[h, path[h], a], path[h + 1]))
    up, low, gap = [0.0] * states, [0.0] * states, [0.0] * states
    tied = 0
    for h in reversed(range(horizon)):
        left = float(horizon - h)
        q_up, q_low, lacking = np.zeros((states, actions)), np.zeros((states, actions)), np.zeros((states, actions))
        for s in range(states):
            for a in range(actions):
                past = seen.get((0 if pooled else h, s, a), [])
                n = len(past)
                mean = lambda f, past=past, n=n: sum(map(f, past)) / n if n else 0.0  # noqa: E731
                b = bonus * left * np.sqrt(np.log(4 * states * actions * horizon * n / delta) / n) if n else left
                q_up[s, a] = min(max(mean(lambda x, up=up: x[0] + up[x[1]]) + b, 0), left)
                q_low[s, a] = min(max(mean(lambda x, low=low: x[0] + low[x[1]]) - b, 0), left)
                lacking[s, a] = (1 + 1 / horizon) * mean(lambda x, gap=gap: gap[x[1]]) + 3 * b
        np.testing.assert_allclose(plan.width[h], q_up - q_low, atol=1e-12)
        for s in range(states):
            best = [a for a in range(actions) if q_up[s, a] >= q_up[s].max() - 1e-12]
            tied += len(best) > 1
            expected = [1 / len(best) if a in best else 0.0 for a in range(actions)]
            np.testing.assert_allclose(plan.policy[h, s], expected)
            up[s], low[s] = q_up[s].max(), q_low[s].max()
            gap[s] = min(sum(expected[a] * lacking[s, a] for a in range(actions)), left)
        np.testing.assert_allclose(plan.gap[h], gap, atol=1e-12)
    np.testing.assert_allclose(plan.value, up, atol=1e-12)
    assert tied  # of actions never tried all are worth the steps that remain
    other = algo.make_plan(model, tabular.uniform_policy(mdp), 0.0, bonus, delta)
    assert (other.policy == plan.policy).all()
    assert (other.gap == plan.gap).all()


def test_a_small_kl_weight_comes_close_to_ucbvi_but_for_the_bound():
    mdp = stationary()
    model, prior = sampled(mdp, 300), some_prior(mdp)
    hard, soft = (algo.make_plan(model, prior, weight, 0.05, 0.1) for weight in (0.0, 1e-4))
    np.testing.assert_allclose(soft.value, hard.value, atol=0.005)
    np.testing.assert_allclose(soft.width, hard.width, atol=0.005)
    gap = np.sort(hard.policy, axis=-1)[..., -1]
    assert (gap == 1).mean() > 0.9  # hardly a tie
    np.testing.assert_allclose(soft.policy, hard.policy, atol=0.05)
    assert soft.gap[0].min() == mdp.horizon  # the quadratic term, divided by a weight near 0, says nothing
    assert hard.gap[0].max() < mdp.horizon


@pytest.mark.parametrize("episodes", [0, 3, 30, 1000])
def test_with_the_full_bonus_ucbvis_bound_holds(episodes):
    mdp = stationary()
    plan = algo.make_plan(sampled(mdp, episodes), some_prior(mdp), 0.0, bonus=1.0, delta=0.1)
    _, v, _ = tabular.value_iteration(mdp)
    assert (plan.value >= v[0] - 1e-9).all()
    assert (plan.gap >= v - tabular.evaluate_policy(mdp, plan.policy) - 1e-9).all()
    if episodes == 0:
        assert (plan.policy == 1 / mdp.actions).all()  # all alike


def test_ucbvis_bound_is_neither_empty_nor_wrong_with_data():
    """With the bonus of the runs it shrinks below the horizon, and still lies above what the policy lacks."""
    mdp = stationary()
    _, v, _ = tabular.value_iteration(mdp)
    plans = [algo.make_plan(sampled(mdp, n), some_prior(mdp), 0.0, 0.05, 0.1) for n in (10, 100, 3000)]
    gaps = [plan.gap[0].mean() for plan in plans]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1
    assert (plans[2].gap >= v - tabular.evaluate_policy(mdp, plans[2].policy) - 1e-9).all()


# --- model, clone, weight ---


@pytest.mark.parametrize("tables", [1, 4])
def test_counts_and_state(tables):
    model = algo.Model(3, 2, tables)
    for h, following, reward in ((0, 0, 1.0), (3, 2, 0.0), (3, 2, 0.5)):
        model.add(h, 1, 0, reward, following)
    assert model.counts.sum(axis=0)[1, 0].tolist() == [1, 0, 2]
    assert model.rewards.sum(axis=0)[1, 0] == 1.5
    assert model.counts.sum(axis=(1, 2, 3)).tolist() == ([3] if tables == 1 else [1, 0, 0, 2])
    model.stopped = 40
    again = algo.Model(3, 2, tables)
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


def test_theorys_weight_without_demonstrations_is_that_of_the_uniform_policy():
    """KL(any policy || uniform) <= H log A, with equality for the deterministic ones; a clone's is put no higher."""
    mdp = stationary()
    largest = mdp.horizon * np.log(mdp.actions)
    greedy = tabular.value_iteration(mdp)[2]
    assert tabular.trajectory_kl(mdp, greedy, tabular.uniform_policy(mdp)) == pytest.approx(largest)
    cfg = algo.Config(epsilon=0.5, kl_constant=0.1, prior="uniform")
    for demonstrations in (1, 1000):
        assert algo.weight_of(cfg, 5, 3, 6, demonstrations) == pytest.approx(0.5 / largest)
    assert algo.weight_of(algo.Config(epsilon=0.5, kl_constant=0.1), 5, 3, 6, 1) == pytest.approx(0.5 / largest)
    assert algo.weight_of(algo.Config(epsilon=0.5, kl_constant=0.1), 5, 3, 6, 9) == pytest.approx(0.5)


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
    assert counts.shape == (1, 31, 2, 31)
    assert counts.to_dense().sum() == 400
    assert "exact/expert_kl" not in metrics  # whose policy made test/chain-v0 is not known


def test_what_the_figure_of_demonstrations_is_made_of(run_file, tmp_path, monkeypatch):
    """A row of exact numbers per evaluation, as an own computation has them; steps counted for themselves."""
    dataset = "hoard/doublechain/expert-v0"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    writer.write(dataset, recipe.record("doublechain", episodes=30))
    args = options(dataset, pooled=False, log_every=40, eval_every=80, online_steps=240, checkpoint_every=200)
    assert run_file("drbc_tabular", *args).returncode == 0
    folder = only_run(tmp_path / "results")
    rows = pd.read_parquet(folder / "metrics.parquet").dropna(subset=["exact/suboptimality"])
    assert rows["env_step"].tolist() == [0, 80, 160, 240]
    assert (rows["update"] - 1).tolist() == [0, 4, 8, 12]  # episodes

    mdp = tabular.double_chain()
    clone = algo.clone_of(load(dataset), algo.Config(demonstrations=10), 20)
    expert = tabular.soft_expert(mdp, recipe.TEMPERATURE)
    best = mdp.start @ tabular.value_iteration(mdp)[1][0]
    np.testing.assert_allclose(rows["exact/optimum"], best)
    np.testing.assert_allclose(rows["exact/expert_kl"], tabular.trajectory_kl(mdp, expert, clone), rtol=1e-5)
    at_first = best - mdp.start @ tabular.evaluate_policy(mdp, clone)[0]
    for name in ("suboptimality", "model_suboptimality"):
        assert rows[f"exact/{name}"].iloc[0] == pytest.approx(at_first, rel=1e-5)
    assert rows["exact/kl"].iloc[0] == 0  # of the clone to itself
    assert (rows["exact/kl"].iloc[1:] > 0).all()

    model = algo.Model(31, 2, 20)
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["objects"]["model"])
    assert model.counts.sum(axis=(1, 2, 3)).tolist() == [12] * 20
    assert model.counts[0].sum() == model.counts[0, 15].sum()  # an episode starts in the middle
    last = algo.make_plan(model, clone, 0.1, 0.0, 0.1).policy
    lacking = best - mdp.start @ tabular.evaluate_policy(mdp, last)[0]
    assert rows["exact/model_suboptimality"].iloc[-1] == pytest.approx(lacking, rel=1e-5)


def test_ucbvi_as_a_run(chain, run_file, tmp_path):
    """The preset: greedy, nothing of the demonstrations in it, whatever their number."""
    returns = []
    for demonstrations in (3, 30):
        results = tmp_path / str(demonstrations)
        args = [*options(chain, demonstrations=demonstrations, kl_weight=0.0), "--preset", "ucbvi"]
        done = run_file("drbc_tabular", *args, results=results)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "kl_weight 0" in done.stdout
        metrics = pd.read_parquet(only_run(results) / "metrics.parquet")
        mdp = tabular.double_chain()
        uniform = mdp.start @ tabular.evaluate_policy(mdp, tabular.uniform_policy(mdp))[0]
        lacking = metrics["exact/optimum"] - metrics["exact/suboptimality"]
        assert lacking.dropna().iloc[0] == pytest.approx(uniform, rel=1e-4)  # what it starts from
        rows = pd.read_parquet(only_run(results) / "episodes.parquet")
        returns.append(rows[["env_step", "variant", "return"]])
    assert returns[0].equals(returns[1])


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


def test_the_actor_draws_from_the_step_of_its_table():
    """One-hot actions in the environment's units, as often as the table says, from the evaluation's generator."""
    actor = algo.Actor(algo.Config(), 3, 4, torch.Generator(), 2)
    assert (actor.table == 0.25).all()
    assert actor.scale_actions is False
    table = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 3)))
    actor.table.copy_(table)
    state = 1
    obs = torch.eye(3)[[state] * 20_000]
    for h in (0, 1):
        history = [SimpleNamespace(t=h, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
        actions = actor.act(obs, history[0])
        assert torch.equal(actions, actor.act(obs, history[1]))
        assert set(actions.unique().tolist()) == {0.0, 1.0}
        assert (actions.sum(dim=1) == 1).all()
        torch.testing.assert_close(actions.mean(dim=0).double(), table[h, state], atol=0.015, rtol=0)


@pytest.mark.parametrize("online_steps", [0, 100])
def test_the_kept_policy_is_the_evaluated_table(chain, run_file, tmp_path, online_steps):
    done = run_file("drbc_tabular", *options(chain, online_steps=online_steps))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = only_run(tmp_path / "results")
    policy = load_policy(folder)
    rows = pd.read_parquet(folder / "episodes.parquet").query("final and variant == ''")
    clone = algo.clone_of(load(chain), algo.Config(demonstrations=10), 20)
    kept = policy.actor.table.numpy()
    assert kept.shape == (20, 31, 2)
    assert (kept == clone).all() == (online_steps == 0)
    if online_steps:
        model = algo.Model(31, 2)
        model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["objects"]["model"])
        assert model.counts.sum() == 100
    # The same seeds and the generator of that evaluation give the same episodes.
    place = evaluation_generator(0, int(rows["update"].iloc[0]), online_steps)
    with contextlib.closing(Evaluator(policy.task)) as evaluate:
        again = evaluate(policy.actor, rows["eval_seed"].tolist(), place)
    assert [row["return"] for row in again] == rows["return"].tolist()
    # And it acts one episode on, from plain arrays.
    obs, reward, seen = np.eye(31, dtype=np.float32)[15], None, []
    for _ in range(20):
        seen.append(policy(obs, reward))
        reward = 0.0
    assert all(sorted(action.tolist()) == [0.0, 1.0] for action in seen)


def test_other_data_and_wrong_options_are_refused(tiny, chain, run_file):
    done = run_file("drbc_tabular", *options(tiny))
    assert done.returncode == 1
    assert "not one-hot" in done.stdout
    assert "demonstrations 31" in run_file("drbc_tabular", *options(chain, demonstrations=31)).stdout
    for name, value, message in (
        ("kl_weight", 0.0, "kl_weight 0 makes no use of a clone"),
        ("kl_weight", -0.1, "kl_weight -0.1"),
        ("delta", 0.0, "delta 0.0"),
        ("demonstrations", -1, "demonstrations -1"),
    ):
        done = run_file("drbc_tabular", *options(chain, **{name: value}))
        assert done.returncode == 2
        assert message in done.stderr
    with pytest.raises(ValueError, match="observations are not one-hot"):
        algo.clone_of(flat_dataset(), algo.Config(), 25)
