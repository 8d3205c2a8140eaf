"""`benchmarks/speed.py`: what it counts is known for small networks; no time is asserted."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch
from helpers import ROOT

from hoard.records.errors import BadInput
from hoard.runners.algorithms import available

_spec = importlib.util.spec_from_file_location("speed", ROOT / "benchmarks" / "speed.py")
assert _spec is not None
assert _spec.loader is not None
speed = importlib.util.module_from_spec(_spec)
sys.modules["speed"] = speed
_spec.loader.exec_module(speed)

OBS, ACTION = 17, 6
SMALL = {"hidden": (8, 8), "batch_size": 4}


def test_the_products_of_a_forward_and_a_backward_pass_are_written_down():
    """One linear layer, batch 4, 3 -> 2: x W forward, x^T g and g W^T backward; the latter only where x needs it."""
    weight = torch.ones(2, 3, requires_grad=True)
    for needs, products in ((False, 2), (True, 3)):
        x = torch.ones(4, 3, requires_grad=needs)
        with speed.Floor() as floor:
            torch.nn.functional.linear(x, weight, torch.ones(2)).sum().backward()
        assert len(floor.products) == products
        assert floor.flops == products * 2 * 4 * 3 * 2
        assert floor.operations > products


def test_stacked_products_are_replayed_at_their_shapes():
    a, b = torch.ones(3, 5).expand(2, 3, 5), torch.ones(2, 5, 7)
    with speed.Floor() as floor:
        torch.baddbmm(torch.zeros(2, 1, 7), a, b)
    ((_, x, w, out),) = floor.products
    assert (x.shape, x.stride(), w.shape, out.shape) == (a.shape, a.stride(), b.shape, (2, 3, 7))
    wanted = torch.bmm(x, w)
    out.zero_()
    floor.replay()
    assert torch.equal(out, wanted)


def test_an_update_of_bc_makes_eight_products():
    """Three layers: forward 3, gradients of weights 3, of inputs 2."""
    (part,) = speed.measure("bc", SMALL, seconds=0.0)
    layers = [OBS * 8, 8 * 8, 8 * ACTION]
    assert part.products == 8
    assert part.gflop == pytest.approx(2 * 4 * (2 * sum(layers) + sum(layers[1:])) / 1e9)
    assert min(part.sampling, part.update, part.logging, part.floor) > 0
    assert part.total == part.sampling + part.update + part.logging


def test_a_delayed_policy_counts_with_its_share():
    """TD3+BC steps its actor every second update: the floor is the mean of one with and one without it."""
    every, second = (speed.measure("td3_bc", SMALL | {"policy_delay": k}, seconds=0.0)[0] for k in (1, 2))
    critic = 3 + 3 + (3 + 3 + 2)  # target actor and target critics forward; critics forward and backward
    assert critic < second.products < every.products
    assert second.products == (critic + every.products) / 2


@pytest.mark.parametrize(
    ("algo", "stages"),
    [
        ("mbrcsl", ["mbrcsl: dynamics", "mbrcsl: diffusion", "mbrcsl: policy"]),
        ("drbc", ["drbc: clone", "drbc: online"]),
        ("sac", ["sac"]),
    ],
)
def test_each_stage_is_a_row(algo, stages, monkeypatch):
    monkeypatch.setattr(speed, "TURN", 0.01)
    small = {"dynamics_hidden": (8,), "dynamics_decay": (0.0, 0.0), "diffusion_widths": (8,), "diffusion_steps": 2}
    parts = speed.measure(algo, SMALL | small, seconds=0.0)
    assert [part.name for part in parts] == stages


def test_json_and_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "TURN", 0.01)
    old, new = tmp_path / "old.json", tmp_path / "new" / "new.json"
    call = ["--algos", "bc", "rcsl", "--hidden", "8", "--batch", "4", "--seconds", "0"]
    speed.main([*call, "--json", str(old)])
    speed.main([*call, "--json", str(new), "--against", str(old)])
    told = json.loads(new.read_text())
    assert [row["algo"] for row in told["rows"]] == ["bc", "rcsl"]
    assert "CPU" in told["machine"]
    assert told["options"] == {"hidden": [8], "batch_size": 4}
    assert told["rows"][0]["ratio"] == pytest.approx(
        told["rows"][0]["update_ms"] / told["rows"][0]["floor_ms"], rel=0.05
    )
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert "speed-up" in table[-3]
    assert table[-1].startswith("| rcsl |")
    assert len({line.count("|") for line in table[-3:]}) == 1


@pytest.mark.parametrize("option", ["expectil=0.7", "expectile"])
def test_an_option_that_no_file_has_is_refused(option):
    with pytest.raises(BadInput, match="--set expectil"):
        speed.main(["--algos", "iql", "bc", "--set", option])


def test_every_algorithm_is_measured_or_named_as_not():
    assert set(available()) == set(speed.ALGORITHMS) | set(speed.NOT_MEASURED)
    assert set(speed.OTHERWISE) <= set(speed.ALGORITHMS)
