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

# Number of bytes of a message that are logged.
_SHOWN = 24
# Longest time to flush a line, in seconds.
_DRAIN = 0.5


class Transport(ABC):
    """Exchange bytes with the other end of a line: implement `_open`, `_close`, `_send` and `_receive`.

    Public methods lock, log the first bytes in hexadecimal at DEBUG, and time out. A read returns all requested bytes
    or raises `DeviceTimeout`; it never returns fewer.

    Args:
        uri: address of the other end, for messages.
        timeout: longest time without a byte, in seconds.

    Attributes:
        sent: number of bytes sent.
        received: number of bytes received.
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
        """Connect; do nothing when connected already.

        Raises:
            NotConnected: there is nothing at the other end, or another program uses it.
        """
        with self._lock:
            if not self._is_open:
                self._open()
                self._is_open = True
                _log.debug("%s opened", self.uri)

    def close(self) -> None:
        """Disconnect; do nothing when disconnected already."""
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
            patience: additional time for the first byte, in seconds, on top of the timeout, such as the time to settle.

        Raises:
            DeviceTimeout: fewer bytes arrived in time.
            NotConnected: the line is closed or broken.
        """
        buffer = bytearray(count)
        self.read_into(memoryview(buffer), patience)
        return buffer

    def read_into(self, view: memoryview, patience: float = 0.0) -> None:
        """Read exactly as many bytes as ``view`` has, and write them into it; see `read`."""
        with self._lock:
            self._require_open()
            got, wait = 0, self.timeout + patience
            while got < len(view):
                arrived = self._wait(view[got:], wait)
                if not arrived:
                    self._show("<-", view[:got])
                    raise DeviceTimeout(
                        f"{self.uri} sent nothing for {wait:g} s after {got} of {len(view)} bytes; "
                        f"check that the instrument is on, or raise the timeout"
                    )
                got, wait = got + arrived, self.timeout
            self.received += got
            self._show("<-", view)

    def read_until(self, end: bytes, limit: int, patience: float = 0.0) -> bytearray:
        """Read all bytes up to and including ``end``, byte by byte; use this for short lines of text only.

        Raises:
            ProtocolError: the first ``limit`` bytes do not contain ``end``.
            DeviceTimeout, NotConnected: see `read`.
        """
        with self._lock:
            line = self.read(1, patience)
            while not line.endswith(end):
                if len(line) >= limit:
                    raise ProtocolError(f"{self.uri} sent {limit} bytes without an end of line: {bytes(line[:40])!r}")
                line += self.read(1)
            return line

    def flush(self) -> None:
        """Discard all bytes that have arrived, and all bytes that follow without a pause."""
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
        """Cut the line in both directions within a ``with`` block, for tests."""
        with self._lock:
            self._cut = True
        try:
            yield
        finally:
            with self._lock:
                self._cut = False

    # -- to implement -----------------------------------------------------------------------

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
        """Write the next bytes into ``view`` and return their number; return 0 if none arrived within ``seconds``."""

    # -- called while the lock is held ------------------------------------------------------

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
