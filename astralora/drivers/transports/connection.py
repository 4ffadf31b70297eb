"""Open a line, keep it, and close it; open it again when it was lost."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import ClassVar, Final, Self
from weakref import WeakValueDictionary

from ...devices import NotConnected
from ...devices.ownership import Lock, Ownership, StaysInProcess

__all__ = ["Connection"]

_log = logging.getLogger(__name__)

# Interval at which a port that has vanished is opened again, in seconds.
_RETRY: Final = 0.05
_CLOSED: Final = "is closed; call open first"
_LOST: Final = "was lost; open it again"


class Connection(StaysInProcess, ABC):
    """Open and close a line; see `Transport`.

    An open line belongs to the process that opened it. In a child process, all operations raise `DeviceError`, and
    `close` does nothing.

    Args:
        uri: address of the other end, for messages.
        timeout: longest time without a byte, in seconds.
    """

    # Number of bytes that are read at once to discard them.
    _piece: ClassVar[int] = 1 << 16
    _open_places: ClassVar[WeakValueDictionary[str, Connection]] = WeakValueDictionary()

    def __init__(self, uri: str, timeout: float) -> None:
        self.uri = uri
        self.timeout = timeout
        self.settle = 0.0
        self._ownership = Ownership()
        self._is_open = False
        self._is_parked = False
        self._why_closed = _CLOSED
        self._open_place = ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r}, {'open' if self._is_open else 'closed'})"

    @property
    def _lock(self) -> Lock:
        """Return the lock of the line; entering it in a process that did not open the line raises an error."""
        return self._ownership.lock

    @property
    def is_open(self) -> bool:
        """Return whether the transport is connected; a transport whose line was lost is not."""
        return self._is_open

    @property
    def is_parked(self) -> bool:
        """Return whether the line is kept open for the next `open`; see `park`."""
        return self._is_parked

    # -- opening and closing ----------------------------------------------------------------

    def open(self) -> None:
        """Connect, and wait for ``settle`` seconds; do nothing when connected already.

        Raises:
            NotConnected: there is nothing at the other end, or another program uses it.
        """
        with self._lock:
            self._is_parked = False
            if self._is_open:
                return
            place = self._place()
            other = self._open_places.get(place)
            if other is not None and other.is_parked:
                other.close()
            self._ownership.claim(self.uri)
            try:
                self._connect()
            except BaseException:
                self._ownership.release()
                raise
            self._opened()
            self._is_open = True
            self._open_place = place
            self._open_places[place] = self
            _log.debug("%s opened", self.uri)

    def close(self) -> None:
        """Disconnect; do nothing when disconnected already, or in a process that did not open the line."""
        if self._ownership.is_foreign:
            return
        with self._lock:
            if self._is_open:
                self._mark_closed(_CLOSED)
                self._close()
                _log.debug("%s closed", self.uri)

    def park(self) -> None:
        """Keep the line open for the next `open` of this transport, until another transport opens the same place."""
        with self._lock:
            self._is_parked = self._is_open

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- to implement -----------------------------------------------------------------------

    @abstractmethod
    def _open(self) -> None:
        """Connect, or raise `astralora.devices.NotConnected`."""

    @abstractmethod
    def _close(self) -> None:
        """Disconnect."""

    @abstractmethod
    def _receive(self, view: memoryview, seconds: float) -> int:
        """Write the next bytes into ``view`` and return their number; return 0 if none arrived within ``seconds``."""

    def _place(self) -> str:
        """Return a name of the other end that is the same for all addresses of it."""
        return f"{type(self).__name__} {self.uri}"

    def _opened(self) -> None:
        """Reset the state of the line after it was opened."""

    # -- called while the lock is held ------------------------------------------------------

    def _is_held_here(self) -> bool:
        """Return whether another transport of this process is open at the same place."""
        return self._place() in self._open_places

    def _connect(self) -> None:
        """Connect, wait until the other end has settled, and connect again if the port vanishes meanwhile."""
        until = time.monotonic() + self.settle
        while True:
            try:
                self._open()
                self._discard_for(self.settle)
                return
            except NotConnected:
                if time.monotonic() >= until:
                    raise
                time.sleep(_RETRY)

    def _discard_for(self, seconds: float) -> None:
        if seconds <= 0:
            return
        try:
            until = time.monotonic() + seconds
            scratch = memoryview(bytearray(self._piece))
            while (left := until - time.monotonic()) > 0:
                self._receive(scratch, left)
        except BaseException:
            with suppress(Exception):
                self._close()
            raise

    def _lose(self) -> None:
        """Close a line that is lost, so that `open` connects again."""
        self._mark_closed(_LOST)
        with suppress(Exception):
            self._close()
        _log.debug("%s lost", self.uri)

    def _mark_closed(self, why: str) -> None:
        self._is_open = self._is_parked = False
        self._ownership.release()
        self._why_closed = why
        if self._open_places.get(self._open_place) is self:
            del self._open_places[self._open_place]

    def _require_open(self) -> None:
        if not self._is_open:
            raise NotConnected(f"{self.uri} {self._why_closed}")
