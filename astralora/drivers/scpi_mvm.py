"""Drive SCPI instruments over VISA or another transport."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..devices import DeviceError, DeviceSpec, DeviceTimeout, Flushes, NotConnected, ProtocolError, Resends
from .guarded import GuardedDevice
from .link import Identity, find_chip
from .scpi import block_head, find_byte_order
from .scpi_link import LONGEST_BLOCK, ScpiLink
from .transports import Transport
from .values import ByteOrder, Format, decode_values, encode_values
from .watchdog import check_watchdog

__all__ = ["ScpiDevice", "open_scpi_mvm"]

_log = logging.getLogger(__name__)

# Request numbers fit into a signed 32-bit integer, which every instrument can read.
_NUMBERS: Final = (1 << 31) - 1


_Order = Literal["auto", ByteOrder]


class ScpiDevice(GuardedDevice):
    """Drive an instrument that computes matrix-vector products; see `astralora.drivers.scpi` for its commands.

    SCPI has no checksum, so the transport must not lose or damage bytes. TCP, USB and GPIB fulfil this.

    Args:
        transport: closed transport to the instrument.
        identity: identity of the instrument.
        spec: spec of the instrument.
        byte_order: order of the bytes of a value in blocks; ``"auto"`` to ask the instrument at every opening.
        watchdog: time without a message after which the instrument becomes safe, in seconds; None for never.
    """

    capabilities: tuple[type, ...] = (Flushes, Resends)
    link: ScpiLink

    def __init__(
        self,
        transport: Transport,
        identity: Identity,
        spec: DeviceSpec,
        byte_order: _Order = "auto",
        watchdog: float | None = None,
    ) -> None:
        most_vectors = max(1, LONGEST_BLOCK // (4 * max(spec.in_features, spec.out_features)))
        super().__init__(spec, transport, ScpiLink(transport), identity, most_vectors, watchdog)
        self._is_automatic = byte_order == "auto"
        # Determined when the device is opened, before any value is sent.
        self._order: ByteOrder = "little" if byte_order == "auto" else byte_order
        self._number = int.from_bytes(os.urandom(4), "little") % _NUMBERS
        # Repeats the newest request, for `resend`.
        self._again: Callable[[], Tensor | None] = lambda: None

    def flush(self) -> None:
        """Drop all responses to earlier messages, and delete all errors of the instrument."""
        with self._lock:
            self.link.settle()

    def resend(self) -> Tensor | None:
        """Send the newest request again with the same number; the instrument does not carry it out twice."""
        with self._lock:
            self._before_request()
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

    def _configure(self) -> None:
        if self._is_automatic:
            self._order = self._find_byte_order()
        super()._configure()

    def _find_byte_order(self) -> ByteOrder:
        advice = 'implement SYSTem:PATTern?, or give the option byte_order="little" or byte_order="big" of scpi-mvm'
        try:
            return find_byte_order(self.link.pattern())
        except (DeviceTimeout, NotConnected) as error:
            # Not final: the line may have failed.
            reason = f"did not tell its byte order ({error.message}); {advice}"
            raise type(error)(reason, device=self.spec.name, operation="open") from error
        except DeviceError as error:
            reason = f"does not tell a byte order that this driver knows ({error.message}); {advice}"
            raise DeviceError(reason, device=self.spec.name, operation="open") from error

    def _enable_watchdog(self) -> None:
        try:
            self._beat()
        except (DeviceTimeout, NotConnected):
            raise
        except DeviceError as error:
            raise DeviceError(
                f"does not accept a watchdog of {self.watchdog:g} s ({error.message}); "
                f"leave out the option watchdog, or implement SYSTem:WATChdog",
                device=self.spec.name,
                operation="open",
            ) from error

    def _disable_watchdog(self) -> None:
        try:
            self.link.set_watchdog(0)
        except NotConnected:
            raise
        except DeviceError as error:
            _log.debug("%s has no watchdog: %s", self.spec.name, error.message)

    def _make_safe(self) -> None:
        try:
            self.link.settle(b"*RST;")
        except ProtocolError as error:
            raise ProtocolError(
                f"the instrument did not confirm *RST ({error.message}); check that it is in its safe state"
            ) from error

    def _program(self, controls: NDArray[Any]) -> None:
        self._before_request()
        self._number = self._number % _NUMBERS + 1
        values = np.array(controls)

        def again() -> None:
            self._set(values)

        self._again = again
        self._set(controls)

    def _set(self, controls: NDArray[Any]) -> None:
        patience = self.spec.program_seconds
        self._send(b"PROG:DATA", controls, b";:PROG:DATA?;:SYST:ERR?\n", patience)
        number, _ = self.link.response(self._number, 0, patience)
        if number != self._number:
            raise ProtocolError(f"the instrument carried out program {number}, but program {self._number} was sent")

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self._before_request()
        self._number = self._number % _NUMBERS + 1
        return self._answer(inputs)

    def _answer(self, inputs: NDArray[Any]) -> NDArray[Any]:
        due, patience = 4 * len(inputs) * self.spec.out_features, len(inputs) * self.spec.vector_seconds
        self._send(b"QUER:DATA?", inputs, b";:SYST:ERR?\n", patience)
        _, block = self.link.response(self._number, due, patience)
        if block is None or len(block) != due:
            raise ProtocolError(f"the answer has {0 if block is None else len(block)} bytes; it must have {due}")
        values = decode_values(block, Format.FLOAT32, order=self._order)
        return values.reshape(len(inputs), self.spec.out_features)

    def _send(self, header: bytes, values: NDArray[Any], end: bytes, patience: float) -> None:
        data = encode_values(values, Format.FLOAT32, order=self._order)
        self.link.request(header + f" {self._number},".encode() + block_head(len(data)), data, end, patience=patience)


def open_scpi_mvm(
    port: str, *, timeout: float = 2.0, byte_order: _Order = "auto", watchdog: float | None = None
) -> ScpiDevice:
    """Drive a matrix-vector instrument by SCPI, over VISA or another transport; the instrument reports its spec.

    Args:
        port: address of the instrument, such as ``visa://TCPIP::192.168.1.5::5025::SOCKET`` or
            ``tcp://192.168.1.5:5025``.
        timeout: longest time without a byte, in seconds; the operation times of the spec are added.
        byte_order: ``"auto"`` to find the order of the bytes of a value by SYSTem:PATTern? at every opening;
            ``"little"`` or ``"big"`` for an instrument without this query.
        watchdog: time without a message after which the instrument becomes safe, in seconds; None for never. While the
            program computes, a thread sends messages, so that only a host that was killed or stopped lets it expire.

    Raises:
        NotConnected, DeviceTimeout, ProtocolError: no instrument at this port uses SCPI.
    """
    watchdog = check_watchdog(watchdog)
    if byte_order not in ("auto", *get_args(ByteOrder)):
        raise ValueError(f"byte_order must be 'auto', 'little' or 'big', not {byte_order!r}")
    return ScpiDevice(*find_chip(port, timeout, ScpiLink), byte_order, watchdog)
