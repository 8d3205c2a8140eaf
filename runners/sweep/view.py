"""What a sweep shows in the terminal while it runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hoard.runners.sweep.job import Job


def line(job: Job, counts: Counter[str], status: dict[str, Any]) -> str:
    """One line when a cell has ended; `counts` are those of all cells by status."""
    done = sum(counts[name] for name in ("finished", "failed", "interrupted"))
    return f"[{done}/{counts.total()}] {job.status:9} {job.cell.label}  ({status.get('wall_time') or 0:.0f} s)"


def live(suite: str, counts: Counter[str], running: list[tuple[Job, dict[str, Any]]]) -> Group:
    """The running cells with their progress, under the counts of all."""
    table = Table(box=None, padding=(0, 2))
    for name in ("method", "dataset", "seed", "progress", "done", "speed"):
        table.add_column(name)
    for job, status in running:
        update, unit = status.get("update", 0), ""
        done, total = update, status.get("updates", 0)
        if status.get("phase") == "online":
            done, total, unit = status["env_step"], status["env_steps"], " steps"
        elif phase := status.get("phase"):
            done, total, unit = status["phase_update"], 0, f" {phase}"
        share = done / total if total else 0.0
        bar = "━" * round(12 * share)
        speed = f"{update / status['wall_time']:.0f}/s" if status.get("wall_time") and update else ""
        table.add_row(
            job.cell.method, job.cell.dataset, str(job.cell.seed), Text(bar.ljust(12, "─"), "cyan"),
            f"{done:,}{f'/{total:,}' if total else ''}{unit}", speed,
        )  # fmt: skip
    shown = ("finished", "running", "pending", "failed")
    head = "  ".join(f"{counts[name]} {name}" for name in shown)
    return Group(Text(f"{suite}: {head}", "bold"), table)
