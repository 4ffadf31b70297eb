"""Emulate a device on a real port, to test driver, transport and operating system without the chip."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import ClassVar

from ...devices import Device, DeviceError, DeviceTimeout, NotConnected, ProtocolError
from ...devices.wrappers.faults import CHIP_FAULTS, LINK_FAULTS, FaultKind, FaultPlan, FaultyDevice
from ..frame_server import FrameServer
from ..frames import ERROR, Header, encode_frame
from ..messages import OPERATIONS, encode_error
from ..scpi_server import Message, ScpiServer
from ..transports import Transport
from ..transports.base import Bytes
from ..values import ByteOrder
from .line_faults import HungUp, LineFaults
from .ports import open_port
from .serving import PortServer

__all__ = ["Emulator", "FrameEmulator", "ScpiEmulator"]


class Emulator(PortServer):
    """Emulate the firmware of a device on a port, in a separate thread.

    Use it as a context manager, or call `start` and `stop`. It serves one host at a time.

    Args:
        device: device that computes the answers; usually a simulator.
        address: address to listen on: ``pty``, ``pty:PATH``, ``tcp://HOST:PORT`` or ``loop://NAME``.
        faults: faults to inject into programs and queries.
        public: allow a TCP address that other machines can reach; there is no authentication.

    Attributes:
        driver: name of the registered device whose driver connects to the emulator.
        port: port that the emulator listens on.
        server: server that answers the requests.
        uri: address to give to the driver.

    Raises:
        DeviceError: the emulator cannot listen on the address.
    """

    server: FrameServer | ScpiServer

    driver: ClassVar[str]
    busy: ClassVar[Bytes] = b""

    def __init__(
        self, device: Device, address: str = "pty", faults: FaultPlan | None = None, *, public: bool = False
    ) -> None:
        self.device = device
        plan = faults or FaultPlan()
        self._chip = FaultyDevice(device, plan, CHIP_FAULTS)
        self._line_faults = LineFaults(plan, self._chip, self.possible_faults(plan))
        super().__init__(open_port(address, busy=self.busy, public=public))

    @classmethod
    def possible_faults(cls, plan: FaultPlan) -> tuple[FaultKind, ...]:
        """Return the faults of the line that the protocol can detect."""
        return LINK_FAULTS

    @property
    def injected(self) -> Counter[FaultKind]:
        """Return the number of faults of each kind that were injected."""
        return self._chip.injected + self._line_faults.dice.injected

    def stop(self) -> None:
        """Stop answering requests, close the port, and bring the device into its safe state."""
        super().stop()
        self.device.close()

    def _run(self) -> None:
        while True:
            # A host that has gone without SAFE may have left a watchdog running.
            line = self.port.accept(self._stop, self.server.watchdog.check)
            if line is None:
                return
            try:
                self.server.serve(line, self._stop)
            except HungUp:
                self.port.hang_up(line)
            except NotConnected:
                pass  # the host has closed the connection or sends no requests; another host may connect
            finally:
                with suppress(DeviceError, OSError):
                    line.close()


class FrameEmulator(Emulator):
    """Emulate firmware that uses the framed binary protocol."""

    driver = "frame-mvm"
    busy = b"".join(encode_frame(ERROR, 0, encode_error(NotConnected("is in use by another host; close it there"))))

    def __init__(
        self, device: Device, address: str = "pty", faults: FaultPlan | None = None, *, public: bool = False
    ) -> None:
        super().__init__(device, address, faults, public=public)
        self.server = _FaultyFrameServer(self._chip if faults else device, self._line_faults if faults else None)


class ScpiEmulator(Emulator):
    """Emulate an instrument that uses SCPI.

    Args:
        device: device that computes the answers.
        address: address to listen on.
        faults: faults to inject into programs and queries.
        public: allow a TCP address that other machines can reach; there is no authentication.
        byte_order: order of the bytes of the values in all blocks.
    """

    driver = "scpi-mvm"

    def __init__(
        self,
        device: Device,
        address: str = "tcp://127.0.0.1:0",
        faults: FaultPlan | None = None,
        *,
        public: bool = False,
        byte_order: ByteOrder = "little",
    ) -> None:
        super().__init__(device, address, faults, public=public)
        self.server = _FaultyScpiServer(
            self._chip if faults else device, self._line_faults if faults else None, byte_order
        )

    @classmethod
    def possible_faults(cls, plan: FaultPlan) -> tuple[FaultKind, ...]:
        """Return all faults of the line except damaged bytes, which SCPI cannot detect without a checksum.

        Raises:
            DeviceError: the plan contains ``corrupt``.
        """
        if plan.corrupt or "corrupt" in plan.at.values():
            raise DeviceError("SCPI cannot detect a corrupt answer; leave 'corrupt' out of the plan, or use frames")
        return tuple(kind for kind in LINK_FAULTS if kind != "corrupt")


class _FaultyFrameServer(FrameServer):
    def __init__(self, device: Device, faults: LineFaults | None) -> None:
        super().__init__(device)
        self._faults = faults

    def respond(self, line: Transport, header: Header, payload: memoryview | DeviceError) -> None:
        if self._faults is None or header.command not in OPERATIONS:
            super().respond(line, header, payload)
            return
        damaged = ProtocolError("a payload arrived damaged")
        with suppress(DeviceTimeout):
            self._faults.answer(
                line,
                lambda: self.handle(header, payload),
                lambda: encode_frame(ERROR, header.sequence, encode_error(damaged)),
            )


class _FaultyScpiServer(ScpiServer):
    def __init__(self, device: Device, faults: LineFaults | None, byte_order: ByteOrder) -> None:
        super().__init__(device, byte_order=byte_order)
        self._faults = faults

    def respond(self, line: Transport, message: Message) -> None:
        if self._faults is None or not message.operates:
            super().respond(line, message)
            return
        with suppress(DeviceTimeout):
            self._faults.answer(line, lambda: self.handle(message), list)
