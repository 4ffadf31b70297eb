"""Receive the requests of a host before a deadline, as the firmware of a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from ..devices import DeviceTimeout, NotConnected
from .transports import Transport

__all__ = ["HostLine", "Incoming"]

# Time in which a request must arrive, in seconds: this, and one second for each number of bytes.
_SECONDS: Final = 5.0
_BYTES_PER_SECOND: Final = 500
# Time after which a host that sends bytes but no request is disconnected, in seconds.
_NOISE_SECONDS: Final = 10.0


class HostLine(Transport):
    """Carry bytes at the instrument's end of a line.

    Attributes:
        goes_on: function that is called before every wait for bytes; when it returns False, the wait ends at once.
    """

    def __init__(self, uri: str, timeout: float) -> None:
        super().__init__(uri, timeout)
        self.goes_on: Callable[[], bool] = lambda: True


class Incoming:
    """Receive requests on a line, none of which takes for ever.

    A host that sends its bytes one by one must not block the device. A request that has begun must be complete after
    5 s, and 1 s more for each 500 bytes. A host that sends bytes for 10 s, but no request, is disconnected. A host
    that sends nothing stays connected.

    Args:
        line: open line to the host; its timeout is the silence that ends a request.
        idle: function that is called often while the device waits for bytes.
    """

    def __init__(self, line: Transport, idle: Callable[[], None]) -> None:
        self._line = line
        self._idle = idle
        self._first = b""
        self._begun = 0.0
        self._until = float("inf")
        self._noise_since: float | None = None
        if isinstance(line, HostLine):
            line.goes_on = self._goes_on

    def begin(self) -> None:
        """Wait for the first byte of a request.

        Raises:
            DeviceTimeout: no byte arrived.
            NotConnected: the host has closed the line.
        """
        self._idle()
        self._until = float("inf")
        self._first = bytes(self._line.read(1))
        self._begun = time.monotonic()
        self._until = self._begun + _SECONDS
        if self._noise_since is None:
            self._noise_since = self._begun

    def expect(self, size: int) -> None:
        """Give the request more time, because its header announces so many bytes."""
        self._until = self._begun + _SECONDS + size / _BYTES_PER_SECOND

    def accept(self) -> None:
        """Record that a request has arrived."""
        self._noise_since = None

    def fail(self) -> None:
        """Record that the bytes were no request.

        Raises:
            NotConnected: the host sends no requests, and is to be disconnected.
        """
        assert self._noise_since is not None
        if time.monotonic() - self._noise_since > _NOISE_SECONDS:
            raise NotConnected(f"the host at {self._line.uri} has sent bytes but no request for {_NOISE_SECONDS:g} s")

    def read(self, count: int) -> bytearray:
        """Read exactly ``count`` bytes of the request; see `read_into`."""
        data = bytearray(count)
        self.read_into(memoryview(data))
        return data

    def read_into(self, view: memoryview) -> None:
        """Read exactly as many bytes as ``view`` has.

        Raises:
            DeviceTimeout: the line fell silent, or the request takes too long.
            NotConnected: the host has closed the line.
        """
        if not self._goes_on():
            raise DeviceTimeout(f"a request was incomplete after {time.monotonic() - self._begun:.0f} s")
        got = min(len(self._first), len(view))
        view[:got], self._first = self._first[:got], self._first[got:]
        if got < len(view):
            self._line.read_into(view[got:])

    def _goes_on(self) -> bool:
        self._idle()
        return time.monotonic() <= self._until
