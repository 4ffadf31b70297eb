"""The one door to every device: checks, counts, budgets and locks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import ceil
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from .checks import check_controls, check_finite, check_inputs, check_outputs
from .device import ChecksRequests, Composite, Device, PassesOn, ProgramsMany, Reciprocal, Snapshots
from .errors import BudgetExceeded, DeviceError, NotConnected
from .memory import aligned
from .recovery import FAULTS, Recovery, Retry
from .safety import unwatch, watch
from .spec import DeviceSpec
from .usage import Budget, Usage

__all__ = ["Session"]

_log = logging.getLogger(__name__)
_purpose: ContextVar[str] = ContextVar("astralora_purpose", default="other")
_Capability = TypeVar("_Capability")

# The fields of a Usage, in their order: summed in place, on the way of every single operation.
_Tally = list[Any]


class Session:
    """Guards a device; is itself a device.

    It refuses bad requests before they cost anything, splits batches to the device's ``max_batch``,
    skips a program that would change nothing, counts every operation by purpose, keeps the budget, tries again
    after faults of the link, and lets nobody in between a program and its query. Use it as a context manager, or
    call `open` and `close`; one that is left open is closed when the interpreter exits, also by a signal.

    Args:
        device: the device to guard.
        budget: the most that may be spent through this session, repetitions included.
        retry: how often and how soon to try again after a fault; see `astralora.devices.recovery.Recovery` for what is repeated.
            A device that is guarded already, or made of such, sees to that itself.
    """

    def __init__(self, device: Device, budget: Budget | None = None, retry: Retry | None = None) -> None:
        if not isinstance(device, Device):
            raise TypeError(f"{type(device).__name__} is not a Device: it needs spec, open, close, program and query")
        self.device = device
        self.budget = budget
        # Every request is checked here; a device that would do so again is spared that.
        spared = isinstance(device, ChecksRequests)
        self._program_name = "program_unchecked" if spared else "program"
        self._query_name = "query_unchecked" if spared else "query"
        # Of a device with parts, it is the parts' operations that count.
        self._parts = self.capability(Composite)
        guarded = isinstance(device, Session) or self._parts is not None
        retry = retry or Retry()
        self._recovery = Recovery(device, retry) if retry.attempts > 1 and not guarded else None
        self._lock = threading.RLock()
        self._is_open = False
        self._programmed: Tensor | None = None
        self._spent: dict[str, _Tally] = {}

    def __repr__(self) -> str:
        return f"Session({self.spec.name!r}, {'open' if self._is_open else 'closed'})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: a copy of a model still drives the one chip that there is."""
        return self

    # -- what it is -------------------------------------------------------------------------

    @property
    def spec(self) -> DeviceSpec:
        """What the guarded device promises."""
        return self.device.spec

    @property
    def usage(self) -> Usage:
        """All that this session has asked of the device."""
        return sum(self.usage_by_purpose.values(), Usage())

    @property
    def usage_by_purpose(self) -> dict[str, Usage]:
        """The same, by what it was spent on; see `purpose`."""
        with self._lock:
            return {name: Usage(*tally) for name, tally in self._spent.items()}

    def capability(self, protocol: type[_Capability]) -> _Capability | None:
        """The guarded device if it implements ``protocol``, or what it `PassesOn`; else None.

        Only for abilities that cost no hardware operation, such as `Differentiable`; everything
        that does cost one goes through the session's own methods.
        """
        if isinstance(self.device, Session | PassesOn):
            return self.device.capability(protocol)
        return self.device if isinstance(self.device, protocol) else None

    # -- opening and closing ----------------------------------------------------------------

    def open(self) -> None:
        """Connect; does nothing when connected already."""
        with self._lock:
            if not self._is_open:
                self.device.open()
                self._is_open = True
                self._programmed = None
                watch(self)

    def close(self) -> None:
        """Leave the device in its safe state; does nothing when closed already."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._programmed = None
                unwatch(self)
                self.device.close()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- operations -------------------------------------------------------------------------

    def program(self, controls: Tensor) -> None:
        """Set all controls, unless the device holds exactly these already.

        Args:
            controls: (num_controls,), in control units.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent.
        """
        with self._lock:
            self._require_open("program")
            check_controls(self.spec, controls, "program")
            if self._holds(controls):
                return
            self._afford("program", programs=1)
            self._program(controls.detach())

    def holds(self, controls: Tensor) -> bool:
        """Whether the device holds exactly these controls, (num_controls,), so that programming them sends nothing."""
        with self._lock:
            return self._holds(controls)

    def forget(self) -> None:
        """Send the next program, whatever the device may still hold."""
        with self._lock:
            self._programmed = None
            if isinstance(self.device, Session):
                self.device.forget()

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device as it is programmed.

        Args:
            inputs: (batch, in_features), in input units.

        Returns:
            (batch, out_features), in output units, of the inputs' dtype.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent.
            ProtocolError: the answer has the wrong shape or is not finite.
        """
        with self._lock:
            if self._programmed is None:
                self._require_programmed("query")
            check_inputs(self.spec, inputs, "query")
            if self.budget is not None:
                self._afford("query", queries=self.spec.queries_for(len(inputs)), vectors=len(inputs))
            return self._query(inputs.detach() if inputs.requires_grad else inputs)

    def apply(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program and query as one transaction, which no other thread can tear apart.

        Args:
            controls: (num_controls,).
            inputs: (batch, in_features).

        Returns:
            (batch, out_features).
        """
        with self._lock:
            self._require_open("apply")
            check_controls(self.spec, controls, "apply")
            check_inputs(self.spec, inputs, "apply")
            controls, inputs = controls.detach(), inputs.detach()
            changed = not self._holds(controls)
            self._afford(
                "apply",
                programs=int(changed),
                queries=self.spec.queries_for(len(inputs)),
                vectors=len(inputs),
            )
            if changed:
                self._program(controls)
            return self._query(inputs)

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program each setting in turn and pass the same vectors through.

        Counts one program a setting; a device that `ProgramsMany` runs them in one call. The device is left
        at the last setting.

        Args:
            controls: (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (settings, batch, out_features).
        """
        with self._lock:
            self._require_open("query_each")
            check_controls(self.spec, controls, "query_each", ndim=2)
            check_inputs(self.spec, inputs, "query_each")
            controls, inputs = controls.detach(), inputs.detach()
            settings, batch = len(controls), len(inputs)
            self._afford(
                "query_each",
                programs=settings,
                queries=settings * self.spec.queries_for(batch),
                vectors=settings * batch,
            )
            if not settings or not batch:
                return inputs.new_empty(settings, batch, self.spec.out_features)
            if isinstance(self.device, ProgramsMany) and self.spec.queries_for(batch) == 1:
                return self._query_each(controls, inputs)
            answers = []
            for setting in controls:
                self._program(setting)
                answers.append(self._query(inputs))
            return torch.stack(answers)

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors backwards through a `astralora.devices.Reciprocal` device as it is programmed.

        Args:
            outputs: (batch, out_features), within the range of the reverse port; see `DeviceSpec.backward`.

        Returns:
            (batch, in_features), of the same dtype.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent.
            DeviceError: the device has no reverse port.
            ProtocolError: the answer has the wrong shape or is not finite.
        """
        with self._lock:
            self._require_programmed("query_adjoint")
            if not self.reciprocal:
                raise DeviceError("has no reverse port", device=self.spec.name, operation="query_adjoint")
            backward = self.spec.backward()
            check_inputs(backward, outputs, "query_adjoint")
            self._afford("query_adjoint", queries=self.spec.queries_for(len(outputs)), vectors=len(outputs))
            return self._query(outputs.detach(), "query_adjoint", backward.out_features)

    @property
    def reciprocal(self) -> bool:
        """Whether light can be sent through the guarded device backwards."""
        return self.capability(Reciprocal) is not None

    def afford(
        self,
        operation: str,
        *,
        programs: int = 0,
        vectors: int = 0,
        batches: Sequence[int] = (),
        first: Tensor | None = None,
    ) -> None:
        """Make sure that the budget covers a plan of several operations before its first is sent.

        Args:
            operation: what to call the plan in the error.
            programs: settings, each of which is passed the same number of vectors.
            vectors: vectors in all, equally many at each setting.
            batches: further vectors, query by query.
            first: the first of the settings, which is free where the device holds it already.

        Raises:
            BudgetExceeded: it does not; nothing was spent.
        """
        with self._lock:
            settings = max(programs, 1)
            queries = settings * self.spec.queries_for(ceil(vectors / settings)) + sum(
                map(self.spec.queries_for, batches)
            )
            vectors += sum(batches)
            if first is not None and self._holds(first):
                programs -= 1
            self._afford(operation, programs=programs, queries=queries, vectors=vectors)

    def price(self, usage: Usage) -> Usage:
        """The most that operations come to on the device: of one with parts, on all its parts."""
        return usage if self._parts is None else self._parts.price(usage)

    @contextmanager
    def transaction(self) -> Generator[Self]:
        """Keep other threads out for the length of a ``with`` block."""
        with self._lock:
            yield self

    @contextmanager
    def purpose(self, name: str) -> Generator[None]:
        """Book what this thread spends in a ``with`` block under ``name``."""
        token = _purpose.set(name)
        try:
            yield
        finally:
            _purpose.reset(token)

    # -- saving and going on ----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Usage so far, and the device's inner state where it `Snapshots`."""
        with self._lock:
            snapshot = self.capability(Snapshots)
            return {
                "usage": {name: usage.to_dict() for name, usage in self.usage_by_purpose.items()},
                "programmed": self._programmed,
                "device": snapshot.state_dict() if snapshot else None,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Put back what `state_dict` returned.

        Returns:
            Whether the device's inner state came back too. If not, only the counters did, and the
            next program is sent whatever the device may still hold.
        """
        with self._lock:
            saved = {name: Usage(**counts) for name, counts in state["usage"].items()}
            self.forget()
            snapshot = self.capability(Snapshots)
            restored = snapshot is not None and state["device"] is not None
            if snapshot is not None and restored:
                restored = snapshot.load_state_dict(state["device"]) is not False
            if restored:
                self._programmed = state["programmed"]
            else:
                # What was spent on the way here was spent on the same chip, on top of what is saved.
                for name, usage in self.usage_by_purpose.items():
                    saved[name] = saved.get(name, Usage()) + usage
            self._spent = {name: usage.to_list() for name, usage in saved.items()}
            return restored

    # -- inside the lock --------------------------------------------------------------------

    def _program(self, controls: Tensor) -> None:
        # Until the device has said yes, nobody knows what it holds.
        self._programmed = None
        # A copy of its own: what a driver keeps must not change when the caller's optimizer does.
        sent = controls.clone()
        self._ask(self._program_request(sent))
        self._programmed = sent

    def _program_request(self, controls: Tensor) -> _Request:
        return _Request("program", self._program_name, (controls,), None, programs=1, moved=_size(controls))

    def _query(self, inputs: Tensor, operation: str = "query", width: int | None = None) -> Tensor:
        limit = self.spec.max_batch
        width = width or self.spec.out_features
        if not len(inputs):
            return inputs.new_empty(0, width)
        if limit is None or len(inputs) <= limit:
            return self._query_once(inputs, operation, width)
        return torch.cat([self._query_once(part, operation, width) for part in inputs.split(limit)])

    def _query_once(self, inputs: Tensor, operation: str, width: int) -> Tensor:
        batch = len(inputs)
        moved = batch * (inputs.shape[1] + width) * inputs.element_size()
        name = self._query_name if operation == "query" else operation
        shape = (batch, width)
        outputs: Tensor = self._ask(_Request(operation, name, (inputs,), shape, queries=1, vectors=batch, moved=moved))
        return outputs

    def _query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        settings, batch, width = len(controls), len(inputs), self.spec.out_features
        self._programmed = None
        outputs: Tensor = self._ask(
            _Request(
                "query_each",
                "query_each",
                (controls, inputs),
                (settings, batch, width),
                programs=settings,
                queries=settings,
                vectors=settings * batch,
                moved=_size(controls) + settings * (_size(inputs) + batch * width * inputs.element_size()),
            )
        )
        self._programmed = controls[-1].clone()
        return outputs

    def _ask(self, request: _Request) -> Any:
        """One operation on the device, with as many attempts as it takes and may have."""
        # Equal requests have equal answers, wherever the caller's numbers lie.
        request.arguments = tuple(map(aligned, request.arguments))
        try:
            answer = self._attempt(request)
        except FAULTS as fault:
            if self._recovery is None:
                raise
            answer = self._ask_again(request, fault, self._recovery)
        if request.shape is not None:
            # A driver that answers in the wrong shape is not asked again: it would do no better.
            check_outputs(self.spec, answer, request.shape)
            like = request.arguments[-1]
            if answer.dtype != like.dtype:
                answer = answer.to(like)
            answer = aligned(answer)
        return answer

    def _ask_again(self, request: _Request, fault: DeviceError, recovery: Recovery) -> Any:
        # While it is being brought back, nobody knows what the device holds.
        held, self._programmed = self._programmed, None

        def restore() -> None:
            if held is not None:
                self._afford(request.operation, programs=1)
                self._attempt(self._program_request(held))

        def again() -> Any:
            costs = {"programs": request.programs, "queries": request.queries, "vectors": request.vectors}
            self._afford(request.operation, **costs)
            return self._attempt(request)

        answer = recovery.run(
            request.operation,
            fault,
            again=again,
            resent=lambda: self._attempt(request.resent()),
            restore=None if request.programs else restore,
            count=self._count_retry,
        )
        self._programmed = held
        return answer

    def _attempt(self, request: _Request) -> Any:
        answer = self._call(request)
        if isinstance(answer, Tensor) and answer.is_floating_point():
            check_finite(self.spec, answer)
        return answer

    def _holds(self, controls: Tensor) -> bool:
        held = self._programmed
        return (
            held is not None
            and (held.dtype, held.device) == (controls.dtype, controls.device)
            and torch.equal(held, controls)
        )

    def _require_open(self, operation: str) -> None:
        if not self._is_open:
            raise NotConnected(
                "the session is closed; call open() or use it in a with statement",
                device=self.spec.name,
                operation=operation,
            )

    def _require_programmed(self, operation: str) -> None:
        self._require_open(operation)
        if self._programmed is None:
            raise NotConnected(
                "no controls are set yet; call program(controls) first",
                device=self.spec.name,
                operation=operation,
            )

    def _afford(self, operation: str, *, programs: int = 0, queries: int = 0, vectors: int = 0) -> None:
        if self.budget is None:
            return
        more = Usage(programs=programs, queries=queries, vectors=vectors)
        wanted = self.usage + self.price(more)
        reason = self.budget.shortfall(wanted, self.spec)
        if reason is not None:
            raise BudgetExceeded(
                f"this would come to {reason}; raise the budget or ask for less",
                device=self.spec.name,
                operation=operation,
            )

    def _count_retry(self) -> None:
        self._tally()[4] += 1

    def _tally(self) -> _Tally:
        purpose = _purpose.get()
        tally = self._spent.get(purpose)
        if tally is None:
            tally = self._spent[purpose] = Usage().to_list()
        return tally

    def _call(self, request: _Request) -> Any:
        """Every operation on the device goes through here, and is booked whether or not it succeeds."""
        before = self._parts.usage if self._parts is not None else None
        start = time.perf_counter()
        try:
            return getattr(self.device, request.name)(*request.arguments)
        except DeviceError as error:
            error.device = error.device or self.spec.name
            error.operation = error.operation or request.operation
            raise
        finally:
            seconds = time.perf_counter() - start
            tally = self._tally()
            programs, queries, vectors, moved = request.programs, request.queries, request.vectors, request.moved
            if self._parts is not None and before is not None:
                spent = self._parts.usage - before
                programs, queries, vectors, moved = spent.programs, spent.queries, spent.vectors, spent.bytes
                tally[4] += spent.retries
            tally[0] += programs
            tally[1] += queries
            tally[2] += vectors
            tally[3] += seconds
            tally[5] += moved
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug(
                    "%s %s for %s: %d programs, %d vectors, %d bytes, %.3f ms",
                    self.spec.name, request.operation, _purpose.get(), programs, vectors, moved, 1e3 * seconds,
                )  # fmt: skip


@dataclass(slots=True)
class _Request:
    """One operation on the device.

    Attributes:
        operation: what it is called in messages.
        name: of the device's method.
        arguments: of that method; the last ones are the vectors.
        shape: of the answer; None where there is none.
        programs, queries, vectors, moved: what it costs, moved in bytes.
    """

    operation: str
    name: str
    arguments: tuple[Tensor, ...]
    shape: tuple[int, ...] | None
    programs: int = 0
    queries: int = 0
    vectors: int = 0
    moved: int = 0

    def resent(self) -> _Request:
        """Asking for its answer once more: it moves bytes, but nothing is carried out."""
        return _Request(self.operation, "resend", (), self.shape, moved=self.moved)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
