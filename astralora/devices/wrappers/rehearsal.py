"""A device for pricing a plan: everything but the physics."""

from __future__ import annotations

from math import sqrt
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..device import Device
from ..random import derive_generator
from ..session import Session
from ..spec import DeviceSpec
from ..usage import Usage

# Standard deviation of an answer to inputs of full power, as a share of the detector's range.
_SHARE = 0.1

__all__ = ["RehearsalDevice", "Rehearses", "rehearse"]


class RehearsalDevice:
    """Answers as some linear device would, so that a run's operations can be counted without a run.

    It takes the place of a device with the same spec: what is asked of it is what would be asked
    of the real one, as far as that does not depend on the answers. Those are of full rank, as any chip's are, well
    within the detector's range, and the same whatever the controls. Its clock goes by the spec's prices.

    Args:
        spec: of the device that it stands in for.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec
        self.clock_seconds = 0.0
        self._entries: Tensor | None = None

    def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    def close(self) -> None:
        """Do nothing."""

    def program(self, controls: Tensor) -> None:  # noqa: ARG002
        """Accept the controls and forget them."""
        self._spend(programs=1)

    def query(self, inputs: Tensor) -> Tensor:
        """Some linear function of the inputs: (batch, in_features) -> (batch, out_features)."""
        self._spend(vectors=len(inputs))
        return inputs @ self._matrix(inputs).mT

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """The same at every setting: (settings, batch, out_features)."""
        self._spend(programs=len(controls), vectors=len(controls) * len(inputs))
        return (inputs @ self._matrix(inputs).mT).expand(len(controls), -1, -1).clone()

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """The same function's transpose: (batch, out_features) -> (batch, in_features)."""
        self._spend(vectors=len(outputs))
        return outputs @ self._matrix(outputs)

    def wait(self, seconds: float) -> None:
        """Let time go by on its clock."""
        self.clock_seconds += seconds

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """The same, for autograd; no control has any part in it."""
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


@runtime_checkable
class Rehearses(Protocol):
    """A device that knows better than its spec what operations on it come to."""

    def rehearsal(self) -> Device:
        """A stand-in that is asked for the same."""
        ...


def rehearse(device: Device) -> Device:
    """The stand-in for a device: its own if it `Rehearses`, else a `RehearsalDevice` of its spec."""
    if isinstance(device, Session):
        return rehearse(device.device)
    return device.rehearsal() if isinstance(device, Rehearses) else RehearsalDevice(device.spec)
