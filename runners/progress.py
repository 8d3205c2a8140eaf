"""Progress of making or fetching a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from hoard.datasets import progress_unit


class generation_bar:
    """A progress bar on a terminal, a line at the start otherwise; nothing if there is nothing to make."""

    def __init__(self, console: Console, dataset_id: str) -> None:
        self.console, self.dataset_id = console, dataset_id
        self.bar: Progress | None = None
        self.task: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        return self._advance

    def _advance(self, done: int, total: int) -> None:
        if self.task is None:
            unit = progress_unit(self.dataset_id)
            verb = "fetching" if unit == "bytes" else "making"
            self.bar = Progress(
                TextColumn(f"{verb} {{task.description}}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
                TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.dataset_id, total=total)
            if not self.console.is_terminal:
                self.console.print(f"{verb} {self.dataset_id}: {total:,} {unit}", highlight=False, soft_wrap=True)
        assert self.bar
        self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
