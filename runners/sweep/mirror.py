"""A copy of finished runs at a URL: `s3://…`, `gs://…` or whatever else fsspec knows.

Runs need locks and renames, which object stores do not have. So they are made on a disk, and each is copied when it has
finished. A run's folder there holds its files, and, written last, a manifest with their digests; a folder without one
counts for nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from hoard.records import cells
from hoard.records.errors import BadInput, Busy
from hoard.records.files import write_atomic
from hoard.records.folder import ALGORITHM, CHECKPOINT, CONFIG, PROVENANCE, STATUS
from hoard.records.locks import lock_folder
from hoard.records.meaning import meaning_hash
from hoard.records.names import check_name
from hoard.runners.address import address

MANIFEST = "manifest.json"


class Damaged(Exception):
    """A copy that is not what its manifest or its address says."""


class Mirror:
    """Copies of the runs in `results` at `url`, in folders of the same names. Raises BadInput if that is no place."""

    def __init__(self, url: str, results: Path) -> None:
        import fsspec

        self.url, self.results = url.rstrip("/"), results
        try:
            self._store, self._root = fsspec.core.url_to_fs(self.url)
            self._store.invalidate_cache()
            found = self._store.glob(f"{self._root}/runs/*/*/*/{MANIFEST}")
        except Exception as error:  # what goes wrong is told in the words of many packages
            raise BadInput(f"{url} cannot be opened: {error or type(error).__name__}") from error
        self._there = {"/".join(PurePosixPath(path).parts[-5:-1]) for path in found}
        self._worker = ThreadPoolExecutor(1)
        self._copies: dict[str, Future[None]] = {}

    # --- to the mirror ---

    def put(self, run: str) -> None:
        """Copy a finished run, unless it is there already. Meanwhile the sweep goes on."""
        if run not in self._there:
            self._there.add(run)
            self._copies[run] = self._worker.submit(self._put, run)

    def _put(self, run: str) -> None:
        folder, digests = self.results / run, {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name != CHECKPOINT and not name.startswith("."):
                content = path.read_bytes()
                digests[name] = hashlib.sha256(content).hexdigest()
                self._write(f"{run}/{name}", content)
        self._write(f"{run}/{MANIFEST}", json.dumps({"run": run, "files": digests}, indent=1).encode())

    def close(self, suite: str) -> list[str]:
        """Wait for the copies, and copy the record of the suite. Returns what went wrong, a line for each."""
        wrong = []
        copies = {**self._copies, f"{suite}/{cells.FILE}": self._worker.submit(self._put_record, suite)}
        for name, copy in copies.items():
            try:
                copy.result()
            except Exception as error:  # as above; the other copies are still worth making
                wrong.append(f"{name}: {error or type(error).__name__}")
        self._worker.shutdown()
        return wrong

    def _put_record(self, suite: str) -> None:
        """Copy the record, with the cells that other machines have put into the one that is there."""
        record = cells.read(self.results / suite)
        if self._store.exists(f"{self._root}/{suite}/{cells.FILE}"):
            record = cells.merged(record, self.record_of(suite))
        record.pop("journal", None)  # folded in, and not copied
        self._write(f"{suite}/{cells.FILE}", json.dumps(record, indent=1).encode())

    def _write(self, name: str, content: bytes) -> None:
        self._store.makedirs(f"{self._root}/{name}".rpartition("/")[0], exist_ok=True)
        self._store.pipe_file(f"{self._root}/{name}", content)

    # --- from the mirror ---

    def get(self, run: str, planned: bool = True) -> bool:
        """Bring a run here if a whole copy is there and nobody works on it here.

        Raises Damaged if a file is not what it was, or if the run was not made by what its address says (`planned`:
        this holds for the libraries of this machine; for a mere reader it need not).
        """
        if run not in self._there:
            return False
        files = self._read(run)
        if planned and (made := _address_of(run, files)) != run:
            self._there.discard(run)
            raise Damaged(f"{self.url}/{run}: made by what has the address {made}")
        folder = self.results / run
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(Busy), _held(folder):
            for name in sorted(files, key=lambda name: name == STATUS):  # which says that it is finished: last
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / name, partial(_fill, files[name]))
            return True
        return False

    def record_of(self, suite: str) -> dict[str, Any]:
        """The record of a suite. Raises BadInput if there is none."""
        try:
            return json.loads(self._store.cat_file(f"{self._root}/{suite}/{cells.FILE}"))
        except Exception as error:  # as above
            raise BadInput(f"no suite at {self.url}/{suite}: {error or type(error).__name__}") from error

    def _read(self, run: str) -> dict[str, bytes]:
        try:
            digests: dict[str, str] = json.loads(self._store.cat_file(f"{self._root}/{run}/{MANIFEST}"))["files"]
            files = {}
            for name, digest in digests.items():
                if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                    raise ValueError(f"{name} leaves the folder")
                files[name] = self._store.cat_file(f"{self._root}/{run}/{name}")
                if hashlib.sha256(files[name]).hexdigest() != digest:
                    raise ValueError(f"{name} is not what was copied")
            if json.loads(files[STATUS])["status"] != "finished":
                raise ValueError("it is not finished")
        except Exception as error:  # as above
            self._there.discard(run)  # so that it is copied anew
            raise Damaged(f"{self.url}/{run}: {error or type(error).__name__}") from error
        return files


def _fill(content: bytes, file: Path) -> None:
    file.write_bytes(content)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    lock = lock_folder(folder, "copying from a mirror")
    try:
        yield
    finally:
        lock.close()


def _address_of(run: str, files: dict[str, bytes]) -> str:
    """The address of what a run's files say it was made of, with the libraries of this machine."""
    config: dict[str, Any] = json.loads(files[CONFIG])["config"]
    data_hash = json.loads(files[PROVENANCE])["dataset"]["sha256"]
    return address(PurePosixPath(run).parts[1], meaning_hash(files[ALGORITHM].decode()), config, data_hash)


def _check_run(run: str) -> None:
    """Raise BadInput for what is not the address of a run: a record made elsewhere may name any path."""
    head, *names = PurePosixPath(run).parts or ("",)
    if head != "runs" or len(names) != 3:
        raise BadInput(f"run '{run}': an address is runs/ALGORITHM/DATASET/SEED-HASH")
    for name in names:
        check_name("run", name)


def fetch_suite(url: str, results: Path) -> Path:
    """Bring the suite whose folder `url` is into `results`, with its finished runs; returns its folder there.

    Raises BadInput if there is none, or if a run is damaged or lies where none can.
    """
    root, _, suite = url.rstrip("/").rpartition("/")
    mirror = Mirror(root, results)
    record = mirror.record_of(check_name("suite", suite))
    for cell in record["cells"]:
        if cell["run"] is not None:  # a cell whose dataset or file could not be used has none
            _check_run(cell["run"])
        if cell["status"] == "finished" and not (results / cell["run"] / STATUS).exists():
            try:
                if not mirror.get(cell["run"], planned=False):
                    raise Damaged(f"{root}/{cell['run']} is not there, or is being brought here by another process")
            except Damaged as error:
                raise BadInput(f"{error}; run the suite again with --mirror {root} to copy it anew") from error
    folder = results / suite
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / cells.FILE, lambda scratch: scratch.write_text(json.dumps(record)))
    return folder
