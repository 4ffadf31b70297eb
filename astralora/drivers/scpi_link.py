"""Read the responses of a SCPI instrument, as the host."""

from __future__ import annotations

import logging
from typing import Final

from ..devices import DeviceSpec, ProtocolError
from .link import LONGEST_SPEC, Identity, parse_spec
from .scpi import LONGEST_LINE, block_length, error_of
from .transports import Transport
from .transports.base import Bytes

__all__ = ["LONGEST_BLOCK", "ScpiLink"]

_log = logging.getLogger(__name__)

LONGEST_BLOCK: Final = 1 << 24
"""Largest number of bytes of vectors in one query, because instruments must store them."""

# Largest number of late answers to earlier requests that are dropped before the right answer.
_MOST_STALE: Final = 100


class ScpiLink:
    """Read the responses of an instrument.

    Args:
        transport: transport to the instrument; must be open while the link is used.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def start(self) -> None:
        """Clear old errors of the instrument."""
        self._transport.write(b"*CLS\n")

    def identify(self) -> Identity:
        """Request the identity of the instrument."""
        self._transport.write(b"*IDN?\n")
        answer = self.plain(numeric=False)
        self._transport.refuse_echo(answer.encode())
        words = [part.strip() for part in answer.split(",")]
        if len(words) != 4:
            raise ProtocolError(f"the answer to *IDN? is {','.join(words)!r}; it must have four words")
        return Identity(*words)

    def spec(self) -> DeviceSpec:
        """Request the spec of the instrument."""
        self._transport.write(b"SYST:SPEC?\n")
        if self._transport.read(1) != b"#":
            raise ProtocolError("the answer to SYST:SPEC? is not a block")
        text = self._block(LONGEST_SPEC)
        self.word(b"\n")
        return parse_spec(text)

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
            answered = _whole(word)
            block = None
            if end == b",":
                mark = bytes(self._transport.read(1))
                if mark == b'"':
                    # The response contains only an error.
                    raise error_of(answered, self.word(b"\n")[0].rstrip().removesuffix('"'))
                if mark != b"#":
                    raise ProtocolError(f"the instrument sent {mark!r} instead of a block")
                block = self._block(longest if answered == number else LONGEST_BLOCK)
                end = bytes(self._transport.read(1))
            if end == b";":
                error, _ = self.word(b",")
                text = self.word(b"\n")[0].strip().strip('"')
                if answered == number and _whole(error):
                    raise error_of(_whole(error), text)
                if _whole(error) and answered != number and block is None:
                    # The program was not carried out, because this is the number of an earlier program.
                    raise error_of(_whole(error), text)
            if answered == number:
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

    def plain(self, numeric: bool = True) -> str:
        """Read a line of text; drop late answers to numbered requests before it.

        Args:
            numeric: whether the line may consist of a number only.
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
            # A number at the beginning marks a late answer to a numbered request.
            if end == b"," and self._transport.read(1) == b"#":
                self._block(LONGEST_BLOCK)
            self.word(b"\n")
        raise ProtocolError("too many answers to other requests arrived; check that no other program uses this port")

    def _block(self, longest: int) -> bytearray:
        digits = bytes(self._transport.read(1))
        if digits not in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"):
            raise ProtocolError(f"a block begins with {digits!r}; it must begin with a digit")
        length = block_length(self._transport.read(int(digits)))
        if length > longest:
            raise ProtocolError(f"the answer has a block of {length} bytes; it must have at most {longest}")
        return self._transport.read(length)


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ProtocolError(f"the instrument sent {word[:40]!r} instead of a number") from None
