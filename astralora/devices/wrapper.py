"""Wrap a device to change some of its behaviour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, TypeVar, cast

from torch import Tensor

from .capabilities import (
    Clock,
    Differentiable,
    Flushes,
    Identifiable,
    InProcess,
    PullsBack,
    ReportsPeaks,
    Snapshots,
    Thermometer,
    Twinned,
    capability_of,
    check_declared,
)
from .device import Device
from .spec import DeviceSpec

__all__ = ["LAW", "DeviceWrapper", "layers_of"]

_Capability = TypeVar("_Capability")

LAW: Final[tuple[type, ...]] = (Differentiable, Identifiable, PullsBack, Twinned)
"""Capabilities of the law, which a wrapper may forward if it changes neither controls nor outputs."""


class DeviceWrapper:
    """Forward all operations to a device; base class of all wrappers, and itself a `Device`.

    A subclass overrides the operations that it changes. Three class attributes, ``capabilities``, ``adapts`` and
    ``forwards``, list its optional capabilities as protocols of `astralora.devices.capabilities`::

        class ScaledDevice(DeviceWrapper):
            adapts = (ProgramsMany,)

            def query(self, inputs):
                return 2 * self.device.query(inputs)

            def query_each(self, controls, inputs):
                return 2 * self.behind(ProgramsMany).query_each(controls, inputs)

    A capability that is not listed is hidden, because the device's own version may be wrong for the wrapper.

    Args:
        device: the device that is wrapped.

    Attributes:
        device: the device that is wrapped.
    """

    capabilities: ClassVar[tuple[type, ...]] = ()
    """Capabilities that the wrapper implements for every device."""

    adapts: ClassVar[tuple[type, ...]] = ()
    """Capabilities that the wrapper implements by calling those of the device; available if the device has them."""

    forwards: ClassVar[tuple[type, ...]] = (Clock, Flushes, InProcess, ReportsPeaks, Snapshots, Thermometer)
    """Capabilities of the device that are forwarded unchanged; by default those about the state of chip and link."""

    def __init__(self, device: Device) -> None:
        self.device = device

    @property
    def spec(self) -> DeviceSpec:
        """Return the spec of the wrapped device."""
        return self.device.spec

    def open(self) -> None:
        """Connect; do nothing when connected already."""
        self.device.open()

    def close(self) -> None:
        """Leave the hardware in its safe state and disconnect; do nothing when closed already."""
        self.device.close()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        self.device.program(controls)

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        return self.device.query(inputs)

    def capability(self, protocol: type[_Capability]) -> _Capability | None:
        """Return the object that provides a capability (the wrapper, or an object that it wraps), or None.

        Raises:
            TypeError: the wrapper declares the capability, but lacks a method of it.
        """
        if protocol in self.capabilities or (protocol in self.adapts and self.provider(protocol) is not None):
            check_declared(self, protocol)
            return cast(_Capability, self)
        return self.provider(protocol) if protocol in self.forwards else None

    def provider(self, protocol: type[_Capability]) -> _Capability | None:
        """Return the wrapped object that provides a capability, or None."""
        return capability_of(self.device, protocol)

    def behind(self, protocol: type[_Capability]) -> _Capability:
        """Return the wrapped object that provides a capability, and refuse a device without it.

        Raises:
            TypeError: the wrapped device does not have the capability.
        """
        found = self.provider(protocol)
        if found is None:
            raise TypeError(f"{type(self.device).__name__} does not have the capability {protocol.__name__}")
        return found


def layers_of(device: Device) -> Iterator[Device]:
    """Yield a device, and all devices that it wraps, from the outermost to the innermost."""
    yield device
    while isinstance(device, DeviceWrapper):
        device = device.device
        yield device
