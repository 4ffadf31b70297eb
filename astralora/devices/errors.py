"""Everything that can go wrong between a program and a device.

    DeviceError
    ├── NotConnected          the device is closed, gone, or was never programmed
    ├── DeviceTimeout         no complete answer arrived in time
    ├── ProtocolError         the device answered something that cannot be right
    ├── OutOfRange            a request that the device must not be sent
    ├── BudgetExceeded        a request that the budget does not cover
    └── CalibrationMismatch   a calibration that belongs to another device

Every message names the device and the operation, and says what to do.
"""

from __future__ import annotations

__all__ = [
    "BudgetExceeded",
    "CalibrationMismatch",
    "DeviceError",
    "DeviceTimeout",
    "NotConnected",
    "OutOfRange",
    "ProtocolError",
]


class DeviceError(Exception):
    """A device could not do what was asked.

    Args:
        message: what was wrong and what would be right, without a final full stop.
        device: name of the device, as in its spec.
        operation: the operation that failed, such as ``"query"``.
    """

    def __init__(self, message: str, *, device: str | None = None, operation: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.device = device
        self.operation = operation

    def __str__(self) -> str:
        origin = [f"device {self.device!r}"] if self.device else []
        origin += [self.operation] if self.operation else []
        return ": ".join([", ".join(origin), self.message] if origin else [self.message])


class NotConnected(DeviceError):
    """The device is closed, has gone away, or holds no controls yet."""


class DeviceTimeout(DeviceError):
    """No complete answer arrived within the time allowed."""


class ProtocolError(DeviceError):
    """The device answered, but with something that cannot be right."""


class OutOfRange(DeviceError):
    """Wrong shape, type or value: refused before anything reached the device."""


class BudgetExceeded(DeviceError):
    """The request would spend more than the budget allows: refused before it was sent."""


class CalibrationMismatch(DeviceError):
    """The calibration was taken on another device."""
