"""Define the SCPI headers, blocks and errors that the driver uses; see docs/protocol.md.

    *IDN?                        manufacturer,model,serial number,firmware
    *CLS                         clear all errors
    *RST                         go to the safe state
    *OPC?                        1, when all earlier commands are done
    SYSTem:ERRor?                0,"No error", or the oldest error
    SYSTem:SPEC?                 block of JSON: the spec
    SYSTem:PATTern?              block of two known float32 values, which shows the byte order of all blocks
    SYSTem:WATChdog seconds      go to the safe state after this time without a message; 0 for never; optional
    SYSTem:WATChdog?             this time in seconds
    PROGram:DATA n,block         set all controls, float32; n numbers the request
    PROGram:DATA?                n of the newest program that was carried out
    QUERy:DATA? n,block          pass vectors, float32; answers n,block

Blocks are definite-length arbitrary blocks of IEEE 488.2: ``#``, a digit d, the number of bytes in d digits, and the
bytes. The values in all blocks have the byte order of the pattern: little-endian or big-endian. If a request has the
number and the block of the newest request that was carried out, the instrument sends the stored answer again.
"""

from __future__ import annotations

import struct
from typing import Final

from ..devices import (
    CalibrationMismatch,
    DeviceError,
    DeviceTimeout,
    NotConnected,
    OutOfRange,
    ProtocolError,
)
from .transports.base import Bytes
from .values import ByteOrder

__all__ = [
    "ERRORS",
    "LONGEST_LINE",
    "PATTERN",
    "block_head",
    "error_number",
    "error_of",
    "find_byte_order",
    "matches",
]

PATTERN: Final = (1.2345678, -98765.43)
"""Values of the answer to SYSTem:PATTern?; as float32 they have eight different bytes."""

# The pattern in the order of the page: big-endian.
_PATTERN_BYTES: Final = struct.pack(">2f", *PATTERN)

LONGEST_LINE: Final = 1 << 10
"""Largest number of bytes of a message without its blocks."""

ERRORS: Final[dict[int, tuple[type[DeviceError], str]]] = {
    -102: (ProtocolError, "Syntax error"),
    -113: (ProtocolError, "Undefined header"),
    -161: (ProtocolError, "Invalid block data"),
    -221: (NotConnected, "Settings conflict"),
    -222: (OutOfRange, "Data out of range"),
    -223: (ProtocolError, "Too much data"),
    -300: (DeviceError, "Device-specific error"),
    -310: (ProtocolError, "System error"),
    -340: (CalibrationMismatch, "Calibration failed"),
    -365: (DeviceTimeout, "Time out error"),
}
"""Error numbers of SCPI 1999, volume 2, with the class that the host raises and the text."""

_NUMBERS: dict[type[DeviceError], int] = {
    DeviceError: -300,
    OutOfRange: -222,
    NotConnected: -221,
    DeviceTimeout: -365,
    ProtocolError: -310,
    CalibrationMismatch: -340,
}


def block_head(length: int) -> bytes:
    """Return the characters before a block of ``length`` bytes."""
    digits = str(length)
    return f"#{len(digits)}{digits}".encode()


def block_length(head: Bytes) -> int:
    """Return the length of a block from the digits in its head.

    Raises:
        ProtocolError: the characters are not digits.
    """
    text = bytes(head)
    if not text.isdigit():
        raise ProtocolError(f"a block begins with {text!r}; it must begin with its length in digits")
    return int(text)


def matches(header: str, pattern: str) -> bool:
    """Return whether a header is the short or long form of a command, in upper or lower case.

    Args:
        header: header as it was sent, such as ``":syst:err?"``.
        pattern: long form of the command, with the short form in capitals, such as ``"SYSTem:ERRor?"``.
    """
    sent = header.upper().removeprefix(":").split(":")
    known = pattern.split(":")
    return len(sent) == len(known) and all(
        part in (word.upper(), "".join(letter for letter in word if not letter.islower()))
        for part, word in zip(sent, known, strict=True)
    )


def find_byte_order(data: Bytes) -> ByteOrder:
    """Return the byte order in which an instrument has sent the pattern.

    Raises:
        DeviceError: the bytes are the pattern in neither order.
    """
    sent = bytes(data)
    if sent == _PATTERN_BYTES:
        return "big"
    if sent == struct.pack("<2f", *PATTERN):
        return "little"
    order = "in another order" if sorted(sent) == sorted(_PATTERN_BYTES) else "which are no order of it"
    raise DeviceError(
        f"the answer to SYST:PATT? must be {_PATTERN_BYTES.hex(' ')} (big-endian), or the same two float32 values "
        f"little-endian, but the instrument sent {sent.hex(' ') or 'nothing'}, {order}"
    )


def error_number(error: BaseException) -> tuple[int, str]:
    """Return the SCPI number of an error, and its text without quotes and line ends."""
    if isinstance(error, DeviceError):
        number, detail = _NUMBERS.get(type(error), -300), error.message
    else:
        number, detail = -300, f"{type(error).__name__}: {error}"
    detail = " ".join(detail.replace('"', "'").split())[: LONGEST_LINE // 2]
    return number, f"{ERRORS[number][1]};{detail}".encode("ascii", "replace").decode()


def error_of(number: int, text: str) -> DeviceError:
    """Return the error for the number and text that an instrument reported; the number is not 0, which is no error."""
    if not number:
        return ProtocolError(f"the instrument reported {text!r} in place of an answer")
    kind, standard = ERRORS.get(number, (DeviceError, ""))
    detail = text.partition(";")[2].strip() or text or standard
    return kind(f"{detail} (SCPI error {number})")
