"""Interrupt exchanges after any byte: the next answers are right, and nothing is left behind."""

import random
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import astralora.devices as d
from astralora.drivers.emulator import FrameEmulator, ScpiEmulator
from astralora.drivers.frame_mvm import open_frame_mvm
from astralora.drivers.scpi_mvm import open_scpi_mvm

N, M = 5, 3


class Chip(d.HardwareDevice):
    """Multiply by its controls, exactly: small whole numbers."""

    def __init__(self, idempotent_program: bool = False) -> None:
        sizes = {"in_features": N, "out_features": M, "num_controls": N * M}
        super().__init__(d.DeviceSpec(name="chip", idempotent_program=idempotent_program, **sizes))
        self.weights = np.zeros((M, N), np.float32)

    def _open(self) -> None: ...

    def _close(self) -> None: ...

    def _program(self, controls: Any) -> None:
        self.weights = controls.reshape(M, N).copy()

    def _query(self, inputs: Any) -> Any:
        return inputs @ self.weights.T


class Interrupter:
    """Press Ctrl-C after a number of received bytes, once."""

    def __init__(self, transport: Any) -> None:
        self._receive = transport._receive  # noqa: SLF001 - there is no public way to interrupt in the middle
        transport._receive = self  # noqa: SLF001
        self.left: int | None = None

    def __call__(self, view: memoryview, seconds: float) -> int:
        if self.left is None:
            return int(self._receive(view, seconds))
        if not self.left:
            self.left = None
            raise KeyboardInterrupt
        count = int(self._receive(view[: self.left], seconds))
        self.left -= count
        return count


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "pty"])
@pytest.mark.parametrize("protocol", ["frames", "scpi"])
@pytest.mark.parametrize("count", [150, pytest.param(5000, marks=pytest.mark.campaign)])
def test_no_interruption_leads_to_a_wrong_answer(protocol: str, address: str, count: int) -> None:
    generator, random_numbers = torch.Generator().manual_seed(1), random.Random(1)
    emulator: Any = (FrameEmulator if protocol == "frames" else ScpiEmulator)(Chip(), address)
    with emulator:
        device: Any = (open_frame_mvm if protocol == "frames" else open_scpi_mvm)(emulator.uri)
        device.open()
        interrupter, interrupted = Interrupter(device.transport), 0
        for _ in range(count):
            controls = torch.randint(-9, 10, (N * M,), generator=generator).float()
            inputs = torch.randint(-9, 10, (random_numbers.randrange(1, 9), N), generator=generator).float()
            due = inputs @ controls.view(M, N).T
            for operation in (partial(device.program, controls), partial(device.query, inputs)):
                # An answer has 15 to 140 bytes; where it is shorter, nothing is interrupted.
                interrupter.left = random_numbers.choice([None, 0, random_numbers.randrange(150)])
                try:
                    operation()
                except KeyboardInterrupt:
                    interrupted += 1
                    if random_numbers.random() < 0.5:
                        device.flush()
                    operation()
                interrupter.left = None
            assert torch.equal(device.query(inputs), due)
        device.close()
    assert interrupted > count / 3


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "pty"])
@pytest.mark.parametrize("protocol", ["frames", "scpi"])
def test_a_message_that_was_cut_off_leads_to_no_wrong_answer(
    protocol: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    emulator: Any = (FrameEmulator if protocol == "frames" else ScpiEmulator)(Chip(idempotent_program=True), address)
    with emulator:
        device: Any = (open_frame_mvm if protocol == "frames" else open_scpi_mvm)(emulator.uri, timeout=0.3)
        with d.Session(device, retry=d.Retry(attempts=6, wait_seconds=0.01)) as session:
            for length in (1, 5, 12, 17, 30, 60):
                send = device.transport._send  # noqa: SLF001 - there is no public way to interrupt in the middle

                def cut(parts: Any, send: Any = send, length: int = length) -> None:
                    send((b"".join(parts)[:length],))
                    raise KeyboardInterrupt

                with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                    patch.setattr(device.transport, "_send", cut)
                    session.program(torch.full((N * M,), float(length)))
                controls = torch.randint(-9, 10, (N * M,), generator=generator).float()
                inputs = torch.randint(-9, 10, (4, N), generator=generator).float()
                assert torch.equal(session.apply(controls, inputs), inputs @ controls.view(M, N).T)
