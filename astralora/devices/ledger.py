"""Count what is spent on a device, by purpose, and keep it within a budget."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .capabilities import Composite
from .errors import BudgetExceeded
from .spec import DeviceSpec
from .usage import Budget, Usage

__all__ = ["Ledger", "Purpose"]


class Purpose(StrEnum):
    """Name what an operation is spent on."""

    CALIBRATION = "calibration"
    CHARACTERISE = "characterise"
    CONTROLS = "controls"
    """Gradients of the controls."""
    DRIFT = "drift"
    """References of a `CompensatedDevice`."""
    EVALUATION = "evaluation"
    FIT = "fit"
    """Controls fitted to a given matrix."""
    FORWARD = "forward"
    INPUTS = "inputs"
    """Gradients of the inputs."""
    MEASURE = "measure"
    """Transfer matrices measured on request."""
    OTHER = "other"
    STARTUP = "startup"
    """First measurements of a layer."""


_purpose: ContextVar[Purpose] = ContextVar("astralora_purpose", default=Purpose.OTHER)


@dataclass(slots=True)
class _Tally:
    """Add up operations in place; `Usage` is the frozen form."""

    programs: int = 0
    queries: int = 0
    vectors: int = 0
    seconds: float = 0.0
    retries: int = 0
    bytes: int = 0

    def usage(self) -> Usage:
        return Usage(self.programs, self.queries, self.vectors, self.seconds, self.retries, self.bytes)


class Ledger:
    """Record the operations on one device by purpose, and refuse those that a budget does not cover.

    Not locked: its session calls it from inside its own lock.

    Args:
        budget: most that may be spent; None sets no limit.
        parts: counts the operations of a device that is made of several; None for a single device.

    Attributes:
        budget: as given; may be replaced at any time.
    """

    def __init__(self, budget: Budget | None, parts: Composite | None) -> None:
        self.budget = budget
        self._parts = parts
        self._tallies: dict[Purpose, _Tally] = {}

    @property
    def purpose(self) -> Purpose:
        """Return the purpose that this thread spends under at present."""
        return _purpose.get()

    @contextmanager
    def under(self, purpose: Purpose | str) -> Generator[None]:
        """Record what this thread spends in a ``with`` block under a purpose.

        Raises:
            ValueError: there is no such purpose.
        """
        token = _purpose.set(Purpose(purpose))
        try:
            yield
        finally:
            _purpose.reset(token)

    @property
    def by_purpose(self) -> dict[Purpose, Usage]:
        """Return the usage of every purpose that something was spent on."""
        return {purpose: tally.usage() for purpose, tally in self._tallies.items()}

    @property
    def usage(self) -> Usage:
        """Return the usage of all purposes together."""
        return sum(self.by_purpose.values(), Usage())

    def price(self, usage: Usage) -> Usage:
        """Return the most that operations come to on the device, or on all parts of it."""
        return usage if self._parts is None else self._parts.price(usage)

    def afford(
        self, spec: DeviceSpec, operation: str, *, programs: int = 0, queries: int = 0, vectors: int = 0
    ) -> None:
        """Refuse operations that would exceed the budget.

        Raises:
            BudgetExceeded: says what they would come to.
        """
        if self.budget is None:
            return
        more = Usage(programs=programs, queries=queries, vectors=vectors)
        reason = self.budget.shortfall(self.usage + self.price(more), spec)
        if reason is not None:
            raise BudgetExceeded(
                f"this would come to {reason}; raise the budget or ask for less", device=spec.name, operation=operation
            )

    def parts_usage(self) -> Usage | None:
        """Return what the parts of the device have spent so far; None for a single device."""
        return None if self._parts is None else self._parts.usage

    def record(self, cost: Usage, parts_before: Usage | None) -> Usage:
        """Add one operation, carried out or not.

        Args:
            cost: operations on the device, with the seconds that the call took.
            parts_before: what `parts_usage` returned before the operation.

        Returns:
            The usage that was added: of a device made of several, what its parts have spent.
        """
        parts = self.parts_usage()
        if parts is not None and parts_before is not None:
            spent = parts - parts_before
            cost = Usage(spent.programs, spent.queries, spent.vectors, cost.seconds, spent.retries, spent.bytes)
        tally = self._tally()
        tally.programs += cost.programs
        tally.queries += cost.queries
        tally.vectors += cost.vectors
        tally.seconds += cost.seconds
        tally.retries += cost.retries
        tally.bytes += cost.bytes
        return cost

    def record_retry(self) -> None:
        """Count one repetition after a fault."""
        self._tally().retries += 1

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the counters of every purpose by name."""
        return {str(purpose): usage.to_dict() for purpose, usage in self.by_purpose.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], *, add: bool) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: counters of every purpose by name.
            add: add the counters to those that are here, instead of replacing them.
        """
        restored = {Purpose(name): Usage(**counters) for name, counters in state.items()}
        if add:
            for purpose, usage in self.by_purpose.items():
                restored[purpose] = restored.get(purpose, Usage()) + usage
        self._tallies = {purpose: _Tally(**usage.to_dict()) for purpose, usage in restored.items()}

    def _tally(self) -> _Tally:
        purpose = _purpose.get()
        tally = self._tallies.get(purpose)
        if tally is None:
            tally = self._tallies[purpose] = _Tally()
        return tally
