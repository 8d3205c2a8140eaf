"""Seeds whose updates are made as one: each ends as it does alone, within rounding, whatever the algorithm."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from short_runs import ALGORITHMS, assert_equal_runs, trained

from hoard.runners import nn as tools
from hoard.runners import pack
from hoard.runners.config import packable

FAST = ("td3_bc", "iql", "bc")
# Their toy observations or returns are single numbers.
SINGLE = ("decision_mamba", "decision_transformer", "drbc", "moorl", "rlpd", "sac")


def together(
    count: int, work: Callable[[int, pack.Member], Any], positions: list[int] | None = None, size: int = 0
) -> list[Any]:
    """What `work` returns for each number, from threads of one pack; the first error, if there is one."""
    company = pack.Pack(size or count)
    members = [
        company.join(
            lambda member: (positions or [0] * count)[member.number],
        )
        for _ in range(count)
    ]
    results: list[Any] = [None] * count

    def run(k: int) -> None:
        torch.set_num_threads(1)
        try:
            with members[k]:
                results[k] = work(k, members[k])
        except Exception as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS]
)
def test_three_seeds_end_as_each_does_alone(name, monkeypatch):
    sizes = []
    run = pack.Stack.run
    monkeypatch.setattr(pack.Stack, "run", lambda stack: sizes.append(len(stack._calls)) or run(stack))
    double = name not in SINGLE  # on a kink of ReLU a rounding grows
    packed = together(3, lambda k, _: trained(name, seed=k + 1, double=double))
    assert set(sizes) == {3}
    for k in range(3):
        assert_equal_runs(trained(name, seed=k + 1, double=double), packed[k], 1e-6 if double else 1e-2)


class Line:
    """Weights that learn the mean of what they are shown."""

    def __init__(self, start: float, lr: float = 0.1) -> None:
        self.weight = torch.full((2,), start, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.weight], lr=lr, fused=True)
        weight, optimizer, self.numbers = self.weight, self.optimizer, {"scale": 1.0}
        numbers = self.numbers

        def update(x: torch.Tensor) -> dict[str, Any]:
            loss = numbers["scale"] * (weight - x).square().sum()
            tools.gradient_step(optimizer, loss)
            return {"loss": loss.detach(), "constant": 3}

        self.update = tools.compiled(update, [optimizer], False)


def alone(start: float, lr: float, targets: list[float]) -> torch.Tensor:
    line = Line(start, lr)
    for target in targets:
        line.update(torch.full((2,), target))
    return line.weight.detach()


def test_each_has_its_own_batches_step_sizes_and_numbers_of_updates():
    """Seeds that end early are not waited for; what is no tensor comes back as it is."""
    plans = [(0.0, 0.1, [1.0] * 5), (3.0, 0.1, [2.0] * 9), (-1.0, 0.3, [0.5] * 2)]

    def work(k: int, _: pack.Member) -> torch.Tensor:
        start, lr, targets = plans[k]
        line = Line(start, lr)
        for target in targets:
            told = line.update(torch.full((2,), target))
            assert told["constant"] == 3
            assert told["loss"].shape == ()
        return line.weight.detach().clone()

    for plan, got in zip(plans, together(3, work)):
        torch.testing.assert_close(got, alone(*plan), rtol=1e-5, atol=1e-6)


def test_seeds_with_other_numbers_are_updated_apart():
    def work(k: int, _: pack.Member) -> float:
        line = Line(0.0)
        line.numbers["scale"] = 1.0 + k
        return line.update(torch.ones(2))["loss"].item()

    assert together(3, work) == pytest.approx([2.0, 4.0, 6.0])


def test_one_that_is_behind_catches_up_first():
    positions, order = [5, 3], []

    def work(k: int, _: pack.Member) -> None:
        line = Line(0.0)
        while positions[k] < 8:
            positions[k] += 1
            line.update(torch.ones(2))
            order.append((k, positions[k]))

    together(2, work, positions)
    assert order[:2] == [(1, 4), (1, 5)]
    assert sorted(order[2:]) == [(0, 6), (0, 7), (0, 8), (1, 6), (1, 7), (1, 8)]


@pytest.mark.parametrize("name", ["td3_bc", pytest.param("decision_transformer", marks=pytest.mark.slow)])
def test_the_same_bits_in_whatever_company(name):
    """A run that is killed with others may go on without them, and at another place among them."""
    results = []
    for seeds in ([1], [1, 2], [3, 2, 1], [4, 1, 5, 6]):
        found = together(len(seeds), lambda k, _, seeds=seeds: trained(name, seed=seeds[k]), size=4)[seeds.index(1)]
        networks = [thing for thing in found.objects.values() if isinstance(thing, torch.nn.Module)]
        results.append([p.detach().clone() for network in networks for p in network.parameters()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_a_shared_weight_is_stacked_wherever_it_stands():
    def train(k: int, _: pack.Member | None) -> torch.Tensor:
        first = torch.nn.Linear(2, 2, bias=False)
        second = torch.nn.Linear(2, 2, bias=False)
        first.weight.data.fill_(0.1 * (k + 1))
        second.weight = first.weight
        optimizer = torch.optim.Adam(first.parameters(), lr=0.1, fused=True)

        def update(x: torch.Tensor) -> torch.Tensor:
            loss = second(first(x)).square().sum()
            tools.gradient_step(optimizer, loss)
            return loss.detach()

        step = tools.compiled(update, [optimizer], False)
        for _ in range(4):
            step(torch.ones(3, 2))
        return first.weight.detach().clone()

    for k, got in enumerate(together(3, train)):
        torch.testing.assert_close(got, train(k, None), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["drawn", "own mistake"])
def test_an_error_reaches_every_seed_of_the_update(what):
    """Random numbers drawn within the update would be the first seed's for all: refused by vmap."""

    def work(k: int, _: pack.Member) -> None:
        weight = torch.ones(2, requires_grad=True)
        optimizer, generator = torch.optim.Adam([weight], fused=True), torch.Generator()

        def update(x: torch.Tensor) -> torch.Tensor:
            if what == "drawn":
                x = x + torch.randn(x.shape, generator=generator)
            else:
                raise ZeroDivisionError
            tools.gradient_step(optimizer, (weight * x).sum())
            return x

        with pytest.raises(RuntimeError if what == "drawn" else ZeroDivisionError):
            tools.compiled(update, [optimizer], False)(torch.ones(2))

    together(2, work)


def test_tensors_that_cannot_be_found_are_refused():
    """They would be the first seed's for all."""

    class Scale:
        def __init__(self) -> None:
            self.factor = torch.ones(())

    def work(k: int, _: pack.Member) -> None:
        scale, pair = Scale(), (torch.ones(()),)
        with pytest.raises(TypeError, match="a Scale holds"):
            tools.compiled(lambda x: x * scale.factor, [], False)
        with pytest.raises(TypeError, match="in a tuple"):
            tools.compiled(lambda x: x * pair[0], [], False)

    together(2, work)


def test_what_can_be_packed():
    """Files that have `compile`, unless it is on, and unless something is drawn within their updates."""
    for name in ("iql", "bc", "rcsl", "decision_mamba"):
        config = importlib.import_module(f"hoard.algos.{name}").Config
        assert packable(config(device="cpu"))
        assert not packable(config(device="cpu", compile=True))
    assert not packable(importlib.import_module("hoard.algos.bc").Config(dropout=0.1))
    assert not packable(importlib.import_module("hoard.algos.iql").Config(actor_dropout=0.1))
    assert packable(importlib.import_module("hoard.algos.decision_transformer").Config(dropout=0.1))
    assert not packable(importlib.import_module("hoard.algos.hnpg").Config())
