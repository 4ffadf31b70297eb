"""Encode messages as frames of bytes, and find frames in a stream of bytes.

    offset  size  field
    0       2     magic: A7 4C
    2       1     version: 1
    3       1     command; the answer has bit 7 set, an error is FF
    4       4     sequence number
    8       4     length n of the payload
    12      4     CRC-32 of the 12 bytes before
    16      n     payload
    16 + n  4     CRC-32 of the payload, continued from that of the header

All numbers are little-endian. CRC-32 is the checksum of IEEE 802.3 (zlib, PNG). The header has its own checksum, so a
damaged length is detected before memory for the payload is allocated or the payload is read.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..devices import DeviceTimeout, ProtocolError
from ..devices.memory import ALIGNMENT
from .transports.base import Bytes

try:
    # The same checksum, but much faster; zlib takes longer than the transmission.
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

__all__ = [
    "ANSWER",
    "ERROR",
    "OVERHEAD",
    "VERSION",
    "Buffers",
    "Header",
    "decode_header",
    "encode_frame",
    "find_header",
    "frame_check",
    "read_payload",
    "skip_payload",
]

MAGIC: Final = b"\xa7\x4c"
VERSION: Final = 1
ANSWER: Final = 0x80
ERROR: Final = 0xFF

_FIELDS = struct.Struct("<2sBBII")
_CHECK = struct.Struct("<I")
_HEADER = _FIELDS.size + _CHECK.size
OVERHEAD: Final = _HEADER + _CHECK.size
"""Number of bytes of a frame without its payload."""

_MOST_BUFFERS = 4
_SMALL = 1 << 12
# Number of bytes to read and check at a time.
_PIECE = 1 << 18
# Number of bytes to skip at a time.
_SKIPPED = 1 << 16

Read = Callable[[int], Bytes]
"""Function that reads exactly the given number of bytes, or raises an error."""


@dataclass(frozen=True, slots=True)
class Header:
    """Hold the fields at the beginning of a frame.

    Attributes:
        version: version of the protocol.
        command: command of the request or of the answer.
        sequence: number of the request; its answer has the same number.
        length: number of bytes of the payload.
        crc: checksum of the header.
    """

    version: int
    command: int
    sequence: int
    length: int
    crc: int


def encode_frame(command: int, sequence: int, *payload: Bytes, version: int = VERSION) -> list[Bytes]:
    """Return the parts of a frame to send, without a copy of the payload.

    Args:
        command: number of the command, 0 to 255.
        sequence: number of the request, 0 to 2^32 - 1.
        *payload: parts of the payload.
        version: version of the protocol.
    """
    fields = _FIELDS.pack(MAGIC, version, command, sequence, sum(map(len, payload)))
    crc = crc32(fields)
    header = fields + _CHECK.pack(crc)
    for part in payload:
        crc = crc32(part, crc)
    return [header, *payload, _CHECK.pack(crc)]


def decode_header(data: Bytes) -> Header | None:
    """Decode 16 bytes as a header; return None if they are not a valid header."""
    magic, version, command, sequence, length = _FIELDS.unpack_from(data)
    crc = crc32(data[: _FIELDS.size])
    if magic != MAGIC or _CHECK.unpack_from(data, _FIELDS.size) != (crc,):
        return None
    return Header(version, command, sequence, length, crc)


def find_header(read: Read, patience: int) -> Header:
    """Return the next header on the line, and skip all bytes before it.

    Args:
        read: function that reads exactly the given number of bytes from the line.
        patience: largest number of bytes to skip.

    Raises:
        ProtocolError: no header began within ``patience`` bytes.
        DeviceTimeout: the bytes stopped before a header was complete.
    """
    window, skipped = bytearray(read(_HEADER)), 0
    while True:
        header = decode_header(window)
        if header is not None:
            return header
        start = window.find(MAGIC, 1)
        if start < 0:
            # The last byte may be the first half of the magic.
            start = _HEADER - 1 if window[-1] == MAGIC[0] else _HEADER
        skipped += start
        if skipped > patience:
            raise ProtocolError(f"no frame began within {patience} bytes; check that the other side uses this protocol")
        del window[:start]
        try:
            window += read(start)
        except DeviceTimeout as error:
            raise DeviceTimeout(f"{error.message}; the bytes that arrived are not a frame") from error


def _references(buffers: list[NDArray[np.uint8]], place: int) -> int:
    # The count includes arrays and tensors that share the memory.
    return sys.getrefcount(buffers[place])


# Number of references to a buffer that only the list refers to; it depends on the interpreter.
_UNUSED = _references([np.empty(1, np.uint8)], 0)


class Buffers:
    """Reuse the memory of earlier payloads that are no longer referenced.

    The operating system clears each page of new memory at its first use. For the answers of a large batch this would
    take longer than the transmission.

    Args:
        head: number of bytes of a payload before its values. The values get an aligned address, and need no copy.
    """

    def __init__(self, head: int = 0) -> None:
        self._head = head
        self._kept: list[NDArray[np.uint8]] = []

    def take(self, size: int) -> memoryview:
        """Return memory of ``size`` bytes with arbitrary content."""
        for place in range(len(self._kept)):
            fits = size <= len(self._kept[place]) - ALIGNMENT <= 2 * size + _SMALL
            if fits and _references(self._kept, place) <= _UNUSED:
                self._kept.append(self._kept.pop(place))
                break
        else:
            self._kept.append(np.empty(size + ALIGNMENT, np.uint8))
            del self._kept[:-_MOST_BUFFERS]
        memory = self._kept[-1]
        start = -(memory.__array_interface__["data"][0] + self._head) % ALIGNMENT
        return memory[start : start + size].data


def read_payload(read_into: Callable[[memoryview], None], header: Header, buffers: Buffers | None = None) -> memoryview:
    """Read the payload of a frame; the caller has checked its length.

    Args:
        read_into: function that fills memory from the line, or raises an error.
        header: header of the frame.
        buffers: memory to reuse; None for new memory.

    Raises:
        ProtocolError: the payload arrived damaged.
        DeviceTimeout: the payload did not arrive completely.
    """
    view = (buffers or Buffers()).take(header.length + _CHECK.size)
    payload, crc = view[: header.length], header.crc
    # Read in pieces, so that a piece is checked while it is in the cache and the next piece arrives.
    for start in range(0, max(header.length, 1), _PIECE):
        end = min(start + _PIECE, header.length)
        read_into(view[start:end] if end < header.length else view[start:])
        crc = crc32(payload[start:end], crc)
    if _CHECK.unpack_from(view, header.length) != (crc,):
        raise ProtocolError(f"a payload of {header.length} bytes arrived damaged")
    return payload


def frame_check(header: Header, payload: Bytes) -> int:
    """Return the second checksum of a frame, which covers its header and its payload."""
    return crc32(payload, header.crc)


def skip_payload(read: Read, header: Header) -> None:
    """Read a payload in small pieces and drop it."""
    left = header.length + _CHECK.size
    while left:
        left -= len(read(min(left, _SKIPPED)))
