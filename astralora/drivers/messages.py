"""What the frames say: commands, payloads and errors; see docs/protocol.md."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..devices import (
    BudgetExceeded,
    CalibrationMismatch,
    DeviceError,
    DeviceSpec,
    DeviceTimeout,
    NotConnected,
    OutOfRange,
    ProtocolError,
    Range,
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
    "Command",
    "Format",
    "Option",
    "State",
    "decode_error",
    "decode_values",
    "encode_error",
    "encode_values",
    "format_of",
    "value_size",
]


class Command(IntEnum):
    """What a host may ask."""

    IDENTIFY = 1
    SPEC = 2
    PROGRAM = 3
    QUERY = 4
    QUERY_EACH = 5
    STATUS = 6
    SAFE = 7


OPERATIONS: Final = frozenset({Command.PROGRAM, Command.QUERY, Command.QUERY_EACH})
"""Commands that have the device do something: those whose numbers are remembered."""


class Option(IntFlag):
    """What a device can do beyond the least, as it identifies itself."""

    QUERY_EACH = 1


class State(IntEnum):
    """What a device is doing."""

    SAFE = 0
    PROGRAMMED = 1


class Format(IntEnum):
    """How values are written."""

    FLOAT32 = 0
    UINT8 = 1
    UINT16 = 2


IDENTITY: Final = struct.Struct("<II")
"""Largest payload taken, options; then manufacturer, model, serial number, firmware version as text with commas."""

PROGRAM: Final = struct.Struct("<B3xI")
"""Format, number of controls; then the controls."""

QUERY: Final = struct.Struct("<BB2xI")
"""Format, format of the answer, number of vectors; then the inputs."""

QUERY_EACH: Final = struct.Struct("<BBBxII")
"""Formats of controls, inputs and answer, number of settings, number of vectors; then the controls, then the inputs."""

VALUES: Final = struct.Struct("<B3xI")
"""Of an answer: format, number of vectors; then the outputs."""

STATUS: Final = struct.Struct("<B3xIII")
"""State, newest sequence number carried out, programs and vectors since power-up."""

_TYPES: dict[Format, np.dtype[Any]] = {
    Format.FLOAT32: np.dtype("<f4"),
    Format.UINT8: np.dtype("u1"),
    Format.UINT16: np.dtype("<u2"),
}

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
# What a device says of itself is shown to a person: no more than that.
_LONGEST_MESSAGE = 1000
LONGEST_ERROR: Final = _ERROR.size + _LONGEST_MESSAGE


def format_of(
    spec: DeviceSpec, what: Literal["input", "control", "output"], encoding: Literal["float32", "codes"]
) -> Format:
    """How these values are written: as numbers, or as the converters' own codes where they have some."""
    levels: int | None = getattr(spec, f"{what}_levels")
    if encoding == "float32" or levels is None or levels > 1 << 16:
        return Format.FLOAT32
    return Format.UINT8 if levels <= 1 << 8 else Format.UINT16


def value_size(form: int) -> int:
    """Bytes of one value in this format.

    Raises:
        ProtocolError: there is no such format.
    """
    return _type_of(form).itemsize


def encode_values(values: NDArray[Any], form: Format, bounds: Range | None, levels: int | None) -> memoryview:
    """Values as bytes: float32, or for code k of a converter, k = (value - low) / (high - low) * (levels - 1)."""
    if form is not Format.FLOAT32:
        assert bounds is not None
        assert levels is not None
        low, high = bounds
        values = np.clip(np.rint((values - low) * ((levels - 1) / (high - low))), 0, levels - 1)
    # A memoryview of no values at all cannot be cast.
    return np.ascontiguousarray(values, dtype=_TYPES[form]).reshape(-1).view(np.uint8).data


def decode_values(data: memoryview, form: int, bounds: Range | None, levels: int | None) -> NDArray[Any]:
    """The values that `encode_values` wrote, as a flat array; float32 ones share the memory.

    Raises:
        ProtocolError: no such format, codes of a converter that is none, a part of a value left over, or a code
            beyond the converter's.
    """
    kind = _type_of(form)
    if len(data) % kind.itemsize:
        raise ProtocolError(f"{len(data)} bytes are no whole number of values of {kind.itemsize} bytes")
    values: NDArray[Any] = np.frombuffer(data, kind)
    if form == Format.FLOAT32:
        return values
    if bounds is None or levels is None:
        raise ProtocolError("values came as codes of a converter that the spec does not know")
    if values.size and values.max() >= levels:
        raise ProtocolError(f"code {values.max()} is beyond the {levels} that the spec promises")
    low, high = bounds
    return low + values * ((high - low) / (levels - 1))


def _type_of(form: int) -> np.dtype[Any]:
    kind = _TYPES.get(form)  # type: ignore[call-overload]  # an IntEnum is found by its number
    if kind is None:
        raise ProtocolError(f"there is no format {form} of values")
    return kind  # type: ignore[no-any-return]


def encode_error(error: BaseException) -> bytes:
    """The payload of an error frame: a number and a sentence."""
    number = next((n for n, kind in _ERRORS.items() if type(error) is kind), 1)
    message = error.message if isinstance(error, DeviceError) else f"{type(error).__name__}: {error}"
    return _ERROR.pack(number) + message.encode()[:_LONGEST_MESSAGE]


def decode_error(payload: Bytes) -> DeviceError:
    """The error that a payload of `encode_error` tells of."""
    if len(payload) < _ERROR.size:
        return ProtocolError("it reported an error without a number")
    (number,) = _ERROR.unpack_from(payload)
    message = bytes(payload[_ERROR.size :]).decode(errors="replace") or "it reported an error without a reason"
    return _ERRORS.get(number, DeviceError)(message)
