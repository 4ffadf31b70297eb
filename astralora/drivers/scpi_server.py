"""Answer SCPI messages like the firmware of an instrument."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from ..devices import Device, DeviceError, DeviceTimeout, NotConnected, OutOfRange, ProtocolError
from ..devices.checks import check_controls, check_inputs
from .scpi import LONGEST_LINE, block_head, block_length, error_number, matches
from .transports import Transport
from .transports.base import Bytes
from .values import Format, decode_values, encode_values

__all__ = ["Command", "Message", "ScpiServer"]

_MOST_ERRORS: Final = 16


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
    """

    def __init__(self, device: Device, longest_block: int = 1 << 24) -> None:
        self.device = device
        self._longest_block = longest_block
        self._errors: deque[tuple[int, str]] = deque()
        self._is_programmed = False
        # Number of the newest program, and number and answer of the newest query.
        self._program_number = 0
        self._answered: tuple[int, list[Bytes]] = (0, [])
        self._commands: dict[str, Callable[[list[str | bytearray]], list[Bytes] | None]] = {
            "*IDN?": self._identify,
            "*CLS": lambda _: self._errors.clear(),
            "*RST": lambda _: self.make_safe(),
            "*OPC?": lambda _: [b"1"],
            "SYSTem:ERRor?": self._next_error,
            "SYSTem:SPEC?": self._spec,
            "PROGram:DATA": self._program,
            "PROGram:DATA?": lambda _: [str(self._program_number).encode()],
            "QUERy:DATA?": self._query,
        }

    # -- on the line ------------------------------------------------------------------------

    def serve(self, line: Transport, stop: threading.Event) -> None:
        """Answer messages on a line until the host closes it or ``stop`` is set.

        Raises:
            NotConnected: the host has closed the line.
        """
        while not stop.is_set():
            with suppress(DeviceTimeout):  # no message arrived, or only a part of one
                self.respond(line, self._receive(line))

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
        self._program_number, self._answered, self._is_programmed = 0, (0, []), False
        self.device.close()

    def _receive(self, line: Transport) -> Message:
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

    def _program(self, parameters: list[str | bytearray]) -> None:
        number, values = _numbered(parameters)
        if number == self._program_number:
            return
        spec = self.device.spec
        check_controls(spec, values, "program")
        self.device.open()
        self._is_programmed = False
        self.device.program(values)
        self._is_programmed = True
        self._program_number = number

    def _query(self, parameters: list[str | bytearray]) -> list[Bytes]:
        number, values = _numbered(parameters)
        if number == self._answered[0]:
            return self._answered[1]
        spec = self.device.spec
        if len(values) % spec.in_features:
            raise OutOfRange(f"{len(values)} input values are not a multiple of the {spec.in_features} inputs")
        inputs = values.view(-1, spec.in_features)
        if spec.max_batch is not None and len(inputs) > spec.max_batch:
            raise OutOfRange(f"{len(inputs)} vectors are too many; one query may have {spec.max_batch}")
        check_inputs(spec, inputs, "query")
        if not self._is_programmed:
            raise NotConnected("no controls are set; send PROGram:DATA first")
        data = encode_values(self.device.query(inputs).detach().cpu().numpy(), Format.FLOAT32)
        answer: list[Bytes] = [f"{number},".encode() + block_head(len(data)), data]
        self._answered = (number, answer)
        return answer


def _numbered(parameters: list[str | bytearray]) -> tuple[int, Tensor]:
    match parameters:
        # No request may have the number 0, because PROGram:DATA? answers 0 before the first program.
        case [str(number), bytearray(block)] if number.isdecimal() and int(number) and not len(block) % 4:
            return int(number), torch.from_numpy(decode_values(block, Format.FLOAT32)).to(torch.float32)
    raise ProtocolError("write a number, a comma, and a block of float32 values; numbers begin at 1")
