"""OGBench's data made here: the package's environments and controllers, driven as its data-generation scripts do.

=================  =================================================================================================
cube-single play   ``CubePlanOracle`` (noise 0.1, smoothing 0.5) carries the cube to one random place after another
cube-single noisy  ``CubeMarkovOracle`` (min_norm 0.4) does, with normal noise on its actions: xi on the position, 3 xi
                   on the yaw, 10 xi on the gripper, xi drawn from [0, 0.1] for each trajectory; one action in ten is
                   drawn uniformly instead
pointmaze navigate towards the next cell of the shortest way to a random corner or junction, noise 0.5, and on to
                   another one when it is reached
pointmaze stitch   from a random cell to a cell four steps away, and stay there
=================  =================================================================================================

Numbers: flags and defaults of OGBench's ``generate_manipspace.py``, ``generate_locomaze.py`` and ``commands.sh``. A
trajectory has 1,001 states (pointmaze stitch 201, giant navigate 2,001), as published. What differs: a trajectory's
random numbers come from its own number, so that a longer set starts with the shorter one and processes can share the
work. The trajectories are therefore not the published ones. No validation split is made.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from hoard.datasets.dataset import DatasetError
from hoard.datasets.ogbench.ids import Request
from hoard.datasets.source import Progress
from hoard.envs import ogbench as envs
from hoard.records.files import write_atomic

SEED = 20_241_026
_STEPS_PER_PROCESS = 10_000  # fewer are made before another process has started
_FIELDS = {"observations": np.float32, "actions": np.float32, "terminals": bool, "qpos": np.float32, "qvel": np.float32}


def length_of(env: str, kind: str) -> int:
    """Transitions of one trajectory."""
    if kind == "stitch":
        return 200
    return 2000 if env == "pointmaze-giant" else 1000


def generate(dataset_id: str, request: Request, progress: Progress | None = None, processes: int | None = None) -> None:
    """Write `request.path`, whole or not at all; `processes` (default: one a core) share the trajectories.

    `progress(done, total)` counts environment steps. The caller holds the file's lock. Raises DatasetError without the
    package, or if a process fails, and OSError where nothing can be written.
    """
    try:
        envs.register()
    except envs.Missing as error:
        raise DatasetError(f"{dataset_id}: {error}") from error
    assert request.thousands is not None
    length = length_of(request.env, request.kind)
    total = -(-1000 * request.thousands // length)
    if processes is None:
        processes = max(1, min(_cores(), total * length // _STEPS_PER_PROCESS))
    processes = min(processes, total)
    bounds = [total * i // processes for i in range(processes + 1)]
    prefix = f".making-{request.path.stem}-"
    for stale in request.path.parent.glob(glob.escape(prefix) + "*"):  # of a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=request.path.parent) as scratch:
        parts = [Path(scratch) / f"{i}.npz" for i in range(processes)]
        shares = [(first, last, str(part)) for first, last, part in zip(bounds, bounds[1:], parts)]
        _run(dataset_id, request, shares, length, progress)
        loaded = [np.load(part, allow_pickle=False) for part in parts]
        arrays: dict[str, Any] = {name: np.concatenate([part[name] for part in loaded]) for name in _FIELDS}

    # Through a handle: given a path without the ending, NumPy would add one.
    def save(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    write_atomic(request.path, save)


def _run(
    dataset_id: str, request: Request, shares: list[tuple[int, int, str]], length: int, progress: Progress | None
) -> None:
    """Have `make_share` run in a process for each share, and count the trajectories that they report."""
    code = "import sys; from hoard.datasets.ogbench.generate import make_share; make_share(*sys.argv[1:])"
    children = []
    reader, writer = os.pipe()
    try:
        for first, last, part in shares:
            arguments = [request.env, request.kind, str(first), str(last), part, str(writer)]
            with open(f"{part}.log", "wb") as log:  # a pipe would fill while we read the other one
                children.append(
                    subprocess.Popen(
                        [sys.executable, "-c", code, *arguments],
                        pass_fds=[writer],
                        stderr=log,
                        start_new_session=True,  # Ctrl-C is for the caller, who then ends them
                    )
                )
        os.close(writer)
        writer = -1
        done, total = 0, length * (shares[-1][1] - shares[0][0])
        while reports := os.read(reader, 4096):  # ends when every child has closed its side
            done += length * len(reports)
            if progress:
                progress(done, total)
        for child, (_, _, part) in zip(children, shares, strict=True):
            if child.wait():
                problem = Path(f"{part}.log").read_text(errors="replace")
                why = (problem.strip().splitlines() or [f"status {child.returncode}"])[-1]
                raise DatasetError(f"{dataset_id}: a process that made trajectories failed: {why}")
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def make_share(env: str, kind: str, first: str, last: str, path: str, descriptor: str) -> None:
    """The life of a process: make trajectories first..last-1, report each with a byte, store them in `path`."""
    maker = Maker(env, kind)
    trajectories = []
    for number in range(int(first), int(last)):
        trajectories.append(maker.trajectory(number))
        os.write(int(descriptor), b".")
    arrays: dict[str, Any] = {name: np.concatenate([t[name] for t in trajectories]) for name in _FIELDS}
    np.savez(path, **arrays)


class Maker:
    """Makes the trajectories of one kind of set, each from its number alone."""

    def __init__(self, env: str, kind: str) -> None:
        envs.register()
        self.kind, self.is_maze = kind, env.startswith("pointmaze")
        self.length = length_of(env, kind)
        options: dict[str, Any] = {} if self.is_maze else {"mode": "data_collection"}
        options |= {"terminate_at_goal": False, "max_episode_steps": self.length + 1}
        made: Any = gym.make(f"{env}-v0", **options)
        self.env, self.base = made, made.unwrapped

    def trajectory(self, number: int) -> dict[str, np.ndarray]:
        """`length` + 1 rows of every field."""
        rng = np.random.default_rng((SEED, number))
        seed = int(rng.integers(2**31))
        kept: dict[str, list[Any]] = {name: [] for name in _FIELDS}
        with envs.GlobalStream(SEED, number):
            actions = (self._maze if self.is_maze else self._cube)(rng, seed)
            obs, info = next(actions)
            done = False
            while not done:
                action = actions.send((obs, info))
                obs_before = obs
                obs, _, terminated, truncated, info = self.env.step(action)
                done = bool(terminated or truncated)
                for name, value in zip(_FIELDS, (obs_before, action, done, info["prev_qpos"], info["prev_qvel"])):
                    kept[name].append(value)
        return {name: np.array(values, dtype=_FIELDS[name]) for name, values in kept.items()}

    def _cube(self, rng: np.random.Generator, seed: int) -> Any:
        """Coroutine: gives the first observation, then for each (obs, info) an action."""
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

        noisy = self.kind == "noisy"
        oracle: Any = CubeMarkovOracle(env=self.env) if noisy else CubePlanOracle(env=self.env)
        obs, info = self.env.reset(seed=seed)
        spread = rng.uniform(0, 0.1) * np.array([1, 1, 1, 3, 10])
        oracle.reset(obs, info)
        obs, info = yield obs, info
        while True:
            if noisy and rng.random() < 0.1:
                action = rng.uniform(-1, 1, 5)
            else:
                action = np.array(oracle.select_action(obs, info))
                if noisy:
                    action = action + rng.normal(0, spread)
            obs, info = yield np.clip(action, -1, 1)
            if oracle.done:
                oracle.reset(*self.base.set_new_target(p_stack=0.0))

    def _maze(self, rng: np.random.Generator, seed: int) -> Any:
        """Coroutine: gives the first observation, then for each (obs, info) an action."""
        cells, corners = free_cells(self.base.maze_map)
        start = cells[rng.integers(len(cells))]
        if self.kind == "stitch":
            near = cells_at_distance(self.base.maze_map, start, 4) or [start]
            goal = near[rng.integers(len(near))]
        else:
            goal = corners[rng.integers(len(corners))]
        first = self.env.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})
        _, info = yield first
        while True:
            if info.get("success") and self.kind == "navigate":
                self.base.set_goal(corners[rng.integers(len(corners))])
            here = self.base.get_xy()
            subgoal, _ = self.base.get_oracle_subgoal(here, self.base.cur_goal_xy)
            way = subgoal - here
            action = way / (np.linalg.norm(way) + 1e-6) + rng.normal(0, 0.5, 2)
            _, info = yield np.clip(action, -1, 1)


def free_cells(maze: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """All free cells (i, j) of a map, and those of them that are no straight corridor."""
    cells = [(int(i), int(j)) for i, j in np.argwhere(maze == 0)]

    def corridor(i: int, j: int) -> bool:
        vertical = maze[i - 1, j], maze[i + 1, j]
        horizontal = maze[i, j - 1], maze[i, j + 1]
        return (vertical, horizontal) in (((0, 0), (1, 1)), ((1, 1), (0, 0)))

    return cells, [cell for cell in cells if not corridor(*cell)]


def cells_at_distance(maze: np.ndarray, start: tuple[int, int], distance: int) -> list[tuple[int, int]]:
    """Free cells whose shortest way from `start` has exactly this many steps, in order of discovery."""
    known, ring = {start}, [start]
    for _ in range(distance):
        following = []
        for i, j in ring:
            for cell in ((i - 1, j), (i, j - 1), (i + 1, j), (i, j + 1)):
                if maze[cell] == 0 and cell not in known:
                    known.add(cell)
                    following.append(cell)
        ring = following
    return ring


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
