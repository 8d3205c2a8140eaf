"""Decision Transformer: attention, nothing from the future, the loss, windows and whole runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from kept import assert_kept_policy_repeats_the_score
from resume import assert_same_run, kill, only_run
from toys import FakeRun, Listening, flat_dataset, history_of, make_dataset

from hoard.algos import decision_transformer as dt
from hoard.datasets import ReplayBuffer
from hoard.records.errors import BadInput
from hoard.runners.config import check

SMALL = dt.Config(width=16, blocks=2, heads=2, context=5, batch_size=8, updates=12, warmup=4, dropout=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def actor_of(cfg: dt.Config = SMALL, seed: int = 0) -> dt.Actor:
    actor = dt.Actor(cfg, 3, 2, generator(seed)).double()
    actor.normalize.fit(torch.full((3,), 2.0), torch.full((3,), 0.9))
    return actor


def batch_of(lengths: list[int], steps: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    """Windows of these lengths, padded on the right with zeros."""
    n = len(lengths)
    mask = (torch.arange(steps) < torch.tensor(lengths)[:, None]).double()
    return {
        "obs": (draw(n, steps, 3, seed=seed) + 2) * mask[..., None],
        "action": draw(n, steps, 2, seed=seed + 1).clamp(-1, 1) * mask[..., None],
        "return_to_go": draw(n, steps, seed=seed + 2) * mask,
        "timestep": torch.arange(5, 5 + steps).expand(n, -1) * mask.long(),
        "mask": mask,
    }


# --- the model ---


def test_attention_equals_torchs():
    block = dt.Block(SMALL, generator()).double()
    x = draw(2, 9, 16)
    q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in block.qkv(block.norm1(x)).chunk(3, dim=-1))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    y = x + block.out(mixed)
    y = y + block.down(torch.nn.functional.gelu(block.up(block.norm2(y))))
    torch.testing.assert_close(block(x, [None] * 3), y)


@pytest.mark.parametrize("blocks", [1, 3])
def test_nothing_from_the_future(blocks):
    """At every position, by autograd: the action at s_t sees all of the past, nothing of a_t or later."""
    actor, length = actor_of(replace(SMALL, blocks=blocks)), 6
    window = batch_of([length], length)
    inputs = {name: window[name].requires_grad_() for name in ("obs", "action", "return_to_go")}
    action = actor(window)
    for t in range(length):
        out = (action[0, t] * torch.arange(1, 3)).sum()
        gradients = torch.autograd.grad(out, list(inputs.values()), retain_graph=True)
        for name, gradient in zip(inputs, gradients):
            size = gradient[0].reshape(length, -1).abs().amax(dim=1)
            seen = t - 1 if name == "action" else t
            assert (size[seen + 1 :] == 0).all(), (t, name)
            assert (size[: seen + 1] > 0).all(), (t, name)


def test_padding_on_the_right_changes_nothing():
    actor, window = actor_of(), batch_of([6] * 4, 6)
    short = {name: values[:, :3] for name, values in window.items()}
    torch.testing.assert_close(actor.tokens(window)[:, :3], actor.tokens(short), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("embedding", ["linear", "mlp"])
def test_no_dead_parameters(embedding):
    actor = actor_of(replace(SMALL, embedding=embedding))
    dt.actor_loss(actor, batch_of([6] * 4, 6))[0].backward()
    dead = [name for name, p in actor.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


def test_the_config_is_what_is_built():
    """Parameter counts of the paper's sizes, computed by hand, and of the small model's parts."""
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    d, obs, act, rows = 128, 17, 6, 1000
    blocks = 3 * (2 * 2 * d + 3 * d * d + 3 * d + d * d + d + 8 * d * d + 5 * d)
    wanted = blocks + (1 + obs + act + 3) * d + rows * d + 2 * 2 * d + act * d + act
    assert count(dt.Actor(dt.Config(**dt.PRESETS["paper"]), obs, act, generator())) == wanted
    base = count(actor_of())
    for option, value in (("width", 32), ("blocks", 3), ("time_rows", 7), ("embedding", "mlp")):
        assert count(actor_of(replace(SMALL, **{option: value}))) != base, option


@pytest.mark.parametrize(("init", "std"), [("normal", 0.02), ("torch", 1 / np.sqrt(3 * 64))])
def test_initial_weights(init, std):
    block = dt.Block(dt.Config(init=init), generator())
    assert block.qkv.weight.std().item() == pytest.approx(std, rel=0.05)
    assert (block.qkv.bias == 0).all() == (init == "normal")


def test_steps_beyond_the_time_table_share_its_last_row():
    actor, window = actor_of(replace(SMALL, time_rows=8)), batch_of([6], 6)
    late = window | {"timestep": torch.arange(100, 106)[None]}
    last = window | {"timestep": torch.full((1, 6), 7)}
    assert torch.equal(actor(late), actor(last))
    assert not torch.equal(actor(late), actor(window))


def test_weight_decay_is_on_matrices_only():
    actor = actor_of()
    names = {id(p): name for name, p in actor.named_parameters()}
    decayed, plain = ({names[id(p)] for p in g["params"]} for g in dt.parameter_groups(actor, 0.1))
    assert decayed | plain == set(names.values())
    assert not decayed & plain
    for name in names.values():
        assert (name in plain) == (name.endswith("bias") or "norm" in name), name
    assert [g["weight_decay"] for g in dt.parameter_groups(actor, 0.1)] == [0.1, 0.0]


def test_dropout_is_drawn_from_the_given_generator_and_off_when_acting():
    before = torch.get_rng_state()
    actor, window = actor_of(replace(SMALL, dropout=0.3)), batch_of([6] * 2, 6)
    assert torch.equal(actor(window), actor(window))
    assert torch.equal(
        actor(window, actor.draws(window, generator(1))), actor(window, actor.draws(window, generator(1)))
    )
    assert not torch.equal(
        actor(window, actor.draws(window, generator(1))), actor(window, actor.draws(window, generator(2)))
    )
    assert torch.equal(before, torch.get_rng_state())


def test_noise_is_of_the_standardised_inputs_and_of_nothing_else():
    batch, std = batch_of([40] * 200, 40), torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    assert dt.noisy(batch, std, 0.0, generator(1)) is batch
    made = dt.noisy(batch, std, 0.2, generator(1))
    added = {name: made[name] - batch[name] for name in ("obs", "return_to_go")}
    assert added["obs"].std(dim=(0, 1)).tolist() == pytest.approx((0.2 * std).tolist(), rel=0.05)
    assert added["return_to_go"].std().item() == pytest.approx(0.2, rel=0.05)
    assert all(made[name] is batch[name] for name in ("action", "timestep", "mask"))
    again = dt.noisy(batch, std, 0.2, generator(1))
    assert torch.equal(made["obs"], again["obs"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"heads": 3}, "heads 3"), ({"heads": 0}, "heads 0"), ({"context": 0}, "context 0"), ({"lr": 0.0}, "lr 0"),
        ({"input_noise": -0.1}, "input_noise -0.1"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options, word):
    with pytest.raises(BadInput, match=word):
        check(dt.Config(**options))


def test_presets_are_configs():
    for options in dt.PRESETS.values():
        check(dt.Config(**options))


# --- the loss ---


def test_the_loss_by_hand_over_real_steps_only():
    actor, lengths = actor_of(), [5, 3, 1]
    batch = batch_of(lengths)
    loss, metrics = dt.actor_loss(actor, batch)
    errors = []
    for k, length in enumerate(lengths):
        window = {name: values[k : k + 1, :length] for name, values in batch.items()}
        errors += ((actor(window)[0] - window["action"][0]) ** 2).mean(dim=-1).tolist()
    assert len(errors) == 9
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-9)
    assert metrics["losses/actor"] == loss.detach()


def test_what_stands_in_the_padding_changes_no_gradient():
    actor, batch = actor_of(), batch_of([5, 3, 1])
    noise, other = batch_of([5, 5, 5], seed=7), dict(batch)
    for name in ("obs", "action", "return_to_go"):
        real = batch["mask"].reshape(3, 5, *[1] * (batch[name].ndim - 2))
        other[name] = batch[name] * real + 100 * noise[name] * (1 - real)
        assert not torch.equal(other[name], batch[name])
    losses = [dt.actor_loss(actor, b)[0] for b in (batch, other)]
    for one, two in zip(*(torch.autograd.grad(loss, list(actor.parameters())) for loss in losses)):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_updates_equal_a_second_writing():
    """Sampling, loss, clipping, warm-up and AdamW with its two groups."""
    cfg = replace(SMALL, weight_decay=0.1, lr=1e-2, return_scale=2.0)
    run = FakeRun(flat_dataset(n=60), seed=3, remember_start=True)
    dt.train(cfg, run)
    actor, g = run.start["actor"], run.start_generator
    groups = [[p for p in actor.parameters() if p.ndim > 1], [p for p in actor.parameters() if p.ndim == 1]]
    decays = [{"params": group, "weight_decay": decay} for group, decay in zip(groups, (0.1, 0.0))]
    adam = torch.optim.AdamW(decays, betas=(0.9, 0.999), eps=1e-6)
    buffer = ReplayBuffer(run.dataset, extra={"return_to_go": run.dataset.returns_to_go() / 2})
    for n in range(1, 13):
        b = buffer.sample_sequences(8, 5, g)
        loss = (((actor(b) - b["action"]) ** 2).sum(-1) * b["mask"]).sum() / (2 * b["mask"].sum())
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(actor.parameters(), 0.25)
        for group in adam.param_groups:
            group["lr"] = 1e-2 * min(1, n / 4)
        adam.step()
        assert run.logged[n - 1]["losses/actor"].item() == pytest.approx(loss.item(), rel=1e-4)
        assert run.logged[n - 1]["policy/grad_norm"].item() == pytest.approx(norm.item(), rel=1e-3)
    for mine, theirs in zip(actor.parameters(), run.objects["actor"].parameters()):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-5)


# --- data and evaluation ---


def test_training_and_acting_see_the_same_windows(monkeypatch):
    """An episode of the data, replayed with its own return as target: windows equal those of the sampler."""
    dataset = flat_dataset(rewards=np.arange(1.0, 8.0), lengths=[7], high=4.0)
    actor = dt.Actor(SMALL, 3, 2, generator())
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
    assert dt.target_of(dataset, dt.Config(target_rule=rule), fraction) == pytest.approx(wanted)
    if rule == "reference_range":
        with pytest.raises(ValueError, match="no reference returns"):
            dt.target_of(flat_dataset(), dt.Config(target_rule=rule), fraction)


def test_one_batch_can_be_learnt_by_heart():
    dataset, g = flat_dataset(), generator()
    actor = dt.Actor(SMALL, 3, 2, g)
    batch = ReplayBuffer(dataset, extra={"return_to_go": dataset.returns_to_go()}).sample_sequences(8, 5, g)
    adam = torch.optim.AdamW(dt.parameter_groups(actor, 0.0), lr=1e-2)
    errors = []
    for _ in range(80):
        loss, _ = dt.actor_loss(actor, batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
        errors.append(loss.item())
    assert errors[-1] < errors[0] / 10


def two_behaviours(n: int = 100, steps: int = 3):
    """Episodes from one state: action -0.8 in every step returns 0, action +0.8 returns 3, three to one."""
    good = np.repeat(np.arange(n) % 4 == 0, steps)
    last = np.arange(n * steps) % steps == steps - 1
    return make_dataset(
        np.ones((n * (steps + 1), 2)), np.where(good, 0.8, -0.8)[:, None], good.astype(float), last, [steps] * n
    )


def test_a_higher_target_gives_a_higher_return():
    cfg = replace(SMALL, updates=100, context=3, batch_size=16, lr=1e-2, clip_norm=10.0, extra_targets=(0.0,))
    run = Listening(two_behaviours(), seed=0)
    dt.train(cfg, run)
    for variant, wanted, reward in (("", 0.8, 1.0), ("target=0", -0.8, 0.0)):
        act, obs, action = run.policies[variant], torch.ones(1, 4, 2), torch.zeros(1, 3, 1)
        with torch.no_grad():
            for t in range(3):
                action[:, t] = act(obs[:, t], history_of(obs, action, torch.full((1, 3), reward), t))
        assert action.flatten().tolist() == pytest.approx([wanted] * 3, abs=0.25), variant


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_updates_do_not_wait_for_the_device():
    run = FakeRun(flat_dataset(n=60), seed=0, device="cuda")
    run.on_update = lambda: torch.cuda.set_sync_debug_mode("error")
    try:
        dt.train(replace(SMALL, dropout=0.1), run)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- whole runs ---


def tiny_options(dataset: str, **options: object) -> list[str]:
    values: dict[str, object] = {
        "dataset": dataset, "updates": 60, "width": 16, "blocks": 1, "heads": 2, "context": 4, "batch_size": 8,
        "warmup": 5, "log_every": 10, "eval_every": 60, "eval_episodes": 1, "final_eval_episodes": 2,
        "checkpoint_every": 20, **options,
    }  # fmt: skip
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def test_a_run_from_the_command_line(tiny, run_file, tmp_path):
    """And the policy that it keeps is the one that was scored: target and scales are kept with the weights."""
    done = run_file("decision_transformer", *tiny_options(tiny, extra_targets=0.5, input_noise=0.1))
    assert done.returncode == 0, done.stderr + done.stdout
    folder = only_run(tmp_path / "results")
    rows = pd.read_parquet(folder / "episodes.parquet")
    assert set(rows.variant) == {"", "target=0.5"}
    assert (rows[rows.final].groupby("variant").size() == 2).all()
    assert pd.read_parquet(folder / "metrics.parquet")["losses/actor"].notna().all()
    assert_kept_policy_repeats_the_score(folder)


def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = tiny_options(
        tiny, updates=150, checkpoint_every=25, log_every=5, eval_every=150, final_eval_episodes=1
    )  # fmt: skip
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert run_file("decision_transformer", *args, results=straight).returncode == 0
    kill("decision_transformer", args, broken, update=65)
    assert "resuming after update" in run_file("decision_transformer", *args, results=broken).stdout
    assert_same_run(straight, broken)
