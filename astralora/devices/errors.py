"""Define the errors of devices.

    DeviceError
    ├── NotConnected          the device is closed, disconnected, or not programmed
    ├── DeviceTimeout         no complete answer arrived in time
    ├── ProtocolError         the answer is invalid
    ├── OutOfRange            the request is invalid, and was not sent
    ├── BudgetExceeded        the budget does not cover the request, which was not sent
    └── CalibrationMismatch   the calibration belongs to another device

Every message names the device and the operation, and gives a remedy.
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
    """Report that a device could not carry out an operation.

    Args:
        message: cause and remedy, without a full stop at the end.
        device: name of the device, as in its spec.
        operation: operation that failed, such as ``"query"``.
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
    """Report a device that is closed, disconnected, or not programmed yet."""


class DeviceTimeout(DeviceError):
    """Report that no complete answer arrived within the timeout."""


class ProtocolError(DeviceError):
    """Report an answer that is invalid."""


class OutOfRange(DeviceError):
    """Report a request with a wrong shape, type or value; it was refused before anything was sent."""


class BudgetExceeded(DeviceError):
    """Report a request that would exceed the budget; it was refused before anything was sent."""


class CalibrationMismatch(DeviceError):
    """Report a calibration that was taken on another device."""
