"""What Decision Mamba's scans and updates cost on this machine, as two Markdown tables.

    OMP_NUM_THREADS=1 python tests/benchmarks/scan_cost.py [--repeats 10] [--paper-repeats 2] [--device cpu]

The first table times a scan alone, forward and backward (batch 64, 60 tokens, 256 channels, state 16); the second
times whole updates (batch, losses, teacher, backward, clipping, AdamW) of the presets. Medians of CPU time, on CUDA of
wall time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import gymnasium as gym
import numpy as np
import torch

from hoard.algos import decision_mamba as dm
from hoard.datasets import Dataset, ReplayBuffer


def median_ms(work: Callable[[], object], repeats: int, device: torch.device, warm: int = 2) -> float:
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    times = []
    for k in range(warm + repeats):
        if not on_cpu:
            torch.cuda.synchronize()
        start = clock()
        work()
        if not on_cpu:
            torch.cuda.synchronize()
        if k >= warm:
            times.append(1000 * (clock() - start))
    return statistics.median(times)


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
        dt, A, scan = 0.1 * draw(batch, length, channels).abs(), -draw(channels, state).abs() - 1, dm.SCANS[name]
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


def update_work(cfg: dm.Config, device: torch.device) -> tuple[Callable[[], object], int]:
    """One update as `train` makes it once there is a teacher, and the number of parameters."""
    dataset, generator = walks(), torch.Generator(device).manual_seed(0)
    buffer = ReplayBuffer(dataset, device, extra={"to_go": dataset.returns_to_go() / 100})
    policy = dm.Policy(dataset, cfg, device, generator)
    teacher = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(dm.parameter_groups(policy, cfg.weight_decay), lr=cfg.lr, eps=1e-6)

    def update() -> None:
        batch = buffer.sample_sequences(cfg.batch_size, cfg.context, generator)
        dm.update_policy(policy, teacher, optimizer, batch, cfg, 0.3 if cfg.self_evolution else 0.0, generator)

    return update, sum(p.numel() for p in policy.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--paper-repeats", type=int, default=2, help="of the sizes paper and transformer; 0 skips them")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} thread\n")

    print("| scan alone | ms forward + backward | against loop |\n|---|--:|--:|")
    cost = {name: median_ms(scan_work(name, device), args.repeats, device) for name in ("loop", "ssd", "two_level")}
    for name, ms in cost.items():
        print(f"| {name} | {ms:.0f} | {ms / cost['loop']:.2f} |")

    print("\n| whole update | parameters | ms | without fine | without teacher |\n|---|--:|--:|--:|--:|")
    for preset, ssm, scan, repeats in (
        ("small", "ssd", "auto", args.repeats),
        ("small", "mamba1", "loop", args.repeats),
        ("small", "mamba1", "two_level", args.repeats),
        ("small_transformer", "", "", args.repeats),
        ("paper", "ssd", "auto", args.paper_repeats),
        ("paper", "mamba1", "loop", args.paper_repeats),
        ("paper", "mamba1", "two_level", args.paper_repeats),
        ("transformer", "", "", args.paper_repeats),
    ):
        if not repeats:
            continue
        cfg = dm.Config(**dm.PRESETS[preset])
        variants = [cfg]
        if ssm:
            cfg = replace(cfg, ssm=ssm, scan=scan)
            variants = [cfg, replace(cfg, fine=False), replace(cfg, self_evolution=False)]
        cells = []
        for variant in variants:
            work, count = update_work(variant, device)
            cells.append(f"{median_ms(work, repeats, device, warm=1):.0f}")
            if variant is cfg:
                parameters = f"{count / 1e6:.2f} M"
        name = preset + (f", {ssm}" if ssm else "") + (f", {scan}" if ssm == "mamba1" else "")
        print(f"| {name} | {parameters} | {' | '.join([*cells, '', ''][:3])} |", flush=True)


if __name__ == "__main__":
    main()
