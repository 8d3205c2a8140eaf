"""Decision Mamba's scans, mixers and whole model: equal forms, nothing from the future, steps equal to windows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from toys import history_of

from hoard.algos import decision_mamba as dm
from hoard.records.errors import BadInput
from hoard.runners.config import check
from hoard.runners.scans import SCANS, scan_loop, scan_two_level

SMALL = dm.Config(width=16, blocks=2, heads=2, state=4, context=6)
KINDS = {
    "ssd": SMALL,
    "mamba1": replace(SMALL, ssm="mamba1"),
    "two_level": replace(SMALL, ssm="mamba1", scan="two_level"),
    "coarse": replace(SMALL, fine=False),
    "linear": replace(SMALL, embedding="linear"),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def actor_of(cfg: dm.Config) -> dm.Actor:
    actor = dm.Actor(cfg, 3, 2, generator()).double()
    actor.normalize.fit(torch.full((3,), 2.0), torch.full((3,), 0.9))
    return actor


def window_of(batch: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return {
        "obs": draw(batch, length, 3, seed=seed) + 2,
        "action": draw(batch, length, 2, seed=seed + 1).clamp(-1, 1),
        "return_to_go": draw(batch, length, seed=seed + 2),
        "timestep": torch.arange(5, 5 + length).expand(batch, -1),
    }


# --- scans ---


def scan_inputs(length: int, dt: float, batch: int = 2, channels: int = 5, state: int = 3) -> list[torch.Tensor]:
    return [
        draw(batch, length, channels, seed=1),
        dt * draw(batch, length, channels, seed=2).abs(),
        -draw(channels, state, seed=3).abs() * 4 - 0.1,
        draw(batch, length, state, seed=4),
        draw(batch, length, state, seed=5),
    ]


def scan_reference(u, dt, A, B, C):
    """h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t and y_t = C_t h_t, index by index as they are written."""
    h, out = u.new_zeros(u.shape[0], *A.shape), []
    for t in range(u.shape[1]):
        decay = torch.einsum("bc,cn->bcn", dt[:, t], A).exp()
        h = decay * h + torch.einsum("bc,bc,bn->bcn", dt[:, t], u[:, t], B[:, t])
        out.append(torch.einsum("bn,bcn->bc", C[:, t], h))
    return torch.stack(out, dim=1)


def with_gradients(scan, inputs) -> list[torch.Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    y = scan(*inputs)
    return [y, *torch.autograd.grad(y, inputs, draw(*y.shape, seed=9))]


@pytest.mark.parametrize("dt", [0.02, 0.7, 5.0])
@pytest.mark.parametrize("length", [1, 7, 16, 23])
@pytest.mark.parametrize("name", ["loop", "two_level"])
def test_scans_equal_the_reference(name, length, dt):
    inputs = scan_inputs(length, dt)
    for mine, wanted in zip(with_gradients(SCANS[name], inputs), with_gradients(scan_reference, inputs)):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-8)


def test_reference_scan_by_scalars():
    u, dt, A, B, C = scan_inputs(4, 0.5, batch=1, channels=2, state=2)
    y = scan_reference(u, dt, A, B, C)
    for c in range(2):
        h = [0.0, 0.0]
        for t in range(4):
            step = dt[0, t, c].item()
            for n in range(2):
                h[n] = math.exp(step * A[c, n].item()) * h[n] + step * u[0, t, c].item() * B[0, t, n].item()
            assert y[0, t, c].item() == pytest.approx(sum(C[0, t, n].item() * h[n] for n in range(2)), rel=1e-12)


@pytest.mark.parametrize("dt", [0.02, 0.7, 5.0])
@pytest.mark.parametrize("length", [1, 7, 23])
def test_ssd_equals_mamba1_with_one_decay_per_head(length, dt):
    """Where A and dt are the same for all channels and states of a head, the two are one recurrence."""
    heads, size, state = 3, 4, 5
    u, B, C = draw(2, length, heads, size, seed=1), draw(2, length, state, seed=2), draw(2, length, state, seed=3)
    step, A = dt * draw(2, length, heads, seed=4).abs(), -draw(heads, seed=5).abs() - 0.1

    def as_mamba1(u, step, A, B, C):
        tied = A[:, None, None].expand(-1, size, state).reshape(heads * size, state)
        y = scan_reference(u.flatten(2), step.repeat_interleave(size, dim=2), tied, B, C)
        return y.unflatten(2, (heads, -1))

    inputs = [u, step, A, B, C]
    for mine, wanted in zip(with_gradients(dm.ssd_quadratic, inputs), with_gradients(as_mamba1, inputs)):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dt", [10.0, 1000.0])
def test_ssd_is_finite_at_large_steps(dt):
    """Above the diagonal the exponent is large and positive: it must be masked before the exponential."""
    u, B, C = (draw(2, 30, *rest, seed=k).float() for k, rest in enumerate([(2, 4), (3,), (3,)]))
    inputs = [u, torch.full((2, 30, 2), dt), torch.tensor([-16.0, -1.0]), B, C]
    for value in with_gradients(lambda *x: dm.ssd_quadratic(*x).double(), inputs):
        assert torch.isfinite(value).all()


def test_convolution_by_definition():
    conv = dm.Conv(3, 4, generator()).double()
    torch.nn.init.normal_(conv.bias, generator=generator(1))
    x = draw(2, 7, 3)
    padded = torch.nn.functional.pad(x.transpose(1, 2), (3, 0))
    wanted = torch.nn.functional.conv1d(padded, conv.weight.t()[:, None], conv.bias, groups=3).transpose(1, 2)
    torch.testing.assert_close(conv(x), torch.nn.functional.silu(wanted))


@pytest.mark.parametrize("kind", ["ssd", "mamba1"])
def test_a_mixer_step_by_step_equals_the_whole(kind):
    mixer = {"ssd": dm.SSD, "mamba1": dm.Mamba1}[kind](KINDS[kind], generator()).double()
    x, state = draw(3, 11, 16), {}
    steps = torch.stack([mixer(x[:, t], state) for t in range(11)], dim=1)
    torch.testing.assert_close(steps, mixer(x), rtol=1e-10, atol=1e-10)


def test_step_sizes_at_the_start():
    """softplus of the fresh biases is log-uniform in [1e-3, 1e-1]."""
    dt = torch.nn.functional.softplus(dm.inverse_softplus_dt(4000, generator()).double())
    assert 1e-3 * 0.99 <= dt.min() < 1.1e-3
    assert 0.09 < dt.max() <= 0.1 * 1.01
    assert dt.log10().mean().item() == pytest.approx(-2, abs=0.05)


# --- the whole model ---


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("kind", list(KINDS))
def test_nothing_from_the_future(kind, blocks):
    """At every position, by autograd: s_t's action sees nothing of a_t or later, a_t's heads nothing of step t + 1."""
    actor, length = actor_of(replace(KINDS[kind], blocks=blocks)), 6
    window = window_of(1, length)
    inputs = {name: window[name].requires_grad_() for name in ("obs", "action", "return_to_go")}
    x = actor.tokens(window)
    action = actor.action_head(x[:, :, 1])
    for t in range(length):
        for where, seen in (
            (action[0, t], {"obs": t, "return_to_go": t, "action": t - 1}),
            (torch.cat([actor.obs_head(x[0, t, 2]), actor.return_head(x[0, t, 2])]), dict.fromkeys(inputs, t)),
        ):
            out = sum(where * torch.arange(1, 1 + len(where)))
            gradients = torch.autograd.grad(out, list(inputs.values()), retain_graph=True)
            for name, gradient in zip(inputs, gradients):
                size = gradient[0].reshape(length, -1).abs().amax(dim=1)
                assert (size[seen[name] + 1 :] == 0).all(), (kind, t, name)
                assert (size[: seen[name] + 1] > 0).all(), (kind, t, name)  # and all of the past is seen


def test_the_fine_branch_reaches_its_own_step():
    """Without the coarse branch, the three tokens of step t get the same F_t, from a_{t-1}, R_t and s_t."""
    block = dm.Block(SMALL, generator()).double()
    torch.nn.init.zeros_(block.coarse.out_proj.weight)
    x = draw(1, 12, 16)
    added = (block(x, None) - x).unflatten(1, (4, 3))
    torch.testing.assert_close(added[:, :, 0], added[:, :, 1])
    torch.testing.assert_close(added[:, :, 0], added[:, :, 2])
    normed = torch.cat([torch.zeros(1, 1, 16, dtype=torch.float64), block.norm(x)], dim=1)
    groups = torch.stack([normed[:, 3 * t : 3 * t + 3].flatten(1) for t in range(4)], dim=1)
    torch.testing.assert_close(added[:, :, 0], block.fine_norm(block.fine(block.group(groups))))


@pytest.mark.parametrize("kind", ["ssd", "mamba1", "coarse", "linear"])
def test_recurrent_steps_equal_the_window_while_it_reaches_the_start(kind):
    cfg = replace(KINDS[kind], context=8)
    by_window, by_step = actor_of(cfg), actor_of(replace(cfg, recurrent_eval=True))
    n, steps = 3, 10
    obs, action, reward = draw(n, steps + 1, 3) + 2, draw(n, steps, 2, seed=1).clamp(-1, 1), draw(n, steps, seed=2)
    for actor in (by_window, by_step):
        actor.target.fill_(5.0)
        actor.return_scale.fill_(2.0)
    for _ in range(2):  # t = 0 starts anew
        for t in range(steps):
            one, two = (a.act(obs[:, t], history_of(obs, action, reward, t)) for a in (by_window, by_step))
            assert one.shape == (n, 2)
            assert one.abs().max() <= 1
            if t < cfg.context:
                torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
            else:
                assert (one - two).abs().max() > 1e-6  # the window has lost the start


@pytest.mark.parametrize("kind", list(KINDS))
def test_padding_on_the_right_changes_nothing(kind):
    actor, window = actor_of(KINDS[kind]), window_of(4, 6)
    short = {name: values[:, :3] for name, values in window.items()}
    torch.testing.assert_close(actor.tokens(window)[:, :3], actor.tokens(short), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_dead_parameters(kind):
    actor = actor_of(KINDS[kind])
    batch = window_of(4, 6) | {"mask": torch.ones(4, 6, dtype=torch.float64)}
    loss, _ = dm.actor_loss(actor, batch, KINDS[kind])
    loss.backward()
    dead = [name for name, p in actor.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


def test_the_config_is_what_is_built():
    """Parameter counts of the released block, computed from its layer sizes, and of the small model's parts."""
    released = dm.Config(**dm.PRESETS["released"])
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    block = dm.Block(released, generator())
    d, inner, rank, state = 768, 1536, 48, 16
    mixer = 2 * d * inner + 5 * inner + inner * (rank + 2 * state) + (rank + 1) * inner + inner * state + inner
    mixer += inner * d
    assert count(block.coarse) == count(block.fine) == mixer == 3_770_880
    assert count(block) == 2 * mixer + 3 * d * d + d + d + 2 * d
    base = actor_of(SMALL)
    for option, value in (("width", 32), ("blocks", 3), ("state", 8), ("expand", 3), ("conv", 3), ("time_rows", 7),
                          ("fine", False), ("auxiliary", False), ("embedding", "linear"), ("heads", 4)):  # fmt: skip
        assert count(actor_of(replace(SMALL, **{option: value}))) != count(base), option


def test_steps_beyond_the_time_table_share_its_last_row():
    actor = actor_of(replace(SMALL, time_rows=8))
    window = window_of(1, 6)
    late = window | {"timestep": torch.arange(100, 106)[None]}
    last = window | {"timestep": torch.full((1, 6), 7)}
    assert torch.equal(actor(late), actor(last))
    assert not torch.equal(actor(late), actor(window))


def test_weight_decay_is_on_matrices_only():
    for kind in ("ssd", "mamba1"):
        actor = actor_of(KINDS[kind])
        names = {id(p): name for name, p in actor.named_parameters()}
        decayed, plain = ({names[id(p)] for p in g["params"]} for g in dm.parameter_groups(actor, 0.1))
        assert decayed | plain == set(names.values())
        assert not decayed & plain
        for name in names.values():
            last = name.split(".")[-1]
            spared = last in ("A_log", "D", "bias", "dt_bias") or "norm" in name
            assert (name in plain) == spared, name
        assert [g["weight_decay"] for g in dm.parameter_groups(actor, 0.1)] == [0.1, 0.0]


def test_dropout_is_drawn_from_the_given_generator_and_off_when_acting():
    before = torch.get_rng_state()
    actor, window = actor_of(replace(SMALL, dropout=0.3)), window_of(2, 6)
    assert torch.equal(actor(window), actor(window))
    assert torch.equal(
        actor(window, actor.draws(window, generator(1))), actor(window, actor.draws(window, generator(1)))
    )
    assert not torch.equal(
        actor(window, actor.draws(window, generator(1))), actor(window, actor.draws(window, generator(2)))
    )
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("init", "std"), [("torch", 1 / math.sqrt(3 * 64)), ("normal", 0.02)])
def test_initial_weights(init, std):
    weight = dm.Actor(dm.Config(init=init), 3, 2, generator()).embed_obs.second.weight
    assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert dm.SSD(dm.Config(init=init), generator()).in_proj.weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"heads": 5}, "heads 5"),
        ({"scan": "loop"}, "scan loop"),
        ({"updates": 100, "teacher_every": 100}, "teacher_every 100"),
        ({"teacher_every": 0}, "teacher_every 0"),
        ({"conv": 0}, "conv 0"),
        ({"beta_max": 1.5}, "beta_max 1.5"),
        ({"context": 0}, "context 0"),
        ({"clip_norm": 0.0}, "clip_norm 0"),
        ({"warmup": -1}, "warmup -1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, word):
    with pytest.raises(BadInput, match=word):
        check(dm.Config(**options))


def test_presets_are_configs():
    for options in dm.PRESETS.values():
        check(dm.Config(**options))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_scan_is_the_two_level_one():
    mixer = dm.Mamba1(KINDS["mamba1"], torch.Generator("cuda").manual_seed(0))
    assert mixer.scan is scan_two_level
    x = torch.randn(2, 30, 16, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    y = mixer(x).cpu()
    mixer.cpu().scan = scan_loop
    torch.testing.assert_close(y, mixer(x.cpu()), rtol=1e-3, atol=1e-4)
