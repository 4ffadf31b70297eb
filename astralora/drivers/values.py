"""Encode values as bytes and decode them, for all wire protocols; see docs/protocol.md."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..devices import DeviceSpec, ProtocolError, Range
from ..devices.memory import aligned_array
from .transports.base import Bytes

__all__ = ["ByteOrder", "Format", "decode_values", "encode_values", "format_of", "value_size"]


ByteOrder = Literal["little", "big"]


class Format(IntEnum):
    """Define the numbers of the formats of a value."""

    FLOAT32 = 0
    UINT8 = 1
    UINT16 = 2


_TYPES: Final[dict[int, np.dtype[Any]]] = {
    Format.FLOAT32: np.dtype("<f4"),
    Format.UINT8: np.dtype("u1"),
    Format.UINT16: np.dtype("<u2"),
}


def format_of(
    spec: DeviceSpec, what: Literal["input", "control", "output"], encoding: Literal["float32", "codes"]
) -> Format:
    """Return the format of values: float32, or with ``"codes"`` the codes of a converter of at most 2^16 levels."""
    levels: int | None = getattr(spec, f"{what}_levels")
    if encoding == "float32" or levels is None or levels > 1 << 16:
        return Format.FLOAT32
    return Format.UINT8 if levels <= 1 << 8 else Format.UINT16


def value_size(form: int) -> int:
    """Return the number of bytes of one value in a format.

    Raises:
        ProtocolError: there is no such format.
    """
    return _type_of(form).itemsize


def encode_values(
    values: NDArray[Any],
    form: Format,
    bounds: Range | None = None,
    levels: int | None = None,
    order: ByteOrder = "little",
) -> memoryview:
    """Encode values as float32, or as codes k = (value - low) / (high - low) * (levels - 1) of a converter.

    Args:
        values: values of any shape and type.
        form: format of the bytes.
        bounds: range (low, high) of the converter; necessary for codes.
        levels: number of codes of the converter; necessary for codes.
        order: order of the bytes of a value.
    """
    if form is not Format.FLOAT32:
        assert bounds is not None
        assert levels is not None
        low, high = bounds
        values = np.clip(np.rint((values - low) * ((levels - 1) / (high - low))), 0, levels - 1)
    # Converted as an array, because an empty memoryview cannot be cast.
    return np.ascontiguousarray(values, dtype=_type_of(form, order)).reshape(-1).view(np.uint8).data


def decode_values(
    data: Bytes,
    form: int,
    bounds: Range | None = None,
    levels: int | None = None,
    order: ByteOrder = "little",
) -> NDArray[Any]:
    """Decode the bytes that `encode_values` returned, as a flat array at an aligned address.

    All values from a transport are decoded here. Float32 values at an aligned address share their memory with ``data``.
    Other values are copied, so that an answer does not depend on the memory address of its request.

    Args:
        data: bytes at any address.
        form: format of the bytes.
        bounds: range (low, high) of the converter; necessary for codes.
        levels: number of codes of the converter; necessary for codes.
        order: order of the bytes of a value.

    Raises:
        ProtocolError: there is no such format, the spec has no converter for codes, the last value is incomplete, or a
            code is larger than the converter allows.
    """
    kind = _type_of(form, order)
    if len(data) % kind.itemsize:
        raise ProtocolError(f"{len(data)} bytes are not a multiple of the {kind.itemsize} bytes of a value")
    values: NDArray[Any] = np.frombuffer(data, kind)
    if form == Format.FLOAT32:
        return aligned_array(values.astype(np.float32, copy=False))
    if bounds is None or levels is None:
        raise ProtocolError("the values are codes, but the spec has no converter levels for them")
    if values.size and values.max() >= levels:
        raise ProtocolError(f"code {values.max()} is too large; the spec claims {levels} levels")
    low, high = bounds
    return aligned_array(low + values * ((high - low) / (levels - 1)))


def _type_of(form: int, order: ByteOrder = "little") -> np.dtype[Any]:
    kind = _TYPES.get(form)
    if kind is None:
        raise ProtocolError(f"there is no value format {form}")
    return kind if order == "little" else kind.newbyteorder(">")
