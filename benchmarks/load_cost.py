"""What reading a D4RL file costs: time against a bare h5py read of the same arrays, memory against the arrays.

Run it by hand, `python benchmarks/load_cost.py`; it writes a file of hopper-medium's shape (a million rows, 11 +
11 + 3 + 3 columns, gzip) into a temporary folder, reads it in fresh processes, the two readers in turn, and exits 1 if
the time ratio is above 1.3 or the memory ratio above 1.5. Time is CPU time, the best of several reads with the file in
the page cache: on a busy machine wall time says little. Memory is the growth of the process's peak (ru_maxrss) over
its peak after all imports and a first small read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TIME_LIMIT, MEMORY_LIMIT = 1.3, 1.5
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")

_CHILD = """
import json, resource, sys, time, warnings
import h5py
import numpy as np
from hoard import datasets
reader, small, path, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
keys = {keys!r}

def bare(path):
    with h5py.File(path, "r") as file:
        return [file[key][()] for key in keys + (("next_observations",) if reader.endswith("+full") else ())]

def read(path):
    return bare(path) if reader.startswith("bare") else datasets.load("d4rl:" + path + reader.removeprefix("hoard"))

read(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
times = []
for number in range(rounds):
    start = time.process_time()
    data = read(path)
    times.append(time.process_time() - start)
    if number == 0:  # of one read alone: later ones find the last one's arrays still there
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del data
print(json.dumps(dict(seconds=min(times), bytes=1024 * (peak - before))))
"""


def write(path: Path, rows: int, obs_dim: int = 11, action_dim: int = 3, compression: str | None = "gzip") -> int:
    """A file like hopper_medium-v2.hdf5. Returns the bytes of its `KEYS` as float32 and bool."""
    import h5py
    import numpy as np

    rng = np.random.default_rng(0)
    table = rng.standard_normal((rows + 1, obs_dim), np.float32)
    terminals = rng.random(rows) < 2e-3
    arrays = {
        "observations": table[:-1],
        "next_observations": table[1:],
        "actions": rng.uniform(-1, 1, (rows, action_dim)).astype(np.float32),
        "rewards": rng.standard_normal(rows, np.float32),
        "terminals": terminals,
        "timeouts": (np.arange(rows) % 1000 == 999) & ~terminals,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression=compression)
    return sum(arrays[key].nbytes for key in KEYS)


def measure(reader: str, small: Path, path: Path, rounds: int = 3) -> dict[str, float]:
    """`seconds` of the best of `rounds` reads and `bytes` that the first one added to the peak, in a fresh process."""
    command = [sys.executable, "-c", _CHILD.format(keys=KEYS), reader, str(small), str(path), str(rounds)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout)


def compare(rows: int, compression: str | None, option: str = "", repeats: int = 3) -> tuple[float, float]:
    """(time ratio, memory ratio) of our reader; prints one line."""
    with tempfile.TemporaryDirectory() as folder:
        small, path = Path(folder) / "small.hdf5", Path(folder) / "hopper.hdf5"
        write(small, 3000, compression=compression)
        size = write(path, rows, compression=compression)
        runs: dict[str, list[dict[str, float]]] = {"bare" + option: [], "hoard" + option: []}
        for _ in range(repeats):  # in turn, so that a slow spell of the machine meets both
            for reader, found in runs.items():
                found.append(measure(reader, small, path))
    bare, ours = (min(run["seconds"] for run in found) for found in runs.values())
    bare_bytes, our_bytes = (max(run["bytes"] for run in found) for found in runs.values())
    time_ratio, memory_ratio = ours / bare, our_bytes / size
    print(
        f"{rows:,} rows, {compression or 'no'} compression{option}: bare h5py {bare:.3f} s, ours {ours:.3f} s "
        f"(x {time_ratio:.2f}); arrays {size / 1e6:.1f} MB, peak bare {bare_bytes / 1e6:.1f} MB, ours "
        f"{our_bytes / 1e6:.1f} MB (x {memory_ratio:.2f} of the arrays)",
        flush=True,
    )
    return time_ratio, memory_ratio


def main() -> int:
    asked = compare(1_000_000, "gzip")
    for compression, option in ((None, ""), ("gzip", "+full")):
        compare(1_000_000, compression, option)  # for information
    good = asked[0] <= TIME_LIMIT and asked[1] <= MEMORY_LIMIT
    print(f"limits: time x {TIME_LIMIT}, memory x {MEMORY_LIMIT} (first line): {'met' if good else 'NOT met'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
