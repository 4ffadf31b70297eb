"""What a kind of device computes, as pure torch functions; noise and rounding live elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import pi, sqrt
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from devices import Coupling, Patch, Range

__all__ = ["LinearPhysics", "Physics"]


class Physics(BaseModel, ABC):
    """The law of one kind of device: fill in `transfer`, and change the defaults that do not fit.

    A subclass is a frozen pydantic model; its fields are the kind's own parameters, and become options
    of `devices.open_device`.

    Attributes:
        coupling: what one control can reach, as in `devices.DeviceSpec`.
        linear: the outputs are linear in the inputs.
        control_unit: unit of the controls.
        control_range: legal controls, in that unit.
        initial_range: where training starts; None for the whole control range.
        reciprocal: light can be sent through backwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    coupling: ClassVar[Coupling] = "elementwise"
    linear: ClassVar[bool] = True
    control_unit: ClassVar[str] = "rad"
    control_range: ClassVar[Range] = (0.0, 2 * pi)
    initial_range: ClassVar[Range | None] = None
    reciprocal: ClassVar[bool] = False

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
        """With ``coupling = "sparse"``, what each run of controls can move; see `devices.Patch`."""
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


class LinearPhysics(Physics):
    """A kind that multiplies by a transfer matrix: fill in `matrix`."""

    @abstractmethod
    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The transfer matrix A(w): (..., num_controls) -> (..., out_features, in_features)."""

    def transfer(self, controls: Tensor, inputs: Tensor, out_features: int) -> Tensor:
        """The outputs Y = X A(w)^T; see `Physics.transfer`."""
        return inputs @ self.matrix(controls, inputs.shape[-1], out_features).mT
