"""Progress of making a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


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
            self.bar = Progress(
                TextColumn("making {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
                TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(self.dataset_id, total=total)
            if not self.console.is_terminal:
                self.console.print(
                    f"making {self.dataset_id}: {total:,} environment steps", highlight=False, soft_wrap=True
                )
        assert self.bar
        self.bar.update(self.task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
