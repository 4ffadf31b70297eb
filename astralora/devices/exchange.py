"""Carry out operations on a device: split batches, measure, record, and repeat after faults of the link."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .capabilities import ChecksRequests, ProgramsMany, capability_of
from .checks import check_finite, check_outputs
from .device import Device
from .errors import DeviceError
from .ledger import Ledger
from .memory import aligned
from .recovery import FAULTS, Recovery
from .usage import Usage

__all__ = ["Exchange"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Request:
    """Describe one operation on the device.

    Attributes:
        operation: name of the operation in messages.
        send: function that calls the device.
        shape: shape of the answer; None if the device returns no answer.
        programs, queries, vectors: numbers of operations that the request costs.
        moved: number of bytes that the request moves.
    """

    operation: str
    send: Callable[[], Tensor | None]
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
        recovery: repeats operations that failed; None if the device repeats them itself or they must not be repeated.

    Attributes:
        programmed: controls that the device has, (num_controls,); None if they are unknown.
    """

    def __init__(self, device: Device, ledger: Ledger, recovery: Recovery | None) -> None:
        self._device = device
        self._ledger = ledger
        self._recovery = recovery
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
        # The controls of the device are unknown until it has confirmed them.
        self.programmed = None
        self._carry_out(_Request("program", partial(self._program_method, sent), programs=1, moved=_size(sent)))
        self.programmed = sent

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        send = self._device.query if self._unchecked is None else self._unchecked.query_unchecked
        return self.pass_vectors("query", send, inputs, self._device.spec.out_features)

    def query_each(self, many: ProgramsMany, controls: Tensor, inputs: Tensor) -> Tensor:
        """Run all settings in one call of the device; return (settings, batch, out_features)."""
        settings, batch, width = len(controls), len(inputs), self._device.spec.out_features
        controls, inputs = aligned(controls), aligned(inputs)
        self.programmed = None
        request = _Request(
            "query_each",
            partial(many.query_each, controls, inputs),
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

    @property
    def _program_method(self) -> Callable[[Tensor], None]:
        # Looked up at every call, as in `query`: a test may have replaced the method of the device.
        return self._device.program if self._unchecked is None else self._unchecked.program_unchecked

    def _pass_piece(self, operation: str, send: Callable[[Tensor], Tensor], vectors: Tensor, width: int) -> Tensor:
        # Aligned, because the memory address of equal inputs must not change the answer.
        batch, vectors = len(vectors), aligned(vectors)
        moved = batch * (vectors.shape[1] + width) * vectors.element_size()
        shape = (batch, width)
        request = _Request(operation, partial(send, vectors), shape, queries=1, vectors=batch, moved=moved)
        return self._answer(request, vectors)

    def _answer(self, request: _Request, like: Tensor) -> Tensor:
        answer = self._carry_out(request)
        # An answer of the wrong shape is a bug in the driver, so the request is not repeated.
        outputs = check_outputs(self._device.spec, answer, request.shape)
        return aligned(outputs if outputs.dtype == like.dtype else outputs.to(like))

    def _carry_out(self, request: _Request) -> Tensor | None:
        """Carry out one operation, and repeat it after a fault as far as that is allowed."""
        try:
            return self._attempt(request)
        except FAULTS as fault:
            if self._recovery is None:
                raise
            # During the recovery, the controls of the device are unknown.
            held, self.programmed = self.programmed, None
            answer = self._repeat(self._recovery, request, fault, held)
            self.programmed = held
            return answer

    def _repeat(self, recovery: Recovery, request: _Request, fault: DeviceError, held: Tensor | None) -> Tensor | None:
        def restore() -> None:
            if held is not None:
                again = _Request("program", partial(self._program_method, held), programs=1, moved=_size(held))
                self._attempt_within_budget(again, request.operation)

        def resent(resend: Callable[[], Tensor | None]) -> Tensor | None:
            # Only the answer is transmitted again; the device carries out no operation.
            return self._attempt(_Request(request.operation, resend, request.shape, moved=request.moved))

        return recovery.run(
            request.operation,
            fault,
            again=lambda: self._attempt_within_budget(request, request.operation),
            resent=resent,
            restore=None if request.programs else restore,
            count=self._ledger.record_retry,
        )

    def _attempt_within_budget(self, request: _Request, operation: str) -> Tensor | None:
        costs = {"programs": request.programs, "queries": request.queries, "vectors": request.vectors}
        self._ledger.afford(self._device.spec, operation, **costs)
        return self._attempt(request)

    def _attempt(self, request: _Request) -> Tensor | None:
        """Send a request once, and record its cost even if it fails."""
        parts_before = self._ledger.parts_usage()
        start = time.perf_counter()
        try:
            answer = request.send()
        except DeviceError as error:
            error.device = error.device or self._device.spec.name
            error.operation = error.operation or request.operation
            raise
        finally:
            seconds = time.perf_counter() - start
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
        if isinstance(answer, Tensor) and answer.is_floating_point():
            check_finite(self._device.spec, answer)
        return answer


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
