"""The driver of instruments that speak SCPI, over VISA or any other line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from ..devices import DeviceError, DeviceSpec, ProtocolError
from .link import ProtocolDevice
from .scpi import LONGEST_LINE, block_head, block_length, error_of
from .transports import Transport, open_transport
from .transports.base import Bytes
from .values import Format, decode_values, encode_values

__all__ = ["ScpiDevice", "open_scpi_mvm"]

_log = logging.getLogger(__name__)

_LONGEST_SPEC: Final = 1 << 23
# Numbers of requests: within a signed word of 32 bits, which every instrument can read.
_NUMBERS: Final = (1 << 31) - 1
# Answers to earlier requests that may turn up before the one that is waited for.
_MOST_STALE: Final = 100
# A query of so many bytes at the most: instruments have to hold it.
_LONGEST_BLOCK: Final = 1 << 24


class ScpiDevice(ProtocolDevice):
    """An instrument that computes matrix-vector products; see `astralora.drivers.scpi` for its commands.

    SCPI has no checksum: the line below has to be one that loses and damages nothing, as TCP, USB and GPIB are.

    Args:
        transport: the line to it, closed.
        identity: the answer to ``*IDN?``: manufacturer, model, serial number, firmware.
        spec: as it promised.
    """

    def __init__(self, transport: Transport, identity: tuple[str, ...], spec: DeviceSpec) -> None:
        limit = max(1, _LONGEST_BLOCK // (4 * max(spec.in_features, spec.out_features)))
        super().__init__(spec.model_copy(update={"max_batch": min(spec.max_batch or limit, limit)}), transport)
        self.identity = identity
        self._line = _Line(transport)
        self._number = int.from_bytes(os.urandom(4), "little") % _NUMBERS
        self._again: Callable[[], Tensor | None] = lambda: None

    def resend(self) -> Tensor | None:
        """Send the newest request once more under its old number: what was carried out is not carried out again."""
        with self._lock:
            answer = self._again()
            self._is_programmed = True
            return answer

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features)."""
        with self._lock:
            values = inputs.detach().cpu().numpy()

            def again() -> Tensor:
                return self._as_tensor(self._answer(values), inputs)

            self._again = again
            return super().query(inputs)

    def _open(self) -> None:
        self.transport.open()
        try:
            self.transport.flush()
            self.transport.write(b"*CLS\n")
            found = self._line.identify()
            if found[2] != self.identity[2]:
                raise DeviceError(
                    f"number {self.identity[2]!r} was here before, and now number {found[2]!r} answers; "
                    f"make the device anew",
                    device=self.spec.name,
                    operation="open",
                )
        except BaseException:
            self.transport.close()
            raise

    def _close(self) -> None:
        try:
            self.transport.write(b"*RST;*OPC?\n")
            if self._line.plain().strip() != "1":
                raise ProtocolError("it did not confirm *RST; check that it is in its safe state")
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
        number, _ = self._line.response(self._number, 0, self.spec.program_seconds)
        if number != self._number:
            raise ProtocolError(f"it carried out program {number} where {self._number} was sent")

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self._number = self._number % _NUMBERS + 1
        return self._answer(inputs)

    def _answer(self, inputs: NDArray[Any]) -> NDArray[Any]:
        due = 4 * len(inputs) * self.spec.out_features
        self._send(b"QUER:DATA?", inputs, b";:SYST:ERR?\n")
        _, block = self._line.response(self._number, due, len(inputs) * self.spec.vector_seconds)
        if block is None or len(block) != due:
            raise ProtocolError(f"it answered {0 if block is None else len(block)} bytes where {due} are due")
        values = decode_values(block, Format.FLOAT32)
        return values.reshape(len(inputs), self.spec.out_features)

    def _send(self, header: bytes, values: NDArray[Any], end: bytes) -> None:
        data = encode_values(values, Format.FLOAT32)
        self.transport.write(header + f" {self._number},".encode() + block_head(len(data)), data, end)


class _Line:
    """Responses, as they come off a line."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def identify(self) -> tuple[str, ...]:
        """Ask who it is: manufacturer, model, serial number, firmware."""
        self._transport.write(b"*IDN?\n")
        words = [part.strip() for part in self.plain(numeric=False).split(",")]
        if len(words) != 4:
            raise ProtocolError(f"it answers *IDN? with {','.join(words)!r}, where four words are due")
        return tuple(words)

    def spec(self) -> DeviceSpec:
        """Ask what the device promises."""
        self._transport.write(b"SYST:SPEC?\n")
        if self._transport.read(1) != b"#":
            raise ProtocolError("it answers SYST:SPEC? with something that is no block")
        text = self._block(_LONGEST_SPEC)
        self.word(b"\n")
        try:
            return DeviceSpec.model_validate_json(bytes(text))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "its text"
            raise ProtocolError(f"it promises what is no spec: {place}: {first['msg']}") from None

    def response(self, number: int, longest: int, patience: float) -> tuple[int, bytearray | None]:
        """The response to a request: its number, and a block where one was asked for.

        Args:
            number: of the request; responses to earlier ones are dropped.
            longest: the longest block that may come; more is refused unread.
            patience: seconds that the instrument needs before it can answer, on top of the timeout.

        Raises:
            DeviceError: what the instrument reported.
        """
        for _ in range(_MOST_STALE):
            word, end = self.word(b",;\n", patience)
            answered = _whole(word)
            block = None
            if end == b",":
                mark = bytes(self._transport.read(1))
                if mark == b'"':
                    # Nothing but the error was said.
                    raise error_of(answered, self.word(b"\n")[0].rstrip().removesuffix('"'))
                if mark != b"#":
                    raise ProtocolError(f"it sent {mark!r} where a block is due")
                block = self._block(longest if answered == number else _LONGEST_BLOCK)
                end = bytes(self._transport.read(1))
            if end == b";":
                error, _ = self.word(b",")
                text = self.word(b"\n")[0].strip().strip('"')
                if answered == number and _whole(error):
                    raise error_of(_whole(error), text)
                if _whole(error) and answered != number and block is None:
                    # The program was not carried out: the number is that of the one before.
                    raise error_of(_whole(error), text)
            if answered == number:
                return answered, block
            _log.debug("%s: dropped a late answer, number %d", self._transport.uri, answered)
        raise ProtocolError("answers to other requests keep coming; is somebody else using this port?")

    def word(self, ends: bytes, patience: float = 0.0) -> tuple[str, Bytes]:
        """Text up to any of these bytes, and that byte."""
        text = bytearray(self._transport.read(1, patience))
        while text[-1] not in ends:
            if len(text) > LONGEST_LINE:
                raise ProtocolError(f"it sent {len(text)} bytes without an end: {bytes(text[:40])!r}")
            text += self._transport.read(1)
        return text[:-1].decode("ascii", "replace"), bytes(text[-1:])

    def plain(self, numeric: bool = True) -> str:
        """A line of text, past late answers to numbered requests.

        Args:
            numeric: it may be a number alone.
        """
        for _ in range(_MOST_STALE):
            word, end = self.word(b",;\n")
            number = word.strip().lstrip("-").isdecimal()
            if end == b"\n":
                if numeric or not number:
                    return word
                continue
            if not number:
                return word + bytes(end).decode() + self.word(b"\n")[0]
            # Requests were numbered, and so are the answers that an earlier one is still owed.
            if end == b"," and self._transport.read(1) == b"#":
                self._block(_LONGEST_BLOCK)
            self.word(b"\n")
        raise ProtocolError("answers to other requests keep coming; is somebody else using this port?")

    def _block(self, longest: int) -> bytearray:
        digits = bytes(self._transport.read(1))
        if digits not in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"):
            raise ProtocolError(f"a block begins with {digits!r} where a digit is due")
        length = block_length(self._transport.read(int(digits)))
        if length > longest:
            raise ProtocolError(f"it answered with a block of {length} bytes where at most {longest} are due")
        return self._transport.read(length)


def open_scpi_mvm(port: str, *, timeout: float = 2.0) -> ScpiDevice:
    """Matrix-vector instrument that speaks SCPI, over VISA or any other line; it tells its spec by itself.

    Args:
        port: its address, such as ``visa://TCPIP::192.168.1.5::5025::SOCKET`` or ``tcp://192.168.1.5:5025``.
        timeout: longest silence that is waited through, in seconds; times that the spec tells of come on top.

    Raises:
        NotConnected, DeviceTimeout, ProtocolError: nothing at that port speaks so.
    """
    transport = open_transport(port, timeout)
    with transport:
        transport.flush()
        line = _Line(transport)
        identity, spec = line.identify(), line.spec()
    _log.info("%s: %s", port, " ".join(identity))
    return ScpiDevice(transport, identity, spec)


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ProtocolError(f"it sent {word[:40]!r} where a number is due") from None
