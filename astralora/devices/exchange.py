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
        send: calls the device.
        shape: shape of the answer; None where there is none.
        programs, queries, vectors: operations that it costs.
        moved: bytes that it moves.
    """

    operation: str
    send: Callable[[], Tensor | None]
    shape: tuple[int, ...] | None = None
    programs: int = 0
    queries: int = 0
    vectors: int = 0
    moved: int = 0


class Exchange:
    """Carry out operations that a session has checked, and remember what the device holds.

    Not locked: its session calls it from inside its own lock.

    Args:
        device: device that carries them out.
        ledger: records every attempt.
        recovery: repeats what failed; None where the device does so itself, or nothing is to be repeated.

    Attributes:
        programmed: controls that the device holds, (num_controls,); None where they are unknown.
    """

    def __init__(self, device: Device, ledger: Ledger, recovery: Recovery | None) -> None:
        self._device = device
        self._ledger = ledger
        self._recovery = recovery
        # The session checks every request; a device that would check it again need not.
        self._unchecked = capability_of(device, ChecksRequests)
        self.programmed: Tensor | None = None

    def holds(self, controls: Tensor) -> bool:
        """Return whether the device holds exactly these controls, (num_controls,), of this dtype."""
        held = self.programmed
        return (
            held is not None
            and (held.dtype, held.device) == (controls.dtype, controls.device)
            and torch.equal(held, controls)
        )

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,)."""
        # A copy: what the driver keeps must not change when the caller's optimizer changes its tensor.
        sent = controls.clone(memory_format=torch.contiguous_format)
        # Until the device has confirmed, its controls are unknown.
        self.programmed = None
        self._carry_out(_Request("program", partial(self._program_method, sent), programs=1, moved=_size(sent)))
        self.programmed = sent

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features)."""
        send = self._device.query if self._unchecked is None else self._unchecked.query_unchecked
        return self.pass_vectors("query", send, inputs, self._device.spec.out_features)

    def query_each(self, many: ProgramsMany, controls: Tensor, inputs: Tensor) -> Tensor:
        """Run all settings in one call of the device: (settings, batch, out_features)."""
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
        """Pass vectors in pieces of ``max_batch``: (batch, ...) -> (batch, width)."""
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
        # Equal requests get equal answers, wherever the numbers of the caller lie in memory.
        batch, vectors = len(vectors), aligned(vectors)
        moved = batch * (vectors.shape[1] + width) * vectors.element_size()
        shape = (batch, width)
        request = _Request(operation, partial(send, vectors), shape, queries=1, vectors=batch, moved=moved)
        return self._answer(request, vectors)

    def _answer(self, request: _Request, like: Tensor) -> Tensor:
        answer = self._carry_out(request)
        # A driver that answers in the wrong shape is not asked again: it would do the same again.
        outputs = check_outputs(self._device.spec, answer, request.shape)
        return aligned(outputs if outputs.dtype == like.dtype else outputs.to(like))

    def _carry_out(self, request: _Request) -> Tensor | None:
        """Carry out one operation, with as many attempts as it needs and may have."""
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
            # The answer moves again, but no operation is carried out.
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
        """Send a request once, and record it whether or not it succeeds."""
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
