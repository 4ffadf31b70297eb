"""Read the responses of an instrument that speaks SCPI, as its host."""

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
"""Bytes of vectors in one query: instruments have to store them."""

# Late answers to earlier requests that are dropped before the answer to this one.
_MOST_STALE: Final = 100


class ScpiLink:
    """Read the responses of an instrument.

    Args:
        transport: the line; open while this is used.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def start(self) -> None:
        """Clear the errors of before."""
        self._transport.write(b"*CLS\n")

    def identify(self) -> Identity:
        """Ask the instrument for its identity."""
        self._transport.write(b"*IDN?\n")
        words = [part.strip() for part in self.plain(numeric=False).split(",")]
        if len(words) != 4:
            raise ProtocolError(f"it answers *IDN? with {','.join(words)!r}, where four words are due")
        return Identity(*words)

    def spec(self) -> DeviceSpec:
        """Ask the instrument for its spec."""
        self._transport.write(b"SYST:SPEC?\n")
        if self._transport.read(1) != b"#":
            raise ProtocolError("it answers SYST:SPEC? with something that is no block")
        text = self._block(LONGEST_SPEC)
        self.word(b"\n")
        return parse_spec(text)

    def response(self, number: int, longest: int, patience: float) -> tuple[int, bytearray | None]:
        """Read the response to a request: its number, and its block where it has one.

        Args:
            number: of the request; responses to earlier ones are dropped.
            longest: longest block to accept, in bytes; a longer one is refused unread.
            patience: seconds that the instrument needs before it can answer, on top of the timeout.

        Raises:
            DeviceError: the instrument reported it.
        """
        for _ in range(_MOST_STALE):
            word, end = self.word(b",;\n", patience)
            answered = _whole(word)
            block = None
            if end == b",":
                mark = bytes(self._transport.read(1))
                if mark == b'"':
                    # The response has an error and nothing else.
                    raise error_of(answered, self.word(b"\n")[0].rstrip().removesuffix('"'))
                if mark != b"#":
                    raise ProtocolError(f"it sent {mark!r} where a block is due")
                block = self._block(longest if answered == number else LONGEST_BLOCK)
                end = bytes(self._transport.read(1))
            if end == b";":
                error, _ = self.word(b",")
                text = self.word(b"\n")[0].strip().strip('"')
                if answered == number and _whole(error):
                    raise error_of(_whole(error), text)
                if _whole(error) and answered != number and block is None:
                    # The program was not carried out: this is the number of the program before.
                    raise error_of(_whole(error), text)
            if answered == number:
                return answered, block
            _log.debug("%s: dropped a late answer, number %d", self._transport.uri, answered)
        raise ProtocolError("answers to other requests keep coming; is somebody else using this port?")

    def word(self, ends: bytes, patience: float = 0.0) -> tuple[str, Bytes]:
        """Read text up to any of these bytes; return it and that byte."""
        text = bytearray(self._transport.read(1, patience))
        while text[-1] not in ends:
            if len(text) > LONGEST_LINE:
                raise ProtocolError(f"it sent {len(text)} bytes without an end: {bytes(text[:40])!r}")
            text += self._transport.read(1)
        return text[:-1].decode("ascii", "replace"), bytes(text[-1:])

    def plain(self, numeric: bool = True) -> str:
        """Read a line of text; drop late answers to numbered requests before it.

        Args:
            numeric: whether the line may be a number alone.
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
        raise ProtocolError("answers to other requests keep coming; is somebody else using this port?")

    def _block(self, longest: int) -> bytearray:
        digits = bytes(self._transport.read(1))
        if digits not in (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9"):
            raise ProtocolError(f"a block begins with {digits!r} where a digit is due")
        length = block_length(self._transport.read(int(digits)))
        if length > longest:
            raise ProtocolError(f"it answered with a block of {length} bytes where at most {longest} are due")
        return self._transport.read(length)


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ProtocolError(f"it sent {word[:40]!r} where a number is due") from None
