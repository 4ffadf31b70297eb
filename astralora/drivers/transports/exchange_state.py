"""Remember how the newest exchange on a line ended, and how long its answer has taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["ExchangeState"]

# Share of a timeout, and seconds, to wait longer for an answer that was late once.
_LONGER: Final = 1.25
_LONGER_SECONDS: Final = 0.1


@dataclass(slots=True)
class ExchangeState:
    """Hold what a transport knows about the newest exchange.

    Attributes:
        late: longest time after which bytes of an old answer may begin to arrive, in seconds; 0 after a complete
            exchange.
        uneven: whether more than one answer may be outstanding, or an answer stopped half-way.
        unanswered: whether a message was sent, and nothing was read since.
        cut: whether a message was sent in part only.
        remnant: whether the other end may still hold a part of a message from before the line was opened.
        waited: time spent in reads since the newest message, in seconds.
        arrived: number of bytes that arrived since the newest message.
        patience: longest additional time that a read since the newest message granted, in seconds.
    """

    late: float = 0.0
    uneven: bool = False
    unanswered: bool = False
    cut: bool = False
    remnant: bool = False
    waited: float = 0.0
    arrived: int = 0
    patience: float = 0.0

    def begin_message(self, timeout: float) -> None:
        """Note that a message is being sent; it counts as cut off until `end_message`."""
        self.cut, self.remnant = True, False
        if self.late:
            self.uneven = True
        if self.late < timeout:
            self.late = timeout
        self.unanswered = True
        self.waited, self.arrived, self.patience = 0.0, 0, 0.0

    def end_message(self) -> None:
        """Note that the message was sent completely."""
        self.cut = False
        if not self.uneven:
            self.late = 0.0

    def begin_answer(self, wait: float, patience: float) -> None:
        """Note that an answer is being read; it counts as broken off until `end_answer` or `time_out`."""
        # Without max, which would take a good part of the time of a short read.
        if self.late < wait:
            self.late = wait
        if self.patience < patience:
            self.patience = patience

    def end_answer(self) -> None:
        """Note that the answer was read completely; it may be the answer to an older message while ``uneven``."""
        self.unanswered = False
        if not self.uneven:
            self.late = 0.0

    def time_out(self, wait: float, got: int) -> None:
        """Note that a read ended after ``wait`` seconds of silence, ``got`` bytes after the answer began."""
        self.late = max(_LONGER * wait, wait + _LONGER_SECONDS)
        self.uneven = self.uneven or got > 0
        self.waited, self.arrived = 0.0, 0

    def break_off(self, timeout: float) -> None:
        """Note that an exchange was broken off by something else than the line."""
        self.late = max(self.late, timeout)

    def reopen(self, forgets: bool) -> None:
        """Note that the line was opened.

        Args:
            forgets: whether the other end has dropped the part of a message, and its unsent answers.
        """
        self.cut, self.remnant = False, (self.cut or self.remnant) and not forgets
        if forgets:
            self.clear()

    def clear(self) -> None:
        """Forget everything: no byte of an old exchange can arrive any more."""
        self.late, self.uneven, self.unanswered = 0.0, False, False
        self.waited, self.arrived, self.patience = 0.0, 0, 0.0
