"""Count the operations on a device by purpose, and keep them within a budget."""

from __future__ import annotations

import threading
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
    """Name the purpose of an operation."""

    CALIBRATION = "calibration"
    CHARACTERISE = "characterise"
    CONTROLS = "controls"
    """Gradients of the controls."""
    DRIFT = "drift"
    """Reference vectors of a `CompensatedDevice`."""
    EVALUATION = "evaluation"
    FIT = "fit"
    """Fits of controls to a given matrix."""
    FORWARD = "forward"
    INPUTS = "inputs"
    """Gradients of the inputs."""
    MEASURE = "measure"
    """Measurements of the transfer matrix that the user requested."""
    OTHER = "other"
    REPEATED = "repeated"
    """Operations for all purposes in steps that a resumed run repeats, because its process was killed."""
    STARTUP = "startup"
    """First measurements of a layer."""


_purpose: ContextVar[Purpose] = ContextVar("astralora_purpose", default=Purpose.OTHER)
# Ledgers with a budget, and the specs of their devices, of the operations within which this code runs.
_outer: ContextVar[tuple[tuple[Ledger, DeviceSpec], ...]] = ContextVar("astralora_outer_ledgers", default=())


@dataclass(slots=True)
class _Tally:
    """Add up operations in place; `Usage` is the immutable form."""

    programs: int = 0
    queries: int = 0
    vectors: int = 0
    seconds: float = 0.0
    retries: int = 0
    bytes: int = 0

    def usage(self) -> Usage:
        return Usage(self.programs, self.queries, self.vectors, self.seconds, self.retries, self.bytes)


class Ledger:
    """Record the operations on one device by purpose, and refuse operations that the budget does not cover.

    This class does not lock: its session calls it while the session holds its own lock.

    Args:
        budget: limit of the operations; None sets no limit.
        parts: counter of the operations of all parts, for a device that contains other devices; None for all others.

    Attributes:
        budget: present budget; may be replaced at any time.
    """

    def __init__(self, budget: Budget | None, parts: Composite | None) -> None:
        self.budget = budget
        self._parts = parts
        # Largest usage after the present operation of the session, with all its repetitions so far.
        self._reserved = Usage()
        self._lock = threading.Lock()
        self._tallies: dict[Purpose, _Tally] = {}

    @property
    def purpose(self) -> Purpose:
        """Return the purpose under which the operations of this thread are recorded at present."""
        return _purpose.get()

    @contextmanager
    def under(self, purpose: Purpose | str) -> Generator[None]:
        """Record the operations of this thread within a ``with`` block under a purpose.

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
        """Return the usage of each purpose that has any usage."""
        return {purpose: tally.usage() for purpose, tally in self._tallies.items()}

    @property
    def usage(self) -> Usage:
        """Return the usage of all purposes together."""
        return sum(self.by_purpose.values(), Usage())

    def price(self, usage: Usage) -> Usage:
        """Return the largest usage that these operations can cause on the device, or on all parts of it together."""
        return usage if self._parts is None else self._parts.price(usage)

    def afford(
        self, spec: DeviceSpec, operation: str, *, programs: int = 0, queries: int = 0, vectors: int = 0
    ) -> None:
        """Refuse operations that would exceed the budget.

        Raises:
            BudgetExceeded: the budget does not cover them; the message states the total and the budget.
        """
        if self.budget is not None:
            more = Usage(programs=programs, queries=queries, vectors=vectors)
            self._reserve(spec, operation, self.usage + self.price(more))

    def afford_again(
        self, spec: DeviceSpec, operation: str, *, programs: int = 0, queries: int = 0, vectors: int = 0
    ) -> None:
        """Refuse to repeat a part of an operation if the budget does not cover it and the rest of the operation.

        The budgets of sessions on devices that contain this one are checked too.

        Raises:
            BudgetExceeded: a budget does not cover it.
        """
        more = self.price(Usage(programs=programs, queries=queries, vectors=vectors))
        for ledger, whole in ((self, spec), *_outer.get()):
            ledger.reserve(whole, operation, more)

    def reserve(self, spec: DeviceSpec, operation: str, more: Usage) -> None:
        """Add operations to the largest usage of the present operation of the session; see `afford_again`."""
        if self.budget is not None:
            with self._lock:  # the parts of a device may work in several threads
                self._reserve(spec, operation, self._reserved + more)

    @contextmanager
    def around(self, spec: DeviceSpec) -> Generator[None]:
        """Check the budget also for repetitions by the parts of the device, within a ``with`` block."""
        token = _outer.set(((self, spec), *_outer.get()))
        try:
            yield
        finally:
            _outer.reset(token)

    def _reserve(self, spec: DeviceSpec, operation: str, total: Usage) -> None:
        assert self.budget is not None
        reason = self.budget.shortfall(total, spec)
        if reason is not None:
            raise BudgetExceeded(
                f"this would need {reason}; raise the budget or use fewer operations",
                device=spec.name,
                operation=operation,
            )
        self._reserved = total

    @property
    def limits_parts(self) -> bool:
        """Return whether there is a budget for a device with parts, which repeat operations themselves."""
        return self._parts is not None and self.budget is not None

    def parts_usage(self) -> Usage | None:
        """Return the usage of all parts of the device so far; None for a device without parts."""
        return None if self._parts is None else self._parts.usage

    def record(self, cost: Usage, parts_before: Usage | None) -> Usage:
        """Add the cost of one operation, even if the operation failed.

        Args:
            cost: operations on the device, with the seconds that the call took.
            parts_before: usage that `parts_usage` returned before the operation.

        Returns:
            The usage that was added; for a device with parts, the operations of the parts.
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
        """Restore the state that `state_dict` returned.

        Args:
            state: counters of every purpose by name.
            add: whether to add the counters to the present ones, instead of replacing them.
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
