"""Drive SCPI instruments over VISA or another transport."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..devices import DeviceSpec, Flushes, ProtocolError, Resends
from .link import Identity, ProtocolDevice, find_chip
from .scpi import block_head
from .scpi_link import LONGEST_BLOCK, ScpiLink
from .transports import Transport
from .values import Format, decode_values, encode_values

__all__ = ["ScpiDevice", "open_scpi_mvm"]

# Request numbers fit into a signed 32-bit integer, which every instrument can read.
_NUMBERS: Final = (1 << 31) - 1


class ScpiDevice(ProtocolDevice):
    """Drive an instrument that computes matrix-vector products; see `astralora.drivers.scpi` for its commands.

    SCPI has no checksum, so the transport must not lose or damage bytes. TCP, USB and GPIB fulfil this.

    Args:
        transport: closed transport to the instrument.
        identity: identity of the instrument.
        spec: spec of the instrument.
    """

    capabilities: tuple[type, ...] = (Flushes, Resends)
    link: ScpiLink

    def __init__(self, transport: Transport, identity: Identity, spec: DeviceSpec) -> None:
        most_vectors = max(1, LONGEST_BLOCK // (4 * max(spec.in_features, spec.out_features)))
        super().__init__(spec, transport, ScpiLink(transport), identity, most_vectors)
        self._number = int.from_bytes(os.urandom(4), "little") % _NUMBERS
        # Repeats the newest request, for `resend`.
        self._again: Callable[[], Tensor | None] = lambda: None

    def resend(self) -> Tensor | None:
        """Send the newest request again with the same number; the instrument does not carry it out twice."""
        with self._lock:
            answer = self._again()
            self._is_programmed = True
            return answer

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        with self._lock:
            values = inputs.detach().cpu().numpy()

            def again() -> Tensor:
                return self._as_tensor(self._answer(values), inputs)

            self._again = again
            return super().query(inputs)

    def _close(self) -> None:
        try:
            self.transport.write(b"*RST;*OPC?\n")
            if self.link.plain().strip() != "1":
                raise ProtocolError("the instrument did not confirm *RST; check that it is in its safe state")
        finally:
            self.transport.close()

    def _program(self, controls: NDArray[Any]) -> None:
        self._number = self._number % _NUMBERS + 1
        values = np.array(controls)

        def again() -> None:
            self._set(values)

        self._again = again
        self._set(controls)

    def _set(self, controls: NDArray[Any]) -> None:
        self._send(b"PROG:DATA", controls, b";:PROG:DATA?;:SYST:ERR?\n")
        number, _ = self.link.response(self._number, 0, self.spec.program_seconds)
        if number != self._number:
            raise ProtocolError(f"the instrument carried out program {number}, but program {self._number} was sent")

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self._number = self._number % _NUMBERS + 1
        return self._answer(inputs)

    def _answer(self, inputs: NDArray[Any]) -> NDArray[Any]:
        due = 4 * len(inputs) * self.spec.out_features
        self._send(b"QUER:DATA?", inputs, b";:SYST:ERR?\n")
        _, block = self.link.response(self._number, due, len(inputs) * self.spec.vector_seconds)
        if block is None or len(block) != due:
            raise ProtocolError(f"the answer has {0 if block is None else len(block)} bytes; it must have {due}")
        values = decode_values(block, Format.FLOAT32)
        return values.reshape(len(inputs), self.spec.out_features)

    def _send(self, header: bytes, values: NDArray[Any], end: bytes) -> None:
        data = encode_values(values, Format.FLOAT32)
        self.transport.write(header + f" {self._number},".encode() + block_head(len(data)), data, end)


def open_scpi_mvm(port: str, *, timeout: float = 2.0) -> ScpiDevice:
    """Drive a matrix-vector instrument by SCPI, over VISA or another transport; the instrument reports its spec.

    Args:
        port: address of the instrument, such as ``visa://TCPIP::192.168.1.5::5025::SOCKET`` or
            ``tcp://192.168.1.5:5025``.
        timeout: longest time without a byte, in seconds; the operation times of the spec are added.

    Raises:
        NotConnected, DeviceTimeout, ProtocolError: no instrument at this port uses SCPI.
    """
    return ScpiDevice(*find_chip(port, timeout, ScpiLink))
