"""TensorBoard and Weights & Biases, when asked for: called with (update, {name: value}), closed at the end."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    def __call__(self, update: int, values: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Events in the run folder; what a killed run wrote after its checkpoint is hidden from update `first` on."""

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def __call__(self, update: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, update)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """One wandb run per run folder: a resumed run continues the same one."""

    def __init__(self, project: str, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        name = f"{folder.parent.parent.name}-{folder.name}"
        self._run = wandb.init(project=project, id=name, resume="allow", config=config, dir=str(folder))
        self._run.define_metric("*", step_metric="update")

    def __call__(self, update: int, values: dict[str, Any]) -> None:
        self._run.log({**values, "update": update})

    def close(self) -> None:
        self._run.finish()


def missing_extra(tensorboard: bool, wandb_project: str | None) -> str | None:
    """The extra that would have to be installed for what is asked, if any."""
    for wanted, name in ((tensorboard, "tensorboard"), (wandb_project, "wandb")):
        if wanted and importlib.util.find_spec(name) is None:
            return name
    return None


def start(
    folder: Path,
    config: dict[str, Any],
    first: int,
    tensorboard: bool,
    wandb_project: str | None,
    say: Callable[[str], None],
) -> list[Tracker]:
    """The trackers asked for, in a run folder whose next update is `first`. One that fails is left out with a line to
    `say`: a service that is down costs no run."""
    asked: list[Callable[[], Tracker]] = []
    if tensorboard:
        asked.append(lambda: TensorBoard(folder, first))
    if wandb_project:
        asked.append(lambda: WandB(wandb_project, folder, config))
    out: list[Tracker] = []
    for begin in asked:
        try:
            out.append(begin())
        except Exception as error:  # services and their clients fail in many ways
            say(f"a tracker could not be started, the run goes on without it: {error or type(error).__name__}")
    return out
