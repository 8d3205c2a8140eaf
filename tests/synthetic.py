"""A synthetic results folder as the runner writes it: known scores, every status, extra policies, one raw dataset."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hoard.records import media
from hoard.records.schema import EPISODE_SCHEMA, EVALUATION_SCHEMA


def script(path: Path) -> ModuleType:
    """A script outside the package as a module."""
    spec = importlib.util.spec_from_file_location(path.parent.name.replace("-", "_") + "_" + path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Sweep:
    """Builds `results/<suite>/cells.json` and the run folders, a cell at a time."""

    def __init__(self, root: Path, suite: str = "quick") -> None:
        self.root, self.suite, self.cells = root, suite, []

    @property
    def folder(self) -> Path:
        return self.root / self.suite

    def cell(
        self, method, dataset, seed, *, status="finished", error=None, overrides=None, training=None, **episodes
    ) -> Path:
        """Add a cell; its episodes are written unless it never started. `training`: seconds before each evaluation."""
        run = f"runs/{method}/{dataset.replace('/', '-')}/{seed}-0123456789ab"
        started = status != "pending"
        if started:
            (self.root / run).mkdir(parents=True, exist_ok=True)
            if status == "finished" or episodes:
                table = self.episodes(seed=seed, **episodes)
                pq.write_table(table, self.root / run / "episodes.parquet")
                if training is not None:
                    pq.write_table(self.evaluations(table, training), self.root / run / "evaluations.parquet")
        self.cells.append(
            {
                "method": method,
                "algo": method,
                "dataset": dataset,
                "seed": seed,
                "run": run if started else None,
                "status": status,
                "error": error,
                "overrides": overrides or {},
                "wall_time": 75.0 + seed if status == "finished" else None,
                "updates_per_second": 900.0 if status == "finished" else None,
                "data_hash": "5f" * 8,
            }
        )
        return self.root / run

    @staticmethod
    def evaluations(episodes: pa.Table, training) -> pa.Table:
        """A row for each evaluation among the episodes, after so many seconds of training."""
        names = ["schema_version", "variant", "update", "env_step", "final"]
        rows = episodes.select(names).group_by(names, use_threads=False).aggregate([]).to_pylist()
        seconds = dict(zip(sorted({row["update"] for row in rows}), training))
        return pa.Table.from_pylist(
            [row | {"training_time": seconds[row["update"]]} for row in rows], schema=EVALUATION_SCHEMA
        )

    @staticmethod
    def episodes(
        seed=0, last=50.0, curve=None, variants=None, count=4, normalised=True, success=None, env_steps=0, spread=1.0,
        final=True, offline=0,
    ) -> pa.Table:  # fmt: skip
        """Evaluation rows: `curve` (mean scores, one an evaluation, default a rise to `last`), each with `count`
        episodes whose mean is exact; `variants` are evaluated at the end only. The first `offline`
        evaluations come before any environment step."""
        curve = [last] if curve is None else curve
        offsets = spread * (np.arange(count) - (count - 1) / 2)
        rows = []
        for number, mean in enumerate(curve, start=1):
            is_last = number == len(curve)
            policies = {"": mean} | ((variants or {}) if is_last else {})
            for variant, level in policies.items():
                for episode, offset in enumerate(offsets):
                    score = level + offset
                    rows.append(
                        {
                            "schema_version": 1,
                            "variant": variant,
                            "update": 1000 * number,
                            "env_step": env_steps * max(number - offline, 0),
                            "final": final and is_last,
                            "episode": episode,
                            "eval_seed": 10_000_019 + 1000 * seed + 10 * number + episode,
                            "return": -1000 + 9 * score,
                            "length": 200,
                            "success": success,
                            "score": score if normalised else float("nan"),
                        }
                    )
        return pa.Table.from_pylist(rows, schema=EPISODE_SCHEMA)

    def write(self, **changes) -> Path:
        """Write `cells.json` and return the suite folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "schema_version": 1,
            "suite": self.suite,
            "command": "hoard bench quick SEEDS=5",
            "created": "2026-01-02T03:04:05+00:00",
            "provenance": {
                "revision": "0123abcd",
                "versions": {"torch": "2.9.0", "numpy": "2.3.0"},
                "machine": "Linux x86_64",
                "cpu_count": 2,
            },
            "cells": self.cells,
        }
        (self.folder / "cells.json").write_text(json.dumps(content | changes))
        return self.folder


DATASET = "hoard/pendulum/mixed-v0"


def train(
    sweep, algo, seed, status="finished", overrides=None, suffix="aaaaaaaaaaaa", code="x = 1", torch="2", **episodes
):
    """A run folder as `hoard train` leaves it."""
    run = sweep.cell(algo, DATASET, seed, status=status, **episodes)
    run = run.rename(run.with_name(f"{seed}-{suffix}"))
    config = {"dataset": DATASET, "seed": seed, "updates": 1000} | (overrides or {})
    (run / "config.json").write_text(json.dumps({"algo": algo, "config": config, "overrides": overrides or {}}))
    facts = {
        "status": status,
        "update": 1000,
        "wall_time": 50.0,
        "error": "ValueError: x" if status == "failed" else None,
    }
    (run / "status.json").write_text(json.dumps(facts))
    made = {"revisions": ["0123abcd"], "versions": {"torch": torch}, "dataset": {"id": DATASET, "sha256": "5f" * 8}}
    (run / "provenance.json").write_text(json.dumps(made))
    (run / "algorithm.py").write_text(code)
    return run


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    """An empty sweep to which a test adds cells."""
    return Sweep(tmp_path / "results")


@pytest.fixture
def quick(sweep) -> Sweep:
    """Three methods, three datasets, five seeds; one cell failed, one never started; rcsl has extra policies."""
    rng = np.random.default_rng(7)
    levels = {"bc": 35.0, "iql": 62.0, "rcsl": 50.0}
    datasets = ["hoard/pendulum/mixed-v0", "hoard/pointmaze/stitch-v0", "hoard/acrobot/expert-v0"]
    for shift, dataset in enumerate(datasets):
        for method, level in levels.items():
            for seed in range(5):
                last = level + 12 * shift + 5 * rng.standard_normal()
                rise = last * (1 - np.exp(-0.6 * np.arange(1, 11))) / (1 - np.exp(-6.0))
                facts = {"overrides": {"updates": 10_000}}
                if (method, shift, seed) == ("iql", 1, 3):
                    error = "RuntimeError: <b>loss</b> is not finite | see log"
                    facts |= {"status": "failed", "error": error}
                    sweep.cell(method, dataset, seed, curve=rise[:4], final=False, **facts)
                elif (method, shift, seed) == ("bc", 2, 4):
                    sweep.cell(method, dataset, seed, status="pending", **facts)
                else:
                    if method == "iql" and shift == 2:
                        facts = {"overrides": {"updates": 10_000, "expectile": 0.9}}
                    extra = {"target=0.5": last - 10, "target=0.9": last - 2} if method == "rcsl" else None
                    success = bool(seed % 2) if shift == 1 else None
                    sweep.cell(method, dataset, seed, curve=rise, variants=extra, success=success, **facts)
    sweep.write()
    return sweep


@pytest.fixture
def filmed(sweep) -> Sweep:
    """Two methods on one dataset: films of two runs, the paths of one, and the provenance of all that have started."""
    rng = np.random.default_rng(0)
    for method in ("bc", "iql"):
        for seed in range(2):
            sweep.cell(method, "hoard/pendulum/mixed-v0", seed, curve=[10.0, 20.0 + seed])
    sweep.cell("iql", "hoard/pendulum/mixed-v0", 2, status="pending")
    sweep.write()
    for cell in sweep.cells:
        if cell["run"]:
            data = {"sha256": "5f" * 32, "transitions": 100, "returns": [-900.0, -500.0, -400.0]}
            made = {"revisions": ["ab" * 20 + "+changes"], "dataset": data, "device": "Linux, <2> cores"}
            made["versions"] = {"torch": "2.9.0"}
            (sweep.root / cell["run"] / "provenance.json").write_text(json.dumps(made))
    for cell in (sweep.cells[0], sweep.cells[2]):
        frames = [Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)) for _ in range(3)]
        record = media.record_of(f"Film <b>of</b> {cell['method']}.", cell["method"], cell["dataset"], "Env-v0", 0, [])
        path = sweep.root / cell["run"] / "policy.gif"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0, comment=record)
    frames[0].resize((640, 320)).save(path.with_name("paths.png"))  # made by something else: without a record
    return sweep


@pytest.fixture
def archive(quick, tmp_path) -> Path:
    """The same results as an archive: cells.json and the joined episodes, far from any run folder."""
    from hoard.analysis import results

    folder = tmp_path / "archive" / "quick"
    folder.mkdir(parents=True)
    (folder / "cells.json").write_bytes((quick.folder / "cells.json").read_bytes())
    results.write_table(results.collect(quick.root, quick.suite), folder)
    return folder
