"""D4RL's HDF5 files, read by h5py alone: no d4rl package, no gym, no mujoco-py.

Ids
    ``d4rl:NAME``                one of D4RL's 155 names (`hoard.datasets.d4rl_table`), as ``d4rl:hopper-medium-v2``;
                                 looked for in D4RL_DATASET_DIR, else ~/.d4rl/datasets, and downloaded if not there
    ``d4rl:PATH.hdf5``           any file in D4RL's layout; one with a D4RL name must be D4RL's file, and is read as it
    ``d4rl:PATH.hdf5+as=NAME``   a file of your own that is to be evaluated and scored as NAME
    ``...+full``                 every transition that happened (below); goes with all of these

One file holds all episodes end to end; `terminals` marks true termination, `timeouts` where an episode was cut.

By default reading equals `d4rl.qlearning_dataset`, as every published score does: s_{t+1} is the next row, a time-out
row is dropped (its next row belongs to another episode) even where it also terminates, and the last row of the file is
lost. On a terminal row the stored next observation is the next episode's first one; `terminated` masks it. Files
without `timeouts` (v0) are cut by the limit of their environment, as the package does it: its count starts at 1 instead
of 0 after a terminal row, so there some episodes lose their last but one transition and keep one into the next episode.

With ``+full`` nothing is dropped and nothing crosses an episode. It is refused where the truth is not in the file:

- files with `next_observations` (gym-MuJoCo v2): time-out rows, terminal rows and the last row get their own s_{t+1};
- maze2d, which is one endless walk: time-out rows are kept, their next row is their successor, and the reward of t is
  paid for s_{t+1} as the environment does it (the files pay for s_t).

Other known errors of the files are listed in `d4rl_table.DEFECTS`; those that change what the data means are told by a
warning at every load.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
from gymnasium.envs.registration import EnvSpec

from hoard.datasets import d4rl_download
from hoard.datasets.d4rl_table import BY_FILE, ENTRIES, Entry, defects
from hoard.datasets.dataset import Dataset, DatasetError
from hoard.records.suggest import nearest
from hoard.envs import d4rl as environments

PREFIX = "d4rl:"
NAMES = tuple(ENTRIES)

Progress = Callable[[int, int], None]

_FILE_ID = re.compile(r"(?P<path>.*\.(?:hdf5|h5))(?P<options>(?:\+[^+/]*)*)", re.DOTALL)
_BLOCK = 1 << 16  # rows moved at a time, so that no array is held twice
_FLAGS = ("terminals", "timeouts")
_MINIGRID_ACTIONS = 7
# No ant crosses 2 m in the 0.1 s of a step; only a transition into another episode does.
_ANT_JUMP = 2.0


@dataclass(frozen=True)
class _Source:
    """What an id says: the file, the published set it is read as (None: unknown), and how."""

    path: Path
    entry: Entry | None
    named: bool  # by D4RL's name, so it may be downloaded
    own: bool  # a file of the user's, never compared with the published one
    full: bool


def folder() -> Path:
    """Where D4RL keeps its files: D4RL_DATASET_DIR, else ~/.d4rl/datasets."""
    return Path(os.environ.get("D4RL_DATASET_DIR") or Path.home() / ".d4rl" / "datasets")


def _parse(dataset_id: str) -> _Source:
    text = dataset_id.removeprefix(PREFIX)
    if file := _FILE_ID.fullmatch(text):
        path = Path(os.path.expanduser(file["path"]))
        full, given = _options(dataset_id, file["options"], "as")
        entry = ENTRIES[given] if given else BY_FILE.get(path.name)
        return _Source(path, entry, named=False, own=given is not None, full=full)
    name, plus, rest = text.partition("+")
    if name not in ENTRIES:
        raise DatasetError(f"{dataset_id}: unknown name; nearest: {nearest(name, NAMES, PREFIX)}; or d4rl:PATH.hdf5")
    full, _ = _options(dataset_id, plus + rest)
    return _Source(folder() / ENTRIES[name].file_name, ENTRIES[name], named=True, own=False, full=full)


def _options(dataset_id: str, text: str, *more: str) -> tuple[bool, str | None]:
    """(+full was given, the NAME of +as=NAME)."""
    full, given = False, None
    for option in text.split("+")[1:]:
        key, _, value = option.partition("=")
        if option == "full" and not full:
            full = True
        elif key == "as" and "as" in more and given is None:
            if value not in ENTRIES:
                raise DatasetError(f"{dataset_id}: +as={value}: unknown name; nearest: {nearest(value, NAMES)}")
            given = value
        else:
            known = "+full or +as=NAME, each once" if more else "+full, once (+as=NAME goes with d4rl:PATH.hdf5)"
            raise DatasetError(f"{dataset_id}: unknown option '+{option}'; there is {known}")
    return full, given


def check_id(dataset_id: str) -> None:
    """Raise DatasetError unless `dataset_id` names a published set or a file that is there. Fetches nothing."""
    source = _parse(dataset_id)
    if not source.named and not os.path.isfile(source.path):  # unlike Path.is_file, false for too long a name, too
        raise DatasetError(f"{dataset_id}: there is no file {source.path}")


def is_stored(dataset_id: str) -> bool:
    """Whether the file is on this disk. Raises DatasetError for an id that is none."""
    return os.path.isfile(_parse(dataset_id).path)


def ensure(dataset_id: str, progress: Progress | None = None) -> bool:
    """Download the file of a D4RL name unless it is there; `progress(done, total)` counts bytes. True if fetched.

    Raises DatasetError, which says where to put the file by hand when there is no network.
    """
    check_id(dataset_id)
    source = _parse(dataset_id)
    if os.path.isfile(source.path):
        return False
    assert source.entry is not None
    d4rl_download.download(dataset_id, source.entry, folder(), progress)
    return True


# --- reading ---


def read(dataset_id: str) -> Dataset:
    """Load a D4RL file as transitions (see the module's notes on which rows are kept).

    Raises DatasetError naming file and key for a missing, damaged or ill-shaped file, for one that is not the published
    file whose name it has, and for `+full` where it cannot be had. Warns of what is wrong with the published data.
    """
    source = _parse(dataset_id)
    path, entry = source.path, source.entry
    if not os.path.isfile(path):
        raise DatasetError(f"{dataset_id}: there is no file {path}")
    try:
        if entry and not source.own:
            d4rl_download.verify(dataset_id, entry, path, stamped=source.named)
        with _File(dataset_id, path) as file:
            layout = _read_full(file, entry) if source.full else _read_as_published(file, entry)
    except OSError as error:  # what h5py raises is told by _File; this is the disk
        raise DatasetError(f"{dataset_id}: cannot read {path}: {error}") from error
    env_spec = evaluation(entry, layout.observations) if entry else None
    data = Dataset(
        id=dataset_id,
        observations=layout.observations,
        rows=layout.rows,
        action=layout.action,
        reward=layout.reward,
        terminated=layout.terminated,
        truncated=layout.last & ~layout.terminated,
        starts=np.concatenate([[0], np.flatnonzero(layout.last) + 1]),
        action_space=_action_space(entry, layout.action.shape[1]),
        env_spec=env_spec,
        ref_min=entry.ref_min if entry else None,
        ref_max=entry.ref_max if entry else None,
        source=str(path),
    )
    if entry:
        _tell(dataset_id, entry, data)
    return data


@dataclass
class _Layout:
    """`Dataset`'s arrays, and `last` (N,): the transition ends its episode."""

    observations: np.ndarray
    rows: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    last: np.ndarray


def _read_as_published(file: _File, entry: Entry | None) -> _Layout:
    """What `d4rl.qlearning_dataset` makes of the file, row for row."""
    terminal, timeout = file.flags()
    if timeout is None:
        if entry is None:
            raise file.error(
                "has no 'timeouts'; without it episode ends are unknown (v0 files: +as=NAME names the set whose limit "
                "holds)"
            )
        timeout = _over_the_limit(terminal, entry.limit)
        warnings.warn(
            f"{file.dataset_id}: {file.path.name} has no 'timeouts'; episodes are cut at {entry.limit} steps as the "
            "d4rl package does it, which misses the true end after a terminal row by one step",
            stacklevel=4,
        )
    keep = ~timeout
    keep[-1] = False
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise file.error("holds no complete transition: 'timeouts' is set in every row but the last")
    observations = file.observations(len(keep), entry)
    # An episode ends where it terminates or where the row that follows was dropped.
    last = (terminal[:-1] | timeout[1:])[keep[:-1]]
    last[-1] = True
    return _Layout(observations, rows, _compact(file.actions(entry), rows), _compact(file.rewards(), rows),
                   terminal[rows], last)  # fmt: skip


def _read_full(file: _File, entry: Entry | None) -> _Layout:
    terminal, timeout = file.flags()
    if entry and entry.family == "maze2d" and timeout is not None and "next_observations" not in file:
        return _read_endless_walk(file, entry, terminal, timeout)
    for key in ("timeouts", "next_observations"):
        if key not in file:
            raise file.error(f"has no '{key}', so +full cannot be had: what followed a time-out is not in the file")
    assert timeout is not None
    last = terminal | timeout
    last[-1] = True
    ends = np.flatnonzero(last)
    n = len(last)
    # Every episode of T rows becomes T+1 rows of the table: behind its last row stands its own next observation.
    table = file.observations(n, entry, room=len(ends))
    before = np.cumsum(last) - last  # episodes finished before each row
    rows = np.arange(n) + before
    for high in range(n, 0, -_BLOCK):
        low = max(0, high - _BLOCK)
        table[rows[low:high]] = table[low:high].copy()
    step = file.block_of("next_observations")
    for low in range(0, n, step):
        here = ends[(ends >= low) & (ends < low + step)]
        block = file.next_observations(low, min(low + step, n), table.shape[1])
        if (bad := np.flatnonzero(~np.isfinite(block).all(axis=1))).size:
            raise file.error(f"holds NaN or infinity in 'next_observations', first at row {low + bad[0]}")
        table[rows[here] + 1] = block[here - low]
        # Inside an episode the two accounts of s' must agree, else the episode ends are not where the flags say.
        inside = np.flatnonzero(~last[low : low + len(block)])
        apart = np.abs(table[rows[low + inside] + 1] - block[inside]).max(axis=1)
        if (bad := np.flatnonzero(apart > 1e-3 * (1 + np.abs(block[inside]).max(axis=1)))).size:
            row = low + inside[bad[0]]
            raise file.error(f"'next_observations' differs from the next row inside an episode, first at row {row}")
    return _Layout(table, rows, file.actions(entry), file.rewards(), terminal, last)


def _read_endless_walk(file: _File, entry: Entry, terminal: np.ndarray, timeout: np.ndarray) -> _Layout:
    """maze2d: every row but the file's last is a transition to the next row; rewards paid for s_{t+1}."""
    n = len(terminal)
    observations = file.observations(n, entry)
    maze, reward_type = _maze2d_of(entry)
    goal = environments.MAZE2D_GOALS[maze]
    due = environments.maze2d_reward(observations[:, :2].astype(np.float64), goal, reward_type)
    published = file.rewards()
    # A few positions lie so near the edge that float32 decides.
    differing = np.abs(due - published) > 1e-3
    if differing.mean() > 1e-3:
        raise file.error(
            f"'rewards' are not those of {entry.name}'s goal at {goal}, first at row {np.flatnonzero(differing)[0]}, "
            "so +full cannot set them right"
        )
    last = (terminal | timeout)[:-1]
    last[-1] = True
    reward = due[1:].astype(np.float32)
    return _Layout(observations, np.arange(n - 1), file.actions(entry)[:-1], reward, terminal[:-1], last)


def _over_the_limit(terminal: np.ndarray, limit: int) -> np.ndarray:
    """(N,) bool: rows where the package's count of steps reaches the limit, for files without `timeouts`.

    The count is 0 at the start and behind such a row, and 1 behind a terminal row (the package's own slip).
    """
    over = np.zeros(len(terminal), bool)
    ends = np.append(np.flatnonzero(terminal), len(terminal))
    row, count, k = 0, 0, 0
    while row < len(terminal):
        while ends[k] < row:
            k += 1
        cut = row + limit - 1 - count
        if row <= cut <= ends[k] and cut < len(terminal):
            over[cut] = True
            row, count = cut + 1, 0
        else:
            row, count = int(ends[k]) + 1, 1
    return over


def _compact(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """array[rows] for rising rows, moved inside its own memory."""
    for low in range(0, len(rows), _BLOCK):
        block = rows[low : low + _BLOCK]
        if block[-1] != low + len(block) - 1:  # else everything up to here stands where it should
            array[low : low + len(block)] = array[block]
    return array[: len(rows)]


class _File:
    """An open D4RL file whose arrays have the right kind, one length and their data; see the keys in the methods."""

    def __init__(self, dataset_id: str, path: Path) -> None:
        self.dataset_id, self.path = dataset_id, path

    def __enter__(self) -> _File:
        with self._telling():
            # Every chunk is read once, so HDF5 need not keep any: it would hold megabytes for each open array.
            self.h5 = h5py.File(self.path, "r", rdcc_nbytes=0)
        try:
            self._check()
        except BaseException:
            self.h5.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.h5.close()

    def __contains__(self, key: str) -> bool:
        return key in self.nodes

    def error(self, problem: str) -> DatasetError:
        return DatasetError(f"{self.dataset_id}: {self.path} {problem}")

    def _telling(self, key: str = "") -> _Telling:
        return _Telling(self, key)

    def _check(self) -> None:
        self.nodes: dict[str, h5py.Dataset] = {}
        for key in ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations"):
            with self._telling(key):
                if key in self.h5:
                    self.nodes[key] = self._node(key)
                elif key not in ("timeouts", "next_observations"):
                    raise self.error(f"has no '{key}'")
        lengths = {key: node.shape[0] if node.shape else 0 for key, node in self.nodes.items()}
        for key, node in self.nodes.items():
            ndim = 2 if "observations" in key or key == "actions" else 1
            shape = node.shape[:1] if ndim == 1 and node.shape[1:] == (1,) else node.shape
            if len(shape) < ndim and not (key == "actions" and len(shape) == 1):
                raise self._shape(key, node, f"expected {ndim}-d")
            if ndim == 1 and len(shape) != 1:
                raise self._shape(key, node, "expected 1-d")
            if 0 in node.shape[1:]:
                raise self._shape(key, node, "it holds nothing")
        if len(set(lengths.values())) != 1 or lengths["rewards"] < 2:
            raise self.error(f"must have arrays of one common length of at least 2: {lengths}")

    def _node(self, key: str) -> h5py.Dataset:
        if isinstance(self.h5.get(key, getlink=True), h5py.ExternalLink):
            raise self.error(f"keeps '{key}' in another file; all must be in this one")
        node = self.h5[key]
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "biuf" or node.shape is None:
            raise DatasetError(f"{self.dataset_id}: '{key}' in {self.path} is not an array of numbers")
        if node.is_virtual or node.external:
            raise self.error(f"keeps '{key}' in another file; all must be in this one")
        # Deflate packs at most 1:1032; a shape far beyond the bytes behind it was never written.
        if node.nbytes > 1100 * node.id.get_storage_size() + 4096:
            raise self.error(f"says '{key}' has shape {node.shape}, but holds no data for it")
        return node

    def _shape(self, key: str, node: h5py.Dataset, wanted: str) -> DatasetError:
        return DatasetError(f"{self.dataset_id}: '{key}' in {self.path} has shape {node.shape}, {wanted}")

    # --- arrays ---

    def flags(self) -> tuple[np.ndarray, np.ndarray | None]:
        """`terminals` and, if it is there, `timeouts`: (N,) bool."""
        return self._flag("terminals"), self._flag("timeouts") if "timeouts" in self else None

    def _flag(self, key: str) -> np.ndarray:
        with self._telling(key):
            values = self.nodes[key][()].reshape(-1)
        if values.dtype == bool:
            return values
        out = values != 0
        if (bad := np.flatnonzero(out & (values != 1))).size:
            raise self.error(f"has {values[bad[0]]} in '{key}' at row {bad[0]}, expected 0 or 1")
        return out

    def observations(self, n: int, entry: Entry | None, room: int = 0) -> np.ndarray:
        """(N + room, obs_dim) f32, the first N rows filled. Images (minigrid, carla) are laid out in C order."""
        return self._floats("observations", entry, room)

    def block_of(self, key: str) -> int:
        """Rows to read at a time: about `_BLOCK`, whole chunks."""
        chunk = (self.nodes[key].chunks or (1,))[0]
        return max(1, _BLOCK // chunk) * chunk

    def next_observations(self, low: int, high: int, width: int) -> np.ndarray:
        node = self.nodes["next_observations"]
        if node.shape[1:] != (width,):
            raise self._shape("next_observations", node, f"expected {width} columns")
        with self._telling("next_observations"), np.errstate(over="ignore"):  # infinite then, and refused as such
            return node[low:high].astype(np.float32, copy=False)

    def actions(self, entry: Entry | None) -> np.ndarray:
        """(N, action_dim) f32; the numbers 0..6 of minigrid become 7 columns of 0 and 1."""
        node = self.nodes["actions"]
        if entry and entry.family == "minigrid":
            with self._telling("actions"):
                values = node[()].reshape(len(node), -1)
            if values.shape[1] != 1 or not np.isin(values, np.arange(_MINIGRID_ACTIONS)).all():
                raise self._shape("actions", node, f"expected one number below {_MINIGRID_ACTIONS} in each row")
            return np.eye(_MINIGRID_ACTIONS, dtype=np.float32)[values[:, 0].astype(np.int64)]
        if len(node.shape) != 2:
            raise self._shape("actions", node, "expected 2-d")
        return self._floats("actions", entry)

    def rewards(self) -> np.ndarray:
        """(N,) f32."""
        return self._floats("rewards", None).reshape(-1)

    def _floats(self, key: str, entry: Entry | None, room: int = 0) -> np.ndarray:
        node = self.nodes[key]
        if key == "observations" and len(node.shape) > 2 and not (entry and entry.family in ("minigrid", "carla")):
            raise self._shape(key, node, "expected 2-d")
        try:
            out = np.empty((len(node) + room, *node.shape[1:]), np.float32)
        except (MemoryError, ValueError) as error:
            raise self.error(f"says '{key}' has shape {node.shape}: no memory for it") from error
        with self._telling(key):
            node.read_direct(out, dest_sel=np.s_[: len(node)])
        return out.reshape(len(out), -1) if len(node.shape) > 2 else out


class _Telling:
    """Turns what h5py raises on damaged bytes into a DatasetError that names the file."""

    def __init__(self, file: _File, key: str) -> None:
        self.file, self.key = file, key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        damage = (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError, AttributeError, MemoryError)
        if isinstance(error, damage) and not isinstance(error, DatasetError):
            what = f"is damaged at '{self.key}'" if self.key else "is not a readable HDF5 file (truncated?)"
            raise self.file.error(f"{what}: {error}") from error


# --- what belongs to a name ---


def _maze2d_of(entry: Entry) -> tuple[str, str]:
    """(maze, reward type) of a maze2d set, as `hoard.envs.d4rl` calls them."""
    size = entry.task.removesuffix("-dense")
    names = {name.lower(): name for name in environments.MAPS}
    return names[size.replace("-", "")], "dense" if entry.task.endswith("-dense") else "sparse"


def evaluation(entry: Entry, observations: np.ndarray) -> EnvSpec | None:
    """The environment that scores of a set are measured in, None if there is none (`why_not`)."""
    if entry.family == "locomotion":
        if entry.task == "ant":
            return environments.spec("hoard/D4RL-Ant-v2", contact_forces=bool(observations[:, 27:].any()))
        return gym.spec({"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4", "walker2d": "Walker2d-v4"}[entry.task])
    if entry.family == "adroit":
        return environments.spec(f"hoard/D4RL-{entry.task.capitalize()}-v1")
    if entry.family == "maze2d":
        maze, reward_type = _maze2d_of(entry)
        return environments.spec(f"hoard/D4RL-Maze2d-{maze}-v1", reward_type=reward_type)
    if entry.family == "antmaze":
        maze = {name.lower(): name for name in environments.ANTMAZE_GOALS}[entry.task]
        return environments.spec(f"hoard/D4RL-AntMaze-{maze}-v2")
    return None


_WHY_NOT = {
    "kitchen": "the 59 numbers of Gymnasium-Robotics' FrankaKitchen-v1 are not D4RL's 60 (30 of the state, 30 of the "
    "goal); Minari's D4RL/kitchen sets can be trained on",
    "minigrid": "its actions are discrete and D4RL's own FourRooms, which is not that of the minigrid package, is gone",
    "bullet": "it needs PyBullet's environments, which know only the old Gym",
    "carla": "it needs the CARLA simulator",
    "flow": "it needs the SUMO simulator and Flow",
}


def why_not(name: str) -> str:
    """Why a set of D4RL's can be loaded but not evaluated, or ''."""
    return _WHY_NOT.get(ENTRIES[name].family, "")


def _action_space(entry: Entry | None, dim: int) -> gym.spaces.Box:
    if entry and entry.family == "minigrid":
        return gym.spaces.Box(0.0, 1.0, (dim,), np.float32)
    if entry and entry.family in ("carla", "flow"):  # not known without their simulators
        return gym.spaces.Box(-np.inf, np.inf, (dim,), np.float32)
    return gym.spaces.Box(-1.0, 1.0, (dim,), np.float32)


def _tell(dataset_id: str, entry: Entry, data: Dataset) -> None:
    """Warn of what is wrong with a published set; refuse the one that can be known to be another."""
    if entry.name in ("hopper-medium-v1", "hopper-expert-v1"):
        per_step = float(data.reward.mean(dtype=np.float64))
        if (per_step > 2.5) != (entry.name == "hopper-expert-v1"):
            raise DatasetError(
                f"{dataset_id}: {data.source} pays {per_step:.2f} a step: it is from before January 2021, when D4RL's "
                "server had hopper-medium-v1 and hopper-expert-v1 interchanged (issue #76). Move it away to get it anew"
            )
    for defect in defects(entry.name):
        if defect.told:
            warnings.warn(f"{dataset_id}: {defect}", stacklevel=4)
    if entry.family == "antmaze" and data.obs_dim > 2:
        step = np.abs(data.next_obs[:, :2] - data.obs[:, :2]).max(axis=1)
        if jumps := int(((step > _ANT_JUMP) & ~data.terminated).sum()):
            warnings.warn(f"{dataset_id}: {jumps:,} transitions jump by more than {_ANT_JUMP:g} m", stacklevel=4)
    if why := why_not(entry.name):
        warnings.warn(f"{dataset_id} can be loaded but not trained on, for it cannot be evaluated: {why}", stacklevel=4)
