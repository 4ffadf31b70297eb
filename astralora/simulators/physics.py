"""What a kind of device computes, as pure torch functions; noise and rounding live elsewhere."""

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
    """What the control electronics are given.

    Attributes:
        unit: of a control.
        range: legal controls.
        initial: where training starts; None for the whole range.
    """

    unit: str
    range: Range
    initial: Range | None


class Physics(BaseModel, ABC):
    """The law of one kind of device: fill in `transfer`, and change the defaults that do not fit.

    A subclass is a frozen pydantic model; its fields are the kind's own parameters, and become options
    of `astralora.devices.open_device`.

    Attributes:
        coupling: what one control can reach, as in `astralora.devices.DeviceSpec`.
        linear: the outputs are linear in the inputs.
        control_unit: unit of the controls.
        control_range: legal controls, in that unit.
        initial_range: where training starts; None for the whole control range.
        period: controls that differ by this do the same; None where none do.
        conductances: the controls are conductances, which memory cells hold.
        reciprocal: light can be sent through backwards.
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
        """Return the name of the kind: the class's own in lower case."""
        return cls.__name__.lower()

    @abstractmethod
    def transfer(self, controls: Tensor, inputs: Tensor, out_features: int) -> Tensor:
        """What comes out, differentiably, for one setting or for many at once.

        Args:
            controls: (..., num_controls), as they act on the chip.
            inputs: (batch, in_features).
            out_features: number of outputs.

        Returns:
            (..., batch, out_features).
        """

    def num_controls(self, in_features: int, out_features: int) -> int:
        """Number of controls; one per matrix entry unless the kind says otherwise."""
        return in_features * out_features

    def reach(self, in_features: int, out_features: int) -> tuple[Patch, ...] | None:  # noqa: ARG002
        """With ``coupling = "sparse"``, what each run of controls can move; see `astralora.devices.Patch`."""
        return None

    def layout(self, in_features: int, out_features: int) -> Tensor:
        """Where the controls sit on the chip: (rows, columns) of control indices, -1 for an empty place.

        Neighbours in this grid are neighbours for crosstalk.
        """
        return torch.arange(in_features * out_features).view(out_features, in_features)

    def full_scale(self, in_features: int) -> float:
        """The largest output that the detector is built for.

        Inputs of full power and random sign reach it at about one standard deviation when every
        matrix entry has its greatest magnitude, 1 here; larger sums saturate.
        """
        return sqrt(in_features)

    # -- drive: from what is written to what acts ---------------------------------------------

    @property
    def drive(self) -> Drive:
        """What the control electronics are given: by default the controls themselves."""
        return Drive(self.control_unit, self.control_range, self.initial_range)

    def actuate(self, written: Tensor) -> Tensor:
        """What written controls do on a flawless chip, in ``control_unit``."""
        return written

    def written_for(self, acting: Tensor) -> Tensor:
        """The inverse of `actuate`, not limited to what is legal; of negative phases the drive is zero."""
        return acting

    # -- constants of one chip ------------------------------------------------------------------

    def constants(self, in_features: int, out_features: int) -> dict[str, Constant]:  # noqa: ARG002
        """The kind's own numbers that may differ from chip to chip, by the name of their field.

        Identification finds them by fitting, and `holding` puts them in. None by default.
        """
        return {}

    def holding(self, constants: Mapping[str, Tensor]) -> Self:
        """The same law with one chip's own constants in the place of the fields of those names.

        Such a copy is for calling: it holds tensors where the model declares numbers.
        """
        return self.model_copy(update=dict(constants)) if constants else self


class LinearPhysics(Physics):
    """A kind that multiplies by a transfer matrix: fill in `matrix`."""

    @abstractmethod
    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The transfer matrix A(w): (..., num_controls) -> (..., out_features, in_features)."""

    def transfer(self, controls: Tensor, inputs: Tensor, out_features: int) -> Tensor:
        """The outputs Y = X A(w)^T; see `Physics.transfer`."""
        return inputs @ self.matrix(controls, inputs.shape[-1], out_features).mT


class Heated(Physics):
    """Mixin of kinds with thermo-optic phase shifters, which can be driven by their phase or by their voltage.

    By voltage, the controls are volts and the phase is gamma V^2 with gamma = pi / v_pi^2; converters then step in
    volts.

    Attributes:
        by: ``"phase"``, as if the electronics knew the shifters, or ``"voltage"``.
        v_pi: volts of a phase of pi.
        v_max: the most volts that the electronics give.
    """

    by: Literal["phase", "voltage"] = "phase"
    v_pi: float = Field(default=4.36, gt=0)
    v_max: float = Field(default=10.8, gt=0)

    @property
    def drive(self) -> Drive:
        """Phases, or the volts that reach as far, within what the electronics give."""
        if self.by == "phase":
            return super().drive
        low, high = (self._volts(phase) for phase in self.control_range)
        initial = self.initial_range or self.control_range
        first, last = (min(self._volts(phase), self.v_max) for phase in initial)
        return Drive("V", (low, min(high, self.v_max)), (first, last))

    def actuate(self, written: Tensor) -> Tensor:
        """Phases of volts, gamma V^2."""
        return written if self.by == "phase" else written.square() * (pi / self.v_pi**2)

    def written_for(self, acting: Tensor) -> Tensor:
        """Volts of phases."""
        return acting if self.by == "phase" else (acting.clamp_min(0) / pi).sqrt() * self.v_pi

    def _volts(self, phase: float) -> float:
        return self.v_pi * sqrt(max(phase, 0.0) / pi)
