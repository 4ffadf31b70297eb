"""Models of chips whose constants can be found by fitting them to measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Protocol, runtime_checkable

from torch import Tensor

from .spec import DeviceSpec

__all__ = ["Constant", "Identifiable"]


@dataclass(frozen=True, slots=True)
class Constant:
    """A property of one chip that no drawing tells, such as its phase offsets.

    Attributes:
        shape: of its tensor.
        nominal: what the drawing says.
        spread: how far chips may be off, as a standard deviation: what is assumed before anything is measured.
        low: the least that is possible.
        high: the most that is possible.
        unit: of the numbers.
    """

    shape: tuple[int, ...]
    nominal: float
    spread: float
    low: float = -inf
    high: float = inf
    unit: str = ""


@runtime_checkable
class Identifiable(Protocol):
    """A law with constants of one chip in it, which autograd can follow into them: for system identification."""

    @property
    def spec(self) -> DeviceSpec:
        """Sizes, ranges and units."""
        ...

    def constants(self) -> dict[str, Constant]:
        """What may be fitted, by name."""
        ...

    def law(self, constants: Mapping[str, Tensor], controls: Tensor, inputs: Tensor) -> Tensor:
        """What a chip with these constants answers, without noise and rounding.

        Args:
            constants: by name; those not given are nominal.
            controls: as written, (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (settings, batch, out_features).
        """
        ...

    def written_for(self, constants: Mapping[str, Tensor], acting: Tensor) -> Tensor:
        """What to write to a chip with these constants, so that it does what ``acting`` does on a flawless one.

        Args:
            constants: by name.
            acting: (..., num_controls), controls of a flawless chip.

        Returns:
            (..., num_controls), moved to the nearest legal ones where these would not be.
        """
        ...
