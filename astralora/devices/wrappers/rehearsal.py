"""Substitute a device, to compute the price of a run without running it."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from ..capabilities import Clock, Differentiable, InProcess, ProgramsMany, Reciprocal, Rehearses, capability_of
from ..device import Device
from ..random import derive_generator
from ..spec import DeviceSpec
from ..usage import Usage

# Standard deviation of the outputs for inputs of full power, as a share of the output range.
_SHARE = 0.1

__all__ = ["RehearsalDevice", "rehearse"]


class RehearsalDevice:
    """Replace a device with the same spec, to count the operations of a run without running it.

    It receives the same requests as the replaced device, if the requests do not depend on the answers. Its transfer
    matrix has full rank, like the matrix of a real chip, and does not depend on the controls. Its answers are well
    within the output range. Its clock advances by the times of the spec.

    Args:
        spec: spec of the replaced device.
    """

    capabilities: ClassVar[tuple[type, ...]] = (Clock, Differentiable, InProcess, ProgramsMany, Reciprocal)

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self.clock_seconds = 0.0
        self._entries: Tensor | None = None

    def open(self) -> None:
        """Do nothing, because there is no hardware to connect to."""

    def close(self) -> None:
        """Do nothing."""

    def program(self, controls: Tensor) -> None:
        """Advance the clock; the controls have no effect."""
        self._spend(programs=1)

    def query(self, inputs: Tensor) -> Tensor:
        """Multiply by the transfer matrix: (batch, in_features) -> (batch, out_features)."""
        self._spend(vectors=len(inputs))
        return inputs @ self._matrix(inputs).mT

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Return the same outputs at every setting: (settings, batch, out_features)."""
        self._spend(programs=len(controls), vectors=len(controls) * len(inputs))
        return (inputs @ self._matrix(inputs).mT).expand(len(controls), -1, -1).clone()

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Multiply by the transpose: (batch, out_features) -> (batch, in_features)."""
        self._spend(vectors=len(outputs))
        return outputs @ self._matrix(outputs)

    def wait(self, seconds: float) -> None:
        """Advance the clock."""
        self.clock_seconds += seconds

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs for autograd; the gradient with respect to the controls is zero."""
        return inputs @ self._matrix(inputs).mT + 0.0 * controls.sum(dim=-1)[..., None, None]

    def _spend(self, **operations: int) -> None:
        self.clock_seconds += Usage(**operations).hardware_seconds(self.spec)

    def _matrix(self, like: Tensor) -> Tensor:
        if self._entries is None:
            spec = self.spec
            shape = (spec.out_features, spec.in_features)
            draw = torch.randn(shape, generator=derive_generator(0, "rehearsal"))
            reach = max(map(abs, spec.input_range or (0.0, 1.0)))
            scale = max(map(abs, spec.output_range or (0.0, 1.0)))
            self._entries = draw * (_SHARE * scale / (reach * sqrt(spec.in_features)))
        return self._entries.to(like)


def rehearse(device: Device) -> Device:
    """Return a substitute for a device: its own if it has the capability `Rehearses`, else a `RehearsalDevice`."""
    own = capability_of(device, Rehearses)
    return RehearsalDevice(device.spec) if own is None else own.rehearsal()
