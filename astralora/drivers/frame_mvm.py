"""Drive chips over the framed binary protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..devices import DeviceError, DeviceSpec, Flushes, ProgramsMany, ProtocolError, Resends
from ..devices.memory import aligned_array
from .frame_link import FrameIdentity, FrameLink, Status
from .guarded import GuardedDevice
from .link import find_chip
from .messages import (
    PROGRAM,
    QUERY,
    QUERY_EACH,
    VALUES,
    Command,
    Option,
)
from .transports import Transport
from .values import decode_values, encode_values, format_of
from .watchdog import check_watchdog

__all__ = ["FrameDevice", "open_frame_mvm"]

Encoding = Literal["float32", "codes"]


class FrameDevice(GuardedDevice):
    """Drive a chip over the framed protocol; see docs/protocol.md.

    Args:
        transport: closed transport to the chip.
        identity: identity of the chip.
        spec: spec of the chip.
        encoding: ``"float32"``; or ``"codes"`` to send the codes of all converters whose levels the spec gives, which
            needs a half or a quarter of the bytes.
        watchdog: time without a request after which the chip becomes safe, in seconds; None for never.
    """

    link: FrameLink
    identity: FrameIdentity

    def __init__(
        self,
        transport: Transport,
        identity: FrameIdentity,
        spec: DeviceSpec,
        encoding: Encoding,
        watchdog: float | None = None,
    ) -> None:
        most_vectors = _vectors_per_frame(spec, identity)
        if PROGRAM.size + 4 * spec.num_controls > identity.max_payload or most_vectors < 1:
            raise DeviceError(
                f"accepts frames of at most {identity.max_payload} bytes, too few for its own controls and vectors; "
                f"correct max_payload in its firmware",
                device=spec.name,
                operation="open",
            )
        if watchdog is not None and Option.WATCHDOG not in identity.options:
            raise DeviceError(
                "has no watchdog; leave out the option watchdog, or implement WATCHDOG in its firmware",
                device=spec.name,
                operation="open",
            )
        super().__init__(spec, transport, FrameLink(transport), identity, most_vectors, watchdog)
        # With QUERY_EACH, all settings of a call need one round trip, instead of two for each setting.
        many = (ProgramsMany,) if Option.QUERY_EACH in identity.options else ()
        self.capabilities = (Flushes, Resends, *many)
        self._inputs = format_of(spec, "input", encoding)
        self._controls = format_of(spec, "control", encoding)
        self._outputs = format_of(spec, "output", encoding)
        # Converts the answer to the newest request into its result, also after `resend`.
        self._finish: Callable[[memoryview], Tensor | None] = lambda _: None

    def status(self) -> Status:
        """Request the state of the chip, and its counters since power-up."""
        with self._lock:
            return self.link.status()

    def resend(self) -> Tensor | None:
        """Send the newest request again with the same number; the chip does not carry it out twice."""
        with self._lock:
            self._before_request()
            answer = self._finish(self.link.repeat())
            self._is_programmed = True
            return answer

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        with self._lock:
            self._finish = lambda data: self._as_tensor(self.decode_answer(data, len(inputs)), inputs)
            return super().query(inputs)

    def _enable_watchdog(self) -> None:
        self._beat()

    def _disable_watchdog(self) -> None:
        if Option.WATCHDOG in self.identity.options:
            self.link.set_watchdog(0)

    def _make_safe(self) -> None:
        # Late answers have other numbers, so that there is no need to wait for them.
        self.transport.flush()
        self.link.safe()

    def _program(self, controls: NDArray[Any]) -> None:
        self._before_request()
        self._finish = lambda _: None
        head = PROGRAM.pack(self._controls, len(controls))
        self.link.exchange(
            Command.PROGRAM, head, self._code_controls(controls), longest=0, patience=self.spec.program_seconds
        )

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self._before_request()
        batch = len(inputs)
        data = self.link.exchange(
            Command.QUERY,
            QUERY.pack(self._inputs, self._outputs, batch),
            self.code_inputs(inputs),
            longest=VALUES.size + 4 * batch * self.spec.out_features,
            patience=batch * self.spec.vector_seconds,
        )
        return self.decode_answer(data, batch)

    def _code_controls(self, controls: NDArray[Any]) -> memoryview:
        return encode_values(controls, self._controls, self.spec.control_range, self.spec.control_levels)

    def code_inputs(self, inputs: NDArray[Any]) -> memoryview:
        """Encode vectors as bytes in the format that this device uses."""
        return encode_values(inputs, self._inputs, self.spec.input_range, self.spec.input_levels)

    def decode_answer(self, data: memoryview, rows: int) -> NDArray[Any]:
        """Decode the payload of an answer as output vectors, (rows, out_features).

        Raises:
            ProtocolError: the payload has another size or format.
        """
        if len(data) < VALUES.size:
            raise ProtocolError(f"the answer has {len(data)} bytes; it must have at least {VALUES.size}")
        form, count = VALUES.unpack_from(data)
        values = decode_values(data[VALUES.size :], form, self.spec.output_range, self.spec.output_levels)
        width = self.spec.out_features
        if count != rows or values.size != rows * width:
            raise ProtocolError(
                f"the answer has {values.size} values for {count} vectors; it must have {rows} x {width} values"
            )
        return values.reshape(rows, width)

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program one setting after the other, and pass the same vectors through the chip at each setting.

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
            if not len(settings) or not len(vectors):
                return inputs.new_empty(len(settings), len(vectors), self.spec.out_features)
            run = _SettingsInFrames(self, settings, vectors)

            def finish(data: memoryview | None) -> Tensor:
                answer = run.finish(data)
                self._is_programmed = True
                return self._as_tensor(answer, inputs)

            self._finish = finish
            return finish(None)

    def send_settings(self, settings: NDArray[Any], coded: memoryview, batch: int) -> NDArray[Any]:
        """Send one frame of settings, and return its answer: (settings * batch, out_features)."""
        self._before_request()
        rows = len(settings) * batch
        data = self.link.exchange(
            Command.QUERY_EACH,
            QUERY_EACH.pack(self._controls, self._inputs, self._outputs, len(settings), batch),
            self._code_controls(settings),
            coded,
            longest=VALUES.size + 4 * rows * self.spec.out_features,
            patience=len(settings) * (self.spec.program_seconds + batch * self.spec.vector_seconds),
        )
        return self.decode_answer(data, rows)


class _SettingsInFrames:
    """Run many settings in as few frames as possible, and continue after a fault from the last complete frame.

    Args:
        device: device that sends the frames.
        settings: (settings, num_controls).
        vectors: (batch, in_features).

    Raises:
        DeviceError: one setting and the vectors do not fit into one frame.
    """

    def __init__(self, device: FrameDevice, settings: NDArray[Any], vectors: NDArray[Any]) -> None:
        spec, limit = device.spec, device.identity.max_payload
        self._device = device
        self._settings = settings
        self._batch = len(vectors)
        answer = 4 * self._batch * spec.out_features
        room = limit - QUERY_EACH.size - 4 * vectors.size
        self._at_a_time = min(room // (4 * settings.shape[1]), (limit - VALUES.size) // answer)
        if self._at_a_time < 1:
            raise DeviceError(
                "the vectors and one setting do not fit into one frame; send fewer vectors", device=spec.name
            )
        self._coded = device.code_inputs(vectors)
        self._answers: list[NDArray[Any]] = []

    def finish(self, data: memoryview | None) -> NDArray[Any]:
        """Run the remaining settings, and return all answers.

        Args:
            data: payload of the answer to a frame that was sent again; None in the first call.

        Returns:
            (settings, batch, out_features).
        """
        total = len(self._settings)
        if data is not None:
            if self._done() == total:
                # The answer to the last frame was stored already, and has been sent again.
                self._answers.pop()
            rows = min(self._at_a_time, total - self._done()) * self._batch
            self._answers.append(self._device.decode_answer(data, rows))
        while self._done() < total:
            part = self._settings[self._done() : self._done() + self._at_a_time]
            self._answers.append(self._device.send_settings(part, self._coded, self._batch))
        return aligned_array(np.concatenate(self._answers)).reshape(total, self._batch, -1)

    def _done(self) -> int:
        return sum(map(len, self._answers)) // self._batch


def open_frame_mvm(
    port: str, *, timeout: float = 2.0, encoding: Encoding = "float32", watchdog: float | None = None
) -> FrameDevice:
    """Drive a matrix-vector chip over the framed binary protocol; the chip reports its spec.

    Args:
        port: address of the chip, such as ``serial:///dev/ttyUSB0?baudrate=921600`` or ``tcp://192.168.1.5:5000``.
        timeout: longest time without a byte, in seconds; the operation times of the spec are added.
        encoding: ``"float32"``, or ``"codes"`` to send the integer codes of the converters.
        watchdog: time without a request after which the chip becomes safe, in seconds; None for never. While the
            program computes, a thread sends requests, so that only a host that was killed or stopped lets it expire.

    Raises:
        NotConnected, DeviceTimeout, ProtocolError: no device at this port uses the protocol.
        DeviceError: the chip has no watchdog.
    """
    watchdog = check_watchdog(watchdog)
    if encoding not in ("float32", "codes"):
        raise ValueError(f"encoding must be 'float32' or 'codes', not {encoding!r}")
    transport, identity, spec = find_chip(port, timeout, FrameLink)
    return FrameDevice(transport, identity, spec, encoding, watchdog)


def _vectors_per_frame(spec: DeviceSpec, identity: FrameIdentity) -> int:
    head = max(QUERY.size, VALUES.size, QUERY_EACH.size + 4 * spec.num_controls)
    return (identity.max_payload - head) // (4 * max(spec.in_features, spec.out_features))
