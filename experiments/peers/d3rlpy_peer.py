"""IQL and BC of d3rlpy 2.8.1 as an algorithm file, so that one sweep, one evaluation and one report serve both sides.

Training is d3rlpy's alone: this file hands it the dataset, lets it run in an environment of its own and evaluates the
policies that it leaves. HOARD_D3RLPY_PYTHON names its interpreter; `.ci/d3rlpy-parity` makes one in build/d3rlpy-venv.

Run: python experiments/peers/d3rlpy_peer.py --method iql --dataset hoard/maze2d/umaze-v0 --seed 0
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hoard.runners import Run, main
from hoard.runners.nn import ObsNormalizer

TRAINER = Path(__file__).with_name("d3rlpy_train.py")


@dataclass
class Config:
    """d3rlpy's IQL and BC; what is not an option here is d3rlpy's default."""

    # --- experiment ---
    dataset: str = "hoard/maze2d/umaze-v0"  # dataset id: hoard/..., a Minari id, or d4rl:NAME
    seed: int = 0  # seed of everything random in this run
    device: str = "cpu"  # where the policy is evaluated; d3rlpy trains on the CPU
    threads: int = 1  # torch CPU threads
    updates: int = 15_000  # gradient updates on the dataset
    log_every: int = 1000  # updates per row of training metrics
    eval_every: int = 5000  # updates between evaluations
    eval_episodes: int = 10  # episodes of each evaluation on the way
    final_eval_episodes: int = 50  # episodes of the last one, which is the score
    checkpoint_every: int = 15_000  # updates between checkpoints
    # --- d3rlpy ---
    method: Literal["iql", "bc"] = "iql"  # which of its algorithms
    batch_size: int = 256  # transitions per update
    lr: float = 1e-3  # Adam's step size, of all networks
    hidden: tuple[int, ...] = (128, 128)  # widths of the hidden layers of every network
    discount: float = 0.99  # gamma
    target_tau: float = 0.02  # Polyak step of the target critic
    expectile: float = 0.7  # of IQL's value loss
    beta: float = 3.0  # inverse temperature of IQL's policy weights
    max_weight: float = 100.0  # cap of exp(beta * advantage)


PRESETS: dict[str, dict[str, Any]] = {"d3rlpy": {}}


class Actor(nn.Module):
    """d3rlpy's policy, its mean passed through tanh."""

    def __init__(self, cfg: Config, obs_dim: int, action_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.normalize = ObsNormalizer(obs_dim, generator.device)
        sizes = pairwise([obs_dim, *cfg.hidden, action_dim])
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, a, b, device=generator.device) for a, b in sizes)

    def act(self, obs: Tensor) -> Tensor:
        """The image of the mean, tanh(mean)."""
        x = self.normalize(obs)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return torch.tanh(self.layers[-1](x))

    @torch.no_grad()
    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over a policy that d3rlpy left."""
        self.normalize.fit(torch.as_tensor(arrays["mean"]), torch.as_tensor(arrays["std"]))
        for k, layer in enumerate(self.layers):
            layer.weight.copy_(torch.as_tensor(arrays[f"weight{k}"]))
            layer.bias.copy_(torch.as_tensor(arrays[f"bias{k}"]))


def trained(cfg: Config, run: Run, folder: Path) -> None:
    """Let d3rlpy train; it leaves `UPDATE.npz` in the folder for every evaluation. Raises ValueError without one."""
    python = os.environ.get("HOARD_D3RLPY_PYTHON")
    if not python:
        raise ValueError("HOARD_D3RLPY_PYTHON must name a Python that has d3rlpy 2.8.1; see .ci/d3rlpy-parity")
    dataset, space = run.dataset, run.dataset.action_space
    unit = 2 * (dataset.action - space.low) / (space.high - space.low) - 1
    np.savez(
        folder / "data.npz", obs=dataset.obs, action=unit.astype(np.float32), reward=dataset.reward,
        terminated=dataset.terminated, truncated=dataset.truncated,
    )  # fmt: skip
    (folder / "told.json").write_text(json.dumps(asdict(cfg)))
    subprocess.run([python, str(TRAINER), str(folder)], check=True)


def train(cfg: Config, run: Run) -> None:
    actor = Actor(cfg, run.dataset.obs_dim, run.dataset.action_dim, run.generator)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained(cfg, run, folder)
        run.register(actor=actor)
        for number in run.loop(cfg.updates):
            if run.evaluation_due:
                actor.load(dict(np.load(folder / f"{number}.npz")))
                run.evaluate(actor)


if __name__ == "__main__":
    main(Config, train, PRESETS)
