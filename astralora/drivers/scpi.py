"""Define the part of SCPI that is used here: headers, blocks and errors; see docs/protocol.md.

    *IDN?                        manufacturer,model,serial number,firmware
    *CLS                         forget errors
    *RST                         go to the safe state
    *OPC?                        1, when all before is done
    SYSTem:ERRor?                0,"No error", or the oldest error
    SYSTem:SPEC?                 block of JSON: the spec
    PROGram:DATA n,block         set all controls, float32; n numbers the request
    PROGram:DATA?                n of the newest program that was carried out
    QUERy:DATA? n,block          pass vectors, float32; answers n,block

Blocks are definite-length arbitrary blocks of IEEE 488.2: ``#``, a digit d, d digits that give a length, and as many
bytes; numbers in them are little-endian. A request whose number was carried out before is answered from memory.
"""

from __future__ import annotations

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

__all__ = ["ERRORS", "LONGEST_LINE", "block_head", "error_number", "error_of", "matches"]

LONGEST_LINE: Final = 1 << 10
"""Bytes of a message beside its blocks."""

ERRORS: Final[dict[int, tuple[type[DeviceError], str]]] = {
    0: (DeviceError, "No error"),
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
"""Numbers and texts of SCPI 1999, volume 2, with the error that each becomes on the host."""

_NUMBERS: dict[type[DeviceError], int] = {
    DeviceError: -300,
    OutOfRange: -222,
    NotConnected: -221,
    DeviceTimeout: -365,
    ProtocolError: -310,
    CalibrationMismatch: -340,
}


def block_head(length: int) -> bytes:
    """Return the characters before a block of so many bytes."""
    digits = str(length)
    return f"#{len(digits)}{digits}".encode()


def block_length(head: Bytes) -> int:
    """Return the length that the digits of a block's head give.

    Raises:
        ProtocolError: they are no digits.
    """
    text = bytes(head)
    if not text.isdigit():
        raise ProtocolError(f"a block begins with {text!r} where its length in digits is due")
    return int(text)


def matches(header: str, pattern: str) -> bool:
    """Return whether a header names this command, in its short or long form and in any case.

    Args:
        header: as it was sent, such as ``":syst:err?"``.
        pattern: long form, with the short form in capitals, such as ``"SYSTem:ERRor?"``.
    """
    sent = header.upper().removeprefix(":").split(":")
    known = pattern.split(":")
    return len(sent) == len(known) and all(
        part in (word.upper(), "".join(letter for letter in word if not letter.islower()))
        for part, word in zip(sent, known, strict=True)
    )


def error_number(error: BaseException) -> tuple[int, str]:
    """Return an error's number, and a text without quotes and line ends."""
    if isinstance(error, DeviceError):
        number, detail = _NUMBERS.get(type(error), -300), error.message
    else:
        number, detail = -300, f"{type(error).__name__}: {error}"
    detail = " ".join(detail.replace('"', "'").split())[: LONGEST_LINE // 2]
    return number, f"{ERRORS[number][1]};{detail}".encode("ascii", "replace").decode()


def error_of(number: int, text: str) -> DeviceError:
    """Return the error that an instrument reported."""
    kind, standard = ERRORS.get(number, (DeviceError, ""))
    detail = text.partition(";")[2].strip() or text or standard
    return kind(f"{detail} (SCPI error {number})")
