"""Send numbered requests as the host of the framed protocol, and find their answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..devices import DeviceSpec, ProtocolError
from .frames import ANSWER, ERROR, VERSION, Buffers, Header, encode_frame, find_header, read_payload, skip_payload
from .link import LONGEST_SPEC, Identity, parse_spec
from .messages import IDENTITY, LONGEST_ERROR, OPERATIONS, STATUS, VALUES, Command, Option, State, decode_error
from .transports import Transport
from .transports.base import Bytes

__all__ = ["FrameIdentity", "FrameLink", "Request", "Status"]

_log = logging.getLogger(__name__)

_LONGEST_IDENTITY: Final = 1 << 10
# Late answers to earlier requests that are dropped before the answer to this one.
_MOST_STALE: Final = 100


@dataclass(frozen=True, slots=True)
class FrameIdentity(Identity):
    """Identify a chip that speaks frames.

    Attributes:
        max_payload: longest payload that it accepts, in bytes.
        options: optional commands that it has.
    """

    max_payload: int
    options: Option


@dataclass(frozen=True, slots=True)
class Status:
    """Describe the state of a chip.

    Attributes:
        state: safe, or programmed.
        sequence: number of the newest operation that it carried out.
        programs, vectors: counts since power-up.
    """

    state: State
    sequence: int
    programs: int
    vectors: int


@dataclass(frozen=True, slots=True)
class Request:
    """Hold a request, to send it again.

    Attributes:
        command: of the request.
        sequence: its number.
        frame: its bytes, in parts.
        longest: longest payload that the answer may have, in bytes.
        patience: seconds that the device needs before it can answer, on top of the timeout.
    """

    command: int
    sequence: int
    frame: Sequence[Bytes]
    longest: int
    patience: float


class FrameLink:
    """Send requests and find their answers.

    Every request has a number of its own. A late answer has another number, and is dropped. The newest request can
    be sent again under its number: the device does not carry it out twice.

    Args:
        transport: the line; open while this is used.

    Attributes:
        newest: newest operation; None where there is none to repeat.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        # A random start: answers to an earlier process may still arrive.
        self._sequence = int.from_bytes(os.urandom(4), "little")
        self.newest: Request | None = None
        self._buffers = Buffers(VALUES.size)
        self._largest = LONGEST_SPEC

    def start(self) -> None:
        """Forget the requests of before: `repeat` does not send them."""
        self.newest = None

    def identify(self) -> FrameIdentity:
        """Ask the device for its identity."""
        data = self.exchange(Command.IDENTIFY, longest=_LONGEST_IDENTITY)
        if len(data) < IDENTITY.size:
            raise ProtocolError(f"it identified itself in {len(data)} bytes, where at least {IDENTITY.size} are due")
        max_payload, options = IDENTITY.unpack_from(data)
        words = [word.strip() for word in bytes(data[IDENTITY.size :]).decode(errors="replace").split(",")]
        words += [""] * (4 - len(words))
        self._largest = max(LONGEST_SPEC, max_payload)
        manufacturer, model, serial_number, firmware = words[:4]
        known = Option(options & sum(Option))
        return FrameIdentity(manufacturer, model, serial_number, firmware, max_payload, known)

    def spec(self) -> DeviceSpec:
        """Ask the device for its spec."""
        return parse_spec(self.exchange(Command.SPEC, longest=LONGEST_SPEC))

    def status(self) -> Status:
        """Ask the device for its state and its counts."""
        data = self.exchange(Command.STATUS, longest=STATUS.size)
        if len(data) != STATUS.size or data[0] not in list(State):
            raise ProtocolError(f"it reported its status in {len(data)} bytes that make no sense: {data.hex(' ')}")
        state, sequence, programs, vectors = STATUS.unpack(data)
        return Status(State(state), sequence, programs, vectors)

    def safe(self) -> None:
        """Bring the device into its safe state; the controls are lost."""
        self.exchange(Command.SAFE, longest=0)

    def exchange(self, command: int, *payload: Bytes, longest: int, patience: float = 0.0) -> memoryview:
        """Send a request and return the payload of its answer.

        Args:
            command: of the request.
            *payload: parts of its payload.
            longest: longest payload that the answer may have, in bytes; a longer one is refused unread.
            patience: seconds that the device needs before it can answer, on top of the timeout.

        Raises:
            DeviceError: the device reported it.
            DeviceTimeout, NotConnected, ProtocolError: no answer came, or one that cannot be right.
        """
        # A device uses number 0 to refuse a host that has not asked yet.
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        frame = encode_frame(command, self._sequence, *payload)
        request = Request(command, self._sequence, frame, longest, patience)
        if command in OPERATIONS:
            self.newest = request
        return self._ask(request)

    def repeat(self) -> memoryview:
        """Send the newest operation again under its number, and return the payload of its answer; see `exchange`."""
        if self.newest is None:
            raise ProtocolError("there is no program or query yet to repeat")
        return self._ask(self.newest)

    def _ask(self, request: Request) -> memoryview:
        self.transport.write(*request.frame)
        header = self._answer_to(request)
        if header.version != VERSION:
            raise ProtocolError(f"it speaks version {header.version} of the protocol; this side speaks {VERSION}")
        longest = LONGEST_ERROR if header.command == ERROR else request.longest
        if header.length > longest:
            raise ProtocolError(f"it answered with {header.length} bytes where at most {longest} are due")
        if header.command == ERROR:
            raise decode_error(read_payload(self.transport.read_into, header))
        if header.command != request.command | ANSWER:
            raise ProtocolError(f"it answered command {header.command & ~ANSWER} where {request.command} was asked")
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
        raise ProtocolError("answers to other requests keep coming; is somebody else using this port?")
