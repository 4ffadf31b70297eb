"""Ensure that every answer belongs to its request, also after an exchange that broke off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from itertools import combinations, pairwise, product
from math import log2, sqrt
from typing import Any, Final

import torch
from torch import Tensor

from .capabilities import Flushes, InProcess, Resends, capability_of
from .device import Device
from .errors import DeviceError, NotConnected, ProtocolError
from .random import derive_generator
from .spec import DeviceSpec

__all__ = ["Synchronisation"]

_log = logging.getLogger(__name__)

# Two answers to one vector differ by at most this many standard deviations of their difference.
_DEVIATIONS: Final = 6.0
# Largest relative rounding error of an answer; float32 and text with six digits stay below it.
_ROUNDING: Final = 1e-5
# Answers that can hold fewer bits than this may be equal by accident.
_LEAST_BITS: Final = 16
# Factor between the variance of answers to different vectors and that of answers to one vector.
_CONTRAST: Final = 4.0
# Number of comparisons before the verdict where the noise is larger than the spec claims.
_ROUNDS: Final = 3
# Number of vectors of a comparison, and largest number of late answers that it recognises by their order.
_LENGTH: Final = 7
_LATEST: Final = 3


class _State(Enum):
    IN_STEP = auto()
    UNVERIFIED = auto()  # no late answer was found, but all answers so far were equal
    OUT_OF_STEP = auto()


class _Verdict(Enum):
    IN_STEP = auto()  # and the noise is as small as the spec claims
    PLAUSIBLE = auto()  # but the noise is larger than the spec claims
    EQUAL = auto()  # all answers are equal, so they show nothing
    OUT_OF_STEP = auto()


@dataclass(frozen=True, slots=True)
class _Known:
    """Hold a vector with its answer in the first row, and another vector with its answer in the second.

    Attributes:
        controls: controls of the device, (num_controls,).
        inputs: vectors, (1 or 2, in_features).
        outputs: answers, (1 or 2, out_features).
    """

    controls: Tensor
    inputs: Tensor
    outputs: Tensor


class Synchronisation:
    """Keep host and device in step.

    A device without request numbers sends its answers in the order of the requests. If an exchange breaks off (by a
    timeout, Ctrl-C, or an exception in the driver), its answer may arrive later, and would be taken for the answer to
    the next request. So a broken exchange leaves the device out of step. Before the next request, `restore` discards
    late answers, closes and opens the device, programs it again, and queries one vector whose answer is known. If no
    answer is known, it queries two random vectors r and s in an order such as r, s, s, s, r, r, s, and compares the
    answers.

    A device with the capability `Resends` numbers its requests, so that a late answer is recognised by its number. A
    device with the capability `InProcess` never answers late.

    Args:
        device: device of the session.
        program: function that programs the device, (num_controls,), and records the operation.
        query: function that passes a vector through the device, (1, in_features) -> (1, out_features), and records the
            operation.
    """

    def __init__(self, device: Device, program: Callable[[Tensor], object], query: Callable[[Tensor], Tensor]) -> None:
        self._device = device
        self._program = program
        self._query = query
        self._flushes = capability_of(device, Flushes)
        numbered = capability_of(device, Resends) is not None
        self._late_answers = not numbered and capability_of(device, InProcess) is None
        self._state = self._before = _State.IN_STEP
        self._known: _Known | None = None
        # Vectors whose answers may still arrive, and those of the present exchange.
        self._sent: list[Tensor] = []
        self._present: Tensor | None = None
        self._comparisons = 0

    @property
    def in_step(self) -> bool:
        """Return whether all earlier exchanges were complete, or `restore` was called after the last broken one."""
        return self._state is not _State.OUT_OF_STEP

    @property
    def is_verified(self) -> bool:
        """Return whether host and device are in step, as far as their answers show."""
        return self._state is _State.IN_STEP

    def keeps_controls(self, error: BaseException) -> bool:
        """Return whether the device has the same controls as before after a repetition failed with an error.

        This is also True if the next call of `restore` programs them again.
        """
        if self._device.spec.idempotent_program:
            return self._late_answers and not self.in_step
        return not isinstance(error, NotConnected)

    # -- called for every exchange ------------------------------------------------------------

    def begin(self, inputs: Tensor | None) -> None:
        """Mark the device as out of step until `complete` is called.

        Args:
            inputs: vectors that are passed, (batch, width); None for a program.
        """
        self._present = inputs
        if self._state is not _State.OUT_OF_STEP:
            self._before, self._state = self._state, _State.OUT_OF_STEP

    def complete(self) -> None:
        """Mark the exchange as complete, because its whole answer has arrived."""
        self._state = self._before
        self._present = None

    def break_off(self) -> None:
        """Store the vectors of the exchange, which broke off; this may be called again."""
        self._before = self._state = _State.OUT_OF_STEP
        inputs, self._present = self._present, None
        if inputs is not None and self._late_answers:
            # Copied, because the caller may change them in place.
            self._sent.append(inputs.clone())

    def learn(self, controls: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """Store a vector of a complete query with its answer, and a second one for comparison.

        Args:
            controls: controls of the device, (num_controls,).
            inputs: vectors, (batch, in_features).
            outputs: answers, (batch, out_features).
        """
        if not self._late_answers or self._state is not _State.IN_STEP:
            return
        earlier = self._known if self._known is not None and self._known.controls is controls else None
        if earlier is not None and len(earlier.inputs) == 2:
            return  # two answers at these controls are enough
        second = (inputs[:1], outputs[:1])
        if len(inputs) == 1 and earlier is not None:
            second = (earlier.inputs.to(inputs), earlier.outputs.to(outputs))
        elif len(inputs) == 1:
            second = (inputs[:0], outputs[:0])
        self._known = _Known(controls, torch.cat([inputs[-1:], second[0]]), torch.cat([outputs[-1:], second[1]]))

    # -- called before the next exchange ------------------------------------------------------

    def restore(self, controls: Tensor | None, *, reopen: bool) -> None:
        """Bring the device back in step, and program it.

        Args:
            controls: controls that the device had, (num_controls,); None if it had none, or if they are unknown.
            reopen: whether to close and open also a device that is in step, or that numbers its requests.

        Raises:
            DeviceTimeout, NotConnected, ProtocolError: the device does not answer, or its answers are out of step.
            BudgetExceeded: the budget does not cover the necessary programs and vectors.
        """
        idempotent = self._device.spec.idempotent_program
        late = self._late_answers and not self.in_step
        if not self.in_step:
            # Ctrl-C may have arrived before the exchange noticed anything.
            self.break_off()
        if late:
            # Late answers are awaited before closing, because closing uses the line too.
            with suppress(DeviceError):
                self._flush()
        # A device that must not be programmed twice with the same controls keeps them only while it is open.
        may_reopen = idempotent or (late and controls is None and self._flushes is None)
        present = controls
        if may_reopen and (reopen or late):
            # A device that hangs or is disconnected may fail to close; it is opened again in any case.
            with suppress(Exception):
                self._device.close()
            self._device.open()
            present = None
            self._flush()
        else:
            # Where requests are numbered, a line that is broken fails the next request, which is then repeated.
            with nullcontext() if self._late_answers else suppress(DeviceError):
                self._flush()
        verified = not late
        if late:
            verified, present = self._question(controls, present)
        if controls is not None and not _same(present, controls):
            self._guarded(self._program, controls)
        self._settle(_State.IN_STEP if verified else _State.UNVERIFIED)

    def verify(self, controls: Tensor) -> None:
        """Compare answers at the present controls, if no answer has shown yet that host and device are in step.

        Args:
            controls: controls of the device, (num_controls,). They are programmed again if this is allowed, because the
                acknowledgement of their program may have been a late one.

        Raises:
            DeviceTimeout, NotConnected, ProtocolError: the device does not answer, or its answers are out of step.
        """
        if self._state is _State.UNVERIFIED and self._compare():
            if self._device.spec.idempotent_program:
                self._guarded(self._program, controls)
            # Settled last: if the program was refused or interrupted, the controls are still in doubt.
            self._settle(_State.IN_STEP)

    # -- questions ----------------------------------------------------------------------------

    def _question(self, controls: Tensor | None, present: Tensor | None) -> tuple[bool, Tensor | None]:
        """Ask a question with a known answer, or compare answers.

        Args:
            controls: controls that the device had.
            present: controls that it has now; None if they are unknown.

        Returns:
            Whether the device is in step, and the controls that it has now. False means that the answers show nothing.
        """
        idempotent = self._device.spec.idempotent_program
        known = self._known
        if known is not None and (idempotent or _same(known.controls, present)) and self._is_significant(known):
            present = self._set(known.controls, present)
            vector, expected = known.inputs[:1], known.outputs[:1]
            self._sent.append(vector)
            answer = self._guarded(self._query, vector)
            if float((answer.to(expected) - expected).abs().max()) <= _tolerance(self._device.spec, expected):
                return True, present
            if not self._compare():
                raise self._out_of_step()
            # The acknowledgement of the program may have been a late one.
            return True, None if idempotent else present
        if controls is None:
            return False, present  # compared after the next program
        present = self._set(controls, present)
        if not self._compare():
            return False, present
        return True, None if idempotent else present

    def _is_significant(self, known: _Known) -> bool:
        """Return whether a late answer differs from the known one."""
        spec = self._device.spec
        if len(known.inputs) < 2:
            return False
        if spec.output_levels is not None and spec.out_features * log2(spec.output_levels) < _LEAST_BITS:
            return False
        difference = float((known.outputs[0] - known.outputs[1]).abs().max())
        if difference <= _CONTRAST * _tolerance(spec, known.outputs):
            return False
        vector = known.inputs[0].double()
        scale = _ROUNDING * (1 + float(vector.abs().max()))
        return not any(
            sent.shape[1] == len(vector) and bool(((sent.double() - vector).abs().amax(dim=1) <= scale).any())
            for sent in self._sent
        )

    def _compare(self) -> bool:
        """Compare the answers to random vectors; return False if all answers are equal.

        Raises:
            ProtocolError: an answer does not belong to its vector.
        """
        for _ in range(_ROUNDS):
            verdict = self._compare_once()
            if verdict is _Verdict.OUT_OF_STEP:
                raise self._out_of_step()
            if verdict is not _Verdict.PLAUSIBLE:
                return verdict is _Verdict.IN_STEP
        return True

    def _compare_once(self) -> _Verdict:
        spec = self._device.spec
        vectors = _distant_vectors(spec, self._comparisons)
        # Comparisons have different orders, so that the late answers to one do not fit another one.
        order = _orders()[self._comparisons % len(_orders())]
        self._comparisons += 1
        answers = torch.cat([self._guarded(self._query, vectors[which]) for which in order]).double()
        claimed = (_tolerance(spec, answers) / _DEVIATIONS) ** 2

        def variance(*groups: tuple[int, ...]) -> float:
            """Return the mean variance of an output within groups of answers, at least that of the rounding."""
            deviations = [answers[list(group)] - answers[list(group)].mean(dim=0) for group in groups]
            freedom = answers.shape[1] * sum(len(group) - 1 for group in groups)
            return sum(float(part.square().sum()) for part in deviations) / freedom + 1e-3 * claimed

        right = variance(*_groups(order))
        wrong = min(variance(*_groups(order, late)) for late in range(1, _LATEST + 1))
        if variance(tuple(range(_LENGTH))) <= _CONTRAST * claimed:
            return _Verdict.EQUAL
        if wrong < _CONTRAST * right:
            return _Verdict.OUT_OF_STEP
        return _Verdict.IN_STEP if right <= _CONTRAST * claimed else _Verdict.PLAUSIBLE

    # -- the device ---------------------------------------------------------------------------

    def _set(self, controls: Tensor, present: Tensor | None) -> Tensor:
        """Program the device unless it has these controls already, and return them."""
        if not _same(controls, present):
            self._guarded(self._program, controls)
        return controls

    def _guarded(self, operation: Callable[[Tensor], Any], argument: Tensor) -> Any:
        """Call an operation, and report every error of the driver as an answer that is out of step."""
        try:
            return operation(argument)
        except DeviceError:
            raise
        except Exception as error:
            raise ProtocolError(
                f"the driver failed with {type(error).__name__}: {error}, after an earlier exchange broke off",
                device=self._device.spec.name,
            ) from error

    def _out_of_step(self) -> ProtocolError:
        return ProtocolError(
            "the answers do not belong to the vectors that were sent, because an earlier exchange broke off; "
            "close and open the session, or switch the device off and on",
            device=self._device.spec.name,
        )

    def _flush(self) -> None:
        if self._flushes is not None:
            self._flushes.flush()

    def _settle(self, state: _State) -> None:
        self._before = self._state = state
        if state is _State.IN_STEP:
            self._sent.clear()


@cache
def _orders() -> list[tuple[int, ...]]:
    """Return the orders of two vectors from which late answers can be recognised.

    In each order, other answers are equal if up to `_LATEST` late answers come first. Each order changes at least twice
    between the vectors, so that the last answers to one comparison and the first to the next one do not fit it.
    """
    found = []
    for order in product((0, 1), repeat=_LENGTH):
        changes = sum(one != other for one, other in pairwise(order))
        if order[0] == 0 and changes > 1 and all(_differ(order, late) for late in range(1, _LATEST + 1)):
            found.append(order)
    return found


def _differ(order: tuple[int, ...], late: int) -> bool:
    """Return whether ``late`` late answers make unequal answers equal, and equal answers unequal."""
    places = [(order[place], order[place - late]) for place in range(late, _LENGTH)]
    pairs = list(combinations(places, 2))
    return any(a[0] != b[0] and a[1] == b[1] for a, b in pairs) and any(a[0] == b[0] and a[1] != b[1] for a, b in pairs)


def _groups(order: tuple[int, ...], late: int = 0) -> list[tuple[int, ...]]:
    """Return the places of equal answers, if ``late`` late answers come first."""
    found = [tuple(place for place in range(late, _LENGTH) if order[place - late] == which) for which in (0, 1)]
    return [group for group in found if len(group) > 1]


def _distant_vectors(spec: DeviceSpec, seed: int) -> tuple[Tensor, Tensor]:
    """Return two random vectors, (1, in_features) each, whose answers differ on most chips."""
    low, high = spec.input_range or (-1.0, 1.0)
    generator = derive_generator(seed, "synchronisation")
    drawn = torch.rand(2, spec.in_features, generator=generator)
    signs = torch.where(torch.rand(spec.in_features, generator=generator) < 0.5, -1.0, 1.0)
    first = signs * (1 + drawn[0]) / 2
    # Some entries have the other sign, and some are near zero: the answers of a chip that measures the power of each
    # input do not depend on its sign.
    second = torch.where(drawn[1] < 0.5, -first, first / 8)
    whole, span = low + high, high - low
    return (whole + span * first.unsqueeze(0)) / 2, (whole + span * second.unsqueeze(0)) / 2


def _tolerance(spec: DeviceSpec, answers: Tensor) -> float:
    """Return the largest difference between two answers to one vector."""
    rounding = (spec.output_step or 0.0) + _ROUNDING * float(answers.abs().max())
    return _DEVIATIONS * sqrt(2) * spec.noise_std + rounding


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (
        one is not None and other is not None and one.dtype == other.dtype and torch.equal(one, other)
    )
