"""Simulate the chip on a TCP port: answer as its firmware does, and late or wrongly on demand."""

import socketserver
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np


class Chip:
    """Compute the answers of the chip.

    Attributes:
        late: time by which the next answer to a query is late, in seconds.
        meanwhile: function to call while an answer is late.
        wrong: answer in place of the next one; None for the right one.
        newest: newest command.
        address: address for the driver.
    """

    def __init__(self) -> None:
        self.volts = np.zeros((8, 8))
        self.late = 0.0
        self.meanwhile: Callable[[], None] = lambda: None
        self.wrong: str | None = None
        self.newest = ""
        self.address = ""

    def answer(self, line: str) -> str:
        """Return the answer to one line."""
        self.newest, *words = line.split()
        values = np.array([float(word) for word in words])
        wrong, self.wrong = self.wrong, None
        if wrong is not None:
            return wrong
        if self.newest == "V" and values.size == 64:
            self.volts = np.rint(values.reshape(8, 8) * 4095 / 5) * 5 / 4095  # its 12-bit converters
            return "OK"
        if self.newest == "S":
            self.volts = np.zeros((8, 8))
            return "OK"
        if self.newest == "X" and values.size == 8:
            late, self.late = self.late, 0.0
            if late:
                self.meanwhile()
                time.sleep(late)
            return " ".join(f"{value:.9g}" for value in (self.volts / 5) @ values)
        return "ERR what?"


@contextmanager
def chip_on_tcp(chip: Chip | None = None, port: int = 0) -> Generator[Chip]:
    """Serve a chip on a port, or on any free port, and yield the chip."""
    served = chip or Chip()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                if line.strip():
                    self.wfile.write(served.answer(line.decode("ascii", "replace")).encode() + b"\n")

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def process_request(self, request: Any, client_address: Any) -> None:
            connections.append(request)
            super().process_request(request, client_address)

    connections: list[Any] = []
    with Server(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        served.address = f"tcp://127.0.0.1:{server.server_address[1]}"
        try:
            yield served
        finally:
            server.shutdown()
            for connection in connections:
                server.shutdown_request(connection)
