"""Simulate a chip that accepts lines of text, in a process of its own, with late and damaged answers.

The chip is a crossbar of n x n heaters with the law ``y = (V / 5) x``; a host has these commands:

    V v1 v2 ... vn²     set all voltages; the answer is the acknowledgement
    X x1 x2 ... xn      pass one vector; the answer is y1 y2 ... yn
    S                   set all voltages to zero; the answer is the acknowledgement

Commands are carried out in the order in which they arrive. Each command keeps the chip busy until its answer was sent.
The voltages stay when a host disconnects.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

__all__ = ["FULL_SCALE", "TextChip"]

FULL_SCALE = 5.0
"""Voltage at which an entry of the transfer matrix is one."""


class TextChip:
    """Start the chip, and close it at the end of a ``with`` block.

    Args:
        size: number n of inputs and of outputs.
        port: ``"tcp"`` or ``"pty"``.
        acknowledgement: answer to a command without numbers.

    Attributes:
        uri: address for a driver.
    """

    def __init__(self, size: int, port: str, acknowledgement: str = "OK") -> None:
        from .children import start

        options = {"stdin": -1, "stdout": -1, "start_new_session": True}  # pipes; no signals of the terminal
        command = [sys.executable, __file__, "--size", str(size), "--port", port, "--ack", acknowledgement]
        self._process = start(command, **options)
        self.uri = self._ask("")["uri"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input ends the chip

    def disturb(
        self, *, late: float = 0.0, garbage: float = 0.0, timeout: float = 0.05, pause: float = 0.0, seed: int = 0
    ) -> None:
        """Set the faults of the answers to ``V`` and ``X``.

        Args:
            late: probability that an answer is sent after 1.0 to 3.0 times the timeout.
            garbage: probability that a word of the answer is not a number.
            timeout: timeout of the driver, in seconds.
            pause: time that every answer takes, in seconds.
            seed: seed of the random choice.
        """
        self._ask(json.dumps({"late": late, "garbage": garbage, "timeout": timeout, "pause": pause, "seed": seed}))

    @property
    def counts(self) -> Counter[str]:
        """Return the numbers of ``programs`` and ``vectors`` carried out, and of ``late`` and ``garbage`` answers."""
        return Counter(self._ask("")["counts"])

    @property
    def is_on(self) -> bool:
        """Return whether a voltage is not zero."""
        return bool(self._ask("")["is_on"])

    def _ask(self, line: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(line + "\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer


class _Firmware:
    """Carry out commands one after the other, whatever connection they arrive on."""

    def __init__(self, size: int, acknowledgement: str) -> None:
        self.size = size
        self.acknowledgement = acknowledgement
        self.matrix = [[0.0] * size for _ in range(size)]
        self.counts: Counter[str] = Counter()
        self.faults = {"late": 0.0, "garbage": 0.0, "timeout": 0.05, "pause": 0.0, "seed": 0}
        self.random = random.Random(0)
        self.lock = threading.Lock()

    def disturb(self, faults: dict[str, Any]) -> None:
        with self.lock:
            self.faults, self.random = faults, random.Random(faults["seed"])

    def answer(self, line: bytes, send: Callable[[bytes], object]) -> None:
        with self.lock:
            command, *words = line.split() or [b"?"]
            answer = self.carry_out(command, words)
            seconds, faults = self.faults["pause"], self.faults
            if command in (b"V", b"X") and not answer.startswith("ERR"):
                if self.random.random() < faults["late"]:
                    self.counts["late"] += 1
                    seconds = faults["timeout"] * self.random.uniform(1.0, 3.0)
                if command == b"X" and self.random.random() < faults["garbage"]:
                    self.counts["garbage"] += 1
                    answer = answer[:-3] + "?.!"
            time.sleep(seconds)
            with suppress(OSError):  # the host has gone
                send(answer.encode() + b"\n")

    def carry_out(self, command: bytes, words: list[bytes]) -> str:
        try:
            values = [float(word) for word in words]
        except ValueError:
            return "ERR not a number"
        n = self.size
        if command == b"V" and len(values) == n * n:
            self.counts["programs"] += 1
            self.matrix = [[value / FULL_SCALE for value in values[row * n : row * n + n]] for row in range(n)]
            return self.acknowledgement
        if command == b"X" and len(values) == n:
            self.counts["vectors"] += 1
            answers = (sum(map(float.__mul__, row, values)) for row in self.matrix)
            return " ".join(f"{answer:.9g}" for answer in answers)
        if command == b"S" and not values:
            self.matrix = [[0.0] * n for _ in range(n)]
            return self.acknowledgement
        return "ERR what?"


def _serve_tcp(firmware: _Firmware) -> str:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                firmware.answer(line, connection.sendall)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return f"tcp://127.0.0.1:{listener.getsockname()[1]}"


def _serve_pty(firmware: _Firmware) -> str:
    import tty

    master, host = os.openpty()  # the host's end stays open here, so that the line survives when a host closes it
    tty.setraw(host)
    # Where the host does not read, bytes are lost, as at the end of a serial line.
    os.set_blocking(master, False)

    def serve() -> None:
        pending = b""
        while True:
            select.select([master], [], [])
            *lines, pending = (pending + os.read(master, 4096)).split(b"\n")
            for line in lines:
                firmware.answer(line, lambda data: os.write(master, data))

    threading.Thread(target=serve, daemon=True).start()
    return f"serial://{os.ttyname(host)}"


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--port", choices=["tcp", "pty"], required=True)
    parser.add_argument("--ack", required=True)
    options = parser.parse_args()
    firmware = _Firmware(options.size, options.ack)
    uri = {"tcp": _serve_tcp, "pty": _serve_pty}[options.port](firmware)
    for line in sys.stdin:
        if line.strip():
            firmware.disturb(json.loads(line))
        is_on = any(map(any, firmware.matrix))
        print(json.dumps({"uri": uri, "counts": firmware.counts, "is_on": is_on}), flush=True)


if __name__ == "__main__":
    _main()
