"""Inject faults of the line between a server and its host."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext

from ...devices.wrappers.faults import LINK_FAULTS, FaultDice, FaultKind, FaultPlan, FaultyDevice
from ..transports import Transport
from ..transports.base import Bytes

__all__ = ["HungUp", "LineFaults"]


class HungUp(Exception):
    """Ask the emulator to break the line."""


class LineFaults:
    """Send answers with or without a fault.

    Args:
        plan: shares of the faults.
        chip: device behind the server; it has no fault where the line has one, so that an operation has at most one.
        possible: faults that the protocol can notice.

    Attributes:
        dice: draws the faults and counts them.
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
            line: to the host.
            carry_out: carries the request out, and returns the answer.
            complain: returns the answer to a request that arrived damaged; empty where there is none.

        Raises:
            HungUp: the line has to break.
        """
        # One fault at a time: a late answer would hide the fault that comes with it.
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
        # A late answer comes at the worst time: just before the next one.
        late, self._late = self._late, []
        if kind == "disconnect":
            raise HungUp
        if kind == "timeout":
            if self.dice.coin():
                carry_out()  # the answer is lost; else the request is
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
                # Different bytes: flipping one bit twice changes nothing.
                for place in {self.dice.below(len(whole)) for _ in range(3)}:
                    whole[place] ^= 1 << self.dice.below(8)
            answer = [whole]
        line.write(*late, *answer)
