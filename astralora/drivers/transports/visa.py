"""Exchange bytes over VISA by pyvisa, with pyvisa-py if no library of a vendor is installed."""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from typing import Any, Final

from ...devices import DeviceError, DeviceTimeout, NotConnected
from ...devices.extras import require
from .base import Bytes, Transport

__all__ = ["VisaTransport"]

# Largest number of bytes in one read, which has to end within the timeout.
_LONGEST_READ: Final = 1 << 16
# Shortest timeout of a read in milliseconds, within which bytes that have arrived are read on a busy machine too.
_SHORTEST: Final = 10


class VisaTransport(Transport):
    """Exchange bytes over a VISA resource.

    Args:
        resource: VISA name, such as ``"TCPIP::192.168.1.5::5025::SOCKET"`` or ``"GPIB0::7::INSTR"``.
        timeout: longest time without a byte, in seconds.
        backend: ``"@ivi"`` for the installed library of a vendor, ``"@py"`` for pyvisa-py, ``""`` for the first of the
            two that is found.
    """

    # A read waits for all requested bytes, and drops them at a timeout.
    _piece = 1

    def __init__(self, resource: str, timeout: float = 2.0, *, backend: str = "") -> None:
        super().__init__(f"visa://{resource}", timeout)
        self.resource = resource
        self.backend = backend
        self._instrument: Any = None
        self._visa: Any = None

    def _open(self) -> None:
        self._visa = visa = require("pyvisa", "VISA instruments need", "hardware")
        try:
            manager = visa.ResourceManager(self.backend)
        except (ValueError, OSError) as error:
            raise DeviceError(
                f"{self.uri}: no VISA library is installed ({error}); pip install 'astralora[hardware]' adds pyvisa-py"
            ) from error
        try:
            self._instrument = manager.open_resource(
                self.resource, open_timeout=round(1000 * self.timeout), timeout=round(1000 * self.timeout)
            )
        except Exception as error:
            # Backends raise many kinds of exceptions of the operating system.
            raise NotConnected(f"{self.uri} cannot be opened: {_first_line(error)}") from error
        reason = self._why_gone()
        if reason is not None:
            self._close()
            raise NotConnected(f"{self.uri} cannot be reached: {reason}")
        # No termination is added, because the protocol ends its messages itself.
        self._instrument.write_termination = ""
        self._instrument.read_termination = None

    def _close(self) -> None:
        instrument, self._instrument = self._instrument, None
        try:
            instrument.close()
        except Exception as error:
            raise NotConnected(f"{self.uri} could not be closed: {_first_line(error)}") from error

    def _send(self, parts: tuple[Bytes, ...]) -> None:
        try:
            self._instrument.write_raw(b"".join(parts))
        except self._visa.VisaIOError as error:
            raise self._fault(error) from error
        except OSError as error:
            raise NotConnected(f"{self.uri} is disconnected: {error}") from error

    def _receive(self, view: memoryview, seconds: float) -> int:
        # VISA cannot read only the bytes that have arrived: a read waits for all requested bytes.
        instrument, codes = self._instrument, self._visa.constants.StatusCode
        reason = self._why_gone()
        # A closed connection delivers no more bytes, but some may have been buffered before.
        instrument.timeout = max(_SHORTEST, round(1000 * seconds)) if reason is None else _SHORTEST
        try:
            with instrument.ignore_warning(codes.success_device_not_present, codes.success_max_count_read):
                data = instrument.visalib.read(instrument.session, min(len(view), _LONGEST_READ))[0]
        except self._visa.VisaIOError as error:
            if error.error_code == codes.error_timeout:
                reason = reason or self._why_gone()
                if reason is not None:
                    raise NotConnected(f"{self.uri} is disconnected: {reason}") from error
                return 0
            raise self._fault(error) from error
        except OSError as error:
            raise NotConnected(f"{self.uri} is disconnected: {error}") from error
        view[: len(data)] = data
        return len(data)

    def _abort(self) -> None:
        # A device clear empties the buffers of the instrument. Sockets and serial ports have none: pyvisa-py would read
        # from them until they are silent.
        name = self._instrument.resource_name.upper()
        if name.endswith("INSTR") and not name.startswith("ASRL"):
            with suppress(Exception):
                self._instrument.clear()

    def _why_gone(self) -> str | None:
        """Return why a socket of pyvisa-py is disconnected, or None; pyvisa-py itself reports only a timeout."""
        sessions = getattr(self._instrument.visalib, "sessions", {})
        connection = getattr(sessions.get(self._instrument.session), "interface", None)
        if not isinstance(connection, socket.socket):
            return None
        try:
            if select.select([connection], [], [], 0)[0] and not connection.recv(1, socket.MSG_PEEK):
                return "the other side closed the connection"
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _fault(self, error: Any) -> DeviceError:
        if error.error_code == self._visa.constants.StatusCode.error_timeout:
            return DeviceTimeout(f"{self.uri} accepts no more bytes; check the instrument")
        return NotConnected(f"{self.uri} is disconnected: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
