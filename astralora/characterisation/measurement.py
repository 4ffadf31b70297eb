"""What every measurement has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log2
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .examiner import Examiner
from .findings import Finding

__all__ = ["MOST_LEVELS", "Cost", "Effort", "Measurement", "agrees", "scan_levels"]

MOST_LEVELS = 4096
"""Levels that are looked for."""

# By how much an answer must be better than none, in squares of its error: among some thousands of candidates pure
# noise comes to about 2 ln 4096 + a few.
_DECISIVE = 40.0
# The same in standard deviations, where what is fitted differs from candidate to candidate: one in 300,000 by chance.
_CERTAIN = 4.5
# Candidates are kept that are worse than the best by less than three standard errors' worth.
_INDIFFERENT = 9.0


class Cost(NamedTuple):
    """What a measurement takes.

    Attributes:
        programs: settings.
        vectors: vectors in all.
    """

    programs: int
    vectors: int


class Effort(NamedTuple):
    """How fine measurements are: 1 for what is usual.

    Attributes:
        settings: of programs.
        repeats: of vectors at each.
    """

    settings: float
    repeats: float


class Measurement(ABC):
    """Measures one thing, for a price that is known before.

    Attributes:
        name: of the measurement.
        priority: the lower, the longer it is kept where the budget is small.
        linear: needs a device that promises to be linear.
        elementwise: needs one whose controls each set an entry of its own.
    """

    name: ClassVar[str]
    priority: ClassVar[int]
    linear: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False

    def refusal(self, examiner: Examiner) -> str | None:
        """Why it does not apply to a device; None where it does."""
        spec = examiner.spec
        if self.linear and not spec.linear:
            return "the device does not promise to be linear"
        if self.elementwise and spec.coupling != "elementwise":
            return f"its coupling is {spec.coupling}, and this tells entries apart by their controls"
        return None

    @abstractmethod
    def cost(self, examiner: Examiner, effort: Effort) -> Cost:
        """What it takes at most."""

    @abstractmethod
    def run(self, examiner: Examiner, effort: Effort) -> list[Finding]:
        """Measure."""


def agrees(promised: int | None, found: int | None) -> bool | None:
    """Whether levels are as promised; finer ones than can be seen contradict nothing."""
    if promised is None or found is None:
        return None
    return promised == found


def scan_levels(
    name: str,
    measurement: str,
    gains: Tensor,
    total: float,
    error: float,
    freedom: float,
    promised: int | None,
    spread: Tensor | None = None,
) -> Finding:
    """How many codes a converter has, from how much better each number of them explains what was answered.

    Noise is what the best candidate leaves: answers that something else scatters make no candidate better than it is.
    Numbers that explain them worse than steady converters do, by three standard errors, are ruled out.

    Args:
        name: of the finding.
        measurement: that it belongs to.
        gains: by how much squares that are left fall with as many levels as the place says, from 2 on.
        total: squares that are left without any steps.
        error: standard error of one sample, at the least.
        freedom: number of samples less that of what was fitted.
        promised: by the spec.
        spread: standard deviation of gains that noise alone makes, in squares of the noise; 0 where None.
    """
    what = name.removesuffix("_levels") + "s"
    gains = gains.clone()
    gains[:2] = -torch.inf
    spread = torch.zeros_like(gains) if spread is None else spread
    best = int(gains.argmax())
    most = float(gains[best])
    least = error**2 / 2  # what is known of the noise errs, and so does what few samples leave
    noise = max(least, (total - max(most, 0.0)) / freedom, 1e-300)
    if most < max(_DECISIVE, _CERTAIN * float(spread[best])) * noise:
        noise = max(least, total / freedom, 1e-300)
        possible = (gains > -(_INDIFFERENT + 3 * spread) * noise).nonzero()[:, 0]
        low = int(possible[0]) if len(possible) else len(gains) - 1
        return Finding(
            name=name,
            measurement=measurement,
            value=None,
            low=low,
            promised=promised,
            agrees=None if promised is None else promised >= low,
            sentence=f"No steps of the {what} can be seen; of fewer than {low} levels there would be.",
        )
    close = (gains > most - _INDIFFERENT * noise).nonzero()[:, 0]
    low, high = int(close.min()), int(close.max())
    return Finding(
        name=name,
        measurement=measurement,
        value=best,
        low=low,
        high=high,
        promised=promised,
        agrees=None if promised is None else low <= promised <= high,
        sentence=f"The {what} have {best} levels, which is {log2(best):.1f} bits"
        + (f" (between {low} and {high} levels)." if low < high else "."),
    )
