"""Exchange bytes over serial ports, including USB serial ports, by pyserial."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from ...devices import DeviceTimeout, NotConnected
from ...devices.extras import require
from .base import Bytes, Transport

__all__ = ["SERIAL_OPTIONS", "URL_OPTIONS", "SerialTransport"]

_PARITIES: Final = ("N", "E", "O", "M", "S")
_WORDS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
# Interval at which remote ports are read, in seconds.
_POLL: Final = 0.05
# Number of character times without a byte after which an answer counts as finished.
_QUIET_CHARACTERS: Final = 20

URL_OPTIONS: Final = {
    "socket": ("logging",),
    "rfc2217": ("logging", "ign_set_control", "poll_modem"),
    "spy": ("file", "color", "raw", "all"),
    "hwgrep": (),
}
"""Options of the URLs of pyserial, by their scheme; pyserial reads these options itself."""


class SerialTransport(Transport):
    """Exchange bytes over a serial port, which is locked so that no second process can open it.

    Args:
        port: name of the port, such as ``"/dev/ttyUSB0"`` or ``"COM3"``, or a URL of pyserial, such as
            ``"rfc2217://192.168.1.5:4000"``.
        timeout: longest time without a byte, in seconds.
        baudrate: bits per second; USB and pseudo-terminals ignore it.
        bytesize: bits of a character: 5, 6, 7 or 8.
        parity: ``"N"`` for none, ``"E"`` even, ``"O"`` odd, ``"M"`` mark, ``"S"`` space.
        stopbits: 1, 1.5 or 2.
        rtscts, dsrdtr, xonxoff: flow control by RTS and CTS, by DSR and DTR, by characters.
        rts, dtr: level of the output after opening; None for the default of pyserial, which is on.
    """

    def __init__(
        self,
        port: str,
        timeout: float = 2.0,
        *,
        baudrate: int = 115200,
        bytesize: int = 8,
        parity: str = "N",
        stopbits: float = 1,
        rtscts: bool = False,
        dsrdtr: bool = False,
        xonxoff: bool = False,
        rts: bool | None = None,
        dtr: bool | None = None,
    ) -> None:
        super().__init__(port if "://" in port else f"serial://{port}", timeout)
        self.port = port
        self.baudrate = baudrate
        self.settings = {
            "bytesize": bytesize,
            "parity": parity,
            "stopbits": stopbits,
            "rtscts": rtscts,
            "dsrdtr": dsrdtr,
            "xonxoff": xonxoff,
        }
        self.levels = {"rts": rts, "dtr": dtr}
        self._serial: Any = None
        self._is_remote = port.startswith(("socket://", "rfc2217://"))
        if not port.startswith("socket://"):
            character = (1 + bytesize + (parity != "N") + stopbits) / baudrate
            self.silence = max(type(self).silence, _QUIET_CHARACTERS * character)
            self.slowest = max(type(self).slowest, 2 * character)

    def _place(self) -> str:
        path = self.port.removeprefix("spy://").partition("?")[0] if self.port.startswith("spy://") else self.port
        return path if "://" in path else os.path.realpath(path)

    def _open(self) -> None:
        serial = require("serial", f"{_kind(self.port)} need", "hardware", distribution="pyserial")
        try:
            port = serial.serial_for_url(
                self.port,
                self.baudrate,
                timeout=_POLL if self._is_remote else self.timeout,
                # The class for RFC 2217 refuses a timeout for writing, and has one of its own.
                write_timeout=None if self.port.startswith("rfc2217://") else self.timeout,
                exclusive=True,
                do_not_open=True,
                **self.settings,
            )
            for name, level in self.levels.items():
                if level is not None:
                    setattr(port, name, level)
            port.open()
        except Exception as error:
            # The URLs of pyserial raise many kinds of exceptions.
            raise NotConnected(f"{self.uri} {self._reason(error)}") from error
        self._serial = port

    def _close(self) -> None:
        port, self._serial = self._serial, None
        try:
            port.close()
        except OSError as error:
            raise NotConnected(f"{self.uri} could not be closed: {error}") from error

    def _send(self, parts: tuple[Bytes, ...]) -> None:
        import serial

        try:
            for part in parts:
                self._serial.write(part)
        except serial.SerialTimeoutException as error:
            raise DeviceTimeout(
                f"{self.uri} accepts no more bytes; check the instrument and its flow control"
            ) from error
        except OSError as error:
            raise self._lost(error) from error

    def _receive(self, view: memoryview, seconds: float) -> int:
        try:
            data = self._poll(len(view), seconds) if self._is_remote else self._read(len(view), seconds)
        except OSError as error:
            raise self._lost(error) from error
        view[: len(data)] = data
        return len(data)

    def _read(self, longest: int, seconds: float) -> bytes:
        port = self._serial
        if port.timeout != seconds:
            port.timeout = seconds
        # Read all bytes that have arrived; if there are none, wait for one byte.
        data: bytes = port.read(min(longest, max(1, port.in_waiting)))
        return data

    def _poll(self, longest: int, seconds: float) -> bytes:
        # Setting a timeout of RFC 2217 sends all settings to the other side, and a closed connection ends a read early.
        port, until = self._serial, time.monotonic() + seconds
        data = b""
        while not data and (port.in_waiting or time.monotonic() < until):
            data = port.read(min(longest, max(1, port.in_waiting)))
        return data

    def _lost(self, error: OSError) -> NotConnected:
        remedy = "check the other side" if "://" in self.port else "plug it in again"
        return NotConnected(f"{self.uri} is disconnected: {error}; {remedy}")

    def _reason(self, error: Exception) -> str:
        """Return why the port cannot be opened."""
        number, text = getattr(error, "errno", None), str(error)
        if number in (errno.EAGAIN, errno.EBUSY) or "exclusively lock" in text or "PermissionError(13" in text:
            if self._is_held_here():
                return "is in use by another device or session of this process; close that one first"
            return "is in use by another program; close it there"
        if number == errno.ENOENT or "FileNotFoundError(2" in text:
            return "does not exist; check the cable and the name"
        if number == errno.EACCES:
            linux = "; on Linux, add yourself to the group 'dialout'" if sys.platform != "win32" else ""
            return f"cannot be opened by this user{linux}"
        return f"cannot be opened: {(text.splitlines() or [type(error).__name__])[0]}"


def _kind(port: str) -> str:
    return f"{port.partition('://')[0]}:// addresses" if "://" in port else "serial ports"


# -- options of an address -------------------------------------------------------------------------


def _baudrate(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"baudrate must be a positive whole number, not {text!r}")
    return int(text)


def _bytesize(text: str) -> int:
    if text not in ("5", "6", "7", "8"):
        raise ValueError(f"bytesize must be 5, 6, 7 or 8, not {text!r}")
    return int(text)


def _parity(text: str) -> str:
    if text.upper() not in _PARITIES:
        raise ValueError(f"parity must be N (none), E (even), O (odd), M (mark) or S (space), not {text!r}")
    return text.upper()


def _stopbits(text: str) -> float:
    if text not in ("1", "1.5", "2"):
        raise ValueError(f"stopbits must be 1, 1.5 or 2, not {text!r}")
    return 1.5 if text == "1.5" else int(text)


class _Switch:
    """Read an option that is on or off."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, text: str) -> bool:
        if text.lower() not in _WORDS:
            raise ValueError(f"{self._name} must be 1 (on) or 0 (off), not {text!r}")
        return _WORDS[text.lower()]


SERIAL_OPTIONS: Final[dict[str, Callable[[str], Any]]] = {
    "baudrate": _baudrate,
    "bytesize": _bytesize,
    "parity": _parity,
    "stopbits": _stopbits,
    **{name: _Switch(name) for name in ("rtscts", "dsrdtr", "xonxoff", "rts", "dtr")},
}
"""Functions that read the options of a serial port from an address."""
