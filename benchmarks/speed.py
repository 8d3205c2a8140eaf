"""How fast the updates of the algorithm files are, and how near to the hardware: JSON and a Markdown table.

    python benchmarks/speed.py [--algos iql bc] [--hidden 256 256] [--batch 256] [--seconds 5] [--against FILE]

Each file's own `train` runs on numbers of a locomotion task's size (17 observations, 6 actions). Sampling, update and
logging are timed apart. The floor is what the hardware asks for: the matrix products of the same updates, forward and
backward, written down while they ran, then made alone, at the same shapes and in the same process. Update and floor
take turns; the best turn of each counts. On CPU, times are those of the process, on one thread; on CUDA they are wall
times, and not split. See docs/speed.md.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hoard.datasets import Dataset, ReplayBuffer
from hoard.records.errors import BadInput
from hoard.records.files import write_json
from hoard.runners.algorithms import available
from hoard.runners.config import check
from hoard.runners.recorder import Recorder

# What stands beside the defaults of each file, so that the stages to be timed are reached at once.
OFFLINE: dict[str, Any] = {"updates": 10**9}
ONLINE: dict[str, Any] = {"updates": 0, "online_steps": 50_000, "start_steps": 1}
OTHERWISE: dict[str, dict[str, Any]] = {
    "decision_mamba": OFFLINE | {"teacher_every": 2, "beta": 1e9},  # with a teacher from the third update on
    "mbrcsl": OFFLINE | {"dynamics_epochs": 1000, "diffusion_updates": 10**9, "rollout_batches": 1},
    "sac": ONLINE,
    "rlpd": ONLINE | {"updates_per_step": 1},  # an update is one critic step and one actor step
    "moorl": ONLINE,
    "drbc": {"updates": 10**9, "online_steps": 50_000, "warmup_steps": 0},
}
NOT_MEASURED = ("hnpg", "drbc_tabular")  # no updates on minibatches
ALGORITHMS = {name: OTHERWISE.get(name, OFFLINE) for name in available() if name not in NOT_MEASURED}
WARM_UP = 6  # rounds before the clock runs
WRITTEN_DOWN = 2  # rounds whose products make the floor: with a delayed policy, one with its step and one without
TURN = 0.1  # seconds, of update and floor in turn
PHASES_NOT_TIMED = ("rollouts",)  # no gradient updates
LOOPS = {"drbc": "clone", "mbrcsl": "policy"}  # what the main loop is called where there are other stages

aten = torch.ops.aten
# Matrix products, and where in their arguments the two factors stand.
PRODUCTS = {
    aten.mm.default: (0, torch.mm),
    aten.addmm.default: (1, torch.mm),
    aten.bmm.default: (0, torch.bmm),
    aten.baddbmm.default: (1, torch.bmm),
}


# --- the floor ---


class Floor(TorchDispatchMode):
    """While active, counts tensor operations and writes down matrix products; `replay` makes the products alone.

    Factors that shared memory do so again, and each product has a place for its result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.flops = 0
        self._factors: dict[tuple[Any, ...], Tensor] = {}
        self.products: list[tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        if func in PRODUCTS:
            at, product = PRODUCTS[func]
            self._write_down(product, *args[at : at + 2])
        return func(*args, **(kwargs or {}))

    def _write_down(self, product: Callable[..., Tensor], a: Tensor, b: Tensor) -> None:
        a, b = (self._stand_in(x) for x in (a, b))
        out = product(a, b)
        self.products.append((product, a, b, out))
        self.flops += 2 * out.numel() * a.shape[-1]

    def _stand_in(self, x: Tensor) -> Tensor:
        key = (x.data_ptr(), tuple(x.shape), x.stride())
        if key not in self._factors:
            span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
            generator = torch.Generator(x.device).manual_seed(0)
            numbers = torch.randn(span, generator=generator, device=x.device, dtype=x.dtype)
            self._factors[key] = numbers.as_strided(x.shape, x.stride())
        return self._factors[key]

    @torch.no_grad()
    def replay(self) -> None:
        for product, a, b, out in self.products:
            product(a, b, out=out)


# --- a run that keeps time ---


@dataclasses.dataclass
class Turn:
    """Seconds of the rounds between two floors."""

    rounds: int = 0
    sampling: float = 0.0
    update: float = 0.0
    logging: float = 0.0


@dataclasses.dataclass
class Part:
    """What was measured of one stage: the best turns, in seconds per update."""

    name: str
    sampling: float
    update: float
    logging: float
    floor: float
    operations: float
    products: float
    gflop: float

    @property
    def total(self) -> float:
        return self.sampling + self.update + self.logging

    def as_row(self) -> dict[str, Any]:
        """JSON values: milliseconds per update, and what follows from them."""
        ms = {f"{name}_ms": round(1000 * getattr(self, name), 4) for name in ("sampling", "update", "logging", "floor")}
        return {
            "algo": self.name,
            "updates_per_second": round(1 / self.total, 1),
            **ms,
            "ratio": round(self.update / self.floor, 3),
            "operations": round(self.operations),
            "products": round(self.products),
            "gflop": round(self.gflop, 4),
        }


class Enough(Exception):
    """All stages that are to be timed are."""


class SyntheticEnv:
    """Steps that cost nothing: what the runner's training environment gives, made of random numbers."""

    def __init__(self, run: SpeedRun) -> None:
        self._run, self._rng = run, np.random.default_rng(0)
        self._obs = self._draw()

    def _draw(self) -> np.ndarray:
        return self._rng.normal(size=self._run.dataset.obs_dim).astype(np.float32)

    @property
    def obs(self) -> Tensor:
        return torch.as_tensor(self._obs, device=self._run.device)[None]

    def random_action(self, generator: torch.Generator) -> Tensor:
        shape = (1, self._run.dataset.action_dim)
        return 2 * torch.rand(*shape, generator=generator, device=self._run.device) - 1

    def step(self, action: Tensor) -> tuple[Any, ...]:
        obs, self._obs = self._obs, self._draw()
        self._run.env_step += 1
        return obs, action.reshape(-1).cpu().numpy(), 0.0, self._obs, False, self._run.env_step % 200 == 0


class SpeedRun:
    """What `train` needs of a run; nothing is evaluated. Each stage goes on for `seconds`, then the next one begins."""

    evaluation_due = evaluation_final = False
    episode_limit = 20
    update = env_step = 0

    def __init__(self, algo: str, dataset: Dataset, device: torch.device, seconds: float, folder: Path) -> None:
        self.algo, self.dataset, self.device, self.seconds = algo, dataset, device, seconds
        self.generator = torch.Generator(device).manual_seed(0)
        self.recorder = Recorder(folder)
        self.parts: list[Part] = []
        self._turn = Turn()
        self._online = self._sampled = False
        self._begun = 0.0  # when the present round's update began
        self._logged = 0  # rounds logged in the present stage

    def now(self) -> float:
        """Seconds of CPU time of this process, on CUDA of wall time."""
        return time.process_time() if self.device.type == "cpu" else time.perf_counter()

    # --- what an algorithm calls ---

    def register(self, **_: Any) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def save_table(self, name: str, columns: Any) -> None:
        pass

    def end_phase(self) -> None:
        pass

    def training_env(self) -> SyntheticEnv:
        return SyntheticEnv(self)

    def loop(self, updates: int) -> Iterator[int]:
        if updates:
            yield from self._rounds(LOOPS.get(self.algo, ""))

    def phase(self, name: str, updates: int) -> Iterator[int]:
        if name in PHASES_NOT_TIMED:
            yield 1
        else:
            yield from self._rounds(name)

    def online(self, steps: int) -> Iterator[int]:
        self._online = True
        yield from self._rounds("online" if self.parts else "")
        raise Enough

    def evaluate(self, *_: Any, **__: Any) -> None:
        pass

    def log(self, metrics: dict[str, Tensor], updates: int = 1) -> None:
        begun = self.now()
        self._turn.update += begun - self._begun
        self.recorder.log(self._turn.rounds, metrics)
        self._turn.logging += self.now() - begun
        self._turn.rounds += 1
        self._logged += 1

    # --- what keeps the time ---

    def sampled(self, begun: float) -> None:
        """Called behind each draw from the buffer. What is done before the first one online is no part of the update:
        acting, and the environment's step."""
        ended = self.now()
        self._turn.sampling += ended - begun
        self._begun = ended if self._online and not self._sampled else self._begun + ended - begun
        self._sampled = True

    def _rounds(self, stage: str) -> Iterator[int]:
        number, self._logged = 0, 0

        def one_round() -> Iterator[int]:
            nonlocal number
            number, self._sampled = number + 1, False
            self._begun = self.now()
            yield number

        while self._logged < WARM_UP:  # online, the first rounds may be without an update
            yield from one_round()
        floor = Floor()
        for _ in range(WRITTEN_DOWN):
            with torch.compiler.set_stance("force_eager"), floor:
                yield from one_round()
        self.recorder.flush({}, number, "update")

        turns: list[Turn] = []
        floors: list[float] = []
        until = time.monotonic() + self.seconds
        while time.monotonic() < until or len(turns) < 2:
            self._turn, begun = Turn(), self._synchronised()
            while self.now() < begun + TURN:
                yield from one_round()
            if self.device.type != "cpu":  # in a queue there is nothing to take apart
                self._turn = Turn(self._turn.rounds, 0.0, self._synchronised() - begun, 0.0)
            before = self.now()
            self.recorder.flush({}, number, "update")
            self._turn.logging += self.now() - before
            turns.append(self._turn)
            begun, count = self._synchronised(), 0
            while self.now() < begun + TURN:
                floor.replay()
                count += 1
            floors.append((self._synchronised() - begun) / (count * WRITTEN_DOWN))
        best = min(turns, key=lambda turn: turn.update / turn.rounds)
        self.parts.append(
            Part(
                f"{self.algo}: {stage}" if stage else self.algo,
                min(turn.sampling / turn.rounds for turn in turns),
                best.update / best.rounds,
                min(turn.logging / turn.rounds for turn in turns),
                min(floors),
                floor.operations / WRITTEN_DOWN,
                len(floor.products) / WRITTEN_DOWN,
                floor.flops / WRITTEN_DOWN / 1e9,
            )
        )

    def _synchronised(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.now()


def timed_buffer(run: SpeedRun) -> type[ReplayBuffer]:
    """A replay buffer that reports the time of its draws."""

    class TimedBuffer(ReplayBuffer):
        _inside = False

        def _timed(self, draw: Callable[..., Any], *args: Any) -> Any:
            if self._inside:
                return draw(*args)
            self._inside, begun = True, run.now()
            batch = draw(*args)
            self._inside = False
            run.sampled(begun)
            return batch

        def sample(self, *args: Any) -> Any:
            return self._timed(super().sample, *args)

        def sample_sequences(self, *args: Any) -> Any:
            return self._timed(super().sample_sequences, *args)

        def gather(self, index: Tensor) -> Any:
            return self._timed(super().gather, index)

    return TimedBuffer


def walks(obs_dim: int = 17, action_dim: int = 6, episodes: int = 100, steps: int = 200) -> Dataset:
    """Numbers of the size of a locomotion task; what they are does not change the cost."""
    rng = np.random.default_rng(0)
    n = episodes * steps
    return Dataset(
        id="benchmark/walks",
        observations=rng.normal(size=(n + episodes, obs_dim)).astype(np.float32),
        rows=np.arange(n) + np.arange(n) // steps,
        action=rng.uniform(-1, 1, size=(n, action_dim)).astype(np.float32),
        reward=rng.normal(size=n).astype(np.float32),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) % steps == steps - 1,
        starts=np.arange(episodes + 1) * steps,
        action_space=gym.spaces.Box(-1, 1, (action_dim,), np.float32),
        ref_min=0.0,
        ref_max=1.0,
    )


def measure(algo: str, options: dict[str, Any], seconds: float, device: str = "cpu") -> list[Part]:
    """One part for each stage of an algorithm file. Options that its Config lacks are left out."""
    module = importlib.import_module(f"hoard.algos.{algo}")
    fields = {field.name for field in dataclasses.fields(module.Config)}
    options = {name: value for name, value in (ALGORITHMS[algo] | options).items() if name in fields}
    cfg = module.Config(**options, device=device)
    check(cfg)
    with tempfile.TemporaryDirectory() as folder:
        run = SpeedRun(algo, walks(), torch.device(device), seconds, Path(folder))
        with patch.object(module, "ReplayBuffer", timed_buffer(run)), contextlib.suppress(Enough):
            module.train(cfg, run)
        run.recorder.close()
    return run.parts


# --- report ---


def machine(device: str) -> str:
    """Its class: what a reader needs to place the numbers."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU"
    return f"{os.cpu_count()} cores, {platform.machine()} CPU, {gpu}"


def markdown(rows: list[dict[str, Any]], before: dict[str, dict[str, Any]] | None = None) -> str:
    """A table of rows; with earlier ones, how they compare."""
    head = ["algorithm", "updates/s", "ms: sampling", "update", "logging", "floor", "update / floor", "operations"]
    if before is not None:
        head += ["updates/s before", "update / floor before", "speed-up"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    for row in rows:
        cells = [row["algo"].replace("_", " "), f"{row['updates_per_second']:.0f}"]
        cells += [f"{row[f'{name}_ms']:.2f}" for name in ("sampling", "update", "logging", "floor")]
        cells += [f"{row['ratio']:.2f}", str(row["operations"])]
        if before is not None:
            old = before.get(row["algo"])
            cells += (
                ["", "", ""]
                if old is None
                else [
                    f"{old['updates_per_second']:.0f}",
                    f"{old['ratio']:.2f}",
                    f"{row['updates_per_second'] / old['updates_per_second']:.2f}",
                ]
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def value_of(text: str) -> Any:
    """The value behind NAME=VALUE: a Python literal, true or false, else the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Options for all algorithms. Raises BadInput for one that none of them has."""
    options: dict[str, Any] = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--set {text}: must be NAME=VALUE")
        options[name] = value_of(value)
    if args.hidden:
        options["hidden"] = tuple(args.hidden)
    if args.batch:
        options["batch_size"] = args.batch
    known: set[str] = set()
    for algo in args.algos:
        known |= {field.name for field in dataclasses.fields(importlib.import_module(f"hoard.algos.{algo}").Config)}
    if unknown := sorted(set(options) - known):
        raise BadInput(f"--set {unknown[0]}: no algorithm named has this option")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algos", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), metavar="NAME")
    parser.add_argument("--hidden", type=int, nargs="+", help="widths of hidden layers, instead of each file's own")
    parser.add_argument("--batch", type=int, help="transitions or windows per update, instead of each file's own")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="options of those files that have it"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="for each stage of each algorithm")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("results/speed.json"), help="where the numbers go")
    parser.add_argument("--against", type=Path, help="JSON of an earlier call, to compare with")
    args = parser.parse_args(argv)
    options = options_of(args)
    before = None
    if args.against is not None:
        before = {row["algo"]: row for row in json.loads(args.against.read_text())["rows"]}
    torch.set_num_threads(1)
    rows = []
    for algo in args.algos:
        rows += [part.as_row() for part in measure(algo, options, args.seconds, args.device)]
        print(f"{algo} measured", file=sys.stderr, flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": machine(args.device), "torch": torch.__version__, "threads": 1, "options": options}
    write_json(args.json, told | {"rows": rows})
    print(f"{told['machine']}; torch {told['torch']}, one thread\n")
    print(markdown(rows, before))


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(str(error))
