"""Define the prior of the constants of a law: Student's t about the nominal value."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FREEDOM", "improbability"]

FREEDOM = 4.0
"""Degrees of freedom of the prior: most constants are close to nominal, and a few may be far off."""


def improbability(scaled: Tensor) -> Tensor:
    """Return twice the negative log of the prior, 0 at the nominal value.

    Args:
        scaled: deviation from the nominal value, in units of the constant's spread.
    """
    return FREEDOM * torch.log1p(scaled.square() / FREEDOM)
