"""Operate the device under test, and compute the allowed scatter of its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist
from typing import NoReturn

import torch
from torch import Tensor

from ..controls import initial_controls
from ..device import Device
from ..random import derive_generator
from ..spec import DeviceSpec, Range

__all__ = ["CheckFailed", "NotApplicable", "Subject"]

# Probability that a correct device fails a comparison because of its noise.
_FALSE_ALARM = 1e-8
# Relative error of sums of thousands of terms in float32.
_ROUNDING = 2e-5


class CheckFailed(Exception):
    """Report that a check failed; the message is one sentence with numbers."""


class NotApplicable(Exception):
    """Report that a check does not apply to the device; the message gives the reason."""


def fail(reason: str) -> NoReturn:
    """Raise `CheckFailed` with a reason."""
    raise CheckFailed(reason)


class Subject:
    """Make and operate the devices under test, one after the other, and compare their answers.

    Args:
        make: function that returns a new, closed device; called only after the previous device was closed, because a
            port serves one device at a time.
        seed: seed of controls and inputs.
        measured_noise: standard deviation of the noise if the claim of the spec is wrong; 0 if the claim is right.

    Attributes:
        generator: source of controls and inputs.
        measured_noise: as given.
        programs: number of programs sent.
        vectors: number of vectors passed.
    """

    def __init__(self, make: Callable[[], Device], seed: int = 0, measured_noise: float = 0.0) -> None:
        self._make = make
        self.measured_noise = measured_noise
        self.generator = derive_generator(seed, "conformance")
        self.programs = 0
        self.vectors = 0
        self._device: Device | None = None

    # -- the device -------------------------------------------------------------------------

    def fresh(self) -> Device:
        """Close the previous device, and return a new, closed device."""
        self.finish()
        self._device = self._make()
        if not isinstance(self._device, Device):
            fail(f"a {type(self._device).__name__} is not a Device: it needs spec, open, close, program and query")
        return self._device

    def running(self) -> Device:
        """Return a new device that is open and programmed with random initial controls."""
        device = self.fresh()
        device.open()
        self.program(device, initial_controls(device.spec, self.generator))
        return device

    def finish(self) -> None:
        """Close the device."""
        device, self._device = self._device, None
        if device is not None:
            device.close()

    def program(self, device: Device, controls: Tensor) -> None:
        """Program the device, and count the program."""
        self.programs += 1
        device.program(controls)

    def query(self, device: Device, inputs: Tensor) -> Tensor:
        """Query in batches of at most ``max_batch``, count the vectors, and check the shape of the answers."""
        limit = device.spec.max_batch or len(inputs)
        return torch.cat([self.ask(device, part) for part in inputs.split(limit)])

    def ask(self, device: Device, inputs: Tensor) -> Tensor:
        """Query once, count the vectors, and return the answer itself, not a copy, after a check of its shape."""
        self.vectors += len(inputs)
        answer = device.query(inputs)
        expected = (len(inputs), device.spec.out_features)
        if not isinstance(answer, Tensor) or tuple(answer.shape) != expected:
            got = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
            fail(f"a query of {len(inputs)} vectors returned {got}; it must return shape {expected}")
        return answer

    def average(self, device: Device, inputs: Tensor, repeats: int) -> Tensor:
        """Return the mean answer of ``repeats`` queries of the same vectors, in double precision."""
        total = torch.zeros(len(inputs), device.spec.out_features, dtype=torch.float64)
        for _ in range(repeats):
            total += self.query(device, inputs)
        return total / repeats

    # -- random controls and inputs ---------------------------------------------------------

    def controls(self, spec: DeviceSpec) -> Tensor:
        """Draw legal controls, (num_controls,)."""
        return self._within(spec.control_range, spec.num_controls)

    def inputs(self, spec: DeviceSpec, batch: int) -> Tensor:
        """Draw legal inputs, (batch, in_features)."""
        return self._within(spec.input_range, batch, spec.in_features)

    def integer(self, limit: int) -> int:
        """Draw a whole number from 0 to ``limit`` - 1."""
        return int(torch.randint(limit, (), generator=self.generator))

    def _within(self, bounds: Range | None, *shape: int) -> Tensor:
        low, high = bounds or (-1.0, 1.0)
        return torch.empty(shape).uniform_(low, high, generator=self.generator)

    # -- tolerances -------------------------------------------------------------------------

    def repeats(self, spec: DeviceSpec) -> int:
        """Return the number of answers to average for a precise comparison: 16, or 1 if the spec declares no noise."""
        return 16 if self.noise_std(spec) else 1

    def averages(self, spec: DeviceSpec) -> tuple[int, ...]:
        """Return numbers of answers to average, from the cheapest to the most precise comparison."""
        return (1, 4, 16) if self.noise_std(spec) else (1,)

    def noise_std(self, spec: DeviceSpec) -> float:
        """Return the standard deviation of the noise: as declared, or as measured if that is more."""
        return max(spec.noise_std, self.measured_noise)

    def scatter(
        self,
        spec: DeviceSpec,
        comparisons: int,
        magnitude: float,
        weights: Sequence[float] = (1.0, -1.0),
        repeats: int | Sequence[int] = 1,
    ) -> float:
        """Return the largest allowed error of a weighted sum of independent answers to the same query.

        The error has three parts: Gaussian noise of the declared standard deviation, the rounding of the output
        converter, and the rounding of float32.

        Args:
            spec: spec that declares the noise and the levels.
            comparisons: number of values that are compared; all of them must stay within the error.
            magnitude: size of the answers, for the rounding of float32.
            weights: weights of the answers in the sum; the default is the difference of two answers.
            repeats: number of answers that are averaged for each term; one number for all terms, or one for each.
        """
        quantile = NormalDist().inv_cdf(1 - _FALSE_ALARM / (2 * max(comparisons, 1)))
        counts = [repeats] * len(weights) if isinstance(repeats, int) else repeats
        variance = sum(weight**2 / count for weight, count in zip(weights, counts, strict=True))
        noise = quantile * self.noise_std(spec) * sqrt(variance)
        rounding = (spec.output_step or 0.0) / 2 * sum(map(abs, weights))
        return noise + rounding + _ROUNDING * max(magnitude, 1e-12) * sum(map(abs, weights))

    def agree(
        self, spec: DeviceSpec, found: Tensor, expected: Tensor, what: str, repeats: int = 1, extra: float = 0.0
    ) -> None:
        """Fail where two answers differ by more than noise and rounding allow.

        Args:
            spec: spec that declares the noise and the levels.
            found: answer to check.
            expected: answer to compare it with.
            what: beginning of the message of a failure.
            repeats: number of queries that were averaged for each of the two answers.
            extra: additional allowed difference.
        """
        count = expected.numel()
        magnitude = float(expected.abs().max()) if count else 0.0
        bound = self.scatter(spec, count, magnitude, repeats=repeats) + extra
        difference = float((found.double() - expected.double()).abs().max()) if count else 0.0
        if not difference <= bound:
            fail(f"{what}: the answers differ by {difference:.4g}, but the spec allows {bound:.4g}")
