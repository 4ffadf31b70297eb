"""Describe the constants of a law that differ from chip to chip."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

__all__ = ["Constant"]


@dataclass(frozen=True, slots=True)
class Constant:
    """Describe one constant of a law, such as phase offsets.

    Attributes:
        shape: shape of its tensor.
        nominal: value of a nominal chip.
        spread: standard deviation between chips, as assumed before a measurement.
        low: lowest possible value.
        high: highest possible value.
        unit: unit of the values.
    """

    shape: tuple[int, ...]
    nominal: float
    spread: float
    low: float = -inf
    high: float = inf
    unit: str = ""
