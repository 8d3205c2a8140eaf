"""How long a report of a large suite takes, and how much memory: `python benchmarks/analysis_scale.py`.

Makes an archive of 10 algorithms x 30 datasets x 10 seeds x 200 evaluations x 10 episodes, 6 million rows, in a
temporary folder, builds its report in a process of its own, and prints seconds and the greatest resident memory. With
--check it fails above 60 s of CPU time or 4 GiB: on a busy machine wall time says little.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hoard.records.schema import TABLE_SCHEMA

SECONDS, GIB = 60.0, 4.0
NAMES = ("iql", "bc", "rcsl", "td3_bc", "rebrac", "cql", "awac", "edac", "fql", "decision_transformer")


def make(folder: Path, algorithms: int, datasets: int, seeds: int, evaluations: int, episodes: int) -> int:
    """Write the archive, a row group for each dataset; return its number of rows."""
    folder.mkdir(parents=True)
    rng, cells, rows = np.random.default_rng(0), [], 0
    with pq.ParquetWriter(folder / "episodes.parquet", TABLE_SCHEMA, compression="zstd") as writer:
        for d in range(datasets):
            for a in range(algorithms):
                method, dataset = NAMES[a], f"made/task{d}/mixed-v0"
                n = seeds * evaluations * episodes
                update = np.tile(np.repeat(np.arange(1, evaluations + 1) * 5000, episodes), seeds)
                level = 100 * (1 - np.exp(-update / 3e5)) * (0.5 + 0.05 * a) + np.repeat(
                    4 * rng.standard_normal(seeds), evaluations * episodes
                )
                score = level + 15 * rng.standard_normal(n)
                runs = [f"runs/{method}/made-task{d}-mixed-v0/{seed}-0123456789ab" for seed in range(seeds)]
                seed = np.repeat(np.arange(seeds), evaluations * episodes)
                columns = {
                    "schema_version": np.ones(n), "suite": ["scale"] * n, "method": [method] * n, "algo": [method] * n,
                    "dataset": [dataset] * n, "seed": seed, "variant": [""] * n, "update": update,
                    "env_step": np.zeros(n), "final": update == evaluations * 5000,
                    "episode": np.tile(np.arange(episodes), seeds * evaluations),
                    "eval_seed": np.arange(n), "return": 30 * score, "length": np.full(n, 1000),
                    "success": pa.nulls(n, pa.bool_()), "score": score,
                    "run": np.repeat(np.array(runs), evaluations * episodes),
                }  # fmt: skip
                writer.write_table(
                    pa.table({f.name: pa.array(columns[f.name]).cast(f.type) for f in TABLE_SCHEMA}, TABLE_SCHEMA)
                )
                rows += n
                facts = {
                    "method": method, "algo": method, "dataset": dataset, "status": "finished", "error": None,
                    "overrides": {}, "wall_time": 900.0, "updates_per_second": 1100.0, "data_hash": "5f",
                }  # fmt: skip
                cells += [
                    {"seed": s, "run": run} | facts
                    for s, run in enumerate(runs)
                ]  # fmt: skip
    (folder / "cells.json").write_text(json.dumps({"schema_version": 1, "suite": "scale", "cells": cells}))
    return rows


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/analysis_scale.py", description="Time a large report.")
    parser.add_argument("--datasets", type=int, default=30, help="datasets; 30 make 6 million rows (default: 30)")
    parser.add_argument("--check", action="store_true", help=f"fail above {SECONDS:g} s of CPU time or {GIB:g} GiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "scale"
        rows = make(folder, len(NAMES), options.datasets, 10, 200, 10)
        before, start = _cpu(), time.perf_counter()
        subprocess.run([sys.executable, "-m", "hoard.analysis.report", str(folder)], check=True)
        wall, seconds = time.perf_counter() - start, _cpu() - before
        gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        size = (folder / "report.html").stat().st_size / 2**20
    print(f"{rows:,} rows: {seconds:.1f} s of CPU, {wall:.1f} s in all, {gib:.2f} GiB, report.html {size:.1f} MiB")
    if options.check and (seconds > SECONDS or gib > GIB):
        sys.exit(1)


if __name__ == "__main__":
    main()
