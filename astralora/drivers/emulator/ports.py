"""Listen for hosts on pseudo-terminals, TCP addresses, and names in memory."""

from __future__ import annotations

import errno
import ipaddress
import os
import queue
import select
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...devices import DeviceError, DeviceTimeout, NotConnected
from ..incoming import HostLine
from ..transports import LoopbackTransport, Transport
from ..transports.base import Bytes
from ..transports.sockets import SocketTransport
from ..transports.uri import parse_address
from .terminals import TerminalName

__all__ = ["Port", "open_port"]

# Interval at which a waiting thread checks whether to stop, in seconds.
_TICK = 0.05
# Longest time for a request to arrive, in seconds; a host may be slow.
_LONGEST_REQUEST = 1e5


class Port(ABC):
    """Accept connections of hosts, one host at a time.

    Attributes:
        uri: address for a driver.
    """

    uri: str

    @abstractmethod
    def accept(self, stop: threading.Event, idle: Callable[[], None]) -> Transport | None:
        """Wait for the next host and return the open line to it; return None when ``stop`` is set.

        Args:
            stop: event that ends the wait.
            idle: function that is called often during the wait.
        """

    @abstractmethod
    def hang_up(self, line: Transport) -> None:
        """Break a line, as unplugging the cable would."""

    @abstractmethod
    def close(self) -> None:
        """Stop listening."""


def open_port(address: str, *, busy: Bytes = b"", public: bool = False) -> Port:
    """Listen on an address.

    Args:
        address: ``pty`` for a new pseudo-terminal, ``pty:PATH`` for one with a symbolic link at PATH,
            ``tcp://HOST:PORT`` (port 0 for any free port), or ``loop://NAME``.
        busy: bytes to send to a second host before its connection is closed.
        public: allow other machines to connect; there is no authentication.

    Raises:
        DeviceError: the address is not valid or is in use, or other machines can reach it and ``public`` is not set.
    """
    scheme, separator, place = address.partition("://")
    if address == "pty":
        return _PtyPort(None)
    if address.startswith("pty:"):
        link = Path(address[4:])
        if not link.name:
            raise DeviceError(f"{address!r} names no file; write pty:PATH, or pty alone for a new pseudo-terminal")
        return _PtyPort(link)
    if separator and scheme == "tcp":
        try:
            host, number = parse_address(place)
        except ValueError as error:
            raise DeviceError(str(error)) from None
        return _TcpPort(host, number, busy, public)
    if separator and scheme == "loop" and place:
        return _LoopPort(place)
    raise DeviceError(f"{address!r} is not an address to listen on; write pty, tcp://127.0.0.1:5000 or loop://NAME")


# -- pseudo-terminals ------------------------------------------------------------------------------


class _PtyLine(HostLine):
    """Carry bytes at the instrument's end of a pseudo-terminal."""

    def __init__(self, uri: str, master: int) -> None:
        super().__init__(uri, timeout=_TICK)
        self.deadline = _LONGEST_REQUEST
        self._master = master
        os.set_blocking(master, False)

    def _open(self) -> None:
        pass

    def _close(self) -> None:
        pass  # the terminal belongs to the port, and stays open for the next host

    def _send(self, parts: tuple[Bytes, ...]) -> None:
        data = memoryview(b"".join(parts))
        while data:
            # Wait at most 2 s, so that a host that no longer reads does not block the instrument.
            if not select.select([], [self._master], [], 2.0)[1]:
                raise DeviceTimeout(f"the host does not read from {self.uri}")
            data = data[os.write(self._master, data) :]

    def _receive(self, view: memoryview, seconds: float) -> int:
        if not self.goes_on() or not select.select([self._master], [], [], seconds)[0]:
            return 0
        try:
            return os.readv(self._master, [view])
        except OSError as error:
            if error.errno in (errno.EIO, errno.EAGAIN):
                return 0
            raise NotConnected(f"{self.uri} is closed: {error}") from error


class _PtyPort(Port):
    def __init__(self, link: Path | None) -> None:
        self._master = self._slave = -1
        self._name: TerminalName | None = None
        try:
            self._name = TerminalName(link)
            self._connect(self._name)
        except (OSError, ValueError) as error:
            self.close()
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise DeviceError(f"no pseudo-terminal can be opened{f' at {link}' if link else ''}: {reason}") from error
        self.uri = f"serial://{self._name.path.absolute()}"

    def accept(self, stop: threading.Event, idle: Callable[[], None]) -> Transport | None:
        if stop.is_set():
            return None
        line = _PtyLine(self.uri, self._master)
        line.open()
        return line

    def hang_up(self, line: Transport) -> None:
        # The next terminal is made before the last one is closed, so that a host can reconnect at once.
        line.close()
        ends = self._master, self._slave
        assert self._name is not None
        self._connect(self._name)
        _close(ends)

    def close(self) -> None:
        ends, self._master, self._slave = (self._master, self._slave), -1, -1
        _close(ends)
        if self._name is not None:
            self._name.remove()

    def _connect(self, name: TerminalName) -> None:
        import tty

        # The host's end stays open here too, because the terminal would close when no host has it open.
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        # The name stays the same for the new terminal, as for a USB adapter that is plugged in again.
        name.point_to(os.ttyname(self._slave))


def _close(ends: tuple[int, int]) -> None:
    for end in ends:
        if end >= 0:
            os.close(end)


# -- TCP ---------------------------------------------------------------------------------------------


class _TcpLine(HostLine, SocketTransport):
    """Carry bytes at the instrument's end of a TCP connection."""

    def __init__(self, uri: str, connection: socket.socket) -> None:
        super().__init__(uri, timeout=_TICK)
        self.deadline = _LONGEST_REQUEST
        self._connected(connection)

    def _open(self) -> None:
        pass

    def _send(self, parts: tuple[Bytes, ...]) -> None:
        assert self._socket is not None
        self.timeout, tick = 2.0, self.timeout
        try:
            super()._send(parts)
        finally:
            self.timeout = tick

    def _receive(self, view: memoryview, seconds: float) -> int:
        return super()._receive(view, seconds) if self.goes_on() else 0

    def has_gone(self) -> bool:
        """Return whether the operating system reports that the host has closed the connection."""
        connection = self._socket
        if connection is None:
            return True
        try:
            readable = select.select([connection], [], [], _TICK)[0]
            # Windows has no MSG_DONTWAIT; the timeout of the line limits the wait there.
            return bool(readable) and connection.recv(1, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)) == b""
        except BlockingIOError:
            return False
        except TimeoutError as error:
            # Without a number, the timeout of the line has ended; with one, the connection was given up.
            return error.errno is not None
        except (OSError, ValueError):
            return True


class _TcpPort(Port):
    def __init__(self, host: str, number: int, busy: Bytes, public: bool) -> None:
        if not public and not _is_loopback(host):
            raise DeviceError(
                f"other machines can reach {host} and could operate the device without a password; "
                f"listen on 127.0.0.1, or pass --i-know"
            )
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, number), family=family)
        except (OSError, ValueError) as error:
            # ValueError: the host cannot be encoded as a name.
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise DeviceError(f"cannot listen on tcp://{host}:{number}: {reason}") from error
        bound = self._listener.getsockname()[1]
        self.uri = f"tcp://{f'[{host}]' if ':' in host else host}:{bound}"
        self._busy = busy
        self._current: _TcpLine | None = None
        self._arrived: queue.SimpleQueue[_TcpLine] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._receive_hosts, name=f"astralora {self.uri}", daemon=True)
        self._thread.start()

    def accept(self, stop: threading.Event, idle: Callable[[], None]) -> Transport | None:
        self._current = None
        while not stop.is_set():
            idle()
            with suppress(queue.Empty):
                self._current = self._arrived.get(timeout=_TICK)
                self._current.open()
                return self._current
        return None

    def hang_up(self, line: Transport) -> None:
        line.close()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._listener.close()
        with suppress(queue.Empty):
            while True:
                with self._arrived.get_nowait():
                    pass  # entering and leaving the block closes the connection

    def _receive_hosts(self) -> None:
        self._listener.settimeout(_TICK)
        while not self._closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            current = self._current
            if current is not None and not current.has_gone():
                # An instrument has one host at a time: a second host gets a message and is disconnected.
                with connection, suppress(OSError):
                    connection.sendall(self._busy)
                continue
            self._arrived.put(_TcpLine(self.uri, connection))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a host name may belong to any machine


# -- memory --------------------------------------------------------------------------------------


class _LoopPort(Port):
    def __init__(self, name: str) -> None:
        self.uri = f"loop://{name}"
        self._name = name
        self._arrived: queue.SimpleQueue[LoopbackTransport] = queue.SimpleQueue()
        LoopbackTransport.listen(name, self._arrived.put)

    def accept(self, stop: threading.Event, idle: Callable[[], None]) -> Transport | None:
        while not stop.is_set():
            idle()
            with suppress(queue.Empty):
                line = self._arrived.get(timeout=_TICK)
                line.timeout, line.deadline = _TICK, _LONGEST_REQUEST
                return line
        return None

    def hang_up(self, line: Transport) -> None:
        line.close()

    def close(self) -> None:
        LoopbackTransport.forget(self._name)
