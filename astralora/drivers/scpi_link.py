"""Read the responses of a SCPI instrument, as the host."""

from __future__ import annotations

import logging
import re
import time
from typing import Final

from ..devices import DeviceSpec, DeviceTimeout, ProtocolError
from .link import LONGEST_SPEC, Identity, parse_spec
from .scpi import LONGEST_LINE, PATTERN, block_length, error_of
from .transports import Transport
from .transports.base import Bytes
from .watchdog import seconds_of

__all__ = ["LONGEST_BLOCK", "ScpiLink"]

_log = logging.getLogger(__name__)

LONGEST_BLOCK: Final = 1 << 24
"""Largest number of bytes of vectors in one query, because instruments must store them."""

# Largest number of late answers to earlier requests that are dropped before the right answer.
_MOST_STALE: Final = 100
# Attempts to empty the line and the error queue, and the bytes that are read one by one in each.
_MOST_SETTLING: Final = 5
_MOST_RESIDUE: Final = 1 << 16

# The end of the message of `ScpiLink.settle`.
_SETTLING: Final = b":SYST:ERR?;*OPC?;:SYST:ERR?\n"
# The response to it, at the end of other bytes: the oldest error, 1, and the next error.
_SETTLED: Final = re.compile(
    rb'([+-]?\d{1,9}),"((?:[^"\n]|"")*)";\+?1;([+-]?\d{1,9}),"(?:[^"\n]|"")*"\r?\n\Z',
)
_NUMBER: Final = re.compile(r"\s*[+-]?[0-9]{1,10}\s*\Z")
# A string of IEEE 488.2, without its first quotation mark; two marks stand for one.
_TEXT: Final = re.compile(r'((?:[^"]|"")*)"\s*\Z')


class ScpiLink:
    """Send requests to an instrument, and read its responses.

    A request that was interrupted leaves the rest of its response on the line, where it could be taken for the answer
    to the next request. Before the next request, the link therefore empties the line and the error queue: `settle`.

    Args:
        transport: transport to the instrument; must be open while the link is used.

    Attributes:
        sent_at: time of the newest request, by the clock `time.monotonic`.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.sent_at = time.monotonic()
        # Whether the last response was read to its end. A new connection may be in any state.
        self._is_aligned = False
        # Whether a message was sent in part only.
        self._is_cut = False
        # Additional time that the instrument needs for the newest request, in seconds.
        self._patience = 0.0

    def start(self) -> None:
        """Empty the line and the error queue of the instrument, in whatever state an earlier program left them."""
        self.settle()

    def settle(self, command: bytes = b"") -> None:
        """Wait until all earlier messages are carried out, drop their responses, and delete all errors.

        Args:
            command: command to carry out at the same time, with a semicolon at its end.

        Raises:
            DeviceError: the command has this error.
            DeviceTimeout, NotConnected: the instrument does not answer.
        """
        self._transport.flush()
        number, text, was_cut = b"", b"", self._is_cut
        for _ in range(_MOST_SETTLING):
            # The line feed ends a message that was interrupted half-way.
            self._write(b"\n*CLS;", command, _SETTLING)
            try:
                found = self._settled()
            except DeviceTimeout:
                if not was_cut:
                    raise
                # The instrument took this message for the rest of a block, and has given the block up.
                was_cut, found = False, None
            if found is None:
                continue
            number, text, after = found
            if not int(number) and not int(after):
                self._is_aligned = True
                return
        if not number:
            raise ProtocolError("the instrument does not stop sending; check that no other program uses this port")
        raise error_of(int(number), text.decode("ascii", "replace"))

    def request(self, *parts: Bytes, patience: float = 0.0) -> None:
        """Send one message; its response must be read before the next.

        Args:
            *parts: parts of the message.
            patience: additional time that the instrument needs before it can answer, in seconds, on top of the timeout.
        """
        if not self._is_aligned:
            self.settle()
        self._patience = patience
        self._write(*parts)

    def identify(self) -> Identity:
        """Request the identity of the instrument."""
        self.request(b"*IDN?\n")
        answer = self.plain()
        self._transport.refuse_echo(answer.encode())
        words = [part.strip() for part in answer.split(",")]
        if len(words) != 4:
            raise ProtocolError(f"the answer to *IDN? is {','.join(words)!r}; it must have four words")
        return Identity(*words)

    def spec(self) -> DeviceSpec:
        """Request the spec of the instrument."""
        self.request(b"SYST:SPEC?\n")
        if self._transport.read(1) != b"#":
            raise ProtocolError("the answer to SYST:SPEC? is not a block")
        text = self._block(LONGEST_SPEC)
        self._end_of_line()
        return parse_spec(text)

    def pattern(self) -> bytearray:
        """Request the pattern that shows the byte order.

        Raises:
            DeviceError: the instrument reported this error.
        """
        self.request(b"SYST:PATT?;:SYST:ERR?\n")
        first = bytes(self._transport.read(1))
        if first != b"#":
            self._report(first)
            raise ProtocolError("the instrument reported no error and sent no pattern")
        block = self._block(4 * len(PATTERN))
        self._expect(b";")
        self._report()
        return block

    def set_watchdog(self, milliseconds: int) -> None:
        """Set the time without a message after which the instrument becomes safe; 0 for never.

        Raises:
            DeviceError: the instrument reported this error.
        """
        self.request(f"SYST:WATC {seconds_of(milliseconds)};:SYST:ERR?\n".encode())
        self._report()

    def response(self, number: int, longest: int, patience: float) -> tuple[int, bytearray | None]:
        """Read the response to a request, and return its number and its block (None if it has no block).

        Args:
            number: number of the request; responses to earlier requests are dropped.
            longest: longest block to accept, in bytes; a longer block is refused without reading it.
            patience: additional time that the instrument needs before it can answer, in seconds, on top of the timeout.

        Raises:
            DeviceError: the instrument reported this error.
        """
        for _ in range(_MOST_STALE):
            word, end = self.word(b",;\n", patience)
            answered, block = _whole(word), None
            if end == b"\n":
                _log.debug("%s: dropped a late answer, %d", self._transport.uri, answered)
                continue
            if end == b",":
                mark = bytes(self._transport.read(1))
                if mark == b'"':
                    # The response contains only the error queue.
                    self._raise_error(answered, self._text())
                    _log.debug("%s: dropped a late report that there is no error", self._transport.uri)
                    continue
                if mark != b"#":
                    raise ProtocolError(f"the instrument sent {mark!r} instead of a block")
                block = self._block(longest if answered == number else LONGEST_BLOCK)
                self._expect(b";")
            error = _whole(self.word(b",")[0])
            self._expect(b'"')
            text = self._text()
            if answered == number or block is None:
                # With another number: the program was not carried out, and this is the number of an earlier program.
                self._raise_error(error, text)
            if answered == number:
                self._is_aligned = True
                return answered, block
            _log.debug("%s: dropped a late answer, number %d", self._transport.uri, answered)
        raise ProtocolError("too many answers to other requests arrived; check that no other program uses this port")

    def word(self, ends: bytes, patience: float = 0.0) -> tuple[str, Bytes]:
        """Read text until one of the bytes ``ends`` arrives, and return the text and this byte."""
        text = bytearray(self._transport.read(1, patience))
        while text[-1] not in ends:
            if len(text) > LONGEST_LINE:
                raise ProtocolError(f"the instrument sent {len(text)} bytes without an end: {bytes(text[:40])!r}")
            text += self._transport.read(1)
        return text[:-1].decode("ascii", "replace"), bytes(text[-1:])

    def plain(self) -> str:
        """Read a line of text; drop late answers to numbered requests, and late reports of errors, before it."""
        for _ in range(_MOST_STALE):
            word, end = self.word(b",;\n")
            is_late = _NUMBER.match(word) is not None
            if end == b"," and is_late and self._transport.read(1) == b"#":
                self._block(LONGEST_BLOCK)
            if end != b"\n":
                word += bytes(end).decode() + self.word(b"\n")[0]
            if not is_late:
                self._is_aligned = True
                return word
        raise ProtocolError("too many answers to other requests arrived; check that no other program uses this port")

    # -- parts of a response ----------------------------------------------------------------

    def _write(self, *parts: Bytes) -> None:
        self._is_aligned, self._is_cut = False, True
        self._transport.write(*parts)
        self._is_cut = False
        self.sent_at = time.monotonic()

    def _settled(self) -> tuple[bytes, bytes, bytes] | None:
        """Read up to the response of `settle`: oldest error, its text, next error; None if it does not come."""
        window = bytearray()
        for count in range(_MOST_RESIDUE):
            window += self._transport.read(1, 0.0 if count else self._patience)
            if window[-1:] == b"\n":
                found = _SETTLED.search(window)
                if found is not None:
                    return found[1], found[2], found[3]
                if _SETTLING in window:
                    raise ProtocolError(
                        f"the line echoes what is sent to {self._transport.uri}; "
                        f"switch the echo of the instrument or of its adapter off"
                    )
                del window[: -2 * LONGEST_LINE]
        self._transport.flush()
        return None

    def _report(self, first: bytes = b"") -> None:
        """Read the answer to SYSTem:ERRor? and raise the error, if there is one."""
        number = _whole(first.decode("ascii", "replace") + self.word(b",")[0])
        self._expect(b'"')
        self._raise_error(number, self._text())
        self._is_aligned = True

    def _raise_error(self, number: int, text: str) -> None:
        """Raise the error that a response has reported at its end; 0 is no error."""
        if number:
            self._is_aligned = True
            raise error_of(number, text)

    def _text(self) -> str:
        """Read a text after its first quotation mark, and the end of the line."""
        line = self.word(b"\n")[0]
        found = _TEXT.match(line)
        if found is None:
            raise ProtocolError(f"the instrument sent {line[:40]!r} instead of a text in double quotes")
        return found[1].replace('""', '"')

    def _expect(self, byte: bytes) -> None:
        sent = bytes(self._transport.read(1))
        if sent != byte:
            raise ProtocolError(f"the instrument sent {sent!r} instead of {byte!r}")

    def _end_of_line(self) -> None:
        rest = self.word(b"\n")[0]
        if rest.strip():
            raise ProtocolError(f"the instrument sent {rest[:40]!r} after the end of its answer")
        self._is_aligned = True

    def _block(self, longest: int) -> bytearray:
        digits = bytes(self._transport.read(1))
        if digits not in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"):
            raise ProtocolError(f"a block begins with {digits!r}; it must begin with a digit")
        length = block_length(self._transport.read(int(digits)))
        if length > longest:
            raise ProtocolError(f"the answer has a block of {length} bytes; it must have at most {longest}")
        return self._transport.read(length)


def _whole(word: str) -> int:
    if _NUMBER.match(word) is None:
        raise ProtocolError(f"the instrument sent {word[:40]!r} instead of a number")
    return int(word)
