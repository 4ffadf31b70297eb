"""Define the content of frames: commands, payloads and errors; see docs/protocol.md."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from ..devices import (
    BudgetExceeded,
    CalibrationMismatch,
    DeviceError,
    DeviceTimeout,
    NotConnected,
    OutOfRange,
    ProtocolError,
)
from .transports.base import Bytes

__all__ = [
    "IDENTITY",
    "LONGEST_ERROR",
    "OPERATIONS",
    "PROGRAM",
    "QUERY",
    "QUERY_EACH",
    "STATUS",
    "VALUES",
    "WATCHDOG",
    "Command",
    "Option",
    "State",
    "decode_error",
    "encode_error",
]


class Command(IntEnum):
    """Define the numbers of the commands that a host sends."""

    IDENTIFY = 1
    SPEC = 2
    PROGRAM = 3
    QUERY = 4
    QUERY_EACH = 5
    STATUS = 6
    SAFE = 7
    WATCHDOG = 8


OPERATIONS: Final = frozenset({Command.PROGRAM, Command.QUERY, Command.QUERY_EACH})
"""Commands that operate the chip; the device stores the sequence number of the newest one."""


class Option(IntFlag):
    """Define the bits of the optional commands that a device implements."""

    QUERY_EACH = 1
    WATCHDOG = 2


class State(IntEnum):
    """Define the numbers of the states of a device."""

    SAFE = 0
    PROGRAMMED = 1


IDENTITY: Final = struct.Struct("<II")
"""Longest payload accepted, options; then manufacturer, model, serial number, firmware version, as text with commas."""

PROGRAM: Final = struct.Struct("<B3xI")
"""Format, number of controls; then the controls."""

QUERY: Final = struct.Struct("<BB2xI")
"""Format, format of the answer, number of vectors; then the inputs."""

QUERY_EACH: Final = struct.Struct("<BBBxII")
"""Formats of controls, inputs and answer, number of settings, number of vectors; then the controls, then the inputs."""

VALUES: Final = struct.Struct("<B3xI")
"""Answer: format, number of vectors; then the outputs."""

STATUS: Final = struct.Struct("<B3xIII")
"""State, number of the newest operation carried out, programs and vectors since power-up."""

WATCHDOG: Final = struct.Struct("<I")
"""Time without a request after which the device becomes safe, in milliseconds; 0 for no limit."""

_ERROR = struct.Struct("<H")
_ERRORS: dict[int, type[DeviceError]] = {
    1: DeviceError,
    2: OutOfRange,
    3: NotConnected,
    4: DeviceTimeout,
    5: ProtocolError,
    6: BudgetExceeded,
    7: CalibrationMismatch,
}
# Largest number of bytes of an error message, which a person must be able to read.
_LONGEST_MESSAGE = 1000
LONGEST_ERROR: Final = _ERROR.size + _LONGEST_MESSAGE


def encode_error(error: BaseException) -> bytes:
    """Return the payload of an error frame: a number and a sentence."""
    number = next((n for n, kind in _ERRORS.items() if type(error) is kind), 1)
    message = error.message if isinstance(error, DeviceError) else f"{type(error).__name__}: {error}"
    return _ERROR.pack(number) + message.encode()[:_LONGEST_MESSAGE]


def decode_error(payload: Bytes) -> DeviceError:
    """Return the error in a payload that `encode_error` wrote."""
    if len(payload) < _ERROR.size:
        return ProtocolError("the device reported an error without a number")
    (number,) = _ERROR.unpack_from(payload)
    message = bytes(payload[_ERROR.size :]).decode(errors="replace") or "the device reported an error without a reason"
    return _ERRORS.get(number, DeviceError)(message)
