"""Before the first run: what each cell's algorithm file makes of its options, and at which address it will be.

Both `hoard bench` and `hoard plan` go through here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from hoard import datasets
from hoard.records.errors import BadInput
from hoard.records.folder import PACKED, status_of
from hoard.records.meaning import meaning_hash
from hoard.records.names import log_name
from hoard.runners import algorithms
from hoard.runners.address import address
from hoard.runners.sweep.job import Job, tail
from hoard.runners.sweep.local import environment
from hoard.runners.sweep.plan import Planner, Unusable
from hoard.runners.sweep.suite import FOLDER, Cell, Suite, line_of

Configs = dict[tuple[str, str], dict[str, Any]]


def jobs_of(suite: Suite, folder: Path) -> list[Job]:
    """A job for each cell of the suite, whose folder `folder` is. Raises BadInput for an unknown dataset or file."""
    for dataset_id in suite.datasets:
        datasets.check_id(dataset_id)
    find = cache(algorithms.find)
    logs = folder / "logs"
    return [Job(c, find(c.algo), logs / log_name(c.method, c.dataset, c.seed)) for c in suite.cells()]


def ask_the_files(suite: Suite, work: list[Job], pack: int = 1) -> Configs:
    """The resolved options of each method on each dataset, as its algorithm file understands them.

    Jobs whose seeds can be made in one process, `pack` of them, are marked so.

    Raises BadInput, naming suite, method and option, for what is refused. A file that cannot be imported fails all its
    cells.
    """
    configs: Configs = {}
    refused: dict[str, str] = {}
    planner = Planner(environment())
    by_file: dict[Path, list[Job]] = {}
    for job in work:
        by_file.setdefault(job.algo_file, []).append(job)
    try:
        for file, jobs in by_file.items():
            firsts = {(job.cell.method, job.cell.dataset): job.cell for job in reversed(jobs)}
            questions = [{"args": cell.args, "options": list(cell.options)} for cell in firsts.values()]
            try:
                answers = dict(zip(firsts, planner.ask(file, questions)))
            except Unusable as error:
                for job in jobs:
                    job.fail("refused", f"{file.name} cannot be used:\n{tail(str(error))}")
                continue
            for (method, dataset_id), answer in answers.items():
                if "error" in answer:
                    place = _place(suite, firsts[method, dataset_id], answer["error"])
                    refused[method] = f"{place}method {method} ({file.name}): {answer['error']}"
                else:
                    configs[method, dataset_id] = answer["config"]
                    if pack > 1 and answer["packable"]:
                        for told in ("config", "overrides"):
                            answer[told][PACKED] = pack
            for job in jobs:
                job.overrides = answers[job.cell.method, job.cell.dataset].get("overrides", {})
                job.packed = job.overrides.get(PACKED, 0)
    finally:
        planner.close()
    if refused:
        raise BadInput("\n".join([suite.source or f"suite {suite.name}", *refused.values()]))
    return configs


def share_a_gpu(configs: Configs) -> bool:
    """Whether cells of these options meet on one accelerator when nobody deals them out."""
    return any(str(config["device"]) in ("cuda", "cuda:0") for config in configs.values())


def _place(suite: Suite, cell: Cell, error: str) -> str:
    """`line N: ` of the option in the suite's file that an algorithm file complains of; empty where it is not there."""
    words = set(re.findall(r"[\w-]+", error.replace("--", " ")))
    method, dataset = f"method.{cell.method}", cell.dataset
    sections = [f"{method}.dataset.{dataset}", f"{method}.options", method, f"dataset.{dataset}", "options"]
    for option in cell.options:
        if words & {option, option.replace("_", "-")}:
            number = line_of(Path(suite.source or FOLDER / f"{suite.name}.toml"), option, *sections)
            if number is not None:
                return f"line {number}: "
    return ""


def find_runs(work: Iterable[Job], configs: Configs, results: Path) -> None:
    """Give pending jobs whose data are known the address of their run, and mark those that are finished.

    Raises BadInput if two cells would be one run.
    """
    pending = [job for job in work if job.status == "pending" and job.data_hash]
    meanings = {file: meaning_hash(file.read_text()) for file in {job.algo_file for job in pending}}
    seen: dict[str, Job] = {}
    for job in pending:
        assert job.data_hash
        config = configs[job.cell.method, job.cell.dataset] | {"seed": job.cell.seed}
        job.run = address(job.algo_file.stem, meanings[job.algo_file], config, job.data_hash)
        if (other := seen.setdefault(job.run, job)) is not job:
            raise BadInput(f"{job.cell.label} and {other.cell.label} are the same run: no option tells them apart")
        if status_of(results / job.run)["status"] == "finished":
            job.status = "finished"
