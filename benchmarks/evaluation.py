"""How near evaluation comes to the bare environment: steps per second of both, and what an evaluation spends where.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [DATASET ...] [--hidden 256 256] [--episodes 50] [--processes 2]

An untrained policy of BC is evaluated as a run does it. Then the same environments make the same steps, with the
actions just taken and nothing else. Both are seconds of CPU time of this process, on one thread, in turns; the best of
each counts. With `--processes` above 1 others step the environments of an evaluation, and both are wall time: the
machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch

import hoard
from hoard.algos import bc
from hoard.runners.evaluate import Evaluator, fresh_seed
from hoard.runners.task import task_of

DATASETS = ("hoard/pendulum/mixed-v0", "hoard/pointmaze/umaze-v0", "hoard/hopper/medium-replay-v0")
TURNS = 5


def bare_seconds(
    env: gym.Env, episodes: dict[int, list[np.ndarray]], seeds: list[int], clock: Callable[[], float]
) -> float:
    """Seconds of the recorded actions in an environment alone."""
    begun = clock()
    for number, actions in episodes.items():
        env.reset(seed=seeds[number])
        for action in actions:
            env.step(action)
    return clock() - begun


def measure(dataset: str, hidden: tuple[int, ...], count: int, processes: int = 1) -> dict[str, Any]:
    """Steps per second of evaluation and of the bare environment on one dataset's task."""
    clock = time.process_time if processes == 1 else time.perf_counter
    task = task_of(hoard.load(dataset))
    evaluator = Evaluator(task, processes=processes)
    policy = bc.Actor(bc.Config(hidden=hidden), task.obs_dim, task.action_dim, torch.Generator().manual_seed(0))
    seeds = [fresh_seed(0, number) for number in range(count)]
    episodes: dict[int, list[np.ndarray]] = {}

    def remember(number: int, env: gym.Env, action: np.ndarray | None, obs: np.ndarray) -> None:
        episodes.setdefault(number, []).extend([] if action is None else [action.copy()])

    rows = evaluator(policy, seeds, torch.Generator().manual_seed(0), remember)
    assert rows == evaluator(policy, seeds, torch.Generator().manual_seed(0))  # also warms up
    steps = sum(row["length"] for row in rows)
    evaluations, bare = [], []
    for _ in range(TURNS):
        begun = clock()
        evaluator(policy, seeds, torch.Generator().manual_seed(0))
        evaluations.append(clock() - begun)
        bare.append(bare_seconds(evaluator.envs[0], episodes, seeds, clock))
    evaluator.close()
    return {"dataset": dataset, "steps": steps, "evaluation": steps / min(evaluations), "bare": steps / min(bare)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=list(DATASETS), metavar="DATASET")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| dataset | evaluation: steps/s | bare environment | share |\n|---|--:|--:|--:|")
    for dataset in args.datasets:
        row = measure(dataset, tuple(args.hidden), args.episodes, args.processes)
        share = row["evaluation"] / row["bare"]
        print(f"| `{dataset}` | {row['evaluation']:.0f} | {row['bare']:.0f} | {share:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
