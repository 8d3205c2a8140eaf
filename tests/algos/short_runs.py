"""Every algorithm file with the option `compile`, trained for 200 updates on a toy dataset; two runs compared."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import torch
from online_toys import OnlineRun
from toys import flat_dataset

from hoard.runners.algorithms import available

ALGORITHMS = [
    name
    for name in available()
    if "compile" in {field.name for field in dataclasses.fields(importlib.import_module(f"hoard.algos.{name}").Config)}
]


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


def trained(
    name: str, on: bool = False, seed: int = 1, double: bool = False, device: str = "cpu", **changed: Any
) -> OnlineRun:
    """A run of 200 updates, unless options are `changed`; `double` trains in float64."""
    module = importlib.import_module(f"hoard.algos.{name}")
    options = {"updates": 200, "hidden": (16, 16), "batch_size": 32, "lr": 1e-3, "compile": on} | OTHERWISE.get(
        name, {}
    )
    options = {option: value for option, value in (options | changed).items() if value is not None}
    dataset = flat_dataset(n=80, seed=3, lengths=[30, 50])
    run = OnlineRun(dataset, seed=seed, remember_start=True, double=double, device=device)
    module.train(module.Config(**options), run)
    return run


def assert_equal_runs(eager: OnlineRun, graph: OnlineRun, atol: float = 1e-4) -> None:
    """Networks, and metrics to `atol`, within rounding; the policy has moved far beyond that."""
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
        assert all(torch.isclose(a[key], b[key], rtol=1e-3, atol=atol) for key in a)
