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

    forgets = True

    def __init__(self, uri: str, timeout: float = 2.0) -> None:
        super().__init__(uri, timeout)
        self._socket: socket.socket | None = None
        self._process: int | None = None
        self._limits: dict[int, float] = {}
        self._has_kernel_timeouts = False

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
        # Windows lacks these, and leaves a socket in an undefined state after a timeout of the kernel.
        self._has_kernel_timeouts = (
            sys.platform != "win32"
            and callable(getattr(connection, "sendmsg", None))
            and hasattr(socket, "MSG_DONTWAIT")
        )

    def _send(self, parts: tuple[Bytes, ...]) -> None:
        try:
            if self._has_kernel_timeouts:
                connection = self._limited(socket.SO_SNDTIMEO, self.timeout)
                # Send all parts in one call without joining them; the rest follows below.
                sent = connection.sendmsg(parts)
                for part in parts:
                    if sent < len(part):
                        connection.sendall(memoryview(part)[sent:])
                    sent = max(0, sent - len(part))
            else:
                self._timed(self.timeout).sendall(b"".join(parts))
        except OSError as error:
            if _is_timeout(error):
                raise DeviceTimeout(f"{self.uri} accepts no more bytes; {_HINT}") from error
            raise NotConnected(f"{self.uri} has closed the connection: {error.strerror or error}; {_HINT}") from error

    def _receive(self, view: memoryview, seconds: float) -> int:
        try:
            if not self._has_kernel_timeouts:
                count = self._timed(max(0.0, seconds)).recv_into(view)
            elif seconds > 0:
                count = self._limited(socket.SO_RCVTIMEO, seconds).recv_into(view, flags=socket.MSG_WAITALL)
            else:
                assert self._socket is not None
                count = self._socket.recv_into(view, flags=socket.MSG_DONTWAIT)
        except OSError as error:
            if _is_timeout(error):
                return 0
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

    def _timed(self, seconds: float) -> socket.socket:
        assert self._socket is not None
        self._socket.settimeout(seconds)
        return self._socket


class TcpTransport(SocketTransport):
    """Exchange bytes with an instrument over a TCP connection.

    Args:
        host: name or address of the instrument.
        port: number of the port.
        timeout: longest time without a byte, in seconds.
    """

    # Behind a serial server, the instrument keeps its unsent answers when the connection is closed.
    forgets = False

    def __init__(self, host: str, port: int, timeout: float = 2.0) -> None:
        super().__init__(f"tcp://{host}:{port}", timeout)
        self.host = host
        self.port = port

    def _open(self) -> None:
        try:
            connection = socket.create_connection((self.host, self.port), timeout=self.timeout)
        except OSError as error:
            if isinstance(error, TimeoutError):
                reason = "does not answer; check address and network"
            else:
                reason = f"cannot be reached: {error.strerror or error}"
            if self._is_held_here():
                reason += "; another device or session of this process is connected to it, close that one first"
            raise NotConnected(f"{self.uri} {reason}") from error
        self._connected(connection)


def _is_timeout(error: OSError) -> bool:
    """Return whether an error is the end of a timeout, not a connection that the operating system gave up."""
    return isinstance(error, BlockingIOError) or (isinstance(error, TimeoutError) and error.errno is None)


def _interval(seconds: float) -> bytes:
    """Return a time as the bytes of a socket option of POSIX."""
    micros = max(1, round(1e6 * seconds))
    return struct.pack("ll", micros // 1_000_000, micros % 1_000_000)
