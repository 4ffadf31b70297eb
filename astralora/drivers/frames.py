"""The frame: how a message is put on a line of bytes, and found there again.

    offset  size  field
    0       2     magic: A7 4C
    2       1     version: 1
    3       1     command; the answer has bit 7 set, an error is FF
    4       4     sequence number
    8       4     length n of the payload
    12      4     CRC-32 of the 12 bytes before
    16      n     payload
    16 + n  4     CRC-32 of the payload, continued from that of the header

All numbers are little-endian. CRC-32 is that of IEEE 802.3 (zlib, PNG). The header has a checksum of its own so that
a damaged length is noticed before anything is read or set aside for it.
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
    # The same checksum at the speed of memory; zlib's takes longer than the wire.
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
"""Bytes of a frame beyond its payload."""

_MOST_BUFFERS = 4
_SMALL = 1 << 12
# Bytes that are read and checked at a time.
_PIECE = 1 << 18
# At a time, of a payload that nobody wants.
_SKIPPED = 1 << 16

Read = Callable[[int], Bytes]
"""Exactly so many bytes from the line, or an error."""


@dataclass(frozen=True, slots=True)
class Header:
    """The beginning of a frame.

    Attributes:
        version: of the protocol.
        command: what is asked or answered.
        sequence: number of the request; its answer has the same.
        length: of the payload, in bytes.
        crc: of the header.
    """

    version: int
    command: int
    sequence: int
    length: int
    crc: int


def encode_frame(command: int, sequence: int, *payload: Bytes, version: int = VERSION) -> list[Bytes]:
    """A frame as the parts that have to be sent, without copying the payload.

    Args:
        command: 0 to 255.
        sequence: 0 to 2^32 - 1.
        *payload: its parts, in bytes.
        version: of the protocol.
    """
    fields = _FIELDS.pack(MAGIC, version, command, sequence, sum(map(len, payload)))
    crc = crc32(fields)
    header = fields + _CHECK.pack(crc)
    for part in payload:
        crc = crc32(part, crc)
    return [header, *payload, _CHECK.pack(crc)]


def decode_header(data: Bytes) -> Header | None:
    """The header that these 16 bytes are, or None."""
    magic, version, command, sequence, length = _FIELDS.unpack_from(data)
    crc = crc32(data[: _FIELDS.size])
    if magic != MAGIC or _CHECK.unpack_from(data, _FIELDS.size) != (crc,):
        return None
    return Header(version, command, sequence, length, crc)


def find_header(read: Read, patience: int) -> Header:
    """The next header on the line, past whatever is none.

    Args:
        read: takes exactly so many bytes off the line.
        patience: the most bytes to pass over.

    Raises:
        ProtocolError: no header began within that many bytes.
        DeviceTimeout: the line fell silent before.
    """
    window, skipped = bytearray(read(_HEADER)), 0
    while True:
        header = decode_header(window)
        if header is not None:
            return header
        start = window.find(MAGIC, 1)
        if start < 0:
            # The first half of the magic may be the last byte that has come.
            start = _HEADER - 1 if window[-1] == MAGIC[0] else _HEADER
        skipped += start
        if skipped > patience:
            raise ProtocolError(f"no frame began within {patience} bytes; does the other side speak this protocol?")
        del window[:start]
        try:
            window += read(start)
        except DeviceTimeout as error:
            raise DeviceTimeout(f"{error.message}, and what came was no frame") from error


def _references(buffers: list[NDArray[np.uint8]], place: int) -> int:
    # Arrays and tensors on top of the memory count as well.
    return sys.getrefcount(buffers[place])


# Of a buffer that only the list holds: how many that makes is the interpreter's own affair.
_UNHELD = _references([np.empty(1, np.uint8)], 0)


class Buffers:
    """Reuse the memory of earlier payloads to which nothing refers any more.

    New memory comes from the system page by page, each cleared at its first touch: for the answers of a large batch
    that takes longer than the wire does.

    Args:
        head: bytes of a payload before its values, which get an aligned address and then need no copy.
    """

    def __init__(self, head: int = 0) -> None:
        self._head = head
        self._kept: list[NDArray[np.uint8]] = []

    def take(self, size: int) -> memoryview:
        """Return memory of ``size`` bytes; its content is arbitrary."""
        for place in range(len(self._kept)):
            fits = size <= len(self._kept[place]) - ALIGNMENT <= 2 * size + _SMALL
            if fits and _references(self._kept, place) <= _UNHELD:
                self._kept.append(self._kept.pop(place))
                break
        else:
            self._kept.append(np.empty(size + ALIGNMENT, np.uint8))
            del self._kept[:-_MOST_BUFFERS]
        memory = self._kept[-1]
        start = -(memory.__array_interface__["data"][0] + self._head) % ALIGNMENT
        return memory[start : start + size].data


def read_payload(read_into: Callable[[memoryview], None], header: Header, buffers: Buffers | None = None) -> memoryview:
    """The payload of a frame whose length is known to be a sensible one.

    Args:
        read_into: fills memory from the line, or raises.
        header: of the frame.
        buffers: memory to be used again.

    Raises:
        ProtocolError: it arrived damaged.
        DeviceTimeout: it did not arrive whole.
    """
    view = (buffers or Buffers()).take(header.length + _CHECK.size)
    payload, crc = view[: header.length], header.crc
    # Piece by piece: one is checked while it is still in the cache, and the next already on its way.
    for start in range(0, max(header.length, 1), _PIECE):
        end = min(start + _PIECE, header.length)
        read_into(view[start:end] if end < header.length else view[start:])
        crc = crc32(payload[start:end], crc)
    if _CHECK.unpack_from(view, header.length) != (crc,):
        raise ProtocolError(f"a payload of {header.length} bytes arrived damaged")
    return payload


def skip_payload(read: Read, header: Header) -> None:
    """Take a payload that nobody wants off the line, in small pieces."""
    left = header.length + _CHECK.size
    while left:
        left -= len(read(min(left, _SKIPPED)))
