"""Carry out operations on a device: split batches, measure, record, and repeat after faults of the link."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .capabilities import ChecksRequests, ProgramsMany, capability_of
from .checks import check_answer, check_outputs
from .device import Device
from .errors import DeviceError
from .ledger import Ledger
from .memory import aligned
from .recovery import FAULTS, Recovery, Retry
from .synchronisation import Synchronisation
from .usage import Usage

__all__ = ["Exchange"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Request:
    """Describe one operation on the device.

    Attributes:
        operation: name of the operation in messages.
        send: function that calls the device.
        inputs: vectors that the request passes, (batch, width); None for a program.
        shape: shape of the answer; None if the device returns no answer.
        programs, queries, vectors: numbers of operations that the request costs.
        moved: number of bytes that the request moves.
    """

    operation: str
    send: Callable[[], Tensor | None]
    inputs: Tensor | None = None
    shape: tuple[int, ...] | None = None
    programs: int = 0
    queries: int = 0
    vectors: int = 0
    moved: int = 0


class Exchange:
    """Carry out operations that a session has checked, and store the controls that the device has.

    This class does not lock: its session calls it while the session holds its own lock.

    Args:
        device: device that carries out the operations.
        ledger: ledger that records every attempt.
        retry: number of attempts after a fault, and the pauses between them.
        guarded: whether the device contains sessions, which repeat operations and check answers themselves.

    Attributes:
        programmed: controls that the device has, (num_controls,); None if they are unknown.
    """

    def __init__(self, device: Device, ledger: Ledger, retry: Retry, *, guarded: bool) -> None:
        self._device = device
        self._ledger = ledger
        self._retry = retry
        self._recovery = Recovery(device, retry) if retry.attempts > 1 and not guarded else None
        self._link = None if guarded else Synchronisation(device, self._program_again, self._query_one)
        # The session checks every request, so the device need not check it again.
        self._unchecked = capability_of(device, ChecksRequests)
        self.programmed: Tensor | None = None

    def holds(self, controls: Tensor) -> bool:
        """Return whether the device is programmed with exactly these controls, (num_controls,), of this dtype."""
        held = self.programmed
        return (
            held is not None
            and (held.dtype, held.device) == (controls.dtype, controls.device)
            and torch.equal(held, controls)
        )

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,)."""
        # Copied, because a driver may keep the tensor, and the caller's optimizer changes its own tensor in place.
        sent = controls.clone(memory_format=torch.contiguous_format)
        self._carry_out(self._program_request(sent))
        self.programmed = sent

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        return self.pass_vectors("query", self._query_method, inputs, self._device.spec.out_features)

    def query_each(self, many: ProgramsMany, controls: Tensor, inputs: Tensor) -> Tensor:
        """Run all settings in one call of the device; return (settings, batch, out_features)."""
        settings, batch, width = len(controls), len(inputs), self._device.spec.out_features
        controls, inputs = aligned(controls), aligned(inputs)
        if self._link is not None and not self._link.is_verified and self.programmed is None:
            # Answers are compared before the call, at the first setting.
            self._ledger.afford_again(self._device.spec, "query_each", programs=1)
            self.program(controls[0])
        request = _Request(
            "query_each",
            partial(many.query_each, controls, inputs),
            inputs,
            (settings, batch, width),
            programs=settings,
            queries=settings,
            vectors=settings * batch,
            moved=_size(controls) + settings * (_size(inputs) + batch * width * inputs.element_size()),
        )
        outputs = self._answer(request, inputs)
        self.programmed = controls[-1].clone()
        return outputs

    def pass_vectors(self, operation: str, send: Callable[[Tensor], Tensor], vectors: Tensor, width: int) -> Tensor:
        """Pass vectors in batches of at most ``max_batch``: (batch, ...) -> (batch, width)."""
        limit = self._device.spec.max_batch
        if not len(vectors):
            return vectors.new_empty(0, width)
        if limit is None or len(vectors) <= limit:
            return self._pass_piece(operation, send, vectors, width)
        return torch.cat([self._pass_piece(operation, send, piece, width) for piece in vectors.split(limit)])

    # -- requests -----------------------------------------------------------------------------

    @property
    def _program_method(self) -> Callable[[Tensor], None]:
        # Looked up at every call, as in `_query_method`: a test may have replaced the method of the device.
        return self._device.program if self._unchecked is None else self._unchecked.program_unchecked

    @property
    def _query_method(self) -> Callable[[Tensor], Tensor]:
        return self._device.query if self._unchecked is None else self._unchecked.query_unchecked

    def _program_request(self, controls: Tensor) -> _Request:
        return _Request("program", partial(self._program_method, controls), programs=1, moved=_size(controls))

    def _vectors_request(
        self, operation: str, send: Callable[[Tensor], Tensor], vectors: Tensor, width: int
    ) -> _Request:
        # Aligned, because the memory address of equal inputs must not change the answer.
        batch, vectors = len(vectors), aligned(vectors)
        moved = batch * (vectors.shape[1] + width) * vectors.element_size()
        return _Request(
            operation, partial(send, vectors), vectors, (batch, width), queries=1, vectors=batch, moved=moved
        )

    def _pass_piece(self, operation: str, send: Callable[[Tensor], Tensor], vectors: Tensor, width: int) -> Tensor:
        request = self._vectors_request(operation, send, vectors, width)
        outputs = self._answer(request, vectors)
        if self._link is not None and operation == "query" and self.programmed is not None:
            assert request.inputs is not None
            self._link.learn(self.programmed, request.inputs, outputs)
        return outputs

    def _program_again(self, controls: Tensor) -> None:
        """Program the device while it is brought back in step."""
        self._attempt_within_budget(self._program_request(controls))

    def _query_one(self, vector: Tensor) -> Tensor:
        """Pass one vector while the device is brought back in step: (1, in_features) -> (1, out_features)."""
        request = self._vectors_request("query", self._query_method, vector, self._device.spec.out_features)
        return check_outputs(self._device.spec, self._attempt_within_budget(request), request.shape)

    # -- one operation --------------------------------------------------------------------------

    def _answer(self, request: _Request, like: Tensor) -> Tensor:
        answer = self._carry_out(request)
        # An answer of the wrong shape is a bug in the driver, so the request is not repeated.
        outputs = check_outputs(self._device.spec, answer, request.shape)
        return aligned(outputs if outputs.dtype == like.dtype else outputs.to(like))

    def _carry_out(self, request: _Request) -> Tensor | None:
        """Carry out one operation, and repeat it after a fault as far as that is allowed."""
        self._prepare(request)
        if request.programs:
            # The controls of the device are unknown until it has confirmed them.
            self.programmed = None
        try:
            return self._attempt(request)
        except FAULTS as fault:
            if self._recovery is None:
                raise
            held, self.programmed = self.programmed, None
            try:
                answer = self._repeat(self._recovery, request, fault, held)
            except BaseException as error:
                if self._link is not None and self._link.keeps_controls(error):
                    self.programmed = held
                raise
            self.programmed = held
            return answer

    def _prepare(self, request: _Request) -> None:
        """Bring the device in step if an earlier exchange broke off."""
        link = self._link
        if link is None or link.is_verified:
            return
        if request.operation == "program":
            self.programmed = None
        attempts = 0
        while True:
            attempts += 1
            try:
                if not link.in_step:
                    # If this fails, the next call programs these controls again.
                    link.restore(self.programmed, reopen=False)
                if request.inputs is not None and self.programmed is not None:
                    link.verify(self.programmed)
                return
            except FAULTS as fault:
                fault.device = fault.device or self._device.spec.name
                fault.operation = fault.operation or request.operation
                if attempts >= self._retry.attempts:
                    raise
                _log.warning("%s; attempt %d of %d", fault, attempts + 1, self._retry.attempts)
                self._ledger.record_retry()
                time.sleep(self._retry.pause(attempts))

    def _repeat(self, recovery: Recovery, request: _Request, fault: DeviceError, held: Tensor | None) -> Tensor | None:
        def restore() -> None:
            assert self._link is not None
            self._link.restore(held, reopen=True)

        def again() -> Tensor | None:
            if self._link is not None and request.inputs is not None and held is not None:
                self._link.verify(held)
            return self._attempt_within_budget(request)

        def resent(resend: Callable[[], Tensor | None]) -> Tensor | None:
            # Only the answer is transmitted again; the device carries out no operation.
            return self._attempt(
                _Request(request.operation, resend, request.inputs, request.shape, moved=request.moved)
            )

        return recovery.run(
            request.operation,
            fault,
            again=again,
            resent=resent,
            restore=restore,
            count=self._ledger.record_retry,
            writes=request.programs > 0,
        )

    def _attempt_within_budget(self, request: _Request) -> Tensor | None:
        costs = {"programs": request.programs, "queries": request.queries, "vectors": request.vectors}
        self._ledger.afford_again(self._device.spec, request.operation, **costs)
        return self._attempt(request)

    def _attempt(self, request: _Request) -> Tensor | None:
        """Send a request once, and record its cost even if it fails."""
        link, ledger = self._link, self._ledger
        parts_before = ledger.parts_usage()
        if link is not None:
            link.begin(request.inputs)
        start = time.perf_counter()
        try:
            with ledger.around(self._device.spec) if ledger.limits_parts else _NOTHING:
                answer = request.send()
        except BaseException as error:
            if link is not None:
                link.break_off()
            if isinstance(error, DeviceError):
                error.device = error.device or self._device.spec.name
                error.operation = error.operation or request.operation
            raise
        finally:
            self._record(request, parts_before, time.perf_counter() - start)
        if link is not None and (request.shape is None or getattr(answer, "shape", None) == request.shape):
            link.complete()
        if isinstance(answer, Tensor) and answer.is_floating_point():
            # The sessions within a wrapper have checked the range; the wrapper may correct answers beyond it.
            check_answer(self._device.spec, answer, None if link is None else self._device.spec.output_range)
        return answer

    def _record(self, request: _Request, parts_before: Usage | None, seconds: float) -> None:
        cost = Usage(request.programs, request.queries, request.vectors, seconds, 0, request.moved)
        spent = self._ledger.record(cost, parts_before)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "%s %s for %s: %d programs, %d vectors, %d bytes, %.3f ms",
                self._device.spec.name,
                request.operation,
                self._ledger.purpose,
                spent.programs,
                spent.vectors,
                spent.bytes,
                1e3 * seconds,
            )


_NOTHING = nullcontext()


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
