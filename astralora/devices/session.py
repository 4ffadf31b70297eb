"""Guard a device: check requests, count operations, enforce the budget, repeat after faults, and lock transactions."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import ceil
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from .capabilities import ChecksRequests, Composite, InProcess, ProgramsMany, Reciprocal, Resends, Snapshots
from .checks import check_controls, check_inputs
from .device import Device
from .errors import DeviceError, NotConnected
from .exchange import Exchange
from .ledger import Ledger, Purpose
from .ownership import Lock, StaysInProcess
from .recovery import Retry
from .safety import Connection
from .usage import Budget, Usage
from .wrapper import DeviceWrapper, layers_of

__all__ = ["Session"]

_Capability = TypeVar("_Capability")


class Session(DeviceWrapper, StaysInProcess):
    """Guard a device by checks, counters, a budget and a lock; a session is itself a device.

    A session refuses bad requests before they cost anything, splits batches to the device's ``max_batch``, skips a
    program that would change nothing, counts every operation by purpose, enforces the budget, and repeats operations
    after faults of the link. No other thread can use the device between a program and its query. Use the session as a
    context manager, or call `open` and `close`. A session that is still open is closed when its last reference is gone,
    and when the interpreter exits, normally or by a signal.

    An open session belongs to the process that opened it. In a child process, all operations raise `DeviceError`, and
    `close` does nothing.

    Args:
        device: device to guard.
        budget: limit of the operations of this session, including repetitions; None sets no limit.
        retry: number of attempts after a fault, and the pauses between them; `Recovery` describes what is repeated. A
            device that is itself a session, or contains sessions, repeats operations itself.
    """

    adapts: ClassVar[tuple[type, ...]] = (ProgramsMany, Reciprocal)

    def __init__(self, device: Device, budget: Budget | None = None, retry: Retry | None = None) -> None:
        if not isinstance(device, Device):
            raise TypeError(f"{type(device).__name__} is not a Device: it needs spec, open, close, program and query")
        super().__init__(device)
        parts = self.capability(Composite)
        nested = any(isinstance(layer, Session) for layer in layers_of(device))
        guarded = nested or parts is not None
        self._ledger = Ledger(budget, parts)
        self._exchange = Exchange(device, self._ledger, retry or Retry(), guarded=guarded)
        self._connection = Connection(device, nested=nested, in_process=self.provider(InProcess) is not None)
        weakref.finalize(self, self._connection.abandon).atexit = False

    def __repr__(self) -> str:
        return f"Session({self.spec.name!r}, {'open' if self._connection.is_open else 'closed'})"

    def __copy__(self) -> Self:
        """Return the session itself, because a copy of a model uses the same chip."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def capability(self, protocol: type[_Capability]) -> _Capability | None:
        """Return the object that provides a capability, or None.

        The session itself provides capabilities that cost hardware operations, and counts these operations. The device,
        or a wrapper around it, provides the others.
        """
        if protocol in self.adapts:
            return super().capability(protocol)
        # Code outside must not find capabilities that bypass the checks or the counters of this session.
        return None if protocol in (ChecksRequests, Resends) else self.provider(protocol)

    # -- usage and budget -------------------------------------------------------------------

    @property
    def budget(self) -> Budget | None:
        """Return the limit of the operations; None if there is no limit."""
        return self._ledger.budget

    @budget.setter
    def budget(self, budget: Budget | None) -> None:
        self._ledger.budget = budget

    @property
    def usage(self) -> Usage:
        """Return the usage of this session so far."""
        with self._lock:
            return self._ledger.usage

    @property
    def usage_by_purpose(self) -> dict[Purpose, Usage]:
        """Return the usage of this session for each purpose; see `purpose`."""
        with self._lock:
            return self._ledger.by_purpose

    def purpose(self, purpose: Purpose | str) -> AbstractContextManager[None]:
        """Record the operations of this thread within a ``with`` block under a purpose.

        Raises:
            ValueError: there is no such purpose.
        """
        return self._ledger.under(purpose)

    def price(self, usage: Usage) -> Usage:
        """Return the largest usage that these operations can cause on the device, or on all parts of it together."""
        return self._ledger.price(usage)

    def afford(
        self,
        operation: str,
        *,
        programs: int = 0,
        vectors: int = 0,
        batches: Sequence[int] = (),
        first: Tensor | None = None,
    ) -> None:
        """Refuse a plan of several operations that the budget does not cover, before the first is sent.

        Args:
            operation: name of the plan, for the message.
            programs: number of settings; the same number of vectors is passed at each setting.
            vectors: total number of vectors at all settings.
            batches: number of vectors of each further query.
            first: first setting, which costs no program if the device is programmed with it already.

        Raises:
            BudgetExceeded: the budget does not cover the plan; nothing was spent.
        """
        with self._lock:
            settings = max(programs, 1)
            queries = settings * self.spec.queries_for(ceil(vectors / settings)) + sum(
                map(self.spec.queries_for, batches)
            )
            vectors += sum(batches)
            if first is not None and self._exchange.holds(first):
                programs -= 1
            self._afford(operation, programs=programs, queries=queries, vectors=vectors)

    # -- opening and closing ----------------------------------------------------------------

    def open(self) -> None:
        """Connect; do nothing when connected already."""
        with self._lock:
            if not self._connection.is_open:
                self._exchange.programmed = None
                self._connection.open()

    def close(self) -> None:
        """Leave the device in its safe state; do nothing when closed already, or in a process that did not open it.

        Raises:
            DeviceError: the chip may not be in its safe state; the session counts as closed.
        """
        try:
            self._connection.close()
        finally:
            if not self._connection.is_open:
                self._exchange.programmed = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Generator[Self]:
        """Prevent other threads from using the device within a ``with`` block."""
        with self._lock:
            yield self

    # -- operations -------------------------------------------------------------------------

    def program(self, controls: Tensor) -> None:
        """Set all controls; send nothing if the device is programmed with exactly these controls already.

        Args:
            controls: one setting, (num_controls,), in control units.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent.
        """
        with self._lock:
            self._require_open("program")
            check_controls(self.spec, controls, "program")
            if not self._exchange.holds(controls):
                self._afford("program", programs=1)
                self._exchange.program(controls.detach())

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device with its present controls.

        Args:
            inputs: vectors, (batch, in_features), in input units.

        Returns:
            Outputs, (batch, out_features), in output units, with the dtype of the inputs.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent.
            ProtocolError: the answer has the wrong shape or is not finite.
        """
        with self._lock:
            self._require_programmed("query")
            check_inputs(self.spec, inputs, "query")
            if self.budget is not None:
                self._afford("query", queries=self.spec.queries_for(len(inputs)), vectors=len(inputs))
            return self._exchange.query(inputs.detach() if inputs.requires_grad else inputs)

    def apply(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program and query as one transaction, which no other thread can interrupt.

        Args:
            controls: one setting, (num_controls,).
            inputs: vectors, (batch, in_features).

        Returns:
            Outputs, (batch, out_features).
        """
        with self._lock:
            self._require_open("apply")
            check_controls(self.spec, controls, "apply")
            check_inputs(self.spec, inputs, "apply")
            controls, inputs = controls.detach(), inputs.detach()
            changed, batch = not self._exchange.holds(controls), len(inputs)
            self._afford("apply", programs=int(changed), queries=self.spec.queries_for(batch), vectors=batch)
            if changed:
                self._exchange.program(controls)
            return self._exchange.query(inputs)

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program one setting after the other, and pass the same vectors through the device at each setting.

        This counts one program per setting. A device with the capability `ProgramsMany` runs all settings in one call.
        The device keeps the last setting afterwards.

        Args:
            controls: settings, (settings, num_controls).
            inputs: vectors, (batch, in_features).

        Returns:
            Outputs, (settings, batch, out_features).
        """
        with self._lock:
            self._require_open("query_each")
            check_controls(self.spec, controls, "query_each", ndim=2)
            check_inputs(self.spec, inputs, "query_each")
            controls, inputs = controls.detach(), inputs.detach()
            settings, batch = len(controls), len(inputs)
            queries = self.spec.queries_for(batch)
            self._afford("query_each", programs=settings, queries=settings * queries, vectors=settings * batch)
            if not settings or not batch:
                return inputs.new_empty(settings, batch, self.spec.out_features)
            many = self.provider(ProgramsMany)
            if many is not None and queries == 1:
                return self._exchange.query_each(many, controls, inputs)
            answers = []
            for setting in controls:
                self._exchange.program(setting)
                answers.append(self._exchange.query(inputs))
            return torch.stack(answers)

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors backwards through a `Reciprocal` device with its present controls.

        Args:
            outputs: vectors, (batch, out_features), within the range of the reverse port; see `DeviceSpec.backward`.

        Returns:
            Answers, (batch, in_features), of the same dtype.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent.
            DeviceError: the device has no reverse port.
            ProtocolError: the answer has the wrong shape or is not finite.
        """
        with self._lock:
            self._require_programmed("query_adjoint")
            reverse = self.provider(Reciprocal)
            if reverse is None:
                raise DeviceError("has no reverse port", device=self.spec.name, operation="query_adjoint")
            backward = self.spec.backward()
            check_inputs(backward, outputs, "query_adjoint")
            self._afford("query_adjoint", queries=self.spec.queries_for(len(outputs)), vectors=len(outputs))
            return self._exchange.pass_vectors(
                "query_adjoint", reverse.query_adjoint, outputs.detach(), backward.out_features
            )

    def holds(self, controls: Tensor) -> bool:
        """Return whether the device is programmed with exactly these controls, (num_controls,), already."""
        with self._lock:
            return self._exchange.holds(controls)

    @property
    def is_programmed(self) -> bool:
        """Return whether the controls of the device are known; a fault may have lost them."""
        return self._exchange.programmed is not None

    def forget(self) -> None:
        """Make the session send the next program, even if the controls are the same as before."""
        with self._lock:
            self._exchange.programmed = None
            if isinstance(self.device, Session):
                self.device.forget()

    # -- checkpoints ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the usage so far, and the inner state of the device if it has the capability `Snapshots`."""
        with self._lock:
            snapshot = self.capability(Snapshots)
            return {
                "usage": self._ledger.state_dict(),
                "programmed": self._exchange.programmed,
                "device": snapshot.state_dict() if snapshot else None,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Restore the state that `state_dict` returned.

        Returns:
            Whether the inner state of the device was restored too. If not, only the counters were restored, and the
            next program is sent even if the controls are the same as before.
        """
        with self._lock:
            self.forget()
            snapshot = self.capability(Snapshots)
            restored = snapshot is not None and state["device"] is not None
            if snapshot is not None and restored:
                restored = snapshot.load_state_dict(state["device"]) is not False
            if restored:
                self._exchange.programmed = state["programmed"]
            # Without a restored state, this is a real chip: its usage is the saved one plus the one since then.
            self._ledger.load_state_dict(state["usage"], add=not restored)
            return restored

    @property
    def _lock(self) -> Lock:
        """Return the lock of the device; entering it in a process that did not open the device raises an error."""
        return self._connection.lock

    # -- called while the lock is held ------------------------------------------------------

    def _require_open(self, operation: str) -> None:
        if not self._connection.is_open:
            raise NotConnected(
                "the session is closed; call open() or use it in a with statement",
                device=self.spec.name,
                operation=operation,
            )

    def _require_programmed(self, operation: str) -> None:
        self._require_open(operation)
        if self._exchange.programmed is None:
            raise NotConnected(
                "no controls are set yet; call program(controls) first", device=self.spec.name, operation=operation
            )

    def _afford(self, operation: str, *, programs: int = 0, queries: int = 0, vectors: int = 0) -> None:
        self._ledger.afford(self.spec, operation, programs=programs, queries=queries, vectors=vectors)
