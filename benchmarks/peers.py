"""An update of IQL beside the peers', from their own code: JSON and a Markdown table.

    python benchmarks/peers.py [--corl CORL/algorithms/offline/iql.py] [--d3rlpy PYTHON] [--hidden 256] [--seconds 3]

CORL's classes are taken from a copy of its file, without the imports of its training script; its update reads its
three losses each time, as it does there. d3rlpy runs in an interpreter of its own (`d3rlpy_iql.py`). Ours are timed by
`speed.py`, which also gives the floor. All have two layers, the same sizes of batch, observations and actions, and one
thread; sampling is left out. They take turns, and the best turn of each counts, in CPU time. See docs/speed.md.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import copy
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import machine, measure, walks
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR
from turns import best_turn

from hoard.records.errors import BadInput
from hoard.records.files import write_json

BATCH = 256


def corl_classes(path: Path) -> dict[str, Any]:
    """What CORL's IQL file defines without decorators; its imports (d4rl, gym, wandb) are not made.

    Raises BadInput where it is no such file.
    """
    try:
        tree = ast.parse(path.read_text())
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise BadInput(f"--corl {path}: cannot be read: {error}") from error
    kept = [
        node
        for node in tree.body
        if isinstance(node, ast.Assign)
        or (isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.decorator_list)
    ]
    flags = __future__.annotations.compiler_flag
    code = compile(ast.Module(kept, []), str(path), "exec", flags=flags, dont_inherit=True)
    found = vars(typing) | {
        "__name__": "corl", "copy": copy, "np": np, "torch": torch, "nn": nn, "F": functional, "Normal": Normal,
        "CosineAnnealingLR": CosineAnnealingLR,
    }  # fmt: skip
    exec(code, found)
    if missing := {"ImplicitQLearning", "TwinQ", "ValueFunction", "GaussianPolicy"} - set(found):
        raise BadInput(f"--corl {path}: is not CORL's iql.py: it lacks {', '.join(sorted(missing))}")
    return found


def corl_update(path: Path, obs_dim: int, action_dim: int, width: int) -> Callable[[], object]:
    """An update of CORL's IQL with its networks and optimisers, on one batch."""
    corl = corl_classes(path)
    q = corl["TwinQ"](obs_dim, action_dim, width)
    v = corl["ValueFunction"](obs_dim, width)
    actor = corl["GaussianPolicy"](obs_dim, action_dim, 1.0, width)
    optimizers = [torch.optim.Adam(net.parameters(), lr=3e-4) for net in (actor, q, v)]
    trainer = corl["ImplicitQLearning"](1.0, actor, optimizers[0], q, optimizers[1], v, optimizers[2])
    batch = a_batch(obs_dim, action_dim)
    return lambda: trainer.train(batch)


def a_batch(obs_dim: int, action_dim: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    obs, next_obs = (torch.randn(BATCH, obs_dim, generator=generator) for _ in range(2))
    action = 2 * torch.rand(BATCH, action_dim, generator=generator) - 1
    return [obs, action, torch.randn(BATCH, 1, generator=generator), next_obs, torch.zeros(BATCH, 1)]


def d3rlpy_ms(python: str, seconds: float, obs_dim: int, action_dim: int, width: int) -> float:
    """The same of d3rlpy. Raises BadInput where its interpreter fails."""
    numbers = [str(x) for x in (seconds, obs_dim, action_dim, width, BATCH)]
    script = Path(__file__).with_name("d3rlpy_iql.py")
    try:
        done = subprocess.run([python, str(script), *numbers], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BadInput(f"--d3rlpy {python}: cannot be run: {error.strerror}") from error
    if done.returncode:
        raise BadInput(f"--d3rlpy {python}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return float(done.stdout.split()[-1])


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each: name, milliseconds, and how many times the floor and hoard's eager update that is."""
    data = walks()
    shape = data.obs_dim, data.action_dim, args.hidden
    options = {"hidden": (args.hidden, args.hidden), "batch_size": BATCH}
    told: dict[str, list[float]] = {}
    floors = []
    corl = corl_update(args.corl, *shape) if args.corl else None
    for _ in range(args.turns):
        for name, compiled in (("hoard", False), ("hoard, compiled", True)):
            (part,) = measure("iql", options | {"compile": compiled}, args.seconds)
            told.setdefault(name, []).append(1000 * part.update)
            floors.append(1000 * part.floor)
        if corl:
            told.setdefault("CORL", []).append(best_turn(corl, args.seconds))
        if args.d3rlpy:
            told.setdefault("d3rlpy", []).append(d3rlpy_ms(args.d3rlpy, args.seconds, *shape))
    floor = min(floors)
    eager = min(told["hoard"])
    return [
        {
            "name": name,
            "update_ms": round(min(times), 4),
            "ratio": round(min(times) / floor, 3),
            "of_hoard": round(min(times) / eager, 3),
        }
        for name, times in told.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corl", type=Path, help="CORL's algorithms/offline/iql.py")
    parser.add_argument("--d3rlpy", help="a Python interpreter that has d3rlpy")
    parser.add_argument("--hidden", type=int, default=256, help="width of both layers (default: 256)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn (default: 3)")
    parser.add_argument("--turns", type=int, default=3, help="of each (default: 3)")
    parser.add_argument("--json", type=Path, help="write the rows there, with the class of the machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        rows = compare(args)
    except BadInput as error:
        sys.exit(f"peers: {error}")
    if args.json:
        told = {"machine": machine("cpu"), "torch": torch.__version__, "hidden": args.hidden, "batch_size": BATCH}
        write_json(args.json, told | {"rows": rows})
    print(f"{machine('cpu')}, torch {torch.__version__}, networks {args.hidden} wide, batch {BATCH}\n")
    print("| IQL | ms an update | update / floor | times hoard's eager update |\n|---|--:|--:|--:|")
    for row in rows:
        print(f"| {row['name']} | {row['update_ms']:.2f} | {row['ratio']:.2f} | {row['of_hoard']:.2f} |")


if __name__ == "__main__":
    main()
