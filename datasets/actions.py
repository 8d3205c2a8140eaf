"""Actions in [-1, 1] and in environment units."""

from __future__ import annotations

import torch
from torch import Tensor


class ActionScaler:
    """Maps actions (..., action_dim) between environment units, in [low, high], and the unit scale, in [-1, 1].

    `low`, `high` (action_dim,) are the bounds of a Box; `center`, `half_range` (action_dim,) are float32 on `device`.
    With bounds of -1 and 1 both maps return exactly the numbers they are given. Raises ValueError unless the bounds are
    finite and low < high.
    """

    def __init__(self, low: object, high: object, device: torch.device | str = "cpu") -> None:
        lowest = torch.as_tensor(low, dtype=torch.float32, device=device)
        highest = torch.as_tensor(high, dtype=torch.float32, device=device)
        self.center = (highest + lowest) / 2
        self.half_range = (highest - lowest) / 2
        if not (
            torch.isfinite(self.center).all() and torch.isfinite(self.half_range).all() and (self.half_range > 0).all()
        ):
            raise ValueError(
                f"actions cannot be scaled between the bounds {low} and {high}: they must be finite, low < high"
            )

    def to_unit(self, action: Tensor) -> Tensor:
        """From environment units to [-1, 1]."""
        return (action - self.center) / self.half_range

    def to_env(self, action: Tensor) -> Tensor:
        """From [-1, 1] to environment units."""
        return self.center + self.half_range * action
