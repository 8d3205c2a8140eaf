"""Our updates against d3rlpy's, where HOARD_D3RLPY_PYTHON names an interpreter that has d3rlpy 2.8.1.

Same weights, batches and draws, all in float64: losses, gradients and weights after 1, 2 and 100 updates agree to 1e-5.
d3rlpy runs in a process of its own (`d3rlpy_oracle.py` marks each of its departures); `.ci/d3rlpy-parity` makes its
environment and runs this file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from online_toys import OnlineRun
from torch import Tensor, nn
from toys import FakeRun, flat_dataset

from hoard.algos import awac, bc, cql, decision_transformer, iql, prdc, rebrac, sac, td3_bc
from hoard.datasets import ReplayBuffer

PYTHON = os.environ.get("HOARD_D3RLPY_PYTHON")
pytestmark = pytest.mark.skipif(not PYTHON, reason="HOARD_D3RLPY_PYTHON is not set; see .ci/d3rlpy-parity")
KEPT = (1, 2, 100)
TOLERANCE = 1e-5

SMALL: dict[str, Any] = {"hidden": (16, 12), "batch_size": 32, "lr": 1e-3}
CASES: dict[str, tuple[str, ModuleType, dict[str, Any]]] = {
    "iql-corl": ("iql", iql, SMALL | {"update_order": "corl", "normalize_obs": True, "actor_lr_schedule": "constant"}),
    "iql-paper": ("iql", iql, SMALL | {"reward_mode": "none", "actor_lr_schedule": "constant"}),
    "bc": ("bc", bc, SMALL),
    "decision_transformer": (
        "decision_transformer", decision_transformer,
        {"batch_size": 16, "lr": 1e-3, "warmup": 0, "dropout": 0.0, "context": 5, "width": 16, "blocks": 2, "heads": 2,
         "time_rows": 60},
    ),
    "sac": ("sac", sac, SMALL | {"start_steps": 40, "online_steps": 140}),
    "awac": ("awac", awac, SMALL),
    "td3_bc": ("td3_bc", td3_bc, SMALL),
    "rebrac": ("rebrac", rebrac, SMALL),
    "prdc": ("prdc", prdc, SMALL),
    "cql": ("cql", cql, SMALL | {"cql_alpha": 2.0, "cql_actions": 4}),
    "cql-entropy": ("cql", cql, SMALL | {"cql_alpha": 2.0, "cql_actions": 4, "backup_entropy": True}),
    "cql-max-target": ("cql", cql, SMALL | {"cql_alpha": 2.0, "cql_actions": 4, "max_target": True}),
    "cql-gap": ("cql", cql, SMALL | {"cql_alpha": 2.0, "cql_actions": 4, "target_gap": 0.8}),
    "cal_ql": ("cal_ql", cql, SMALL | {"cql_alpha": 2.0, "cql_actions": 4, "calibrate": True}),
}  # fmt: skip


# --- our side ---


def layers(module: nn.Module) -> list[tuple[Any, Any]]:
    """Weight and bias of every linear layer of a one-headed network, as functions of what is looked at."""
    found = getattr(module, "net", module).layers
    return [(lambda look, one=one: look(one.weight), lambda look, one=one: look(one.bias)) for one in found]


def heads(critic: nn.Module, name: str, look: Any) -> dict[str, Tensor]:
    """Both Q functions, layer by layer, in torch's orientation."""
    found: dict[str, Tensor] = {}
    for i in range(2):
        if hasattr(critic, "heads"):
            parts = [(w(look), b(look)) for w, b in layers(critic.heads[i])]
        else:
            parts = [(look(w)[i].T, look(b)[i, 0]) for w, b in zip(critic.weights, critic.biases)]
        for k, (weight, bias) in enumerate(parts):
            found |= {f"{name}{i}/layer{k}/weight": weight, f"{name}{i}/layer{k}/bias": bias}
        for k, (scale, shift) in enumerate(zip(getattr(critic, "scales", []), getattr(critic, "shifts", []))):
            found |= {f"{name}{i}/norm{k}/weight": look(scale)[i, 0], f"{name}{i}/norm{k}/bias": look(shift)[i, 0]}
    return found


def actor_parts(actor: nn.Module, name: str, look: Any, two_headed: bool) -> dict[str, Tensor]:
    parts = [(w(look), b(look)) for w, b in layers(actor)]
    if two_headed:  # mean and log-std come from one layer here, from two there
        weight, bias = parts.pop()
        parts += list(zip(weight.chunk(2), bias.chunk(2)))
    found = {}
    for k, (weight, bias) in enumerate(parts):
        found |= {f"{name}/layer{k}/weight": weight, f"{name}/layer{k}/bias": bias}
    return found


def transformer_parts(actor: nn.Module, look: Any) -> dict[str, Tensor]:
    found = {"time": look(actor.time)}
    whole = {"embed_return": actor.embed_return.first, "embed_obs": actor.embed_obs.first, "norm": actor.norm}
    whole |= {"embed_action": actor.embed_action.first, "embed_norm": actor.embed_norm}
    whole["action_head"] = actor.action_head[-2]
    for i, block in enumerate(actor.blocks):
        whole |= {f"block{i}/{part}": getattr(block, part) for part in ("out", "up", "down", "norm1", "norm2")}
        for part in ("weight", "bias"):
            for which, chunk in zip("qkv", look(getattr(block.qkv, part)).chunk(3)):
                found[f"block{i}/{which}/{part}"] = chunk
    for name, layer in whole.items():
        found |= {f"{name}/weight": look(layer.weight), f"{name}/bias": look(layer.bias)}
    return found


def parts(objects: dict[str, Any], peer: str, look: Any) -> dict[str, Tensor]:
    """What `look` finds at every parameter, under the names that the peer uses."""
    actor = objects.get("networks.actor", objects.get("actor"))
    if peer == "decision_transformer":
        return transformer_parts(actor, look)
    found = actor_parts(actor, "policy", look, peer in ("sac", "cql", "cal_ql"))
    if peer in ("iql", "awac"):
        found["policy/log_std"] = look(actor.log_std)
    if "networks.value" in objects:
        found |= actor_parts(objects["networks.value"], "value", look, False)
    if "target_actor" in objects:
        found |= actor_parts(objects["target_actor"], "targ_policy", look, False)
    if "networks.critic" in objects:
        found |= heads(objects["networks.critic"], "q", look) | heads(objects["target"], "targ_q", look)
    if "networks.alpha" in objects:
        found["log_temp"] = look(objects["networks.alpha"].log)
    if "networks.factor" in objects:
        found["log_alpha"] = look(objects["networks.factor"].log)
    return found


class Recorder:
    """Keeps batches, draws, losses, gradients and weights of a run in float64."""

    def __init__(self, peer: str, run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peer, self.run, self.arrays, self.number = peer, run, {}, 0
        self.batch: dict[str, Tensor] = {}
        self.noise: list[Tensor] = []
        self.gradients: dict[nn.Parameter, Tensor] = {}
        register, log = run.register, run.log

        def registered(**objects: Any) -> None:
            register(**objects)
            self.keep("start", parts(run.objects, peer, lambda p: p.detach()))
            for name, thing in run.objects.items():
                if name.startswith("optimizer"):
                    thing.register_step_pre_hook(self.before_step)
            self.noise.clear()

        def logged(metrics: dict[str, Tensor], updates: int = 1) -> None:
            self.number += 1
            self.after_update(metrics)
            log(metrics, updates)

        run.register, run.log = registered, logged
        for name in ("randn", "rand"):
            draw = getattr(torch, name)

            def recorded(*args: Any, draw: Any = draw, **kwargs: Any) -> Tensor:
                drawn = draw(*args, **kwargs)
                if kwargs.get("generator") is run.generator:
                    self.noise.append(drawn)
                return drawn

            monkeypatch.setattr(torch, name, recorded)
        gather = ReplayBuffer.gather

        def gathered(buffer: ReplayBuffer, index: Tensor) -> dict[str, Tensor]:
            batch = gather(buffer, index)
            batch = {name: values.double() if values.is_floating_point() else values for name, values in batch.items()}
            self.noise.clear()  # what was drawn for acting
            return batch

        monkeypatch.setattr(ReplayBuffer, "gather", gathered)

    def keep(self, when: str, found: dict[str, Tensor]) -> None:
        self.arrays |= {f"{when}:{name}": values.detach().clone().numpy() for name, values in found.items()}

    def before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            self.gradients |= {p: p.grad.clone() for p in group["params"] if p.grad is not None}

    def after_update(self, metrics: dict[str, Tensor]) -> None:
        batch = dict(self.batch)
        actor = self.run.objects.get("networks.actor", self.run.objects.get("actor"))
        for name in ("obs", "next_obs"):
            if hasattr(actor, "normalize"):
                batch[name] = actor.normalize(batch[name])
        self.keep(f"{self.number}", {f"batch:{name}": values for name, values in batch.items()})
        self.keep(f"{self.number}", {f"noise:{k}": values for k, values in enumerate(self.noise)})
        if self.number in KEPT:
            of_losses = {name.removeprefix("losses/"): v for name, v in metrics.items() if name.startswith("losses/")}
            self.keep(f"{self.number}:loss", of_losses)
            self.keep(f"{self.number}:weight", parts(self.run.objects, self.peer, lambda p: p))
            nothing = lambda p: self.gradients.get(p, torch.full_like(p, torch.nan))  # noqa: E731
            kept = parts(self.run.objects, self.peer, nothing)
            self.keep(f"{self.number}:grad", {k: v for k, v in kept.items() if not v.isnan().any()})
        self.noise.clear()
        self.gradients.clear()


def record(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Train 100 updates here and leave in the folder what the peer needs."""
    peer, algo, options = CASES[name]
    dataset = flat_dataset(n=120, lengths=[30, 50, 40])
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            if algo is sac:
                run: FakeRun = OnlineRun(dataset, seed=3)
                monkeypatch.setattr(
                    type(run.env), "obs", property(lambda env: torch.as_tensor(env._obs).double()[None])
                )
                cfg = algo.Config(**options)
            else:
                run = FakeRun(dataset, seed=3)
                cfg = algo.Config(**options, updates=max(KEPT))
            recorder = Recorder(peer, run, monkeypatch)
            sampled(recorder, algo, monkeypatch)
            algo.train(cfg, run)
    finally:
        torch.set_default_dtype(torch.float32)
    assert recorder.number == max(KEPT)
    if algo is prdc:
        obs = torch.as_tensor(dataset.obs, dtype=torch.float64)
        recorder.keep("data", {"obs": run.objects["networks.actor"].normalize(obs)})
        recorder.keep("data", {"action": torch.as_tensor(dataset.action, dtype=torch.float64)})
    told = {"peer": peer, "obs_dim": dataset.obs_dim, "action_dim": dataset.action_dim}
    options = {"hidden": (), **dataclasses.asdict(cfg)}
    (folder / f"{name}.json").write_text(json.dumps(told | {"options": options}))
    np.savez(folder / f"{name}.npz", **recorder.arrays)
    return recorder.arrays


def sampled(recorder: Recorder, algo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the batch that an update is given: it passes through one of these functions."""
    for name in ("critic_loss", "backup_of", "actor_loss", "value_loss"):
        if not hasattr(algo, name):
            continue
        original = getattr(algo, name)

        def kept(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            for one in (*args, *kwargs.values()):
                if isinstance(one, dict) and "obs" in one:
                    recorder.batch = one
            return original(*args, **kwargs)

        monkeypatch.setattr(algo, name, kept)
    sample = ReplayBuffer.sample

    def remembered(*args: Any, **kwargs: Any) -> dict[str, Tensor]:
        recorder.batch = sample(*args, **kwargs)
        return recorder.batch

    monkeypatch.setattr(ReplayBuffer, "sample", remembered)


# --- the comparison ---


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Ours and the peer's quantities of every case."""
    folder = tmp_path_factory.mktemp("d3rlpy")
    ours = {name: record(name, folder) for name in CASES}
    subprocess.run([str(PYTHON), str(Path(__file__).with_name("d3rlpy_oracle.py")), str(folder)], check=True)
    return {name: (ours[name], dict(np.load(folder / f"{name}.peer.npz"))) for name in CASES}


def compared(ours: dict[str, np.ndarray], peers: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Every quantity both sides have and its largest difference, relative to the quantity's own size."""
    for name, theirs in peers.items():
        if name in ours:
            mine = ours[name].reshape(theirs.shape)
            yield name, float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-3))


@pytest.mark.parametrize("name", CASES)
def test_every_update_is_d3rlpys(both, name):
    ours, peers = both[name]
    wanted = {key for key in ours if key.split(":")[0] in map(str, KEPT) and key.split(":")[1] in ("grad", "weight")}
    if CASES[name][0] in ("cql", "cal_ql") and "gap" not in name:
        wanted = {key for key in wanted if not key.endswith("log_alpha")}
    missing = sorted(key for key in wanted if key not in peers)
    assert not missing, f"d3rlpy did not compute {missing[:5]}"
    differences = dict(compared(ours, peers))
    assert any(":loss:" in key for key in differences)
    assert any(":grad:" in key for key in differences)
    worst = max(differences, key=lambda key: differences[key])
    print(f"\n{name}: {len(differences)} quantities, largest relative difference {differences[worst]:.1e} ({worst})")
    assert differences[worst] < TOLERANCE, worst


@pytest.mark.parametrize("name", CASES)
def test_the_weights_did_move(both, name):
    ours, _ = both[name]
    still = [
        key
        for key in ours
        if key.startswith("100:weight:") and np.array_equal(ours[key], ours["start:" + key.removeprefix("100:weight:")])
    ]
    allowed = {"100:weight:log_alpha"} if CASES[name][0] in ("cql", "cal_ql") and "gap" not in name else set()
    assert set(still) <= allowed
