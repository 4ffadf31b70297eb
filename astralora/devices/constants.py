"""Describe the constants of a law that differ from chip to chip."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

__all__ = ["Constant"]


@dataclass(frozen=True, slots=True)
class Constant:
    """Describe a property that differs from chip to chip, such as phase offsets.

    Attributes:
        shape: shape of its tensor.
        nominal: value of a nominal chip.
        spread: standard deviation between chips, assumed before anything is measured.
        low: least possible value.
        high: greatest possible value.
        unit: unit of the values.
    """

    shape: tuple[int, ...]
    nominal: float
    spread: float
    low: float = -inf
    high: float = inf
    unit: str = ""
