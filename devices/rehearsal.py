"""A device for pricing a plan: everything but the physics."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from .device import Device
from .session import Session
from .spec import DeviceSpec

__all__ = ["RehearsalDevice", "Rehearses", "rehearse"]


class RehearsalDevice:
    """Answers zeros in the right shape, so that a run's operations can be counted without a run.

    It takes the place of a device with the same spec: what is asked of it is what would be asked
    of the real one, as far as that does not depend on the answers.

    Args:
        spec: of the device that it stands in for.
    """

    def __init__(self, spec: DeviceSpec) -> None:
        self.spec = spec

    def open(self) -> None:
        """Do nothing: there is nothing to connect to."""

    def close(self) -> None:
        """Do nothing."""

    def program(self, controls: Tensor) -> None:
        """Accept the controls and forget them."""

    def query(self, inputs: Tensor) -> Tensor:
        """Zeros: (batch, in_features) -> (batch, out_features)."""
        return inputs.new_zeros(len(inputs), self.spec.out_features)

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Zeros: (settings, batch, out_features)."""
        return inputs.new_zeros(len(controls), len(inputs), self.spec.out_features)

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Zeros: (batch, out_features) -> (batch, in_features)."""
        return outputs.new_zeros(len(outputs), self.spec.in_features)

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Zeros that autograd can follow."""
        zeros = inputs.new_zeros(len(inputs), self.spec.out_features)
        return zeros + 0.0 * (controls.sum(dim=-1)[..., None, None] + inputs.sum())


@runtime_checkable
class Rehearses(Protocol):
    """A device that knows better than its spec what operations on it come to."""

    def rehearsal(self) -> Device:
        """A stand-in that is asked for the same, and answers zeros."""
        ...


def rehearse(device: Device) -> Device:
    """The stand-in for a device: its own if it `Rehearses`, else a `RehearsalDevice` of its spec."""
    if isinstance(device, Session):
        return rehearse(device.device)
    return device.rehearsal() if isinstance(device, Rehearses) else RehearsalDevice(device.spec)
