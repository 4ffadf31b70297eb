"""Define the base class of all measurements, and their cost and effort."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from ..devices import DeviceSpec
from .context import MeasurementContext
from .findings import Finding

__all__ = ["Cost", "Effort", "Measurement"]


class Cost(NamedTuple):
    """Count the operations of a measurement.

    Attributes:
        programs: number of programs.
        vectors: number of vectors in all.
    """

    programs: int
    vectors: int


class Effort(NamedTuple):
    """Scale the number of operations of measurements; 1 means the default number.

    Attributes:
        settings: factor on the number of settings.
        repeats: factor on the number of vectors at each setting.
    """

    settings: float
    repeats: float


class Measurement(ABC):
    """Measure one property of a device, at a cost that is known beforehand.

    Args:
        context: session, test vectors, amplitude and noise of all measurements of the device.
        effort: factors on the number of settings and vectors.

    Attributes:
        name: name of the measurement.
        priority: measurements with the highest number are left out first where the budget is small.
        linear: whether the device must claim to be linear.
        elementwise: whether the device must claim that each control sets one entry of the transfer matrix.
    """

    name: ClassVar[str]
    priority: ClassVar[int]
    linear: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False

    def __init__(self, context: MeasurementContext, effort: Effort) -> None:
        self.context, self.effort = context, effort

    @classmethod
    def refusal(cls, spec: DeviceSpec) -> str | None:
        """Return why the measurement does not apply to a device, or None where it does."""
        if cls.linear and not spec.linear:
            return "the device does not claim to be linear"
        if cls.elementwise and spec.coupling != "elementwise":
            return f"the coupling is {spec.coupling}, and this measurement identifies each entry by its own control"
        return None

    @abstractmethod
    def cost(self) -> Cost:
        """Return the largest number of programs and vectors that `run` takes."""

    @abstractmethod
    def run(self) -> list[Finding]:
        """Measure, and return the findings."""
