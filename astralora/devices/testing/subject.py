"""The device under test, and what may be expected of its answers."""

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

# Chance that an honest device fails a check by its noise alone.
_FALSE_ALARM = 1e-8
# Relative error of sums in float32, with room for thousands of terms.
_ROUNDING = 2e-5


class CheckFailed(Exception):
    """The device does not do what it should: in one sentence, with numbers."""


class NotApplicable(Exception):
    """The device does not claim what is checked here."""


def fail(reason: str) -> NoReturn:
    """Let a check fail."""
    raise CheckFailed(reason)


class Subject:
    """Devices under test, one after the other, and how much their answers may scatter.

    Args:
        make: makes the device, closed; called for every check, since a port has room for one only.
        seed: of controls and inputs.

    Attributes:
        programs: that were sent.
        vectors: that were passed.
    """

    def __init__(self, make: Callable[[], Device], seed: int = 0) -> None:
        self._make = make
        self.generator = derive_generator(seed, "conformance")
        self.programs = 0
        self.vectors = 0
        self._device: Device | None = None

    # -- the device -------------------------------------------------------------------------

    def fresh(self) -> Device:
        """A new device, closed; the one before is closed first."""
        self.finish()
        self._device = self._make()
        if not isinstance(self._device, Device):
            fail(f"a {type(self._device).__name__} is no Device: it needs spec, open, close, program and query")
        return self._device

    def running(self) -> Device:
        """A new device, open, at controls that training would start from."""
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
        """Program, counted."""
        self.programs += 1
        device.program(controls)

    def query(self, device: Device, inputs: Tensor) -> Tensor:
        """Query in pieces that the device takes, counted, and make sure of the answer's shape."""
        limit = device.spec.max_batch or len(inputs)
        answers = []
        for part in inputs.split(limit):
            self.vectors += len(part)
            answer = device.query(part)
            due = (len(part), device.spec.out_features)
            if not isinstance(answer, Tensor) or tuple(answer.shape) != due:
                got = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
                fail(f"a query of {len(part)} vectors answered {got} where {due} is due")
            answers.append(answer)
        return torch.cat(answers)

    def average(self, device: Device, inputs: Tensor, repeats: int) -> Tensor:
        """The mean answer of so many queries of the same vectors, in double precision."""
        total = torch.zeros(len(inputs), device.spec.out_features, dtype=torch.float64)
        for _ in range(repeats):
            total += self.query(device, inputs)
        return total / repeats

    # -- what to send -----------------------------------------------------------------------

    def controls(self, spec: DeviceSpec) -> Tensor:
        """Any legal controls: (num_controls,)."""
        return self._within(spec.control_range, spec.num_controls)

    def inputs(self, spec: DeviceSpec, batch: int) -> Tensor:
        """Any legal inputs: (batch, in_features)."""
        return self._within(spec.input_range, batch, spec.in_features)

    def integer(self, limit: int) -> int:
        """A whole number from 0 up to, not including, ``limit``."""
        return int(torch.randint(limit, (), generator=self.generator))

    def _within(self, bounds: Range | None, *shape: int) -> Tensor:
        low, high = bounds or (-1.0, 1.0)
        return torch.empty(shape).uniform_(low, high, generator=self.generator)

    # -- what to expect ---------------------------------------------------------------------

    def repeats(self, spec: DeviceSpec) -> int:
        """How many answers are averaged where a small difference counts: none are where there is no noise."""
        return 16 if spec.noise_std else 1

    def scatter(
        self, spec: DeviceSpec, comparisons: int, magnitude: float, weights: Sequence[float] = (1.0, -1.0),
        repeats: int = 1,
    ) -> float:  # fmt: skip
        """How far a weighted sum of independent answers to the same question may be from what it should be.

        Gaussian noise of the declared standard deviation, the rounding of the output converter, and that of float32.

        Args:
            spec: declares the noise and the levels.
            comparisons: number of values that are compared: none of them may stray.
            magnitude: of the answers, for the rounding.
            weights: of the answers in the sum; by default, the difference of two.
            repeats: answers that each of them is the mean of.
        """
        quantile = NormalDist().inv_cdf(1 - _FALSE_ALARM / (2 * max(comparisons, 1)))
        noise = quantile * spec.noise_std * sqrt(sum(weight**2 for weight in weights) / repeats)
        rounding = (spec.output_step or 0.0) / 2 * sum(map(abs, weights))
        return noise + rounding + _ROUNDING * max(magnitude, 1e-12) * sum(map(abs, weights))

    def agree(
        self, spec: DeviceSpec, found: Tensor, due: Tensor, what: str, repeats: int = 1, extra: float = 0.0
    ) -> None:
        """Fail where two answers differ by more than noise and rounding allow.

        Args:
            spec: declares noise and levels.
            found: one of them.
            due: the other.
            what: a sentence up to the numbers.
            repeats: answers that each of them is the mean of.
            extra: that they may differ on top.
        """
        magnitude = float(due.abs().max()) if due.numel() else 0.0
        bound = self.scatter(spec, due.numel(), magnitude, repeats=repeats) + extra
        difference = float((found.double() - due.double()).abs().max()) if due.numel() else 0.0
        if not difference <= bound:
            fail(f"{what}: they differ by {difference:.4g}, and the spec allows for {bound:.4g}")
