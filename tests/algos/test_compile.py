"""The option `compile`: the same updates in one graph, equal within rounding; refused where it cannot be."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from helpers import small
from online_toys import OnlineRun
from resume import assert_same_run, dying_at, kill, only_run
from torch._inductor import config as inductor
from toys import flat_dataset

from hoard.records.errors import BadInput
from hoard.records.files import read_json
from hoard.runners.algorithms import available
from hoard.runners.config import check
from hoard.runners.nn import clipped_gradient_step, compiled, gradient_step, set_lr

ALGORITHMS = [
    name
    for name in available()
    if "compile" in {field.name for field in dataclasses.fields(importlib.import_module(f"hoard.algos.{name}").Config)}
]


def compiler_missing() -> bool:
    try:
        check(importlib.import_module("hoard.algos.bc").Config(compile=True, device="cpu"))
    except BadInput:
        return True
    return False


needs_compiler = pytest.mark.skipif(compiler_missing(), reason="needs a C++ compiler")


# What stands beside 200 updates of small networks; None where a file has no such option.
SEQUENCE = {"hidden": None, "width": 8, "context": 3, "dropout": 0.1, "warmup": 50}
ONLINE = {"updates": 0, "online_steps": 230, "start_steps": 30}
OTHERWISE: dict[str, dict[str, Any]] = {
    "iql": {"reward_mode": "none"},
    "odice": {"reward_mode": "none"},
    "rebrac": {"lr": 5e-4},
    "cql": {"actor_lr": 1e-3},
    "edac": {"critics": 4},
    "sac": ONLINE,
    "rlpd": ONLINE | {"critics": 4, "updates_per_step": 2},
    "moorl": ONLINE | {"inner_steps": 2},
    "decision_transformer": SEQUENCE,
    "decision_mamba": SEQUENCE | {"blocks": 1, "teacher_every": 40},
    "drbc": {"updates": 100, "online_steps": 130, "warmup_steps": 80},
}


def some_fast(*fast: str) -> list[Any]:
    """All algorithms for a test that takes half a minute, but these few, in the slow tests."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS]


@pytest.fixture
def quick_backend(monkeypatch):
    """Graphs as they are traced, not turned into machine code, which takes most of the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def trained(name: str, on: bool) -> OnlineRun:
    """A run of 200 updates."""
    module = importlib.import_module(f"hoard.algos.{name}")
    options = {"updates": 200, "hidden": (16, 16), "batch_size": 32, "lr": 1e-3, "compile": on} | OTHERWISE.get(
        name, {}
    )
    options = {option: value for option, value in options.items() if value is not None}
    run = OnlineRun(flat_dataset(n=80, seed=3, lengths=[30, 50]), seed=1, remember_start=True)
    module.train(module.Config(**options), run)
    return run


def assert_equal_runs(eager: OnlineRun, graph: OnlineRun) -> None:
    """Networks and metrics within rounding; the policy has moved far beyond that."""
    networks = [key for key, thing in eager.objects.items() if isinstance(thing, torch.nn.Module)]
    for key in networks:
        for a, b in zip(eager.objects[key].parameters(), graph.objects[key].parameters()):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=key)
    actor = next(key for key in networks if key.endswith("actor"))
    moved = zip(graph.start[actor].parameters(), graph.objects[actor].parameters())
    assert max((a - b).abs().max().item() for a, b in moved) > 0.01
    assert len(eager.logged) == len(graph.logged)
    for a, b in zip(eager.logged, graph.logged):
        assert list(a) == list(b)
        assert all(torch.isclose(a[key], b[key], rtol=1e-3, atol=1e-4) for key in a)


def test_some_algorithms_have_it():
    assert {"iql", "bc", "rcsl", "td3_bc", "sac", "rlpd"} <= set(ALGORITHMS)


@pytest.mark.parametrize("name", some_fast("sac", "td3_bc"))
def test_two_hundred_updates_equal_eager_ones(name, quick_backend):
    """Also under a step size that changes with each update."""
    assert_equal_runs(trained(name, on=False), trained(name, on=True))


# One of each kind, as each takes a minute: plain, two graphs, a burst of steps, a gradient of gradients, a long graph.
KINDS = ("td3_bc", "moorl", "edac", "decision_mamba")


@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["bc", *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS)])
def test_the_same_in_machine_code(name):
    assert_equal_runs(trained(name, on=False), trained(name, on=True))


@needs_compiler
@pytest.mark.parametrize("variant", ["decay", "decoupled", "clipped"])
def test_steps_in_a_graph_are_the_optimizers(variant):
    """Adam with L2, AdamW with two groups, and clipping; the step size changes, one parameter has no gradient."""
    results = []
    for on in (False, True):
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(3, 4, generator=generator).requires_grad_() for _ in range(3)]
        if variant == "decoupled":
            groups = [{"params": weights[:1], "weight_decay": 0.3}, {"params": weights[1:], "weight_decay": 0.0}]
            optimizer = torch.optim.AdamW(groups, lr=1e-2, eps=1e-6, fused=True)
        else:
            optimizer = torch.optim.Adam(weights, lr=1e-2, weight_decay=0.3, fused=True)

        def update(x: torch.Tensor, weights=weights, optimizer=optimizer) -> torch.Tensor:
            loss = (x @ weights[0] + weights[1]).square().mean()
            if variant == "clipped":
                return clipped_gradient_step(optimizer, loss, 0.1)
            gradient_step(optimizer, loss)
            return loss.detach()

        run, told = compiled(update, [optimizer], on), []
        for k in range(20):
            set_lr(optimizer, 1e-2 / (k + 1))
            told.append(run(torch.randn(3, 3, generator=generator)))
        results.append([*weights, torch.stack(told)])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@needs_compiler
def test_killed_and_resumed_equals_undisturbed(tiny, run_file, tmp_path):
    args = [*small(tiny, updates=20_000, checkpoint_every=500, eval_every=10_000), "--compile", "true"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    done = run_file("bc", *args, results=straight)
    assert done.returncode == 0, done.stderr
    kill("bc", args, broken, update=1000)
    assert "resuming after update" in run_file("bc", *args, results=broken).stdout
    assert_same_run(straight, broken)
    folder = only_run(straight)
    assert read_json(folder / "config.json")["config"]["compile"] is True
    run_file("bc", *args[:-2], results=straight)
    assert len(list(straight.glob("runs/*/*/*"))) == 2  # an eager run is another run


@pytest.mark.parametrize("name", some_fast("rebrac"))
def test_killed_and_resumed_ends_with_the_same_bits(name, tiny, run_file, tmp_path, monkeypatch, quick_backend):
    """Also online, where a checkpoint waits for the end of an episode of 200 steps."""
    options = {"updates": 60} | OTHERWISE.get(name, {}) | {"checkpoint_every": 20, "compile": "true"}
    if "online_steps" in options:
        options |= {"online_steps": 230, "eval_every": 200} | {
            key: 190 for key in ("start_steps", "warmup_steps") if key in options
        }
    args, straight, broken = small(tiny, **options), tmp_path / "straight", tmp_path / "broken"
    done = run_file(name, *args, results=straight)
    assert done.returncode == 0, done.stderr
    with dying_at(monkeypatch, "log", 30):
        run_file(name, *args, results=broken)
    assert "resuming after" in run_file(name, *args, results=broken).stdout
    assert_same_run(straight, broken)


def test_numbers_are_looked_at_before_each_update_and_runs_share_no_graph(quick_backend):
    def graph_of(width: int):
        weight, scale = torch.ones(width, requires_grad=True), {"by": 1.0}
        optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)

        def update(x: torch.Tensor) -> torch.Tensor:
            loss = scale["by"] * (x * weight).sum()
            gradient_step(optimizer, loss)
            return loss.detach()

        return compiled(update, [optimizer], True), scale

    (first, _), (second, scale) = graph_of(3), graph_of(5)
    assert first(torch.ones(3)).item() == pytest.approx(3)
    assert second(torch.ones(5)).item() == pytest.approx(5)
    scale["by"] = 10.0
    assert second(torch.ones(5)).item() == pytest.approx(10 * 5 * 0.9)


BROKEN_CACHE = """
import torch
from hoard.runners.nn import compiled, gradient_step
weight = torch.ones(3, 2, requires_grad=True)
optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
def update(x):
    gradient_step(optimizer, torch.tanh(x @ weight).square().sum())
    return weight.detach().clone()
print(compiled(update, [optimizer], True)(torch.ones(4, 3)).tolist())
"""


@needs_compiler
def test_a_half_written_file_of_a_killed_compilation_does_no_harm(tmp_path):
    """Half a library that was finished before, and an empty one that its compiler was about to write."""
    told = []
    for left in (100, 0, 0):
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", BROKEN_CACHE], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
        libraries = list(tmp_path.rglob("*.so"))
        assert libraries
        for library in libraries:
            library.write_bytes(library.read_bytes()[:left])
        if not left:
            for graphs in ("fxgraph", "aotautograd"):
                shutil.rmtree(tmp_path / graphs, ignore_errors=True)
    assert len(set(told)) == 1
    assert json.loads(told[0])[0][0] == pytest.approx(0.9, abs=1e-3)


def test_without_a_compiler_it_is_refused():
    missing = inductor.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(BadInput, match="no C\\+\\+ compiler"):
        check(importlib.import_module("hoard.algos.bc").Config(compile=True, device="cpu"))


@needs_compiler
@pytest.mark.parametrize(("name", "option"), [("bc", "dropout"), ("iql", "actor_dropout"), ("rcsl", "input_noise")])
def test_what_is_drawn_in_the_update_is_refused(name, option):
    config = importlib.import_module(f"hoard.algos.{name}").Config
    with pytest.raises(BadInput, match=f"{option} 0.1.*compile"):
        check(config(**{option: 0.1}, compile=True, device="cpu"))
    check(config(**{option: 0.1}, device="cpu"))
