"""Answer SCPI messages like the firmware of an instrument."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import Device, DeviceError, DeviceTimeout, NotConnected, OutOfRange, ProtocolError
from ..devices.checks import check_controls, check_inputs
from .incoming import Incoming
from .scpi import LONGEST_LINE, PATTERN, block_head, block_length, error_number, matches
from .transports import Transport
from .transports.base import Bytes
from .values import ByteOrder, Format, decode_values, encode_values
from .watchdog import LONGEST_WATCHDOG, Watchdog, milliseconds_of, seconds_of

__all__ = ["Command", "Message", "ScpiServer"]

_MOST_ERRORS: Final = 16
# Number, length and checksum where no request is stored.
_NO_REQUEST: Final = (0, 0, 0)
# A decimal number of SCPI that is not negative.
_SECONDS: Final = re.compile(r"\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?\Z", re.ASCII)


@dataclass(slots=True)
class Command:
    """Hold one command of a message.

    Attributes:
        header: name of the command.
        parameters: parameters of the command, each a text or the bytes of a block.
    """

    header: str = ""
    parameters: list[str | bytearray] = field(default_factory=list)


@dataclass(slots=True)
class Message:
    """Hold a program message.

    Attributes:
        commands: commands up to the end of the line.
        problem: error of a message that is not valid; None for a valid message.
    """

    commands: list[Command] = field(default_factory=list)
    problem: DeviceError | None = None

    @property
    def operates(self) -> bool:
        """Return whether the message contains a command that operates the chip."""
        return any(command.header.upper().startswith((":PROG", "PROG", "QUER", ":QUER")) for command in self.commands)


class ScpiServer:
    """Serve any device by SCPI; see `astralora.drivers.scpi` for the commands.

    Args:
        device: device that computes the answers; its first program opens it, and ``*RST`` closes it.
        longest_block: longest block to accept, in bytes; longer blocks are refused without reading them.
        byte_order: order of the bytes of the values in all blocks.

    Attributes:
        watchdog: time without a message after which the device becomes safe; call its ``check`` often.
    """

    def __init__(self, device: Device, longest_block: int = 1 << 24, byte_order: ByteOrder = "little") -> None:
        self.device = device
        self.byte_order = byte_order
        self.watchdog = Watchdog(self.make_safe)
        self._longest_block = longest_block
        self._errors: deque[tuple[int, str]] = deque()
        self._is_programmed = False
        # Number and checksum of the newest program and of the newest query, and the answer to the query.
        self._newest_program = self._newest_query = _NO_REQUEST
        self._answered: list[Bytes] = []
        self._commands: dict[str, Callable[[list[str | bytearray]], list[Bytes] | None]] = {
            "*IDN?": self._identify,
            "*CLS": lambda _: self._errors.clear(),
            "*RST": lambda _: self.make_safe(),
            "*OPC?": lambda _: [b"1"],
            "SYSTem:ERRor?": self._next_error,
            "SYSTem:SPEC?": self._spec,
            "SYSTem:PATTern?": lambda _: self._block(np.array(PATTERN)),
            "SYSTem:WATChdog": self._set_watchdog,
            "SYSTem:WATChdog?": lambda _: [seconds_of(self.watchdog.milliseconds).encode()],
            "PROGram:DATA": self._program,
            "PROGram:DATA?": lambda _: [str(self._newest_program[0]).encode()],
            "QUERy:DATA?": self._query,
        }

    # -- on the line ------------------------------------------------------------------------

    def serve(self, line: Transport, stop: threading.Event) -> None:
        """Answer messages on a line until the host closes it or ``stop`` is set.

        Raises:
            NotConnected: the host has closed the line, or sends bytes that are no messages; see `Incoming`.
        """
        incoming = Incoming(line, self.watchdog.check)
        while not stop.is_set():
            try:
                incoming.begin()
            except DeviceTimeout:
                continue  # no message arrived
            try:
                message = self._receive(incoming)
            except DeviceTimeout:
                incoming.fail()
                continue
            if message.problem is None and not message.commands:
                incoming.accept()
                continue  # an empty line
            if message.problem is None:
                incoming.accept()
            else:
                incoming.fail()
            self.watchdog.restart()
            self.respond(line, message)
            # The time that the device needs for a message does not count.
            self.watchdog.restart()

    def respond(self, line: Transport, message: Message) -> None:
        """Carry out one message, and send the answers to its queries."""
        # A host that did not get the answer sends the request again.
        with suppress(DeviceTimeout):
            line.write(*self.handle(message))

    def handle(self, message: Message) -> list[Bytes]:
        """Return the response to a message: the answers to its queries, with semicolons between them."""
        response: list[Bytes] = []
        if message.problem is not None:
            self._note(message.problem)
        for command in message.commands:
            try:
                answer = self._function(command.header)(command.parameters)
            except Exception as error:
                # The host can read every error later, and the server keeps running.
                self._note(error)
                continue
            if answer is not None:
                response += [b";", *answer] if response else answer
        return [*response, b"\n"] if response else []

    def make_safe(self) -> None:
        """Bring the device into its safe state; the controls are lost."""
        # Without a stored number, a program with the same number is carried out again.
        self._newest_program = self._newest_query = _NO_REQUEST
        self._answered, self._is_programmed = [], False
        self.watchdog.set(0)
        self.device.close()

    def _receive(self, line: Incoming) -> Message:
        """Read one message from the line."""
        message, command, text, size = Message(), Command(), bytearray(), 0

        def end_of_word() -> None:
            word = text.decode("ascii", "replace").strip()
            if not command.header:
                command.header = word
            elif word:
                command.parameters.append(word)
            text.clear()

        while True:
            byte = bytes(line.read(1))
            size += 1
            if size > LONGEST_LINE:
                message.problem = ProtocolError(f"a message may have at most {LONGEST_LINE} bytes without its blocks")
                message.commands.clear()
                return message
            if byte == b"#" and command.header:
                digits = bytes(line.read(1))
                if digits not in b"123456789":
                    message.problem = ProtocolError("only blocks of definite length are accepted")
                    return message
                try:
                    length = block_length(line.read(int(digits)))
                    if length > self._longest_block:
                        raise ProtocolError(
                            f"a block of {length} bytes is too long; at most {self._longest_block} are accepted"
                        )
                except ProtocolError as error:
                    message.problem = error
                    return message
                line.expect(length)
                command.parameters.append(line.read(length))
            elif byte in b";\n":
                end_of_word()
                if command.header:
                    message.commands.append(command)
                if byte == b"\n":
                    return message
                command = Command()
            elif byte == b"," or (byte == b" " and text and not command.header):
                end_of_word()
            else:
                text += byte

    def _function(self, header: str) -> Callable[[list[str | bytearray]], list[Bytes] | None]:
        for pattern, function in self._commands.items():
            if matches(header, pattern):
                return function
        raise ProtocolError(f"there is no command {header}")

    def _note(self, error: BaseException) -> None:
        if len(self._errors) < _MOST_ERRORS:
            self._errors.append(error_number(error))

    # -- commands ---------------------------------------------------------------------------

    def _identify(self, _: object) -> list[Bytes]:
        spec = self.device.spec
        words = ["astralora", spec.name, spec.serial_number or "", "1.0"]
        # Commas and line ends are removed from the words, because they separate words and answers.
        return [",".join(" ".join(word.replace(",", " ").split()) for word in words).encode()]

    def _next_error(self, _: object) -> list[Bytes]:
        number, text = self._errors.popleft() if self._errors else (0, "No error")
        return [f'{number},"{text}"'.encode()]

    def _spec(self, _: object) -> list[Bytes]:
        text = self.device.spec.model_dump_json().encode()
        return [block_head(len(text)), text]

    def _set_watchdog(self, parameters: list[str | bytearray]) -> None:
        match parameters:
            case [str(text)] if _SECONDS.match(text) and float(text) <= LONGEST_WATCHDOG:
                self.watchdog.set(milliseconds_of(float(text)))
            case _:
                raise OutOfRange(f"write a time from 0 to {LONGEST_WATCHDOG:.0f} s; 0 is for no watchdog")

    def _program(self, parameters: list[str | bytearray]) -> None:
        request, values = self._numbered(parameters)
        if request == self._newest_program:
            return
        spec = self.device.spec
        check_controls(spec, values, "program")
        self.device.open()
        # The controls are unknown until the device has confirmed them, and old answers belong to other controls.
        self._newest_program = self._newest_query = _NO_REQUEST
        self._is_programmed = False
        self.device.program(values)
        self._is_programmed = True
        self._newest_program = request

    def _query(self, parameters: list[str | bytearray]) -> list[Bytes]:
        request, values = self._numbered(parameters)
        if request == self._newest_query:
            return self._answered
        spec = self.device.spec
        if len(values) % spec.in_features:
            raise OutOfRange(f"{len(values)} input values are not a multiple of the {spec.in_features} inputs")
        inputs = values.view(-1, spec.in_features)
        if spec.max_batch is not None and len(inputs) > spec.max_batch:
            raise OutOfRange(f"{len(inputs)} vectors are too many; one query may have {spec.max_batch}")
        check_inputs(spec, inputs, "query")
        if not self._is_programmed:
            raise NotConnected("no controls are set; send PROGram:DATA first")
        block = self._block(self.device.query(inputs).detach().cpu().numpy())
        self._newest_query, self._answered = request, [f"{request[0]},".encode(), *block]
        return self._answered

    # -- values -----------------------------------------------------------------------------

    def _block(self, values: NDArray[Any]) -> list[Bytes]:
        data = encode_values(values, Format.FLOAT32, order=self.byte_order)
        return [block_head(len(data)), data]

    def _numbered(self, parameters: list[str | bytearray]) -> tuple[tuple[int, int, int], Tensor]:
        """Return what identifies a request (its number, and the length and checksum of its block), and its values."""
        match parameters:
            # No request may have the number 0, because PROGram:DATA? answers 0 before the first program.
            case [str(number), bytearray(block)] if number.isdecimal() and int(number) and not len(block) % 4:
                values = decode_values(block, Format.FLOAT32, order=self.byte_order)
                return (int(number), len(block), crc32(block)), torch.from_numpy(values)
        raise ProtocolError("write a number, a comma, and a block of float32 values; numbers begin at 1")
