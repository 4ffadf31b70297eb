"""Write values as bytes and read them, for every wire protocol; see docs/protocol.md."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ..devices import DeviceSpec, ProtocolError, Range
from ..devices.memory import aligned_array
from .transports.base import Bytes

__all__ = ["Format", "decode_values", "encode_values", "format_of", "value_size"]


class Format(IntEnum):
    """Name the ways to write a value."""

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
    """Return the format for these values: float32, or the codes of their converter where it has at most 2^16."""
    levels: int | None = getattr(spec, f"{what}_levels")
    if encoding == "float32" or levels is None or levels > 1 << 16:
        return Format.FLOAT32
    return Format.UINT8 if levels <= 1 << 8 else Format.UINT16


def value_size(form: int) -> int:
    """Return the bytes of one value in this format.

    Raises:
        ProtocolError: there is no such format.
    """
    return _type_of(form).itemsize


def encode_values(
    values: NDArray[Any], form: Format, bounds: Range | None = None, levels: int | None = None
) -> memoryview:
    """Write values as bytes: as float32, or as codes k = (value - low) / (high - low) * (levels - 1) of a converter.

    Args:
        values: of any shape and type.
        form: of the bytes.
        bounds: (low, high) of the converter; codes need it.
        levels: number of its codes; codes need it.
    """
    if form is not Format.FLOAT32:
        assert bounds is not None
        assert levels is not None
        low, high = bounds
        values = np.clip(np.rint((values - low) * ((levels - 1) / (high - low))), 0, levels - 1)
    # A memoryview of no values at all cannot be cast.
    return np.ascontiguousarray(values, dtype=_TYPES[form]).reshape(-1).view(np.uint8).data


def decode_values(data: Bytes, form: int, bounds: Range | None = None, levels: int | None = None) -> NDArray[Any]:
    """Read the values that `encode_values` wrote, as a flat array at an aligned address.

    Everything that comes off a wire becomes numbers here. Float32 values at an aligned address share their memory
    with ``data``; others are copied, so that an answer never depends on where its request was received.

    Args:
        data: the bytes, at any address.
        form: of the bytes.
        bounds: (low, high) of the converter; codes need it.
        levels: number of its codes; codes need it.

    Raises:
        ProtocolError: there is no such format, the spec has no converter for these codes, a part of a value is left
            over, or a code is beyond the converter's.
    """
    kind = _type_of(form)
    if len(data) % kind.itemsize:
        raise ProtocolError(f"{len(data)} bytes are no whole number of values of {kind.itemsize} bytes")
    values: NDArray[Any] = np.frombuffer(data, kind)
    if form == Format.FLOAT32:
        return aligned_array(values)
    if bounds is None or levels is None:
        raise ProtocolError("values came as codes of a converter that the spec does not have")
    if values.size and values.max() >= levels:
        raise ProtocolError(f"code {values.max()} is beyond the {levels} that the spec claims")
    low, high = bounds
    return aligned_array(low + values * ((high - low) / (levels - 1)))


def _type_of(form: int) -> np.dtype[Any]:
    kind = _TYPES.get(form)
    if kind is None:
        raise ProtocolError(f"there is no format {form} of values")
    return kind
