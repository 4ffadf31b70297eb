"""Inject faults of the line between a server and its host."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext

from ...devices.wrappers.faults import LINK_FAULTS, FaultDice, FaultKind, FaultPlan, FaultyDevice
from ..transports import Transport
from ..transports.base import Bytes

__all__ = ["HungUp", "LineFaults"]


class HungUp(Exception):
    """Signal to the emulator that it must break the line."""


class LineFaults:
    """Send answers to the host, some of them with a fault of the line.

    Args:
        plan: probability of each fault.
        chip: device of the server. It injects no fault if the line has one, so that an operation has at most one fault.
        possible: faults that the protocol can detect.

    Attributes:
        dice: random choice and counters of the faults.
    """

    def __init__(self, plan: FaultPlan, chip: FaultyDevice, possible: Collection[FaultKind] = LINK_FAULTS) -> None:
        self.dice = FaultDice(plan, LINK_FAULTS)
        self._chip = chip
        self._possible = possible
        self._late: list[Bytes] = []

    def answer(
        self,
        line: Transport,
        carry_out: Callable[[], list[Bytes]],
        complain: Callable[[], list[Bytes]],
    ) -> None:
        """Answer one request.

        Args:
            line: line to the host.
            carry_out: function that carries out the request and returns the answer.
            complain: function that returns the answer to a damaged request; an empty list for no answer.

        Raises:
            HungUp: the fault is a disconnect, so the emulator must break the line.
        """
        # A pending late answer would hide another fault, so there is one fault at a time.
        kind = None if self._late else self.dice.throw(self._possible)
        with self._chip.spared() if kind is not None else nullcontext():
            self._answer(kind, line, carry_out, complain)

    def _answer(
        self,
        kind: FaultKind | None,
        line: Transport,
        carry_out: Callable[[], list[Bytes]],
        complain: Callable[[], list[Bytes]],
    ) -> None:
        # A late answer is sent at the worst time: just before the next answer.
        late, self._late = self._late, []
        if kind == "disconnect":
            raise HungUp
        if kind == "timeout":
            if self.dice.coin():
                carry_out()  # in this case the answer is lost; otherwise the request is lost
            return
        if kind == "corrupt" and self.dice.coin():
            line.write(*late, *complain())
            return
        answer = carry_out()
        if kind == "late":
            self._late = answer
            return
        if kind in ("truncated", "corrupt"):
            whole = bytearray(b"".join(answer))
            if kind == "truncated":
                del whole[self.dice.below(len(whole)) :]
            else:
                # A set, because flipping the same bit twice would change nothing.
                for place in {self.dice.below(len(whole)) for _ in range(3)}:
                    whole[place] ^= 1 << self.dice.below(8)
            answer = [whole]
        line.write(*late, *answer)
