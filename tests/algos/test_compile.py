"""The option `compile`: the same updates in one graph, equal within rounding; refused where it cannot be."""

from __future__ import annotations

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
from resume import assert_same_run, dying_at, kill, only_run
from short_runs import ALGORITHMS, OTHERWISE, assert_equal_runs, trained
from torch._inductor import config as inductor

from hoard.records.errors import BadInput
from hoard.records.files import read_json
from hoard.runners.config import check
from hoard.runners.nn import clipped_gradient_step, compiled, gradient_step, set_lr


def compiler_missing() -> bool:
    try:
        check(importlib.import_module("hoard.algos.bc").Config(compile=True, device="cpu"))
    except BadInput:
        return True
    return False


needs_compiler = pytest.mark.skipif(compiler_missing(), reason="needs a C++ compiler")


def some_fast(*fast: str) -> list[Any]:
    """All algorithms for a test that takes half a minute, but these few, in the slow tests."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS]


@pytest.fixture
def quick_backend(monkeypatch):
    """Graphs as they are traced, not turned into machine code, which takes most of the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


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
    # 200 updates of MOORL are 100 bursts of two; after 200 bursts a rounding has grown on some processors.
    changed = {"online_steps": 130} if name == "moorl" else {}
    assert_equal_runs(trained(name, on=False, **changed), trained(name, on=True, **changed))


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


@pytest.mark.slow
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


@pytest.mark.slow
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
