"""The driver of chips that speak the framed binary protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..devices import DeviceError, DeviceSpec, ProtocolError
from ..devices.memory import aligned_array
from .frame_link import FrameLink, Identity, Status
from .link import ProtocolDevice
from .messages import (
    PROGRAM,
    QUERY,
    QUERY_EACH,
    VALUES,
    Command,
    Option,
)
from .transports import Transport, open_transport
from .values import decode_values, encode_values, format_of

__all__ = ["FrameDevice", "ManyFrameDevice", "open_frame_mvm"]

_log = logging.getLogger(__name__)

Encoding = Literal["float32", "codes"]


class FrameDevice(ProtocolDevice):
    """A chip behind the framed protocol; see docs/protocol.md.

    Args:
        transport: the line to it, closed.
        identity: as it told.
        spec: as it promised.
        encoding: send and ask for ``"float32"``, or for the ``"codes"`` of those converters that the spec tells of,
            which takes a half or a quarter of the bytes.
    """

    def __init__(self, transport: Transport, identity: Identity, spec: DeviceSpec, encoding: Encoding) -> None:
        limit = _vectors_per_frame(spec, identity)
        if PROGRAM.size + 4 * spec.num_controls > identity.max_payload or limit < 1:
            raise DeviceError(
                f"takes {identity.max_payload} bytes a frame, which is too little for its own controls and vectors",
                device=spec.name,
                operation="open",
            )
        super().__init__(spec.model_copy(update={"max_batch": min(spec.max_batch or limit, limit)}), transport)
        self.identity = identity
        self._link = FrameLink(transport)
        self._inputs = format_of(spec, "input", encoding)
        self._controls = format_of(spec, "control", encoding)
        self._outputs = format_of(spec, "output", encoding)
        # What becomes of the answer to the newest request, should it have to be asked for again.
        self._finish: Callable[[memoryview], Tensor | None] = lambda _: None

    def status(self) -> Status:
        """Ask the chip what it is doing, and what it has done since power-up."""
        with self._lock:
            return self._link.status()

    def resend(self) -> Tensor | None:
        """Send the newest request once more under its old number: what was carried out is not carried out again."""
        with self._lock:
            answer = self._finish(self._link.repeat())
            self._is_programmed = True
            return answer

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features)."""
        with self._lock:
            self._finish = lambda data: self._as_tensor(self._answer(data, len(inputs)), inputs)
            return super().query(inputs)

    def _open(self) -> None:
        self.transport.open()
        try:
            self.transport.flush()
            self._link.forget()
            found = self._link.identify()
            if found.serial_number != self.identity.serial_number:
                raise DeviceError(
                    f"number {self.identity.serial_number!r} was here before, and now number {found.serial_number!r} "
                    f"answers; make the device anew",
                    device=self.spec.name,
                    operation="open",
                )
        except BaseException:
            self.transport.close()
            raise

    def _close(self) -> None:
        try:
            self._link.safe()
        finally:
            self.transport.close()

    def _program(self, controls: NDArray[Any]) -> None:
        self._finish = lambda _: None
        head = PROGRAM.pack(self._controls, len(controls))
        self._link.exchange(
            Command.PROGRAM, head, self._code_controls(controls), longest=0, patience=self.spec.program_seconds
        )

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        batch = len(inputs)
        data = self._link.exchange(
            Command.QUERY,
            QUERY.pack(self._inputs, self._outputs, batch),
            self._code_inputs(inputs),
            longest=VALUES.size + 4 * batch * self.spec.out_features,
            patience=batch * self.spec.vector_seconds,
        )
        return self._answer(data, batch)

    def _code_controls(self, controls: NDArray[Any]) -> memoryview:
        return encode_values(controls, self._controls, self.spec.control_range, self.spec.control_levels)

    def _code_inputs(self, inputs: NDArray[Any]) -> memoryview:
        return encode_values(inputs, self._inputs, self.spec.input_range, self.spec.input_levels)

    def _answer(self, data: memoryview, rows: int) -> NDArray[Any]:
        if len(data) < VALUES.size:
            raise ProtocolError(f"it answered {len(data)} bytes where at least {VALUES.size} are due")
        form, told = VALUES.unpack_from(data)
        values = decode_values(data[VALUES.size :], form, self.spec.output_range, self.spec.output_levels)
        width = self.spec.out_features
        if told != rows or values.size != rows * width:
            raise ProtocolError(f"it answered {values.size} values for {told} vectors where {rows} x {width} are due")
        return values.reshape(rows, width)


class ManyFrameDevice(FrameDevice):
    """One that takes many settings in one frame: a round trip for all of them, instead of two for each."""

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program each setting in turn and pass the same vectors through.

        Args:
            controls: (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (settings, batch, out_features).
        """
        with self._lock:
            self._require(self._is_open, "query_each", "is closed; call open first")
            vectors = np.ascontiguousarray(inputs.detach().cpu().numpy())
            settings = np.ascontiguousarray(controls.detach().cpu().numpy())
            batch, width = len(vectors), self.spec.out_features
            if not len(settings) or not batch:
                return inputs.new_empty(len(settings), batch, width)
            room = self.identity.max_payload - QUERY_EACH.size - 4 * vectors.size
            at_a_time = min(
                room // (4 * settings.shape[1]), (self.identity.max_payload - VALUES.size) // (4 * batch * width)
            )
            if at_a_time < 1:
                raise DeviceError("these vectors and controls do not fit into one frame", device=self.spec.name)
            coded = self._code_inputs(vectors)
            answers: list[NDArray[Any]] = []

            def go_on(data: memoryview | None) -> Tensor:
                # Also the way back in after a fault, with the answer that was missing, or to hear the last one again.
                if data is not None:
                    if done() == len(settings):
                        answers.pop()
                    answers.append(self._answer(data, min(at_a_time, len(settings) - done()) * batch))
                while done() < len(settings):
                    part = settings[done() : done() + at_a_time]
                    data = self._link.exchange(
                        Command.QUERY_EACH,
                        QUERY_EACH.pack(self._controls, self._inputs, self._outputs, len(part), batch),
                        self._code_controls(part),
                        coded,
                        longest=VALUES.size + 4 * len(part) * batch * width,
                        patience=len(part) * (self.spec.program_seconds + batch * self.spec.vector_seconds),
                    )
                    answers.append(self._answer(data, len(part) * batch))
                self._is_programmed = True
                whole = aligned_array(np.concatenate(answers)).reshape(len(settings), batch, width)
                return self._as_tensor(whole, inputs)

            def done() -> int:
                return sum(map(len, answers)) // batch

            self._finish = go_on
            return go_on(None)


def open_frame_mvm(port: str, *, timeout: float = 2.0, encoding: Encoding = "float32") -> FrameDevice:
    """Matrix-vector chip behind the framed binary protocol, which tells its spec by itself.

    Args:
        port: its address, such as ``serial:///dev/ttyUSB0?baudrate=921600`` or ``tcp://192.168.1.5:5000``.
        timeout: longest silence that is waited through, in seconds; times that the spec tells of come on top.
        encoding: ``"float32"``, or ``"codes"`` for the converters' own integers.

    Raises:
        NotConnected, DeviceTimeout, ProtocolError: nothing at that port speaks the protocol.
    """
    if encoding not in ("float32", "codes"):
        raise ValueError(f"encoding must be 'float32' or 'codes', not {encoding!r}")
    transport = open_transport(port, timeout)
    with transport:
        transport.flush()
        link = FrameLink(transport)
        identity, spec = link.identify(), link.spec()
    _log.info("%s: %s %s, number %s", port, identity.manufacturer, identity.model, identity.serial_number)
    kind = ManyFrameDevice if Option.QUERY_EACH in identity.options else FrameDevice
    return kind(transport, identity, spec, encoding)


def _vectors_per_frame(spec: DeviceSpec, identity: Identity) -> int:
    head = max(QUERY.size, VALUES.size, QUERY_EACH.size + 4 * spec.num_controls)
    return (identity.max_payload - head) // (4 * max(spec.in_features, spec.out_features))
