"""An open HDF5 file in D4RL's layout: its arrays are checked when it is opened and read on demand."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from hoard.datasets.d4rl.table import Entry
from hoard.datasets.dataset import DatasetError
from hoard.datasets.hdf5 import why_not_to_read

BLOCK = 1 << 16  # rows moved at a time, so that no array is held twice
MINIGRID_ACTIONS = 7


class File:
    """An open D4RL file whose arrays have the right kind, one length and their data; see the keys in the methods."""

    def __init__(self, dataset_id: str, path: Path) -> None:
        self.dataset_id, self.path = dataset_id, path

    def __enter__(self) -> File:
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
        if why := why_not_to_read(node.id):
            raise DatasetError(f"{self.dataset_id}: '{key}' in {self.path} {why}")
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
        """Rows to read at a time: about `BLOCK`, whole chunks."""
        chunk = (self.nodes[key].chunks or (1,))[0]
        return max(1, BLOCK // chunk) * chunk

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
            if values.shape[1] != 1 or not np.isin(values, np.arange(MINIGRID_ACTIONS)).all():
                raise self._shape("actions", node, f"expected one number below {MINIGRID_ACTIONS} in each row")
            return np.eye(MINIGRID_ACTIONS, dtype=np.float32)[values[:, 0].astype(np.int64)]
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

    def __init__(self, file: File, key: str) -> None:
        self.file, self.key = file, key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        damage = (OSError, KeyError, RuntimeError, TypeError, ValueError, OverflowError, AttributeError, MemoryError)
        if isinstance(error, damage) and not isinstance(error, DatasetError):
            what = f"is damaged at '{self.key}'" if self.key else "is not a readable HDF5 file (truncated?)"
            raise self.file.error(f"{what}: {error}") from error
