"""Answer requests of the framed protocol like the firmware of a device."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import (
    Device,
    DeviceError,
    DeviceTimeout,
    NotConnected,
    OutOfRange,
    ProgramsMany,
    ProtocolError,
    capability_of,
)
from ..devices.checks import check_controls, check_inputs
from ..devices.memory import aligned
from .frames import ANSWER, ERROR, VERSION, Buffers, Header, encode_frame, find_header, frame_check, read_payload
from .incoming import Incoming
from .messages import (
    IDENTITY,
    OPERATIONS,
    PROGRAM,
    QUERY,
    QUERY_EACH,
    STATUS,
    VALUES,
    WATCHDOG,
    Command,
    Option,
    State,
    encode_error,
)
from .transports import Transport
from .transports.base import Bytes
from .values import Format, decode_values, encode_values, format_of, value_size
from .watchdog import Watchdog

__all__ = ["FrameServer"]

_MANUFACTURER: Final = "astralora"
_FIRMWARE: Final = "1.0"
_OPTIONS: Final = Option.QUERY_EACH | Option.WATCHDOG


class FrameServer:
    """Serve any device over the framed protocol.

    Args:
        device: device that computes the answers; its first program opens it, and SAFE closes it.
        max_payload: longest payload to accept, in bytes; longer payloads are refused without reading them.

    Attributes:
        watchdog: time without a request after which the device becomes safe; call its ``check`` often.
    """

    def __init__(self, device: Device, max_payload: int = 1 << 24) -> None:
        self.device = device
        self.max_payload = max_payload
        self._programs = 0
        self._vectors = 0
        self._is_programmed = False
        self._buffers = Buffers(QUERY.size)
        self.watchdog = Watchdog(self.make_safe)
        # Sequence number, command and checksum of the newest operation that was carried out, and the answer to it.
        self._newest: tuple[int, int, int] | None = None
        self._answered: list[Bytes] = []
        self._commands: dict[int, Callable[[memoryview], list[Bytes]]] = {
            Command.IDENTIFY: self._identify,
            Command.SPEC: lambda _: [self.device.spec.model_dump_json().encode()],
            Command.PROGRAM: self._program,
            Command.QUERY: self._query,
            Command.QUERY_EACH: self._query_each,
            Command.STATUS: self._status,
            Command.SAFE: lambda _: self.make_safe(),
            Command.WATCHDOG: self._set_watchdog,
        }

    # -- on the line ------------------------------------------------------------------------

    def serve(self, line: Transport, stop: threading.Event) -> None:
        """Answer requests on a line until the host closes it or ``stop`` is set.

        Raises:
            NotConnected: the host has closed the line, or sends bytes that are no requests; see `Incoming`.
        """
        incoming = Incoming(line, self.watchdog.check)
        while not stop.is_set():
            try:
                incoming.begin()
            except DeviceTimeout:
                continue  # no request arrived
            try:
                header = find_header(incoming.read, self.max_payload)
            except (DeviceTimeout, ProtocolError):
                incoming.fail()
                continue
            self.watchdog.restart()
            self.respond(line, header, self._receive(incoming, header))
            # The time that the device needs for a request does not count.
            self.watchdog.restart()

    def respond(self, line: Transport, header: Header, payload: memoryview | DeviceError) -> None:
        """Answer one request.

        Args:
            line: line to the host.
            header: header of the request.
            payload: payload of the request, or the error of reading it.
        """
        # A host that did not get the answer sends the request again.
        with suppress(DeviceTimeout):
            line.write(*self.handle(header, payload))

    def handle(self, header: Header, payload: memoryview | DeviceError) -> list[Bytes]:
        """Return the frame that answers a request; see `respond`."""
        if isinstance(payload, DeviceError):
            return encode_frame(ERROR, header.sequence, encode_error(payload))
        request: tuple[int, int, int] | None = None
        if header.command in OPERATIONS:
            # With the payload: another host may count from the same number, such as a process that was forked.
            request = header.sequence, header.command, frame_check(header, payload)
            if request == self._newest:
                return self._answered
        try:
            command = self._commands.get(header.command)
            if header.version != VERSION:
                raise ProtocolError(f"version {header.version} of the protocol is not supported; use version {VERSION}")
            if command is None:
                raise ProtocolError(f"there is no command {header.command}")
            answer = encode_frame(header.command | ANSWER, header.sequence, *command(payload))
        except Exception as error:
            # Every error of the device is sent to the host, and the server keeps running, like firmware.
            return encode_frame(ERROR, header.sequence, encode_error(error))
        if request is not None:
            # A request that failed is not stored, so that the host can try it again.
            self._newest, self._answered = request, answer
        return answer

    def make_safe(self) -> list[Bytes]:
        """Bring the device into its safe state; the controls are lost."""
        # Without a stored number, a program with the same number is carried out again.
        self._newest, self._is_programmed = None, False
        self.watchdog.set(0)
        self.device.close()
        return []

    def _receive(self, incoming: Incoming, header: Header) -> memoryview | DeviceError:
        if header.length > self.max_payload:
            incoming.accept()
            return ProtocolError(
                f"a payload of {header.length} bytes is too long; this device accepts at most {self.max_payload}"
            )
        incoming.expect(header.length)
        try:
            payload = read_payload(incoming.read_into, header, self._buffers)
        except (DeviceTimeout, ProtocolError) as error:
            incoming.fail()
            return ProtocolError(error.message)
        incoming.accept()
        return payload

    # -- commands ---------------------------------------------------------------------------

    def _identify(self, _: memoryview) -> list[Bytes]:
        spec = self.device.spec
        words = [_MANUFACTURER, spec.name, spec.serial_number or "", _FIRMWARE]
        # Commas separate the words, so they are removed from the words.
        text = ",".join(" ".join(word.replace(",", " ").split()) for word in words)
        return [IDENTITY.pack(self.max_payload, _OPTIONS), text.encode()]

    def _status(self, _: memoryview) -> list[Bytes]:
        state = State.PROGRAMMED if self._is_programmed else State.SAFE
        sequence = self._newest[0] if self._newest else 0
        return [STATUS.pack(state, sequence, self._programs & 0xFFFFFFFF, self._vectors & 0xFFFFFFFF)]

    def _set_watchdog(self, payload: memoryview) -> list[Bytes]:
        if len(payload) != WATCHDOG.size:
            raise ProtocolError(f"a watchdog of {len(payload)} bytes is not valid; it has {WATCHDOG.size}")
        self.watchdog.set(*WATCHDOG.unpack(payload))
        return []

    def _program(self, payload: memoryview) -> list[Bytes]:
        form, count = _unpack(PROGRAM, payload)
        (controls,) = self._controls(payload[PROGRAM.size :], form, 1, count)
        check_controls(self.device.spec, controls, "program")
        self._prepare()
        self.device.program(controls)
        self._done(programs=1)
        return []

    def _query(self, payload: memoryview) -> list[Bytes]:
        form, wanted, batch = _unpack(QUERY, payload)
        inputs = self._inputs(payload[QUERY.size :], form, batch)
        if not self._is_programmed:
            raise NotConnected("no controls are set; send PROGRAM first")
        outputs = self.device.query(inputs)
        self._done(vectors=batch)
        return self._outputs(outputs, wanted, batch)

    def _query_each(self, payload: memoryview) -> list[Bytes]:
        first, second, wanted, settings, batch = _unpack(QUERY_EACH, payload)
        spec = self.device.spec
        if settings * batch * spec.out_features * 4 + VALUES.size > self.max_payload:
            raise OutOfRange(f"the answer to {settings} settings of {batch} vectors would be too long; send fewer")
        middle = QUERY_EACH.size + settings * spec.num_controls * value_size(first)
        controls = self._controls(payload[QUERY_EACH.size : middle], first, settings, spec.num_controls)
        inputs = self._inputs(payload[middle:], second, batch)
        check_controls(spec, controls, "query_each", ndim=2)
        self._prepare()
        many = capability_of(self.device, ProgramsMany)
        if many is not None:
            outputs = many.query_each(controls, inputs)
        else:
            outputs = torch.stack([self._one(setting, inputs) for setting in controls])
        self._done(programs=settings, vectors=settings * batch)
        return self._outputs(outputs.flatten(0, 1), wanted, settings * batch)

    def _one(self, setting: Tensor, inputs: Tensor) -> Tensor:
        self.device.program(aligned(setting))
        return self.device.query(inputs)

    def _prepare(self) -> None:
        self.device.open()
        # The controls are unknown until the device has confirmed them, whatever was carried out before.
        self._is_programmed, self._newest = False, None

    def _done(self, programs: int = 0, vectors: int = 0) -> None:
        self._is_programmed = True
        self._programs += programs
        self._vectors += vectors

    # -- values -----------------------------------------------------------------------------

    def _controls(self, data: memoryview, form: int, settings: int, count: int) -> Tensor:
        spec = self.device.spec
        values = decode_values(data, form, spec.control_range, spec.control_levels)
        if count != spec.num_controls or values.size != settings * count:
            raise OutOfRange(
                f"{values.size} controls arrived; {settings} settings have {spec.num_controls} controls each"
            )
        return _tensor(values).view(settings, count)

    def _inputs(self, data: memoryview, form: int, batch: int) -> Tensor:
        spec = self.device.spec
        values = decode_values(data, form, spec.input_range, spec.input_levels)
        if values.size != batch * spec.in_features:
            raise OutOfRange(f"{values.size} input values arrived; {batch} vectors have {spec.in_features} values each")
        if spec.max_batch is not None and batch > spec.max_batch:
            raise OutOfRange(f"{batch} vectors are too many; one query may have {spec.max_batch}")
        inputs = _tensor(values).view(batch, spec.in_features)
        check_inputs(spec, inputs, "query")
        return inputs

    def _outputs(self, outputs: Tensor, wanted: int, rows: int) -> list[Bytes]:
        spec = self.device.spec
        if wanted not in (Format.FLOAT32, format_of(spec, "output", "codes")):
            raise ProtocolError(f"this device cannot send answers in format {wanted}")
        values = outputs.detach().cpu().numpy()
        head = VALUES.pack(wanted, rows)
        return [head, encode_values(values, Format(wanted), spec.output_range, spec.output_levels)]


def _unpack(fields: struct.Struct, payload: memoryview) -> tuple[int, ...]:
    if len(payload) < fields.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes is too short for this command")
    return fields.unpack_from(payload)


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values).to(torch.float32)
