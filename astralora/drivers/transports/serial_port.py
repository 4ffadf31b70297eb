"""Exchange bytes over serial ports, including USB serial ports, by pyserial."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from ...devices import DeviceTimeout, NotConnected
from ...devices.extras import require
from .base import Bytes, Transport

if TYPE_CHECKING:
    import serial

__all__ = ["SerialTransport"]


class SerialTransport(Transport):
    """Exchange bytes over a serial port, which is locked so that no second process can open it.

    Args:
        port: name of the port, such as ``"/dev/ttyUSB0"`` or ``"COM3"``.
        timeout: longest time without a byte, in seconds.
        baudrate: bits per second; USB and pseudo-terminals ignore it.
    """

    def __init__(self, port: str, timeout: float = 2.0, *, baudrate: int = 115200) -> None:
        super().__init__(f"serial://{port}", timeout)
        self.port = port
        self.baudrate = baudrate
        self._serial: serial.Serial | None = None

    def _open(self) -> None:
        serial = require("serial", "serial ports need", "hardware", distribution="pyserial")
        try:
            self._serial = serial.Serial(
                self.port, self.baudrate, timeout=self.timeout, write_timeout=self.timeout, exclusive=True
            )
        except (serial.SerialException, OSError, ValueError) as error:
            raise NotConnected(f"{self.uri} {_reason(error)}") from error

    def _close(self) -> None:
        port, self._serial = self._serial, None
        assert port is not None
        try:
            port.close()
        except OSError as error:
            raise NotConnected(f"{self.uri} could not be closed: {error}") from error

    def _send(self, parts: tuple[Bytes, ...]) -> None:
        import serial

        assert self._serial is not None
        try:
            for part in parts:
                self._serial.write(part)
        except serial.SerialTimeoutException as error:
            raise DeviceTimeout(
                f"{self.uri} accepts no more bytes; check the instrument and its flow control"
            ) from error
        except OSError as error:
            raise NotConnected(f"{self.uri} is disconnected: {error}; plug it in again") from error

    def _receive(self, view: memoryview, seconds: float) -> int:
        port = self._serial
        assert port is not None
        try:
            if port.timeout != seconds:
                port.timeout = seconds
            # Read all bytes that have arrived; if there are none, wait for one byte.
            count = min(len(view), max(1, port.in_waiting))
            data = port.read(count)
        except OSError as error:
            raise NotConnected(f"{self.uri} is disconnected: {error}; plug it in again") from error
        view[: len(data)] = data
        return len(data)


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number in (errno.EAGAIN, errno.EBUSY) or "exclusively lock" in str(error):
        return "is in use by another program; close it there"
    if number == errno.ENOENT:
        return "does not exist; check the cable and the name"
    if number == errno.EACCES:
        return "cannot be opened by this user; on Linux, add yourself to the group 'dialout'"
    return f"cannot be opened: {error}"
