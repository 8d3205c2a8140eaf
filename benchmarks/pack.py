"""What packing seeds saves: `python benchmarks/pack.py [--algos iql td3_bc] [--seeds 3 10] [--hidden 64 128 256]`.

Each file's own `train` runs on numbers of a locomotion task's size, alone and with its seeds in one process
(`hoard bench --pack`), sampling and logging included. Printed is the time of an update of all, and how many times
quicker a seed's share of it is than the same update alone. On CPU it is CPU time of the process, one thread; on CUDA
wall time. Sizes take turns, and the best turn of each counts. See docs/speed.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hoard.datasets import Dataset
from hoard.runners.config import packable
from hoard.runners.pack import Pack

sys.path.insert(0, str(Path(__file__).parent))
from speed import walks

WARM_UP = 5


class PlainRun:
    """What an offline `train` needs of a run; it notes when the warm-up and the last update were over."""

    evaluation_due = False

    def __init__(self, dataset: Dataset, device: torch.device, seed: int) -> None:
        self.dataset, self.device = dataset, device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.logged: list[dict[str, torch.Tensor]] = []
        self.times: list[float] = []

    def register(self, **_: Any) -> None:
        pass

    def loop(self, updates: int) -> Iterator[int]:
        for number in range(1, updates + 1):
            yield number
            if number in (WARM_UP, updates):
                self.times.append(self._now())

    def log(self, metrics: dict[str, torch.Tensor]) -> None:
        self.logged.append(metrics)

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def measure(algo: str, seeds: int, hidden: int, updates: int, device: str) -> float:
    """Seconds of one update of so many seeds at once."""
    module = importlib.import_module(f"hoard.algos.{algo}")
    dataset, runs = walks(), []
    pack = Pack(seeds)
    members = [pack.join(lambda _: (0,)) for _ in range(seeds)] if seeds > 1 else []

    def train(seed: int) -> None:
        torch.set_num_threads(1)
        options = {"updates": WARM_UP + updates, "hidden": (hidden, hidden), "batch_size": 256}
        cfg = module.Config(**options, seed=seed, device=device)
        assert packable(cfg), f"{algo} cannot be packed"
        run = PlainRun(dataset, torch.device(device), seed)
        runs.append(run)
        if members:
            with members[seed]:
                module.train(cfg, run)
        else:
            module.train(cfg, run)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(seeds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return min(end - begin for begin, end in (run.times for run in runs)) / updates


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What packing seeds saves.")
    parser.add_argument("--algos", nargs="+", default=["iql", "td3_bc", "bc"], help="offline algorithm files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 10], help="how many at once")
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 64, 128, 256], help="widths of the two layers")
    parser.add_argument("--updates", type=int, default=40, help="updates of a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if min(*options.seeds, *options.hidden, options.rounds, options.updates) < 1:
        parser.error("--seeds, --hidden, --updates and --rounds must be at least 1")
    counts = [1, *(count for count in options.seeds if count > 1)]
    print(f"torch {torch.__version__}, {options.device}, {os.cpu_count()} cores")
    print("ms of one update (times quicker a seed)\n")
    print("| algorithm | hidden |" + "".join(f" {count} |" for count in counts))
    print("|---|---|" + "--:|" * len(counts))
    for algo in options.algos:
        for width in options.hidden:
            best = dict.fromkeys(counts, float("inf"))
            for _ in range(options.rounds):
                for count in counts:
                    best[count] = min(best[count], measure(algo, count, width, options.updates, options.device))
            cells = [f" {1e3 * spent:.2f} ({count * best[1] / spent:.2f}) |" for count, spent in best.items()]
            print(f"| {algo} | {width} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
