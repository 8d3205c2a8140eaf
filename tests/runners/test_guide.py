"""A guide that begins training episodes: what is asked for, who acts when, how the curriculum falls, its resume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import small
from resume import assert_same_run, kill, only_run

from hoard.datasets import load
from hoard.records.errors import BadInput
from hoard.runners import guide
from hoard.runners.policy import load_policy
from hoard.runners.task import task_of
from hoard.runners.training_env import TrainingEnv


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("none", None),
        ("runs/x", guide.Plan("runs/x")),
        ("runs/x,schedule=random,steps=7", guide.Plan("runs/x", "random", 7)),
        ("a,stages=3,window=2,tolerance=0.5", guide.Plan("a", "curriculum", None, 3, 2, 0.5)),
    ],
)
def test_forms(text, plan):
    assert guide.parse(text) == plan


@pytest.mark.parametrize(
    "text",
    ["x,steps", "x,steps=0", "x,steps=2.5", "x,pace=1", "x,stages=1,stages=2", "x,schedule=slow", "x,tolerance=1"],
)
def test_other_forms_are_refused(text):
    with pytest.raises(BadInput, match=f"guide {text}"):
        guide.parse(text)


@pytest.fixture
def leader(tiny, run_file, tmp_path):
    done = run_file("bc", *small(tiny), results=tmp_path / "leader")
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(tmp_path / "leader")


def test_the_command_line_refuses_other_forms_before_anything_starts(tiny, run_file):
    done = run_file("sac", *small(tiny, updates=0, online_steps=50, guide="x,pace=2"))
    assert done.returncode == 2
    assert "guide x,pace=2: 'pace=2' is unknown" in done.stdout + done.stderr


def episode(env, action=0.9):
    """One episode of a learner that always plays `action`, in [-1, 1]: what was executed at each step."""
    executed, ended = [], False
    while not ended:
        step = env.step(torch.full((1, env.action_dim), action))
        executed.append(step.executed_action)
        ended = step.terminated or step.truncated
    return np.array(executed)


def test_the_guide_acts_first_and_the_learner_then(leader, tiny):
    task = task_of(load(tiny))
    lead = guide.Guide(guide.parse(f"{leader},steps=20,stages=4,window=2,tolerance=0.99"), task, 0, "cpu")
    env = TrainingEnv(task, 0, torch.device("cpu"), lambda _: None, guide=lead)
    plain, policy = TrainingEnv(task, 0, torch.device("cpu"), lambda _: None), load_policy(leader)
    assert np.array_equal(env.obs, plain.obs)
    wanted = policy(env.obs[0].numpy()) / task.high
    executed = episode(env)
    np.testing.assert_allclose(executed[0], wanted, atol=1e-6)
    assert (executed[20:] == np.float32(0.9)).all()
    assert not (executed[:20] == np.float32(0.9)).any()
    played = [20]
    for _ in range(8):
        executed = episode(env)
        played.append(int(np.argmax(executed[:, 0] == np.float32(0.9))))
    assert played == [20, 20, 15, 15, 10, 10, 5, 5, 0]  # two episodes a stage, then the learner alone


def test_a_guide_that_looks_back_sees_its_own_episode_alone(tiny, run_file, tmp_path):
    done = run_file("rcsl", *small(tiny), results=tmp_path / "leader")
    assert done.returncode == 0, done.stdout + done.stderr
    leader = only_run(tmp_path / "leader")
    task = task_of(load(tiny))
    lead = guide.Guide(guide.parse(f"{leader},steps=20,stages=4,window=9,tolerance=0.99"), task, 0, "cpu")
    env, policy = TrainingEnv(task, 0, torch.device("cpu"), lambda _: None, guide=lead), load_policy(leader)
    assert policy.uses_history
    for _ in range(2):
        policy.reset()
        ended, reward, executed, wanted = False, None, [], []
        while not ended:
            wanted.append(policy(env.obs[0].numpy(), reward) / task.high)
            step = env.step(torch.full((1, env.action_dim), 0.9))
            executed.append(step.executed_action)
            reward, ended = step.reward, step.terminated or step.truncated
        np.testing.assert_allclose(executed[:20], wanted[:20], atol=1e-5)


def test_a_stage_waits_until_the_mean_return_holds():
    lead = object.__new__(guide.Guide)
    lead.plan, lead.steps, lead._run_seed = guide.Plan("x", stages=10, window=2, tolerance=0.1), 100, 0
    lead.stage, lead.best, lead.returns = 0, None, []
    seen = []
    for one in (10.0, 10.0, 4.0, 4.0, 8.0, 9.5, 20.0, 20.0, 17.0, 17.0, -100.0):
        lead.ended(one)
        seen.append((lead.stage, lead.best))
    # 10, 10: the guide's level; 4, 4 and 4, 8 are below 9, and so is 8, 9.5 (8.75); 9.5, 20 is not
    assert seen == [
        (0, None), (1, 10.0), (1, 10.0), (1, 10.0), (1, 10.0), (1, 10.0), (2, 14.75), (2, 14.75), (3, 18.5), (3, 18.5),
        (3, 18.5),
    ]  # fmt: skip


def test_random_horizons_follow_from_seed_and_episode(leader, tiny):
    task = task_of(load(tiny))
    drawn = []
    for seed in (0, 0, 1):
        lead = guide.Guide(guide.parse(f"{leader},schedule=random,steps=50"), task, seed, "cpu")
        horizons = []
        for number in range(400):
            lead.begin(number)
            horizons.append(lead.horizon)
        drawn.append(horizons)
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) <= set(range(51))
    assert np.mean(drawn[0]) == pytest.approx(25, abs=3)


def test_a_guide_for_another_task_or_none_at_all_is_refused(leader, tiny, tmp_path):
    task = task_of(load("hoard/doublechain/expert-v0"))
    with pytest.raises(BadInput, match=r"guide .* does not fit hoard/doublechain/expert-v0"):
        guide.Guide(guide.parse(str(leader)), task, 0, "cpu")
    with pytest.raises(BadInput, match="there is no policy"):
        guide.Guide(guide.parse(str(tmp_path)), task_of(load(tiny)), 0, "cpu")


@pytest.mark.parametrize("schedule", ["curriculum", pytest.param("random", marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_undisturbed(leader, tiny, run_file, tmp_path, schedule):
    more = {"guide": f"{leader},schedule={schedule},steps=60,stages=3,window=1", "start_steps": 200, "hidden": "8"}
    args = small(tiny, updates=0, online_steps=1200, checkpoint_every=200, eval_every=600, **more)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = run_file("sac", *args, results=straight)
    assert done.returncode == 0, done.stdout + done.stderr
    kill("sac", args, broken, env_step=700)
    assert "resuming after" in run_file("sac", *args, results=broken).stdout
    assert_same_run(straight, broken)
