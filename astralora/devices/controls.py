"""Draw the first controls of a training run."""

from __future__ import annotations

import torch
from torch import Tensor

from .spec import DeviceSpec

__all__ = ["initial_controls"]


def initial_controls(spec: DeviceSpec, generator: torch.Generator) -> Tensor:
    """Draw controls, (num_controls,), uniformly from the initial range, or else from the control range or -1 to 1."""
    low, high = spec.initial_range or spec.control_range or (-1.0, 1.0)
    return torch.empty(spec.num_controls).uniform_(low, high, generator=generator)
