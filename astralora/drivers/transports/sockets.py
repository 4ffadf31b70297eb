"""Exchange bytes over network sockets."""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import suppress

from ...devices import DeviceTimeout, NotConnected
from .base import Bytes, Transport

__all__ = ["SocketTransport", "TcpTransport"]

_HINT = "check the instrument, and whether another program uses it"


class SocketTransport(Transport):
    """Exchange bytes over a connected stream socket, as client or server."""

    def __init__(self, uri: str, timeout: float = 2.0) -> None:
        super().__init__(uri, timeout)
        self._socket: socket.socket | None = None
        self._process: int | None = None
        self._limits: dict[int, float] = {}

    def _close(self) -> None:
        connection, self._socket = self._socket, None
        assert connection is not None
        if self._process == os.getpid():
            # A child of a fork has a copy of the socket, which would keep the connection open.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _connected(self, connection: socket.socket) -> None:
        """Store a new connection and set its options."""
        # Send at once, because each request waits for its answer before the next is sent.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.settimeout(None)
        self._socket, self._limits = connection, {}
        self._process = os.getpid()

    def _send(self, parts: tuple[Bytes, ...]) -> None:
        connection = self._limited(socket.SO_SNDTIMEO, self.timeout)
        try:
            # Send all parts in one call without joining them; the rest follows below.
            sent = connection.sendmsg(parts)
            for part in parts:
                if sent < len(part):
                    connection.sendall(memoryview(part)[sent:])
                sent = max(0, sent - len(part))
        except BlockingIOError as error:
            raise DeviceTimeout(f"{self.uri} accepts no more bytes; {_HINT}") from error
        except OSError as error:
            raise NotConnected(f"{self.uri} has closed the connection: {error.strerror or error}; {_HINT}") from error

    def _receive(self, view: memoryview, seconds: float) -> int:
        flags = socket.MSG_DONTWAIT if seconds <= 0 else socket.MSG_WAITALL
        connection = self._limited(socket.SO_RCVTIMEO, seconds) if seconds > 0 else self._socket
        assert connection is not None
        try:
            count = connection.recv_into(view, flags=flags)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise NotConnected(f"{self.uri} has closed the connection ({error.strerror or error}); {_HINT}") from error
        if not count:
            raise NotConnected(f"{self.uri} has closed the connection; {_HINT}")
        return count

    def _limited(self, which: int, seconds: float) -> socket.socket:
        # Timeouts of the kernel are used, because those of Python poll before every call, which costs more time.
        assert self._socket is not None
        if self._limits.get(which) != seconds:
            self._socket.setsockopt(socket.SOL_SOCKET, which, _interval(seconds))
            self._limits[which] = seconds
        return self._socket


class TcpTransport(SocketTransport):
    """Exchange bytes with an instrument over a TCP connection.

    Args:
        host: name or address of the instrument.
        port: number of the port.
        timeout: longest time without a byte, in seconds.
    """

    def __init__(self, host: str, port: int, timeout: float = 2.0) -> None:
        super().__init__(f"tcp://{host}:{port}", timeout)
        self.host = host
        self.port = port

    def _open(self) -> None:
        try:
            connection = socket.create_connection((self.host, self.port), timeout=self.timeout)
        except TimeoutError as error:
            raise NotConnected(f"{self.uri} does not answer; check address and network") from error
        except OSError as error:
            raise NotConnected(f"{self.uri} cannot be reached: {error.strerror or error}") from error
        self._connected(connection)


def _interval(seconds: float) -> bytes:
    """Return a time as the bytes of a socket option."""
    if sys.platform == "win32":
        return struct.pack("I", max(1, round(1000 * seconds)))
    micros = max(1, round(1e6 * seconds))
    return struct.pack("ll", micros // 1_000_000, micros % 1_000_000)
