"""Measure the overhead of a wire protocol against a bare socket that copies the same bytes."""

from __future__ import annotations

import multiprocessing
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..devices import Device, DeviceSpec, derive_generator, make_device, make_emulator

__all__ = ["transport"]

_LONGEST_START = 60.0


class _Echo:
    """Answer every vector with itself, so that only the transport is timed."""

    def __init__(self, size: int) -> None:
        self.spec = DeviceSpec(
            name="echo", in_features=size, out_features=size, num_controls=1, idempotent_program=True
        )

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def program(self, controls: Tensor) -> None:
        pass

    def query(self, inputs: Tensor) -> Tensor:
        return inputs


def transport(protocol: str, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Measure the throughput of a driver over TCP loopback, as a share of the throughput of a bare socket.

    A second process runs an emulator of an echo device, and a socket that returns the same number of bytes. Both are
    timed alternately.

    Args:
        protocol: protocol of the emulator; see `list_emulators`.
        size: number of inputs, and of outputs.
        batch: vectors per query.
        rounds: pairs of measurements.

    Returns:
        Medians in microseconds and megabytes per second, median and quartiles of the share over blocks of rounds, and
        the bytes that the protocol adds to the values.
    """
    payload = 4 * batch * size
    with _servers(protocol, size, payload) as (driver, uri, port):
        device: Any = make_device(driver, port=uri)
        device.open()
        bare = socket.create_connection(("127.0.0.1", port))
        try:
            bare.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return {
                "protocol": protocol,
                "size": size,
                "batch": batch,
                "rounds": rounds,
                **_measure(device, bare, size, batch, rounds),
            }
        finally:
            bare.close()
            device.close()


def _measure(device: Any, bare: socket.socket, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Time driver and socket alternately, and count the bytes."""
    inputs = torch.empty(batch, size).uniform_(-1, 1, generator=derive_generator(0, "bench", "transport"))
    sent, back = inputs.numpy().tobytes(), bytearray(4 * batch * size)
    device.program(torch.zeros(1))
    moved = device.transport.sent + device.transport.received
    assert torch.equal(device.query(inputs), inputs)
    moved = device.transport.sent + device.transport.received - moved
    calls = (lambda: _exchange(bare, sent, back), lambda: device.query(inputs))
    pairs = np.array([_pair(calls, turn) for turn in range(rounds + rounds // 10)])[rounds // 10 :]
    shares = [np.median(block[:, 0]) / np.median(block[:, 1]) for block in np.array_split(pairs, 10)]
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75])
    values = 2 * len(sent)
    return {
        "socket_us": 1e6 * float(np.median(pairs[:, 0])),
        "driver_us": 1e6 * float(np.median(pairs[:, 1])),
        "driver_megabytes_per_second": 1e-6 * values / float(np.median(pairs[:, 1])),
        "share": float(middle),
        "share_low": float(low),
        "share_high": float(high),
        "bytes_of_values": values,
        "bytes_added": moved - values,
        "bytes_added_share": (moved - values) / values,
    }


def _pair(calls: tuple[Callable[[], object], Callable[[], object]], turn: int) -> tuple[float, float]:
    """Time both calls, in alternating order."""
    spans = [0.0, 0.0]
    for place in (0, 1) if turn % 2 else (1, 0):
        start = perf_counter()
        calls[place]()
        spans[place] = perf_counter() - start
    return spans[0], spans[1]


def _exchange(connection: socket.socket, sent: bytes, back: bytearray) -> None:
    """Send bytes, and receive the same number."""
    connection.sendall(sent)
    _fill(connection, memoryview(back))


def _fill(connection: socket.socket, view: memoryview) -> bool:
    """Receive until the view is full; return False where the connection ends before."""
    while view:
        count = connection.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True


@contextmanager
def _servers(protocol: str, size: int, payload: int) -> Generator[tuple[str, str, int]]:
    """Start a process with both servers; yield name and address for the driver, and the port of the socket."""
    # A fork would copy torch's threads in an undefined state.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, protocol, size, payload), daemon=True)
    process.start()
    try:
        if not ours.poll(_LONGEST_START):
            raise TimeoutError("the server process of the benchmark did not start")
        yield ours.recv()
    finally:
        ours.close()
        process.join(5)
        process.terminate()


def _serve(parent: Connection, protocol: str, size: int, payload: int) -> None:
    """Run both servers until the parent closes the connection."""
    torch.set_num_threads(1)
    echo: Device = _Echo(size)
    emulator = make_emulator(protocol, echo, "tcp://127.0.0.1:0").start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_send_back, args=(listener, payload), daemon=True).start()
        parent.send((emulator.driver, emulator.uri, listener.getsockname()[1]))
        try:
            parent.recv()
        except EOFError:
            pass  # the benchmark is over
        finally:
            emulator.stop()


def _send_back(listener: socket.socket, payload: int) -> None:
    """Send all received bytes back."""
    connection, _ = listener.accept()
    buffer = bytearray(payload)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while _fill(connection, memoryview(buffer)):
            connection.sendall(buffer)
