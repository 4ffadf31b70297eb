"""Drive instruments that accept and send lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..devices import ProtocolError
from .transports import Transport

__all__ = ["TextLine"]

_LONGEST: Final = 1 << 16
# Number of characters of a line that messages show.
_SHOWN: Final = 40


class TextLine:
    """Send lines of text over a transport, and read one line as the answer to each.

    An answer belongs to its request even after a fault: if the exchange before broke off, by a timeout or by Ctrl-C,
    the line is drained before the next request is sent. An answer that cannot be read is an error, never a number.

    Args:
        transport: transport to the instrument; must be open while the line is used.
        end: end of the lines that are sent.
        answer_end: end of the lines that are received; spaces and ends of line around an answer are removed.
        separator: text between the words of a request, and between the numbers of an answer; a space also stands for
            any number of spaces and tabs in an answer.
    """

    def __init__(self, transport: Transport, *, end: str = "\n", answer_end: str = "\n", separator: str = " ") -> None:
        self._transport = transport
        self._end = end
        self._answer_end = answer_end.encode("ascii")
        self._separator = separator

    def ask(self, *words: object, patience: float = 0.0) -> str:
        """Send one line, and return the line that answers it.

        Args:
            *words: words of the line. An array or a list of numbers stands for its numbers.
            patience: additional time for the answer, in seconds, on top of the timeout.

        Raises:
            ValueError: the words contain an end of line, which would make two requests of one.
            ProtocolError: the answer is no text, is too long, or is an echo of the request.
            DeviceTimeout, NotConnected: no answer arrived.
        """
        request = self._join(words)
        try:
            self._prepare()
            self._transport.write((request + self._end).encode("ascii"))
            answer = self._transport.read_until(self._answer_end, _LONGEST, patience)
        except (KeyboardInterrupt, SystemExit):
            self._transport.break_off()
            raise
        self._transport.refuse_echo(answer)
        if not answer.isascii():
            raise ProtocolError(f"the answer to {_shorten(request)} is no text: {bytes(answer[:_SHOWN])!r}")
        return answer.decode("ascii").strip()

    def command(self, *words: object, answer: str = "OK", patience: float = 0.0) -> None:
        """Send one line, and require its acknowledgement.

        Args:
            *words: words of the line; see `ask`.
            answer: line that confirms that the instrument has carried out the command.
            patience: see `ask`.

        Raises:
            ProtocolError: the instrument answered something else.
        """
        given = self.ask(*words, patience=patience)
        if given != answer:
            raise ProtocolError(
                f"the answer to {_shorten(self._join(words))} is {_shorten(given)}; it must be {answer!r}"
            )

    def numbers(self, *words: object, count: int, patience: float = 0.0) -> list[float]:
        """Send one line, and return the numbers of its answer.

        Args:
            *words: words of the line; see `ask`.
            count: number of numbers that the answer must have.
            patience: see `ask`.

        Raises:
            ProtocolError: the answer is not ``count`` numbers.
        """
        given = self.ask(*words, patience=patience)
        parts = given.split(None if self._separator == " " else self._separator)
        try:
            if len(parts) != count or "_" in given:
                raise ValueError
            return [float(part) for part in parts]
        except ValueError:
            raise ProtocolError(
                f"the answer to {_shorten(self._join(words))} is {_shorten(given)}; it must be {count} numbers"
            ) from None

    def _prepare(self) -> None:
        """Make sure that the next answer belongs to the next request."""
        if self._transport.has_remnant:
            # Ends the part of a line that the instrument holds; it may answer that it does not understand it.
            self._transport.write(self._end.encode("ascii"))
            self._transport.drain()
        elif self._transport.broke_off:
            self._transport.drain()

    def _join(self, words: Iterable[object]) -> str:
        parts = [
            str(part)
            for word in words
            for part in ([word] if isinstance(word, str) or not isinstance(word, Iterable) else word)
        ]
        request = self._separator.join(parts)
        if not request.isascii() or any(mark in request for mark in ("\r", "\n", self._end)):
            raise ValueError(f"a request must be one line of ASCII characters, not {request[:_SHOWN]!r}")
        return request


def _shorten(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
