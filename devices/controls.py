"""Where training starts on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from .device import SuggestsControls
from .session import Session

__all__ = ["initial_controls"]


def initial_controls(session: Session, generator: torch.Generator) -> Tensor:
    """Controls to start from, (num_controls,): where the device suggests, else uniform over its range, or -1 to 1."""
    source = session.capability(SuggestsControls)
    if source is not None:
        return source.initial_controls(generator)
    low, high = session.spec.control_range or (-1.0, 1.0)
    return torch.empty(session.spec.num_controls).uniform_(low, high, generator=generator)
