"""The host's end of the framed protocol: numbered requests, each with its answer."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from ..devices import DeviceSpec, ProtocolError
from .frames import ANSWER, ERROR, VERSION, Buffers, Header, encode_frame, find_header, read_payload, skip_payload
from .messages import IDENTITY, LONGEST_ERROR, OPERATIONS, STATUS, VALUES, Command, Option, State, decode_error
from .transports import Transport
from .transports.base import Bytes

__all__ = ["FrameLink", "Identity", "Status"]

_log = logging.getLogger(__name__)

_LONGEST_IDENTITY: Final = 1 << 10
_LONGEST_SPEC: Final = 1 << 23
# Answers of earlier requests that may turn up before the one that is waited for.
_MOST_STALE: Final = 100


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is at the other end.

    Attributes:
        max_payload: longest payload that it takes, in bytes.
        options: what it can do beyond the least.
        manufacturer, model, serial_number, firmware: as with ``*IDN?``.
    """

    max_payload: int
    options: Option
    manufacturer: str
    model: str
    serial_number: str
    firmware: str


@dataclass(frozen=True, slots=True)
class Status:
    """What it is doing.

    Attributes:
        state: safe, or programmed.
        sequence: newest number that it carried out.
        programs, vectors: since power-up.
    """

    state: State
    sequence: int
    programs: int
    vectors: int


@dataclass(frozen=True, slots=True)
class _Request:
    command: int
    sequence: int
    frame: Sequence[Bytes]
    longest: int
    patience: float


class FrameLink:
    """Sends requests and finds their answers.

    Every request has a number of its own: an answer that comes too late is recognised by it and dropped, and the
    newest request can be sent once more without being carried out twice.

    Args:
        transport: the line; open while this is used.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        # Not from the beginning: what an earlier process was owed may still be on its way.
        self._sequence = int.from_bytes(os.urandom(4), "little")
        self._newest: _Request | None = None
        self._buffers = Buffers(VALUES.size)
        self._largest = _LONGEST_SPEC

    def identify(self) -> Identity:
        """Ask who is at the other end."""
        data = self.exchange(Command.IDENTIFY, longest=_LONGEST_IDENTITY)
        if len(data) < IDENTITY.size:
            raise ProtocolError(f"it identified itself in {len(data)} bytes, where at least {IDENTITY.size} are due")
        max_payload, options = IDENTITY.unpack_from(data)
        words = [word.strip() for word in bytes(data[IDENTITY.size :]).decode(errors="replace").split(",")]
        words += [""] * (4 - len(words))
        self._largest = max(_LONGEST_SPEC, max_payload)
        return Identity(max_payload, Option(options & sum(Option)), *words[:4])

    def spec(self) -> DeviceSpec:
        """Ask what the device promises."""
        data = self.exchange(Command.SPEC, longest=_LONGEST_SPEC)
        try:
            return DeviceSpec.model_validate_json(bytes(data))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "its text"
            raise ProtocolError(f"it promises what is no spec: {place}: {first['msg']}") from None

    def status(self) -> Status:
        """Ask what the device is doing."""
        data = self.exchange(Command.STATUS, longest=STATUS.size)
        if len(data) != STATUS.size or data[0] not in list(State):
            raise ProtocolError(f"it told its status in {len(data)} bytes that make no sense: {data.hex(' ')}")
        state, sequence, programs, vectors = STATUS.unpack(data)
        return Status(State(state), sequence, programs, vectors)

    def safe(self) -> None:
        """Bring the device into its safe state; the controls are lost."""
        self.exchange(Command.SAFE, longest=0)

    def exchange(self, command: int, *payload: Bytes, longest: int, patience: float = 0.0) -> memoryview:
        """Send a request and return the payload of its answer.

        Args:
            command: what is asked.
            *payload: its parts.
            longest: the longest payload that the answer may have; more is refused unread.
            patience: seconds that the device needs before it can answer, on top of the timeout.

        Raises:
            DeviceError: what the device reported.
            DeviceTimeout, NotConnected, ProtocolError: there was no answer, or none that can be right.
        """
        # 0 is for answers to nobody: it tells a host that never asked why it is not served.
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        frame = encode_frame(command, self._sequence, *payload)
        request = _Request(command, self._sequence, frame, longest, patience)
        if command in OPERATIONS:
            self._newest = request
        return self._ask(request)

    def repeat(self) -> memoryview:
        """Send the newest operation, number and all, and return the payload of its answer; see `exchange`."""
        if self._newest is None:
            raise ProtocolError("there is no program or query yet to repeat")
        return self._ask(self._newest)

    def forget(self) -> None:
        """Repeat nothing of what was asked before."""
        self._newest = None

    def _ask(self, request: _Request) -> memoryview:
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

    def _answer_to(self, request: _Request) -> Header:
        for _ in range(_MOST_STALE):
            header = find_header(lambda count: self.transport.read(count, request.patience), self._largest)
            if header.sequence == request.sequence or (header.sequence == 0 and header.command == ERROR):
                return header
            _log.debug("%s: dropped a late answer, number %d", self.transport.uri, header.sequence)
            if header.length > self._largest:
                break
            skip_payload(self.transport.read, header)
        raise ProtocolError("answers to other requests keep coming; is somebody else using this port?")
