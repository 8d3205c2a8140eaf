"""The option `compile`: the same updates in one graph, equal within rounding; refused where it cannot be."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import small
from resume import assert_same_run, kill, only_run
from torch._inductor import config as inductor
from toys import FakeRun, flat_dataset

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


def test_some_algorithms_have_it():
    assert {"iql", "bc", "rcsl"} <= set(ALGORITHMS)


@needs_compiler
@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_hundred_updates_equal_eager_ones(name):
    """Also under a step size that changes with each update."""
    module, runs = importlib.import_module(f"hoard.algos.{name}"), []
    for on in (False, True):
        options = {"updates": 200, "hidden": (16, 16), "batch_size": 32, "lr": 1e-3, "compile": on}
        if name == "iql":
            options["reward_mode"] = "none"
        runs.append(FakeRun(flat_dataset(n=80, seed=3, lengths=[30, 50]), seed=1, remember_start=True))
        module.train(module.Config(**options), runs[-1])
    eager, graph = runs
    networks = [key for key, thing in eager.objects.items() if isinstance(thing, torch.nn.Module)]
    for key in networks:
        for a, b in zip(eager.objects[key].parameters(), graph.objects[key].parameters()):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=key)
    actor = next(key for key in networks if key.endswith("actor"))
    moved = zip(graph.start[actor].parameters(), graph.objects[actor].parameters())
    assert max((a - b).abs().max().item() for a, b in moved) > 0.01  # far beyond the tolerance
    for a, b in zip(eager.logged, graph.logged):
        assert list(a) == list(b)
        assert all(torch.isclose(a[key], b[key], rtol=1e-3, atol=1e-4) for key in a)


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
    told = []
    for _ in range(2):
        env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", BROKEN_CACHE], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
        libraries = list(tmp_path.rglob("*.so"))
        assert libraries
        for library in libraries:
            library.write_bytes(library.read_bytes()[:100])
    assert told[0] == told[1]
    assert json.loads(told[0])[0][0] == pytest.approx(0.9, abs=1e-3)


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(BadInput, match="no C\\+\\+ compiler"):
        check(importlib.import_module("hoard.algos.bc").Config(compile=True, device="cpu"))


@pytest.mark.parametrize(("name", "option"), [("bc", "dropout"), ("iql", "actor_dropout"), ("rcsl", "input_noise")])
def test_what_is_drawn_in_the_update_is_refused(name, option):
    config = importlib.import_module(f"hoard.algos.{name}").Config
    with pytest.raises(BadInput, match=f"{option} 0.1.*compile"):
        check(config(**{option: 0.1}, compile=True, device="cpu"))
    check(config(**{option: 0.1}, device="cpu"))
