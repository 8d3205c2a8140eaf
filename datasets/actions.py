"""Actions in environment units and in [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class ActionScaler:
    """Maps actions (..., action_dim) between environment units and [-1, 1]; `low`, `high` (action_dim,) bound them."""

    def __init__(self, low: np.ndarray, high: np.ndarray, device: torch.device | str = "cpu") -> None:
        lower, upper = (torch.as_tensor(bound, dtype=torch.float32, device=device) for bound in (low, high))
        self.center, self.half_range = (upper + lower) / 2, (upper - lower) / 2

    def to_unit(self, action: Tensor) -> Tensor:
        return (action - self.center) / self.half_range

    def to_env(self, action: Tensor) -> Tensor:
        return self.center + self.half_range * action
