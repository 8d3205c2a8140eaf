"""What training K seeds in one process could save: `python benchmarks/stacked.py [--seeds 3 5 10] [--hidden 64 128]`.

An IQL update is written bare, for K seeds at once: layer k of all their networks is one weight (K, in, out), and one
Adam steps them all. A seed's numbers are those of the same update alone (a test). Printed is the CPU time of an update,
on one thread, and how many times quicker a seed's share of it is than the same update alone. The sizes take turns, and
the best turn of each counts. See docs/speed.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

BATCH, OBS, ACTION = 256, 17, 6  # a locomotion task's
DISCOUNT, EXPECTILE, BETA, TAU, LR = 0.99, 0.7, 3.0, 0.005, 3e-4
TURN = 0.05  # seconds


def network(count: int, sizes: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Weights (count, in, out) and biases (count, 1, out) of `count` networks."""
    weights = [torch.randn(count, a, b, generator=generator) / a**0.5 for a, b in pairwise(sizes)]
    biases = [torch.zeros(count, 1, b) for b in sizes[1:]]
    return [tensor.requires_grad_() for tensor in (*weights, *biases)]


def forward(network: list[Tensor], x: Tensor) -> Tensor:
    """(count, B, in) -> (count, B, out)."""
    half = len(network) // 2
    for k, (weight, bias) in enumerate(zip(network[:half], network[half:])):
        x = torch.baddbmm(bias, x, weight)
        if k < half - 1:
            x = torch.relu_(x)
    return x


class Stack:
    """IQL's networks of K seeds: two Q functions, a V, and a Gaussian policy each."""

    def __init__(self, seeds: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        self.seeds = seeds
        self.q = network(2 * seeds, [OBS + ACTION, *hidden, 1], generator)
        self.v = network(seeds, [OBS, *hidden, 1], generator)
        self.policy = network(seeds, [OBS, *hidden, ACTION], generator)
        self.log_std = torch.zeros(seeds, 1, ACTION, requires_grad=True)
        self.target = [tensor.detach().clone() for tensor in self.q]
        groups = (self.q, self.v, [*self.policy, self.log_std])
        self.adams = [torch.optim.Adam(group, lr=LR, fused=True) for group in groups]

    def parameters(self) -> list[Tensor]:
        """All that is trained. The first dimension counts the seeds, or the Q functions, two of each seed."""
        return [*self.q, *self.v, *self.policy, self.log_std]

    def update(self, batch: dict[str, Tensor]) -> None:
        """One step of V, Q, policy and target. `batch`: (K, B, ...) each. Losses are summed over seeds."""
        pair = torch.cat([batch["obs"], batch["action"]], dim=-1).repeat_interleave(2, dim=0)
        with torch.no_grad():
            target_q = forward(self.target, pair).view(self.seeds, 2, -1).amin(dim=1)
        gap = target_q - forward(self.v, batch["obs"])[..., 0]
        weight = torch.where(gap > 0, EXPECTILE, 1 - EXPECTILE)
        self._step(1, (weight * gap.square()).mean(dim=1).sum())

        with torch.no_grad():
            value, next_value = forward(self.v, torch.cat([batch["obs"], batch["next_obs"]], dim=1))[..., 0].chunk(
                2, dim=1
            )
            clone = (BETA * (target_q - value)).exp().clamp(max=100)
            backup = batch["reward"] + DISCOUNT * (1 - batch["terminated"]) * next_value
        q = forward(self.q, pair).view(self.seeds, 2, -1)
        self._step(0, (q - backup[:, None]).square().mean(dim=2).sum())

        error = (batch["action"] - torch.tanh(forward(self.policy, batch["obs"]))) / self.log_std.exp()
        self._step(2, (clone * (0.5 * error.square() + self.log_std).sum(dim=-1)).mean(dim=1).sum())
        with torch.no_grad():
            torch._foreach_lerp_(self.target, self.q, TAU)

    def _step(self, which: int, loss: Tensor) -> None:
        self.adams[which].zero_grad()
        loss.backward()
        self.adams[which].step()


def draw(seeds: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch for each seed."""
    return {
        "obs": torch.randn(seeds, BATCH, OBS, generator=generator),
        "action": 2 * torch.rand(seeds, BATCH, ACTION, generator=generator) - 1,
        "reward": torch.randn(seeds, BATCH, generator=generator),
        "terminated": torch.zeros(seeds, BATCH),
        "next_obs": torch.randn(seeds, BATCH, OBS, generator=generator),
    }


def measure(counts: Sequence[int], width: int, rounds: int) -> dict[int, float]:
    """Seconds of one update of each number of seeds, networks of two layers of `width`."""
    generator = torch.Generator().manual_seed(0)
    stacks = {count: Stack(count, (width, width), generator) for count in counts}
    batches = {count: draw(count, generator) for count in counts}
    best = dict.fromkeys(counts, float("inf"))
    for _ in range(rounds):
        for count, stack in stacks.items():
            stack.update(batches[count])
            made, begin = 0, time.thread_time()
            while (spent := time.thread_time() - begin) < TURN or not made:
                stack.update(batches[count])
                made += 1
            best[count] = min(best[count], spent / made)
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What training K seeds in one process could save.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 5, 10], help="how many at once")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 128, 256], help="widths of the two layers")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each")
    options = parser.parse_args(arguments)
    if min(*options.seeds, *options.hidden, options.rounds) < 1:
        parser.error("--seeds, --hidden and --rounds must be at least 1")
    torch.set_num_threads(1)
    counts = [1, *(count for count in options.seeds if count > 1)]
    print(f"torch {torch.__version__}, one thread of {os.cpu_count()} cores; ms of one update (times quicker a seed)\n")
    print("| hidden |" + "".join(f" {count} |" for count in counts))
    print("|---|" + "--:|" * len(counts))
    for width in options.hidden:
        found = measure(counts, width, options.rounds)
        cells = [f" {1e3 * spent:.2f} ({count * found[1] / spent:.2f}) |" for count, spent in found.items()]
        print(f"| {width}, {width} |" + "".join(cells))


if __name__ == "__main__":
    main()
