"""Define the interface and the common behaviour of all transports."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import Self

from ...devices import DeviceTimeout, NotConnected, ProtocolError

__all__ = ["Bytes", "Transport"]

_log = logging.getLogger(__name__)

Bytes = bytes | bytearray | memoryview

# Bytes of a message to log.
_SHOWN = 24
# Longest time to flush a line, in seconds.
_DRAIN = 0.5


class Transport(ABC):
    """Carry bytes along a line: fill in `_open`, `_close`, `_send` and `_receive`.

    Public methods lock, log the first bytes in hexadecimal at DEBUG, and time out. A read returns all bytes that were
    asked for, or raises `DeviceTimeout`: no answer is short.

    Args:
        uri: address at the other end, for messages.
        timeout: longest silence to wait through, in seconds.

    Attributes:
        sent: bytes that have been sent.
        received: bytes that have arrived.
    """

    def __init__(self, uri: str, timeout: float = 2.0) -> None:
        self.uri = uri
        self.timeout = timeout
        self.sent = 0
        self.received = 0
        self._lock = threading.RLock()
        self._is_open = False
        self._cut = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r}, {'open' if self._is_open else 'closed'})"

    # -- public -----------------------------------------------------------------------------

    def open(self) -> None:
        """Connect; does nothing when connected already.

        Raises:
            NotConnected: nothing is at the other end, or another program has it.
        """
        with self._lock:
            if not self._is_open:
                self._open()
                self._is_open = True
                _log.debug("%s opened", self.uri)

    def close(self) -> None:
        """Disconnect; does nothing when disconnected already."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._close()
                _log.debug("%s closed", self.uri)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, *parts: Bytes) -> None:
        """Send all parts, in their order, as one message.

        Raises:
            DeviceTimeout: the other side accepts no more bytes.
            NotConnected: the line is closed or broken.
        """
        with self._lock:
            self._require_open()
            self._show("->", *parts)
            if self._cut:
                return
            self._send(parts)
            self.sent += sum(map(len, parts))

    def read(self, count: int, patience: float = 0.0) -> bytearray:
        """Read exactly ``count`` bytes.

        Args:
            count: number of bytes.
            patience: seconds that the first byte may take on top of the timeout, such as the time to settle.

        Raises:
            DeviceTimeout: the line fell silent before.
            NotConnected: the line is closed or broken.
        """
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), patience)
        return buffer

    def read_into(self, view: memoryview, patience: float = 0.0) -> None:
        """Fill all of ``view`` from the line; as `read`."""
        with self._lock:
            self._require_open()
            got, wait = 0, self.timeout + patience
            while got < len(view):
                arrived = self._wait(view[got:], wait)
                if not arrived:
                    self._show("<-", view[:got])
                    raise DeviceTimeout(
                        f"{self.uri} fell silent for {wait:g} s after {got} of {len(view)} bytes; "
                        f"check that the instrument is on, or raise the timeout"
                    )
                got, wait = got + arrived, self.timeout
            self.received += got
            self._show("<-", view)

    def read_until(self, end: bytes, limit: int, patience: float = 0.0) -> bytearray:
        """Read everything up to ``end``, included, byte by byte: for short lines of text.

        Raises:
            ProtocolError: it is not among the first ``limit`` bytes.
            DeviceTimeout, NotConnected: as `read`.
        """
        with self._lock:
            line = self.read(1, patience)
            while not line.endswith(end):
                if len(line) >= limit:
                    raise ProtocolError(
                        f"{self.uri} sent {limit} bytes without the end of a line: {bytes(line[:40])!r}"
                    )
                line += self.read(1)
            return line

    def flush(self) -> None:
        """Discard all bytes that have arrived, and those that follow without a pause."""
        with self._lock:
            self._require_open()
            gone, until = 0, time.monotonic() + _DRAIN
            scratch = memoryview(bytearray(4096))
            while time.monotonic() < until:
                arrived = self._wait(scratch, 0.0)
                if not arrived:
                    break
                gone += arrived
            if gone:
                _log.debug("%s: %d bytes discarded", self.uri, gone)

    @contextmanager
    def interrupted(self) -> Generator[None]:
        """Cut the line within this block, for tests: nothing passes either way."""
        with self._lock:
            self._cut = True
        try:
            yield
        finally:
            with self._lock:
                self._cut = False

    # -- to fill in -------------------------------------------------------------------------

    @abstractmethod
    def _open(self) -> None:
        """Connect, or raise `astralora.devices.NotConnected`."""

    @abstractmethod
    def _close(self) -> None:
        """Disconnect."""

    @abstractmethod
    def _send(self, parts: tuple[Bytes, ...]) -> None:
        """Send all parts, or raise `astralora.devices.DeviceTimeout` or `astralora.devices.NotConnected`."""

    @abstractmethod
    def _receive(self, view: memoryview, seconds: float) -> int:
        """Put the next bytes into ``view`` and return their number; 0 where none came for so many seconds."""

    # -- inside the lock --------------------------------------------------------------------

    def _wait(self, view: memoryview, seconds: float) -> int:
        if self._cut:
            time.sleep(seconds)
            return 0
        return self._receive(view, seconds)

    def _require_open(self) -> None:
        if not self._is_open:
            raise NotConnected(f"{self.uri} is closed; call open first")

    def _show(self, direction: str, *parts: Bytes) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            data = b"".join(bytes(part[:_SHOWN]) for part in parts)[:_SHOWN]
            total = sum(map(len, parts))
            more = " ..." if total > len(data) else ""
            _log.debug("%s %s %d bytes: %s%s", self.uri, direction, total, data.hex(" "), more)
