"""Faults of the line, put between a server and its host."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext

from ...devices.wrappers.faults import LINK_FAULTS, FaultDice, FaultKind, FaultPlan, FaultyDevice
from ..transports import Transport
from ..transports.base import Bytes

__all__ = ["HungUp", "LineFaults"]


class HungUp(Exception):
    """The line is to be broken here."""


class LineFaults:
    """Lets answers through, or not as they are.

    Args:
        plan: how often which fault.
        chip: the device behind; it is spared where the line has a fault, so that an operation has one at most.
        possible: faults that the protocol can notice.

    Attributes:
        dice: decides, and counts.
    """

    def __init__(self, plan: FaultPlan, chip: FaultyDevice, possible: Collection[FaultKind] = LINK_FAULTS) -> None:
        self.dice = FaultDice(plan, LINK_FAULTS)
        self._chip = chip
        self._possible = possible
        self._held: list[Bytes] = []

    def answer(
        self,
        line: Transport,
        carry_out: Callable[[], list[Bytes]],
        complain: Callable[[], list[Bytes]],
    ) -> None:
        """Answer one request.

        Args:
            line: to the host.
            carry_out: does what is asked, and returns the answer.
            complain: the answer to a request that arrived damaged; empty where there is none.

        Raises:
            HungUp: the line is to be broken.
        """
        # One fault at a time: what comes with a late answer, the late answer would make good.
        kind = None if self._held else self.dice.throw(self._possible)
        with self._chip.spared() if kind is not None else nullcontext():
            self._answer(kind, line, carry_out, complain)

    def _answer(
        self,
        kind: FaultKind | None,
        line: Transport,
        carry_out: Callable[[], list[Bytes]],
        complain: Callable[[], list[Bytes]],
    ) -> None:
        # What was held back comes at the worst time: just before the next answer.
        held, self._held = self._held, []
        if kind == "disconnect":
            raise HungUp
        if kind == "timeout":
            if self.dice.coin():
                carry_out()  # the answer is lost; else it was the request
            return
        if kind == "corrupt" and self.dice.coin():
            line.write(*held, *complain())
            return
        answer = carry_out()
        if kind == "late":
            self._held = answer
            return
        if kind in ("truncated", "corrupt"):
            whole = bytearray(b"".join(answer))
            if kind == "truncated":
                del whole[self.dice.below(len(whole)) :]
            else:
                # Different places: the same bit flipped twice is no damage.
                for place in {self.dice.below(len(whole)) for _ in range(3)}:
                    whole[place] ^= 1 << self.dice.below(8)
            answer = [whole]
        line.write(*held, *answer)
