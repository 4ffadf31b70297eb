"""Serve simulated chips on real ports of this process, and observe whether they are in their safe state."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

import astralora.devices as d
from astralora.drivers.emulator import FrameEmulator, ScpiEmulator

__all__ = ["KINDS", "Chip", "serve", "wait_until"]

KINDS = {"numpy": 1, "frame": 1, "scpi": 1, "tiled": 4}
"""Number of chips of each kind of device."""


class Chip:
    """Multiply by a matrix of 2 x 2 controls; the chip is on from its first program until it is closed.

    Args:
        name: name and serial number.
        slow: duration of closing in seconds.
        failures: number of attempts to close that fail.
    """

    def __init__(self, name: str = "chip", slow: float = 0.0, failures: int = 0) -> None:
        self.spec = d.DeviceSpec(
            name=name,
            serial_number=name,
            in_features=2,
            out_features=2,
            num_controls=4,
            linear=True,
            coupling="elementwise",
            idempotent_program=True,
        )
        self.is_on = False
        self.is_closing = False
        self.closed = 0
        self.programs = 0
        self.queries = 0
        self._slow, self._failures = slow, failures
        self._weights = torch.zeros(2, 2)

    def open(self) -> None: ...

    def close(self) -> None:
        self.is_closing = True
        time.sleep(self._slow)
        if self._failures:
            self._failures -= 1
            raise d.DeviceError("the supply did not switch off")
        self._weights = torch.zeros(2, 2)
        self.is_on = False
        self.closed += 1

    def program(self, controls: Tensor) -> None:
        self.is_on, self.is_closing = True, False
        self.programs += 1
        self._weights = controls.reshape(2, 2)

    def query(self, inputs: Tensor) -> Tensor:
        self.queries += 1
        return inputs @ self._weights.T


@contextmanager
def serve(kind: str, chips: Sequence[Chip]) -> Generator[list[str]]:
    """Serve chips until the end of a ``with`` block, and yield their addresses.

    Args:
        kind: ``"numpy"`` for lines of text; ``"scpi"``; ``"frame"`` or ``"tiled"`` for frames.
        chips: the chips, one for each port.
    """
    with ExitStack() as stack:
        if kind == "numpy":
            yield [stack.enter_context(_text_port(chip)) for chip in chips]
        else:
            emulator = ScpiEmulator if kind == "scpi" else FrameEmulator
            yield [stack.enter_context(emulator(chip, "tcp://127.0.0.1:0")).uri for chip in chips]


@contextmanager
def _text_port(chip: Chip) -> Generator[str]:
    class Lines(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                try:
                    answer = _answer(chip, line.split())
                except Exception as error:
                    answer = f"ERR {error}"
                self.wfile.write(answer.encode() + b"\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Lines) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield f"tcp://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def _answer(chip: Chip, words: list[bytes]) -> str:
    command, values = words[0], torch.tensor([float(word) for word in words[1:]])
    if command == b"V":
        chip.program(values)
    elif command == b"S":
        chip.close()
    else:
        return "OK " + " ".join(map(str, chip.query(values.reshape(1, 2)).flatten().tolist()))
    return "OK"


def wait_until(happens: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Return whether a condition becomes true in time."""
    until = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True
