"""Decision Mamba's losses, self-evolution, windows and whole runs."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from kept import assert_kept_policy_repeats_the_score
from resume import assert_same_run, checkpoint, kill, only_run
from toys import FakeRun, Listening, flat_dataset, history_of, make_dataset

from hoard.algos import decision_mamba as dm
from hoard.datasets import ReplayBuffer

SMALL = dm.Config(width=16, blocks=1, heads=2, state=4, context=5, batch_size=8, updates=12, teacher_every=3, warmup=4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def actor_of(cfg: dm.Config = SMALL, seed: int = 0) -> dm.Actor:
    actor = dm.Actor(cfg, 3, 2, generator(seed)).double()
    actor.normalize.fit(torch.full((3,), 2.0), torch.full((3,), 0.9))
    return actor


def batch_of(lengths: list[int], steps: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    """Windows of these lengths, padded on the right with zeros."""
    g = generator(seed)
    n = len(lengths)
    batch = {
        "obs": torch.randn(n, steps, 3, generator=g, dtype=torch.float64) + 2,
        "action": 2 * torch.rand(n, steps, 2, generator=g, dtype=torch.float64) - 1,
        "return_to_go": torch.randn(n, steps, generator=g, dtype=torch.float64),
        "timestep": torch.arange(steps).repeat(n, 1),
    }
    mask = (torch.arange(steps) < torch.tensor(lengths)[:, None]).double()
    for name, values in batch.items():
        batch[name] = values * mask.reshape(n, steps, *[1] * (values.ndim - 2)).to(values.dtype)
    return batch | {"mask": mask}


def gradients(actor, loss) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(actor.parameters()), allow_unused=True, materialize_grads=True)


# --- losses ---


def test_losses_by_hand_over_real_steps_only():
    """Window by window without padding: T actions, T - 1 next states and next returns, then one mean over all."""
    actor, lengths = actor_of(), [5, 3, 1]
    batch = batch_of(lengths)
    loss, metrics = dm.actor_loss(actor, batch, SMALL)
    errors = {"action": [], "next_obs": [], "next_return": []}
    for k, length in enumerate(lengths):
        window = {name: values[k : k + 1, :length] for name, values in batch.items()}
        x = actor.tokens(window)[0]
        target = (window["obs"][0] - actor.normalize.mean) / actor.normalize.std
        for t in range(length):
            errors["action"].append(((actor.action_head(x[t, 1]) - window["action"][0, t]) ** 2).mean())
            if t + 1 < length:
                for name, out, wanted in (
                    ("next_obs", actor.obs_head(x[t, 2]), target[t + 1]),
                    ("next_return", actor.return_head(x[t, 2]), window["return_to_go"][0, t + 1 : t + 2]),
                ):
                    gap = (out - wanted).abs()
                    errors[name].append(torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean())
    assert [len(v) for v in errors.values()] == [9, 6, 6]
    mean = {name: torch.stack(values).mean() for name, values in errors.items()}
    for name, value in mean.items():
        assert metrics[f"losses/{name}"].item() == pytest.approx(value.item(), rel=1e-9)
    assert loss.item() == pytest.approx(
        (0.9 * mean["action"] + 0.05 * mean["next_obs"] + 0.05 * mean["next_return"]).item(), rel=1e-9
    )


@pytest.mark.parametrize("ssm", ["ssd", "mamba1"])
def test_what_stands_in_the_padding_changes_no_gradient(ssm):
    cfg = replace(SMALL, ssm=ssm)
    actor, batch = actor_of(cfg), batch_of([5, 3, 1])
    noise, mask = batch_of([5, 5, 5], seed=7), batch["mask"]
    other = dict(batch)
    for name in ("obs", "action", "return_to_go"):
        real = mask.reshape(3, 5, *[1] * (batch[name].ndim - 2))
        other[name] = batch[name] * real + 100 * noise[name] * (1 - real)
        assert not torch.equal(other[name], batch[name])
    teacher = actor_of(cfg, seed=1)
    losses = [dm.actor_loss(actor, b, cfg, 0.4, teacher(b).detach())[0] for b in (batch, other)]
    for one, two in zip(*(gradients(actor, loss) for loss in losses)):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_windows_of_one_step_have_no_next_step_to_predict():
    loss, metrics = dm.actor_loss(actor_of(), batch_of([1, 1]), SMALL)
    assert metrics["losses/next_obs"] == metrics["losses/next_return"] == 0
    assert loss.item() == pytest.approx(0.9 * metrics["losses/action"].item())


def test_each_loss_depends_on_its_own_weight_only():
    actor, batch = actor_of(), batch_of([5, 4, 2])
    teacher_action = actor_of(seed=1)(batch).detach()

    def parts(beta=0.0, **options):
        loss, metrics = dm.actor_loss(actor, batch, replace(SMALL, **options), beta, teacher_action if beta else None)
        return loss.item(), {name: metrics[f"losses/{name}"].item() for name in ("action", "next_obs", "next_return")}

    weights = {"action_weight": "action", "state_weight": "next_obs", "return_weight": "next_return"}
    for beta in (0.0, 0.4):
        loss, errors = parts(beta)
        for weight, name in weights.items():
            more, same = parts(beta, **{weight: getattr(SMALL, weight) + 2})
            assert same == errors
            assert more - loss == pytest.approx(2 * errors[name], rel=1e-9)
    # Neither switch touches the other's term, nor the weight of the actions.
    plain, evolved = parts(0.0)[1], parts(0.4)[1]
    assert plain["action"] != evolved["action"]
    assert (plain["next_obs"], plain["next_return"]) == (evolved["next_obs"], evolved["next_return"])
    alone, metrics = dm.actor_loss(actor, batch, replace(SMALL, auxiliary=False))
    assert "losses/next_obs" not in metrics
    assert alone.item() == pytest.approx(0.9 * plain["action"])


# --- self-evolution ---


def test_share_of_the_teacher():
    cfg = dm.Config(updates=100_000, teacher_every=2500)
    share = lambda k: [dm.teacher_share(u, cfg) for u in (2500 * (k - 1) + 1, 2500 * k)]  # noqa: E731
    assert share(1) == [0.0, 0.0]
    assert share(2) == pytest.approx([0.0425] * 2)
    assert share(23) == pytest.approx([0.48875] * 2)
    assert share(24) == share(40) == [0.5, 0.5]
    assert dm.teacher_share(99_999, replace(cfg, self_evolution=False)) == 0.0
    assert dm.teacher_share(99_999, replace(cfg, beta=0.3)) == pytest.approx(0.3)


def test_gradient_is_bc_plus_a_pull_to_the_teacher():
    """(1-b)|pi-a|^2 + b|pi-p|^2 has the same gradient; with p = pi it is (1-b) times BC's; with b = 0 it is BC."""
    cfg = replace(SMALL, auxiliary=False, action_weight=1.0)
    actor, batch = actor_of(cfg), batch_of([5, 3])
    bc = gradients(actor, dm.actor_loss(actor, batch, cfg)[0])
    for beta in (0.0, 0.3):
        itself = gradients(actor, dm.actor_loss(actor, batch, cfg, beta, actor(batch).detach())[0])
        other = actor_of(cfg, seed=1)(batch).detach()
        pulled = gradients(actor, dm.actor_loss(actor, batch, cfg, beta, other)[0])
        towards = gradients(actor, dm.actor_loss(actor, batch, cfg, 1.0, other)[0])
        for a, b, c, d in zip(bc, itself, pulled, towards):
            torch.testing.assert_close(b, (1 - beta) * a, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(c, (1 - beta) * a + beta * d, rtol=1e-9, atol=1e-12)


def trained(cfg: dm.Config, seed: int = 0, **kwargs) -> tuple[FakeRun, list[dict]]:
    """A run and the state of its modules after each update."""
    run, states = FakeRun(flat_dataset(n=60), seed, **kwargs), []
    run.on_update = lambda: states.append(
        {k: copy.deepcopy(v.state_dict()) for k, v in run.objects.items() if isinstance(v, torch.nn.Module)}
    )
    dm.train(cfg, run)
    return run, states


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_teacher_is_the_policy_of_the_last_block():
    run, states = trained(SMALL, remember_start=True)
    for update in range(4, 13):
        taken = (update - 1) // 3 * 3  # the actor after this many updates
        assert same(states[update - 1]["teacher"], states[taken - 1]["actor"]), update
        assert not same(states[update - 1]["teacher"], states[update - 1]["actor"])
    assert all(same(state["teacher"], run.start["actor"].state_dict()) for state in states[:3])
    assert all(not p.requires_grad and p.grad is None for p in run.objects["teacher"].parameters())
    logged = [row["evolution/beta"].item() for row in run.logged]
    assert logged == pytest.approx([0] * 3 + [0.85 * 2 / 4] * 3 + [0.5] * 6)
    assert ["evolution/teacher_gap" in row for row in run.logged] == [False] * 3 + [True] * 9


def test_the_teacher_changes_the_training_from_the_second_block_on():
    (on, evolved), (off, plain) = trained(SMALL), trained(replace(SMALL, self_evolution=False))
    assert [same(a["actor"], b["actor"]) for a, b in zip(evolved, plain)] == [True] * 3 + [False] * 9
    assert "teacher" in on.objects
    assert "teacher" not in off.objects


def test_updates_equal_a_second_writing():
    """Sampling, label, losses, clipping, warm-up and AdamW with its two groups, over all blocks of a short run."""
    cfg = replace(SMALL, weight_decay=0.1, lr=1e-2, return_scale=2.0)
    run, _ = trained(cfg, seed=3, remember_start=True)
    actor, g = run.start["actor"], run.start_generator
    teacher = copy.deepcopy(actor)
    matrices = [p for n, p in actor.named_parameters() if p.ndim > 1 and "A_log" not in n]
    rest = [p for n, p in actor.named_parameters() if p.ndim == 1 or "A_log" in n]
    adam = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.999), eps=1e-6
    )
    buffer = ReplayBuffer(run.dataset, extra={"return_to_go": run.dataset.returns_to_go() / 2})
    for n in range(1, 13):
        k = (n + 2) // 3
        if n in (4, 7, 10):
            teacher.load_state_dict(actor.state_dict())
        b = buffer.sample_sequences(8, 5, g)
        beta = 0 if k == 1 else min(0.5, 0.85 * k / 4)
        label = (1 - beta) * b["action"] + beta * teacher(b).detach()
        x, m = actor.tokens(b), b["mask"]
        loss = 0.9 * (((actor(b) - label) ** 2).sum(-1) * m).sum() / (2 * m.sum())
        pair = m[:, 1:]  # padding is on the right
        for head, wanted in (
            (actor.obs_head, (b["obs"] - actor.normalize.mean) / actor.normalize.std),
            (actor.return_head, b["return_to_go"][..., None]),
        ):
            error = torch.nn.functional.smooth_l1_loss(head(x[:, :-1, 2]), wanted[:, 1:], reduction="none")
            loss = loss + 0.05 * (error.mean(-1) * pair).sum() / pair.sum()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(actor.parameters(), 0.25)
        for group in adam.param_groups:
            group["lr"] = 1e-2 * min(1, n / 4)
        adam.step()
        assert run.logged[n - 1]["losses/actor"].item() == pytest.approx(loss.item(), rel=1e-4)
    for mine, theirs in zip(actor.parameters(), run.objects["actor"].parameters()):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-5)


# --- data and evaluation ---


def test_training_and_acting_see_the_same_windows(monkeypatch):
    """An episode of the data, replayed with its own return as target: windows equal those of the sampler."""
    dataset = flat_dataset(rewards=np.arange(1.0, 8.0), lengths=[7], high=4.0)
    actor = dm.Actor(SMALL, 3, 2, generator())
    actor.target.fill_(28.0)
    actor.return_scale.fill_(3.0)
    buffer = ReplayBuffer(dataset, extra={"return_to_go": dataset.returns_to_go() / 3})
    wanted = [28 / 3, 27 / 3, 25 / 3, 22 / 3, 18 / 3, 13 / 3, 7 / 3]
    assert buffer.extra["return_to_go"].tolist() == pytest.approx(wanted)
    monkeypatch.setattr(buffer, "draw", lambda *_: torch.tensor([first]))
    seen = []
    monkeypatch.setattr(actor, "forward", lambda window: seen.append(window) or torch.zeros(1, 1, 2))
    obs, reward = (torch.as_tensor(x)[None] for x in (dataset.observations, dataset.reward))
    for t in range(7):
        actor.act(obs[:, t], history_of(obs, buffer.action[None], reward, t))
        first = max(0, t - 4)
        length = t + 1 - first
        wanted = buffer.sample_sequences(1, 5, generator())
        for name in ("obs", "return_to_go", "timestep"):
            torch.testing.assert_close(seen[-1][name], wanted[name][:, :length])
        torch.testing.assert_close(seen[-1]["action"][:, :-1], wanted["action"][:, : length - 1])
        assert seen[-1]["action"].shape[1] == length
        assert wanted["mask"][0, :length].all()


@pytest.mark.parametrize(
    ("rule", "fraction", "wanted"),
    [("max_return", 2.0, 56.0), ("dataset_range", 0.5, 15.5), ("reference_range", 0.5, 15.0)],
)
def test_targets_by_hand(rule, fraction, wanted):
    dataset = replace(flat_dataset(rewards=[1.0, 2, 4, 8, 16], lengths=[2, 3]), ref_min=10.0, ref_max=20.0)
    assert dm.target_of(dataset, dm.Config(target_rule=rule), fraction) == pytest.approx(wanted)
    if rule == "reference_range":
        with pytest.raises(ValueError, match="no reference returns"):
            dm.target_of(flat_dataset(), dm.Config(target_rule=rule), fraction)


@pytest.mark.parametrize("options", [{}, {"ssm": "mamba1"}], ids=str)
def test_one_batch_can_be_learnt_by_heart(options):
    cfg = replace(SMALL, **options)
    dataset, g = flat_dataset(), generator()
    actor = dm.Actor(cfg, 3, 2, g)
    batch = ReplayBuffer(dataset, extra={"return_to_go": dataset.returns_to_go()}).sample_sequences(8, 5, g)
    adam = torch.optim.AdamW(dm.parameter_groups(actor, 0.0), lr=1e-2)
    errors = []
    for _ in range(80):
        loss, metrics = dm.actor_loss(actor, batch, cfg)
        adam.zero_grad()
        loss.backward()
        adam.step()
        errors.append(metrics["losses/action"].item())
    assert errors[-1] < errors[0] / 10


def two_behaviours(n: int = 100, steps: int = 3):
    """Episodes from one state: action -0.8 in every step returns 0, action +0.8 returns 3, three to one."""
    good = np.repeat(np.arange(n) % 4 == 0, steps)
    last = np.arange(n * steps) % steps == steps - 1
    return make_dataset(
        np.ones((n * (steps + 1), 2)), np.where(good, 0.8, -0.8)[:, None], good.astype(float), last, [steps] * n
    )


@pytest.mark.parametrize("options", [{}, {"recurrent_eval": True}], ids=str)
def test_a_higher_target_gives_a_higher_return(options):
    # The last actor still looks back at its teacher's mistakes, so few and small shares of it.
    cfg = replace(
        SMALL, updates=100, teacher_every=50, beta=0.2, context=3, batch_size=16, lr=1e-2, clip_norm=10.0,
        extra_targets=(0.0,), **options,
    )  # fmt: skip
    run = Listening(two_behaviours(), seed=0)
    dm.train(cfg, run)
    for variant, wanted, reward in (("", 0.8, 1.0), ("target=0", -0.8, 0.0)):
        act, obs, action = run.policies[variant], torch.ones(1, 4, 2), torch.zeros(1, 3, 1)
        with torch.no_grad():
            for t in range(3):
                action[:, t] = act(obs[:, t], history_of(obs, action, torch.full((1, 3), reward), t))
        assert action.flatten().tolist() == pytest.approx([wanted] * 3, abs=0.25), variant


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("ssm", ["ssd", "mamba1"])
def test_updates_do_not_wait_for_the_device(ssm):
    run = FakeRun(flat_dataset(n=60), seed=0, device="cuda")
    run.on_update = lambda: torch.cuda.set_sync_debug_mode("error")
    try:
        dm.train(replace(SMALL, ssm=ssm), run)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- whole runs ---


def tiny_options(dataset: str, **options: object) -> list[str]:
    values: dict[str, object] = {
        "dataset": dataset, "updates": 60, "width": 16, "blocks": 1, "heads": 2, "context": 4, "batch_size": 8,
        "teacher_every": 10, "warmup": 5, "log_every": 10, "eval_every": 60, "eval_episodes": 1,
        "final_eval_episodes": 2, "checkpoint_every": 20, **options,
    }  # fmt: skip
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize(
    "options",
    [{"ssm": "mamba1", "recurrent_eval": True, "extra_targets": 0.5}, {"self_evolution": False}],
    ids=["recurrent", "window"],
)
def test_a_run_from_the_command_line(tiny, run_file, tmp_path, options):
    """And the policy that it keeps is the one that was scored: target and scales are kept with the weights."""
    done = run_file("decision_mamba", *tiny_options(tiny, **options))
    assert done.returncode == 0, done.stderr + done.stdout
    folder = only_run(tmp_path / "results")
    rows = pd.read_parquet(folder / "episodes.parquet")
    variants = {"", "target=0.5"} if "extra_targets" in options else {""}
    assert set(rows.variant) == variants
    assert (rows[rows.final].groupby("variant").size() == 2).all()
    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert metrics["losses/actor"].notna().all()
    assert ("teacher" in checkpoint(folder)["objects"]) == ("ssm" in options)
    assert_kept_policy_repeats_the_score(folder)


def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    """SIGKILL in the middle of a block, well after the teacher was last taken: the same bits as a run never killed."""
    args = tiny_options(
        tiny, updates=80, teacher_every=30, checkpoint_every=25, log_every=5, eval_every=80, dropout=0.1,
        final_eval_episodes=1,
    )  # fmt: skip
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("decision_mamba", *args, results=straight).returncode == 0
    kill("decision_mamba", args, broken, update=65)
    resumed = run_file("decision_mamba", *args, results=broken)
    assert "resuming after update" in resumed.stdout
    assert_same_run(straight, broken)
    objects = checkpoint(only_run(broken))["objects"]
    assert not same(objects["actor"], objects["teacher"])
