"""Exchange bytes within this process."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from ...devices import NotConnected
from .base import Bytes, Transport

__all__ = ["LoopbackTransport"]


class _Pipe:
    """Queue bytes in one direction."""

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, data: Bytes) -> None:
        with self._changed:
            if self._closed:
                raise BrokenPipeError
            if len(data):
                self._chunks.append(memoryview(bytes(data)))
                self._changed.notify_all()

    def take(self, view: memoryview, seconds: float) -> int:
        until = time.monotonic() + seconds
        with self._changed:
            while not self._chunks:
                if self._closed:
                    raise BrokenPipeError
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return 0
            chunk = self._chunks.popleft()
            count = min(len(chunk), len(view))
            view[:count] = chunk[:count]
            if count < len(chunk):
                self._chunks.appendleft(chunk[count:])
            return count

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class LoopbackTransport(Transport):
    """Exchange bytes in memory with a listener in this process, or receive the sent bytes as an echo.

    Args:
        name: name of the listener; empty for an echo.
        timeout: longest time without a byte, in seconds.
    """

    forgets = True

    _listeners: ClassVar[dict[str, Callable[[LoopbackTransport], None]]] = {}
    _listeners_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, name: str = "", timeout: float = 2.0) -> None:
        super().__init__(f"loop://{name}", timeout)
        self.name = name
        self._inward = self._outward = _Pipe()

    @classmethod
    def listen(cls, name: str, accept: Callable[[LoopbackTransport], None]) -> None:
        """Listen on ``loop://name``.

        Args:
            name: name of the listener; not empty.
            accept: function that is called for each new connection with the open transport of the listener's end.

        Raises:
            NotConnected: another listener has this name.
        """
        with cls._listeners_lock:
            if name in cls._listeners:
                raise NotConnected(f"loop://{name} is in use in this process; choose another name")
            cls._listeners[name] = accept

    @classmethod
    def forget(cls, name: str) -> None:
        """Stop listening on ``loop://name``."""
        with cls._listeners_lock:
            cls._listeners.pop(name, None)

    def _open(self) -> None:
        self._inward = self._outward = _Pipe()
        if not self.name:
            return
        accept = self._listeners.get(self.name)
        if accept is None:
            raise NotConnected(f"nothing listens on {self.uri} in this process; start an emulator with this name")
        self._inward = _Pipe()
        other = LoopbackTransport(self.name, self.timeout)
        other._inward, other._outward = self._outward, self._inward
        other._is_open = True
        accept(other)

    def _close(self) -> None:
        self._inward.close()
        self._outward.close()

    def _send(self, parts: tuple[Bytes, ...]) -> None:
        try:
            for part in parts:
                self._outward.put(part)
        except BrokenPipeError:
            raise NotConnected(f"{self.uri} has closed the connection") from None

    def _receive(self, view: memoryview, seconds: float) -> int:
        try:
            return self._inward.take(view, seconds)
        except BrokenPipeError:
            raise NotConnected(f"{self.uri} has closed the connection") from None
