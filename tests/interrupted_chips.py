"""Make chips on real ports, with drivers as labs and vendors write them, for tests of interruptions.

All chips have the law ``y = (V / 5) x``, and no noise.
"""

from __future__ import annotations

import importlib.util
import queue
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import astralora.devices as d
from astralora.devices import (
    Device,
    DeviceSpec,
    DeviceTimeout,
    FaultPlan,
    HardwareDevice,
    NotConnected,
    ProtocolError,
    wrap_device,
)
from astralora.drivers.emulator import Emulator, FrameEmulator, ScpiEmulator
from astralora.drivers.transports import Transport
from astralora.drivers.transports.base import Bytes

from .text_chip import FULL_SCALE, TextChip

__all__ = ["CHIPS", "Chip", "Crossbar", "SequencedCrossbar", "crossbar_spec", "emulated"]

ROOT = Path(__file__).parents[1]
_FIRST_ANSWER = 5.0  # seconds; a child process on a busy machine needs long for its first answer


def crossbar_spec(size: int, **claims: Any) -> DeviceSpec:
    """Return the spec of a crossbar of ``size`` x ``size`` heaters."""
    options: dict[str, Any] = {
        "name": "crossbar",
        "input_range": (-1.0, 1.0),
        "control_range": (0.0, FULL_SCALE),
        "linear": True,
        "coupling": "elementwise",
        "idempotent_program": True,
        **claims,
    }
    return DeviceSpec(in_features=size, out_features=size, num_controls=size * size, **options)


class Chip(Protocol):
    """Disturb a chip, and count what it has carried out."""

    @property
    def counts(self) -> Counter[str]:
        """Return the numbers of ``programs`` and ``vectors``, and of disturbed answers."""
        ...

    @property
    def is_on(self) -> bool:
        """Return whether the chip is not in its safe state."""
        ...

    def disturb(
        self, *, late: float = 0.0, garbage: float = 0.0, timeout: float = 0.05, pause: float = 0.0, seed: int = 0
    ) -> None:
        """Set the faults of the answers; see `TextChip.disturb`."""
        ...


# -- drivers for the text chip ---------------------------------------------------------------------


class RawLine:
    """Exchange lines as short programs do: bytes that nobody has read stay until the line is closed.

    Args:
        uri: address of the chip.
        timeout: longest silence, in seconds.
    """

    def __init__(self, uri: str, timeout: float) -> None:
        self.scheme, _, self.place = uri.partition("://")
        self.timeout = timeout
        self.port: Any = None
        self.pending = b""

    def open(self) -> None:
        self.pending = b""
        if self.scheme == "tcp":
            host, _, number = self.place.rpartition(":")
            self.port = socket.create_connection((host, int(number)), timeout=self.timeout)
        else:
            import serial

            self.port = serial.Serial(self.place, timeout=self.timeout, write_timeout=1.0)

    def close(self) -> None:
        port, self.port = self.port, None
        if port is not None:
            port.close()

    def write(self, line: str) -> None:
        send = self.port.sendall if self.scheme == "tcp" else self.port.write
        send(line.encode() + b"\n")

    def readline(self) -> str:
        while b"\n" not in self.pending:
            arrived = self.port.recv(4096) if self.scheme == "tcp" else self.port.read(max(1, self.port.in_waiting))
            if not arrived:
                raise ConnectionError("closed by the chip") if self.scheme == "tcp" else TimeoutError("timed out")
            self.pending += arrived
        line, _, self.pending = self.pending.partition(b"\n")
        return line.decode()


class Minimal(HardwareDevice):
    """Drive the chip with as little code as possible: all vectors are sent before the first answer is read."""

    def __init__(self, uri: str, timeout: float, **claims: Any) -> None:
        super().__init__(crossbar_spec(4, **claims))
        self.line = RawLine(uri, timeout)

    def _open(self) -> None:
        self.line.open()

    def _close(self) -> None:
        self.line.close()

    def _program(self, controls: NDArray[Any]) -> None:
        with _errors_of_devices():
            self.line.write(" ".join(["V", *map(str, controls)]))
            if self.line.readline().startswith("ERR"):
                raise ProtocolError("the chip refused the voltages")

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        with _errors_of_devices():
            for vector in inputs:
                self.line.write(" ".join(["X", *map(str, vector)]))
            return np.array([[float(word) for word in self.line.readline().split()] for _ in inputs])


@contextmanager
def _errors_of_devices() -> Generator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DeviceTimeout(str(error)) from error
    except OSError as error:
        raise NotConnected(str(error)) from error


class VendorLibrary:
    """Behave as a vendor's library: a thread collects answers, and a late one stays until the next `connect`.

    It raises errors of its own, which are not errors of devices.
    """

    def __init__(self, uri: str, timeout: float) -> None:
        self.timeout = timeout
        self.line = RawLine(uri, 60.0)  # the thread waits as long as the line is open
        self.answers: queue.Queue[str] = queue.Queue()

    def connect(self) -> None:
        self.disconnect()
        self.line = line = RawLine(f"{self.line.scheme}://{self.line.place}", 60.0)
        answers: queue.Queue[str] = queue.Queue()
        self.answers = answers
        line.open()
        threading.Thread(target=self._collect, args=(line, answers), daemon=True).start()

    def disconnect(self) -> None:
        port = self.line.port
        if port is not None and self.line.scheme == "tcp":
            with suppress(OSError):
                port.shutdown(socket.SHUT_RDWR)  # wakes the thread
        elif port is not None:
            port.cancel_read()
        self.line.close()

    @staticmethod
    def _collect(line: RawLine, answers: queue.Queue[str]) -> None:
        with suppress(OSError, TypeError, AttributeError):  # the line was closed
            while True:
                answers.put(line.readline())

    def set_voltages(self, voltages: NDArray[Any]) -> None:
        self.line.write(" ".join(["V", *map(str, voltages)]))
        self.answers.get(timeout=self.timeout)

    def measure(self, inputs: NDArray[Any]) -> NDArray[Any]:
        rows = []
        for vector in inputs:
            self.line.write(" ".join(["X", *map(str, vector)]))
            rows.append([float(word) for word in self.answers.get(timeout=self.timeout).split()])
        return np.array(rows)


def _vendor(uri: str, timeout: float) -> Device:
    library = VendorLibrary(uri, timeout)
    return wrap_device(
        crossbar_spec(4),
        program=library.set_voltages,
        query=library.measure,
        open=library.connect,
        close=library.disconnect,
    )


def _vendor_for_ever(uri: str, timeout: float) -> Device:
    """Return a vendor's library that the driver connects once, and that a session cannot connect again."""
    library = VendorLibrary(uri, timeout)
    library.connect()
    return wrap_device(crossbar_spec(4), program=library.set_voltages, query=library.measure)


def _documented(uri: str, timeout: float) -> Device:
    """Return the driver that docs/drivers.md shows."""
    page = (ROOT / "docs" / "drivers.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n([^`]*class Heaters\(.*?)al\.register_device\(", page, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "docs/drivers.md", "exec"), names)
    device: Device = names["Heaters"](f"{uri}?timeout={timeout}")
    return device


def _template(uri: str, timeout: float) -> Device:
    """Return the driver of examples/driver-template."""
    place = ROOT / "examples" / "driver-template" / "src" / "bench_chip" / "driver.py"
    found = importlib.util.spec_from_file_location("bench_chip_driver", place)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    device: Device = module.BenchChip(uri, timeout=timeout)
    return device


@contextmanager
def _text_chip(
    driver: Callable[[str, float], Device], port: str, timeout: float, size: int = 4, acknowledgement: str = "OK"
) -> Generator[tuple[Device, Chip]]:
    with TextChip(size, port, acknowledgement) as chip:
        yield driver(chip.uri, timeout), chip


# -- chips that number their answers ---------------------------------------------------------------


class Crossbar(HardwareDevice):
    """Compute the law of the text chip in memory, and answer late on request.

    Attributes:
        counts: numbers of programs and vectors carried out, and of disturbed answers.
        is_on: whether the chip has been programmed, and not been closed since.
    """

    def __init__(self, size: int = 4, **claims: Any) -> None:
        super().__init__(crossbar_spec(size, **claims))
        self.counts: Counter[str] = Counter()
        self.is_on = False
        self._late, self._garbage, self._timeout, self._pause = 0.0, 0.0, 0.0, 0.0
        self._random = random.Random(0)
        self._host_random = random.Random(0)
        self._matrix: NDArray[Any] = np.zeros((size, size))

    def disturb(
        self, *, late: float = 0.0, garbage: float = 0.0, timeout: float = 0.05, pause: float = 0.0, seed: int = 0
    ) -> None:
        self._late, self._garbage, self._timeout, self._pause = late, garbage, timeout, pause
        self._random, self._host_random = random.Random(seed), random.Random(seed + 1)

    def break_reads(self, transport: Transport) -> None:
        """Let reads of a host raise ValueError, as a mistake in a driver does: once for a share of the requests."""
        left: int | None = None

        def write(send: Callable[..., None], *parts: Bytes) -> None:
            nonlocal left
            left = self._host_random.randint(0, 3) if self._host_random.random() < self._garbage else None
            send(*parts)

        def read_into(receive: Callable[..., None], view: memoryview, patience: float = 0.0) -> None:
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    left = None
                    self.counts["garbage"] += 1
                    raise ValueError("a mistake in the driver")
            receive(view, patience)

        for name, replacement in (("write", write), ("read_into", read_into)):
            setattr(transport, name, partial(replacement, getattr(transport, name)))

    def _open(self) -> None:
        pass

    def _close(self) -> None:
        self.is_on = False

    def _program(self, controls: NDArray[Any]) -> None:
        self.counts["programs"] += 1
        self.is_on = True
        self._matrix = np.array(controls, dtype=float).reshape(self._matrix.shape) / FULL_SCALE
        self._wait()

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self.counts["vectors"] += len(inputs)
        self._wait()
        answers: NDArray[Any] = inputs.astype(float) @ self._matrix.T
        return answers

    def _wait(self) -> None:
        seconds = self._pause
        if self._random.random() < self._late:
            self.counts["late"] += 1
            seconds = self._timeout * self._random.uniform(1.0, 3.0)
        if seconds:
            time.sleep(seconds)


class SequencedCrossbar(Crossbar):
    """Run several settings in one call."""

    capabilities = (d.ProgramsMany,)

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        answers = []
        for setting in controls:
            self.program(setting)
            answers.append(self.query(inputs))
        return torch.stack(answers)


@contextmanager
def emulated(
    emulator: type[Emulator], chip: Crossbar, port: str, timeout: float, faults: FaultPlan | None = None
) -> Generator[tuple[Device, Emulator]]:
    """Serve a chip on a ``"tcp"`` or ``"pty"`` port, and make its driver."""
    address = {"tcp": "tcp://127.0.0.1:0", "pty": "pty"}[port]
    with emulator(chip, address, faults) as served:
        # The first exchange may be slow on a busy machine, so that the timeout is shortened only after it.
        device: Any = d.make_device(emulator.driver, port=served.uri, timeout=_FIRST_ANSWER)
        device.transport.timeout = timeout
        yield device, served


@contextmanager
def _numbered_chip(emulator: type[Emulator], port: str, timeout: float) -> Generator[tuple[Device, Chip]]:
    chip = Crossbar()
    with emulated(emulator, chip, port, timeout) as (device, _):
        chip.break_reads(device.transport)  # type: ignore[attr-defined]
        yield device, chip


# -- all of them -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """Describe how to start one kind of chip, and what its driver can do.

    Attributes:
        start: function of ``"tcp"`` or ``"pty"`` and a timeout that starts the chip and makes its driver.
        recovers: whether the driver can always be brought back into step with its chip.
        makes_safe: whether the driver brings the chip into its safe state when it is closed.
    """

    start: Callable[[str, float], Any]
    recovers: bool = True
    makes_safe: bool = True


CHIPS: dict[str, Made] = {
    "minimal": Made(lambda port, timeout: _text_chip(Minimal, port, timeout), makes_safe=False),
    "vendor": Made(lambda port, timeout: _text_chip(_vendor, port, timeout), makes_safe=False),
    "docs": Made(lambda port, timeout: _text_chip(_documented, port, timeout)),
    "template": Made(lambda port, timeout: _text_chip(_template, port, timeout, size=8)),
    "frame": Made(lambda port, timeout: _numbered_chip(FrameEmulator, port, timeout)),
    "scpi": Made(lambda port, timeout: _numbered_chip(ScpiEmulator, port, timeout)),
    "not-idempotent": Made(
        lambda port, timeout: _text_chip(
            lambda uri, seconds: Minimal(uri, seconds, idempotent_program=False), port, timeout
        ),
        recovers=False,
        makes_safe=False,
    ),
    "never-reopened": Made(
        lambda port, timeout: _text_chip(_vendor_for_ever, port, timeout), recovers=False, makes_safe=False
    ),
}
"""Chips by the name of their driver."""
