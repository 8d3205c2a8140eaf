"""TensorBoard and Weights & Biases, when asked for: each is a function of (update, {name: value})."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Tracker = Callable[[int, dict[str, Any]], None]


def start(folder: Path, config: dict[str, Any], tensorboard: bool, wandb_project: str | None) -> tuple[Tracker, ...]:
    """The trackers asked for. Raises ImportError naming the extra that is not installed."""
    out: list[Tracker] = []
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("--tensorboard needs the extra: pip install 'hoard[tensorboard]'") from error
        writer = SummaryWriter(str(folder / "tensorboard"))

        def to_tensorboard(update: int, values: dict[str, Any]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, update)
            writer.flush()

        out.append(to_tensorboard)
    if wandb_project:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("--wandb needs the extra: pip install 'hoard[wandb]'") from error
        # One wandb run per run folder: a resumed run continues the same one.
        name = f"{folder.parent.parent.name}-{folder.name}"
        session = wandb.init(project=wandb_project, id=name, resume="allow", config=config, dir=str(folder))
        out.append(lambda update, values: session.log({**values, "update": update}))
    return tuple(out)
