"""Simulate the chip on a TCP port: answer as its firmware does."""

import socketserver
import threading
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np


class _Chip(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        volts = np.zeros((8, 8))
        for line in self.rfile:
            command, *words = line.split()
            values = np.array([float(word) for word in words])
            if command == b"V" and values.size == 64:
                volts = np.rint(values.reshape(8, 8) * 4095 / 5) * 5 / 4095  # its 12-bit converters
                answer = "OK"
            elif command == b"S":
                volts, answer = np.zeros((8, 8)), "OK"
            elif command == b"X" and values.size == 8:
                answer = " ".join(f"{value:.9g}" for value in (volts / 5) @ values)
            else:
                answer = "ERR what?"
            self.wfile.write(answer.encode() + b"\n")


@contextmanager
def chip_on_tcp() -> Generator[str]:
    """Serve the chip on a free port, and yield the address for the driver."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Chip) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"tcp://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
