"""Hold the other end of a line: a pseudo-terminal, a socket, VISA on a socket, memory."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest

from astralora.drivers.transports import LoopbackTransport

__all__ = [
    "KINDS",
    "SILENCE",
    "TIMEOUT",
    "Memory",
    "Peer",
    "Socket",
    "Terminal",
    "in_background",
    "interruptions",
    "make_peer",
]

# Long enough that a line which works never reaches it; tests of silence choose their own.
TIMEOUT = 20.0
SILENCE = 0.05
KINDS = ["serial", "tcp", "visa", "loop"]


class Peer(ABC):
    """Hold the other end of a line.

    Attributes:
        uri: leads to it.
    """

    uri: str

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Send all bytes."""

    @abstractmethod
    def receive(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""

    @abstractmethod
    def hang_up(self) -> None:
        """Disconnect; does nothing when disconnected already."""


class Terminal(Peer):
    def __init__(self) -> None:
        import tty

        self._master, slave = os.openpty()
        tty.setraw(slave)
        self.uri = f"serial://{os.ttyname(slave)}"
        self._ends = [self._master, slave]

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._master, data) :]

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            assert select.select([self._master], [], [], TIMEOUT)[0], f"only {len(data)} of {count} bytes arrived"
            data += os.read(self._master, count - len(data))
        return data

    def hang_up(self) -> None:
        while self._ends:
            os.close(self._ends.pop())


class Socket(Peer):
    def __init__(self, uri: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT)
        self._connection: socket.socket | None = None
        self.uri = uri.format(port=self._listener.getsockname()[1])

    @property
    def _host(self) -> socket.socket:
        if self._connection is None:
            self._connection = self._listener.accept()[0]
            self._connection.settimeout(TIMEOUT)
        return self._connection

    def send(self, data: bytes) -> None:
        self._host.sendall(data)

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._host.recv(count - len(data))
            assert part, f"it hung up after {len(data)} of {count} bytes"
            data += part
        return data

    def refuse(self) -> None:
        """Refuse further connections."""
        self._listener.close()

    def hang_up(self) -> None:
        if self._listener.fileno() < 0:
            if self._connection is not None:
                self._connection.close()
        else:
            if self._connection is not None or select.select([self._listener], [], [], 0)[0]:
                self._host.close()
            self._listener.close()


class Memory(Peer):
    def __init__(self) -> None:
        self.uri = f"loop://transports-{id(self)}"
        self._name = self.uri.removeprefix("loop://")
        self._line: LoopbackTransport | None = None
        LoopbackTransport.listen(self._name, self._accept)

    def _accept(self, line: LoopbackTransport) -> None:
        line.timeout = TIMEOUT
        self._line = line

    def send(self, data: bytes) -> None:
        assert self._line is not None
        self._line.write(data)

    def receive(self, count: int) -> bytes:
        assert self._line is not None
        return bytes(self._line.read(count))

    def hang_up(self) -> None:
        LoopbackTransport.forget(self._name)
        if self._line is not None:
            self._line.close()


def make_peer(kind: str) -> Peer:
    if kind == "serial":
        return Terminal()
    if kind == "visa":
        pytest.importorskip("pyvisa_py", reason="pyvisa-py is not installed")
        return Socket("visa://TCPIP::127.0.0.1::{port}::SOCKET?backend=@py")
    return Socket("tcp://127.0.0.1:{port}") if kind == "tcp" else Memory()


@contextmanager
def interruptions() -> Generator[Callable[[], None]]:
    """Yield a function that interrupts the main thread, as Ctrl-C does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    try:
        yield lambda: signal.pthread_kill(main, signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def in_background(function: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread
