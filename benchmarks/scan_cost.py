"""What the scans and updates of Decision Mamba, and those of Decision Transformer, cost here: two Markdown tables.

    OMP_NUM_THREADS=1 python benchmarks/scan_cost.py [--repeats 10] [--paper-repeats 2] [--device cpu]

The first table times a scan alone, forward and backward (batch 64, 60 tokens, 256 channels, state 16); the second
times whole updates (batch, teacher, losses, backward, clipping, AdamW), as `train` makes them once there is a teacher.
Medians of CPU time, on CUDA of wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from hoard.algos import decision_mamba as dm
from hoard.algos import decision_transformer as dt
from hoard.datasets import Dataset
from hoard.runners.scans import SCANS


def now(device: torch.device) -> float:
    """Seconds of CPU time, on CUDA of wall time once the device is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def median_ms(times: list[float]) -> float:
    """Of the differences between these seconds."""
    return statistics.median(1000 * (after - before) for before, after in pairwise(times))


def scan_ms(name: str, repeats: int, device: torch.device) -> float:
    work, times = scan_work(name, device), []
    for _ in range(2 + repeats):
        work()
        times.append(now(device))
    return median_ms(times[1:])


def scan_work(name: str, device: torch.device) -> Callable[[], object]:
    """Forward and backward of one scan with gradients for every input."""
    batch, length, channels, state, heads = 64, 60, 256, 16, 4
    generator = torch.Generator(device).manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, device=device)  # noqa: E731
    u, B, C = draw(batch, length, channels), draw(batch, length, state), draw(batch, length, state)
    if name == "ssd":
        u = u.unflatten(-1, (heads, -1))
        dt, A, scan = 0.1 * draw(batch, length, heads).abs(), -draw(heads).abs() - 1, dm.ssd_quadratic
    else:
        dt, A, scan = 0.1 * draw(batch, length, channels).abs(), -draw(channels, state).abs() - 1, SCANS[name]
    inputs = [x.detach().requires_grad_() for x in (u, dt, A, B, C)]
    upstream = torch.randn(u.shape, generator=generator, device=device)
    return lambda: torch.autograd.grad(scan(*inputs), inputs, upstream)


def walks(obs_dim: int = 17, action_dim: int = 6, episodes: int = 20, steps: int = 200) -> Dataset:
    """Numbers of the size of a locomotion task; what they are does not change the cost."""
    rng = np.random.default_rng(0)
    n = episodes * steps
    last = np.arange(n) % steps == steps - 1
    return Dataset(
        id="benchmark/walks",
        observations=rng.normal(size=(n + episodes, obs_dim)).astype(np.float32),
        rows=np.arange(n) + np.arange(n) // steps,
        action=rng.uniform(-1, 1, size=(n, action_dim)).astype(np.float32),
        reward=rng.normal(size=n).astype(np.float32),
        terminated=np.zeros(n, bool),
        truncated=last,
        starts=np.arange(episodes + 1) * steps,
        action_space=gym.spaces.Box(-1, 1, (action_dim,), np.float32),
    )


class TimedRun:
    """What `train` needs of a run, with nothing written or evaluated: it keeps the time after each update."""

    evaluation_due = evaluation_final = False

    def __init__(self, device: torch.device) -> None:
        self.dataset, self.device = walks(), device
        self.generator = torch.Generator(device).manual_seed(0)
        self.times: list[float] = []

    def register(self, actor: torch.nn.Module, **_: object) -> None:
        self.parameters = sum(p.numel() for p in actor.parameters())

    def loop(self, updates: int) -> Iterator[int]:
        for number in range(1, updates + 1):
            yield number
            self.times.append(now(self.device))

    def log(self, metrics: dict[str, torch.Tensor]) -> None:
        pass


def update_ms(algo: Any, cfg: Any, repeats: int, device: torch.device) -> tuple[float, int]:
    """Median cost of `repeats` updates after the first two, which have no teacher yet, and the number of parameters."""
    cfg = replace(cfg, updates=2 + repeats)
    if algo is dm:
        cfg = replace(cfg, teacher_every=2)
    run = TimedRun(device)
    algo.train(cfg, run)
    return median_ms(run.times[1:]), run.parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--paper-repeats", type=int, default=2, help="of the presets paper; 0 skips them")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} thread\n")

    print("| scan alone | ms forward + backward | against loop |\n|---|--:|--:|")
    cost = {name: scan_ms(name, args.repeats, device) for name in ("loop", "ssd", "two_level")}
    for name, ms in cost.items():
        print(f"| {name} | {ms:.0f} | {ms / cost['loop']:.2f} |")

    print("\n| whole update | parameters | ms | without fine | without teacher |\n|---|--:|--:|--:|--:|")
    for algo, preset, options, repeats in (
        (dm, "small", {"ssm": "ssd"}, args.repeats),
        (dm, "small", {"ssm": "mamba1", "scan": "loop"}, args.repeats),
        (dm, "small", {"ssm": "mamba1", "scan": "two_level"}, args.repeats),
        (dt, "small", {}, args.repeats),
        (dm, "paper", {"ssm": "ssd"}, args.paper_repeats),
        (dm, "paper", {"ssm": "mamba1", "scan": "loop"}, args.paper_repeats),
        (dm, "paper", {"ssm": "mamba1", "scan": "two_level"}, args.paper_repeats),
        (dt, "paper", {}, args.paper_repeats),
    ):
        if not repeats:
            continue
        cfg = algo.Config(**{**algo.PRESETS[preset], **options})
        ms, parameters = update_ms(algo, cfg, repeats, device)
        cells = [f"{ms:.0f}", "", ""]
        if algo is dm:
            less = (replace(cfg, fine=False), replace(cfg, self_evolution=False))
            cells[1:] = [f"{update_ms(algo, variant, repeats, device)[0]:.0f}" for variant in less]
        name = ", ".join([algo.__name__.rsplit(".")[-1], preset, *options.values()])
        print(f"| {name} | {parameters / 1e6:.2f} M | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
