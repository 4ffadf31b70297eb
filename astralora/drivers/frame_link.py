"""Send numbered requests as the host of the framed protocol, and find their answers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..devices import DeviceSpec, ProtocolError
from .frames import ANSWER, ERROR, VERSION, Buffers, Header, encode_frame, find_header, read_payload, skip_payload
from .link import LONGEST_SPEC, Identity, parse_spec
from .messages import (
    IDENTITY,
    LONGEST_ERROR,
    OPERATIONS,
    STATUS,
    VALUES,
    WATCHDOG,
    Command,
    Option,
    State,
    decode_error,
)
from .transports import Transport
from .transports.base import Bytes

__all__ = ["FrameIdentity", "FrameLink", "Request", "Status"]

_log = logging.getLogger(__name__)

_LONGEST_IDENTITY: Final = 1 << 10
# Largest number of late answers to earlier requests that are dropped before the right answer.
_MOST_STALE: Final = 100


@dataclass(frozen=True, slots=True)
class FrameIdentity(Identity):
    """Identify a chip that uses the framed protocol.

    Attributes:
        max_payload: longest payload that the chip accepts, in bytes.
        options: optional commands that the chip implements.
    """

    max_payload: int
    options: Option


@dataclass(frozen=True, slots=True)
class Status:
    """Describe the state of a chip.

    Attributes:
        state: safe, or programmed.
        sequence: sequence number of the newest operation that the chip carried out.
        programs, vectors: numbers of programs and vectors since power-up.
    """

    state: State
    sequence: int
    programs: int
    vectors: int


@dataclass(frozen=True, slots=True)
class Request:
    """Hold a request, so that it can be sent again.

    Attributes:
        command: command of the request.
        sequence: sequence number of the request.
        frame: bytes of the request, in parts.
        longest: longest payload that the answer may have, in bytes.
        patience: additional time that the device needs before it can answer, in seconds, on top of the timeout.
    """

    command: int
    sequence: int
    frame: Sequence[Bytes]
    longest: int
    patience: float


class FrameLink:
    """Send requests and find their answers.

    Every request has a different number. A late answer has another number, and is dropped. The newest request can be
    sent again with the same number, and the device does not carry it out twice.

    Args:
        transport: transport to the device; must be open while the link is used.

    Attributes:
        newest: newest operation; None if there is no operation to repeat.
        sent_at: time of the newest request, by the clock `time.monotonic`.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        # Start at a random number, because answers to an earlier process may still arrive.
        self._sequence = int.from_bytes(os.urandom(4), "little")
        self.newest: Request | None = None
        self.sent_at = time.monotonic()
        self._buffers = Buffers(VALUES.size)
        self._largest = LONGEST_SPEC

    def start(self) -> None:
        """Forget the newest operation, so that `repeat` does not send it."""
        self.newest = None

    def identify(self) -> FrameIdentity:
        """Request the identity of the device."""
        data = self.exchange(Command.IDENTIFY, longest=_LONGEST_IDENTITY)
        if len(data) < IDENTITY.size:
            raise ProtocolError(f"the identity has {len(data)} bytes; it must have at least {IDENTITY.size}")
        max_payload, options = IDENTITY.unpack_from(data)
        words = [word.strip() for word in bytes(data[IDENTITY.size :]).decode(errors="replace").split(",")]
        words += [""] * (4 - len(words))
        self._largest = max(LONGEST_SPEC, max_payload)
        manufacturer, model, serial_number, firmware = words[:4]
        known = Option(options & sum(Option))
        return FrameIdentity(manufacturer, model, serial_number, firmware, max_payload, known)

    def spec(self) -> DeviceSpec:
        """Request the spec of the device."""
        return parse_spec(self.exchange(Command.SPEC, longest=LONGEST_SPEC))

    def status(self) -> Status:
        """Request the state and the counters of the device."""
        data = self.exchange(Command.STATUS, longest=STATUS.size)
        if len(data) != STATUS.size or data[0] not in list(State):
            raise ProtocolError(f"the status of {len(data)} bytes is not valid: {data.hex(' ')}")
        state, sequence, programs, vectors = STATUS.unpack(data)
        return Status(State(state), sequence, programs, vectors)

    def safe(self) -> None:
        """Bring the device into its safe state; the controls are lost."""
        self.exchange(Command.SAFE, longest=0)

    def set_watchdog(self, milliseconds: int) -> None:
        """Set the time without a request after which the device becomes safe; 0 for never."""
        self.exchange(Command.WATCHDOG, WATCHDOG.pack(milliseconds), longest=0)

    def exchange(self, command: int, *payload: Bytes, longest: int, patience: float = 0.0) -> memoryview:
        """Send a request and return the payload of its answer.

        Args:
            command: command of the request.
            *payload: parts of the payload of the request.
            longest: longest payload that the answer may have, in bytes; a longer payload is refused without reading it.
            patience: additional time that the device needs before it can answer, in seconds, on top of the timeout.

        Raises:
            DeviceError: the device reported this error.
            DeviceTimeout, NotConnected, ProtocolError: no answer arrived, or the answer is not valid.
        """
        # Number 0 is left out, because a device uses it to refuse a host that has not sent a request yet.
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        frame = encode_frame(command, self._sequence, *payload)
        request = Request(command, self._sequence, frame, longest, patience)
        if command in OPERATIONS:
            self.newest = request
        return self._ask(request)

    def repeat(self) -> memoryview:
        """Send the newest operation again with the same number; return the payload of the answer, see `exchange`."""
        if self.newest is None:
            raise ProtocolError("there is no program or query to repeat yet")
        return self._ask(self.newest)

    def _ask(self, request: Request) -> memoryview:
        self.transport.write(*request.frame)
        self.sent_at = time.monotonic()
        header = self._answer_to(request)
        if header.command == request.command:
            raise self.transport.echo_error()
        if header.version != VERSION:
            raise ProtocolError(
                f"the device uses version {header.version} of the protocol, but this driver uses version {VERSION}"
            )
        longest = LONGEST_ERROR if header.command == ERROR else request.longest
        if header.length > longest:
            raise ProtocolError(f"the answer has {header.length} bytes; it must have at most {longest}")
        if header.command == ERROR:
            raise decode_error(read_payload(self.transport.read_into, header))
        if header.command != request.command | ANSWER:
            raise ProtocolError(
                f"the answer belongs to command {header.command & ~ANSWER}, but command {request.command} was sent"
            )
        return read_payload(self.transport.read_into, header, self._buffers)

    def _answer_to(self, request: Request) -> Header:
        for _ in range(_MOST_STALE):
            header = find_header(lambda count: self.transport.read(count, request.patience), self._largest)
            if header.sequence == request.sequence or (header.sequence == 0 and header.command == ERROR):
                return header
            _log.debug("%s: dropped a late answer, number %d", self.transport.uri, header.sequence)
            if header.length > self._largest:
                break
            skip_payload(self.transport.read, header)
        raise ProtocolError("too many answers to other requests arrived; check that no other program uses this port")
