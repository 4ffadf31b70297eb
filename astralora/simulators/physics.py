"""Define the law of a kind of device, as pure torch functions without noise and rounding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import pi, sqrt
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..devices import Constant, Coupling, Patch, Range

__all__ = ["Drive", "Heated", "LinearPhysics", "Physics"]


class Drive(NamedTuple):
    """Describe the written controls that the control electronics accept.

    Attributes:
        unit: unit of a control.
        range: range of legal controls.
        initial: range from which training draws the first controls; None for the whole range.
    """

    unit: str
    range: Range
    initial: Range | None


class Physics(BaseModel, ABC):
    """Define the law of one kind of device: implement `transfer`, and override the defaults that do not fit.

    A subclass is a frozen pydantic model. Its fields are the parameters of the kind, and become options of
    `astralora.devices.open_device`.

    Attributes:
        coupling: part of the transfer matrix that one control changes, as in `astralora.devices.DeviceSpec`.
        linear: whether the outputs are linear in the inputs.
        control_unit: unit of the acting controls.
        control_range: range of legal controls, in ``control_unit``.
        initial_range: range from which training draws the first controls; None for the whole control range.
        period: difference between two controls with the same effect; None if the law is not periodic.
        conductances: whether the controls are conductances, which memory cells store.
        reciprocal: whether vectors can pass backwards, through the transpose of the transfer matrix; only for linear
            kinds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    coupling: ClassVar[Coupling] = "elementwise"
    linear: ClassVar[bool] = True
    control_unit: ClassVar[str] = "rad"
    control_range: ClassVar[Range] = (0.0, 2 * pi)
    initial_range: ClassVar[Range | None] = None
    period: ClassVar[float | None] = None
    conductances: ClassVar[bool] = False
    reciprocal: ClassVar[bool] = False

    @classmethod
    def kind_name(cls) -> str:
        """Return the name of the kind, which is the name of the class in lower case."""
        return cls.__name__.lower()

    @abstractmethod
    def transfer(self, controls: Tensor, inputs: Tensor, out_features: int) -> Tensor:
        """Compute the outputs for one or many settings, by operations that autograd can differentiate.

        Args:
            controls: acting controls, (..., num_controls).
            inputs: (batch, in_features).
            out_features: number of outputs.

        Returns:
            (..., batch, out_features).
        """

    def num_controls(self, in_features: int, out_features: int) -> int:
        """Return the number of controls; the default is one for each matrix entry."""
        return in_features * out_features

    def reach(self, in_features: int, out_features: int) -> tuple[Patch, ...] | None:
        """Return the part of the matrix that each run of controls changes, for ``coupling = "sparse"``; otherwise None.

        See `astralora.devices.Patch`.
        """
        del in_features, out_features  # for kinds that override this
        return None

    def layout(self, in_features: int, out_features: int) -> Tensor:
        """Return the positions of the controls on the chip: (rows, columns) of control indices, -1 for an empty place.

        Crosstalk acts between neighbours in this grid.
        """
        return torch.arange(in_features * out_features).view(out_features, in_features)

    def full_scale(self, in_features: int) -> float:
        """Return the largest output that the detector can report, in output units.

        The default is one standard deviation of the outputs for inputs of full power and random sign, if every matrix
        entry has magnitude 1. Larger outputs saturate.
        """
        return sqrt(in_features)

    # -- drive: from written to acting controls -------------------------------------------------

    @property
    def drive(self) -> Drive:
        """Return unit and range of the written controls; the default is unit and range of the acting controls."""
        return Drive(self.control_unit, self.control_range, self.initial_range)

    def actuate(self, written: Tensor) -> Tensor:
        """Compute the acting controls of a nominal chip, in ``control_unit``, from the written controls."""
        return written

    def written_for(self, acting: Tensor) -> Tensor:
        """Invert `actuate` without clamping to the legal range; negative phases give a voltage of zero."""
        return acting

    # -- constants of one chip ------------------------------------------------------------------

    def constants(self, in_features: int, out_features: int) -> dict[str, Constant]:
        """Return the constants of the kind that may differ from chip to chip, by the names of their fields.

        Identification fits these constants, and `with_constants` sets them. The default is none.
        """
        del in_features, out_features  # for kinds that override this
        return {}

    def with_constants(self, constants: Mapping[str, Tensor]) -> Self:
        """Return a copy of the law in which the constants of one chip replace the fields with the same names.

        Use the copy only for computing: its fields are tensors, although the model declares numbers.
        """
        return self.model_copy(update=dict(constants)) if constants else self


class LinearPhysics(Physics):
    """Define the law of a kind that multiplies by a transfer matrix: implement `matrix`."""

    @abstractmethod
    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """Compute the transfer matrix A(w): (..., num_controls) -> (..., out_features, in_features)."""

    def transfer(self, controls: Tensor, inputs: Tensor, out_features: int) -> Tensor:
        """Compute the outputs Y = X A(w)^T; see `Physics.transfer`."""
        return inputs @ self.matrix(controls, inputs.shape[-1], out_features).mT


class Heated(Physics):
    """Set thermo-optic phase shifters by phase or by voltage (mixin).

    With ``by="voltage"``, the written controls are volts, and the phase is gamma V^2 with gamma = pi / v_pi^2. Then the
    steps of the converters are volts.

    Attributes:
        by: ``"phase"``, if the electronics compute the voltages themselves, or ``"voltage"``.
        v_pi: voltage of a phase of pi, in volts.
        v_max: largest voltage of the electronics, in volts.
    """

    by: Literal["phase", "voltage"] = "phase"
    v_pi: float = Field(default=4.36, gt=0)
    v_max: float = Field(default=10.8, gt=0)

    @property
    def drive(self) -> Drive:
        """Return the range of phases; with ``by="voltage"``, the voltages for these phases, limited to ``v_max``."""
        if self.by == "phase":
            return super().drive
        low, high = (self._volts(phase) for phase in self.control_range)
        initial = self.initial_range or self.control_range
        first, last = (min(self._volts(phase), self.v_max) for phase in initial)
        return Drive("V", (low, min(high, self.v_max)), (first, last))

    def actuate(self, written: Tensor) -> Tensor:
        """Convert voltages to phases, gamma V^2."""
        return written if self.by == "phase" else written.square() * (pi / self.v_pi**2)

    def written_for(self, acting: Tensor) -> Tensor:
        """Convert phases to voltages."""
        return acting if self.by == "phase" else (acting.clamp_min(0) / pi).sqrt() * self.v_pi

    def _volts(self, phase: float) -> float:
        return self.v_pi * sqrt(max(phase, 0.0) / pi)
