"""Instruments on the network."""

from __future__ import annotations

import select
import socket

from devices import DeviceTimeout, NotConnected

from .base import Bytes, Transport

__all__ = ["SocketTransport", "TcpTransport"]


class SocketTransport(Transport):
    """A connected stream socket; either end of it."""

    def __init__(self, uri: str, timeout: float = 2.0) -> None:
        super().__init__(uri, timeout)
        self._socket: socket.socket | None = None

    def _close(self) -> None:
        connection, self._socket = self._socket, None
        assert connection is not None
        connection.close()

    def _send(self, parts: tuple[Bytes, ...]) -> None:
        assert self._socket is not None
        self._socket.settimeout(self.timeout)
        try:
            # All parts in one call and without joining them; what did not fit is sent after.
            sent = self._socket.sendmsg(parts)
            for part in parts:
                if sent < len(part):
                    self._socket.sendall(memoryview(part)[sent:])
                sent = max(0, sent - len(part))
        except TimeoutError as error:
            raise DeviceTimeout(f"{self.uri} takes no more bytes") from error
        except OSError as error:
            raise NotConnected(f"{self.uri} has hung up: {error.strerror or error}") from error

    def _receive(self, view: memoryview, seconds: float) -> int:
        assert self._socket is not None
        try:
            if seconds <= 0:
                if not select.select([self._socket], [], [], 0)[0]:
                    return 0
            elif self._socket.gettimeout() != seconds:
                self._socket.settimeout(seconds)
            count = self._socket.recv_into(view)
        except TimeoutError:
            return 0
        except (OSError, ValueError) as error:
            raise NotConnected(f"{self.uri} has hung up: {error}") from error
        if not count:
            raise NotConnected(f"{self.uri} has hung up; check the instrument, and whether somebody else uses it")
        return count


class TcpTransport(SocketTransport):
    """A TCP connection to an instrument.

    Args:
        host: name or address.
        port: number.
        timeout: longest silence that is waited through, in seconds.
    """

    def __init__(self, host: str, port: int, timeout: float = 2.0) -> None:
        super().__init__(f"tcp://{host}:{port}", timeout)
        self.host = host
        self.port = port

    def _open(self) -> None:
        try:
            self._socket = socket.create_connection((self.host, self.port), timeout=self.timeout)
        except TimeoutError as error:
            raise NotConnected(f"{self.uri} does not answer; check address and network") from error
        except OSError as error:
            raise NotConnected(f"{self.uri} cannot be reached: {error.strerror or error}") from error
        # Requests are answered one by one: waiting for more to send would only cost time.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
