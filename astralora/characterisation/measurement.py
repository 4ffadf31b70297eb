"""What every measurement has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .examiner import Examiner
from .findings import Finding

__all__ = ["Cost", "Effort", "Measurement", "agrees", "scan_levels"]

# Most levels that are looked for, and by how much an answer must be better than none, in squares of its error:
# among some thousands of candidates pure noise comes to about 2 ln 4096 + a few.
_MOST_LEVELS = 4096
_DECISIVE = 40.0
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
    departures: Callable[[int], Tensor],
    left: Tensor,
    error: float,
    promised: int | None,
    *,
    finest: float,
    samples: int,
) -> Finding:
    """How many codes a converter has, from what a smooth curve leaves of its answers.

    A converter of L levels is off by d(v) = q_L(v) - v at the value v, a saw of its own. For each candidate chi^2
    falls by (2 d . left - d . d) / error^2: much for the right one, and hardly above 0 for any other.

    Args:
        name: of the finding.
        measurement: that it belongs to.
        departures: what a converter of so many levels would leave, in the same units and free of what was fitted.
        left: what the fit has left, flat.
        error: standard error of one sample.
        promised: by the spec.
        finest: root mean square of the saw of two levels times one less than two: falls with L - 1.
        samples: how many there are, for what can be seen at best.
    """
    gains = torch.full((_MOST_LEVELS + 1,), -torch.inf, dtype=torch.float64)
    for levels in range(2, _MOST_LEVELS + 1):
        saw = departures(levels)
        size = float(saw.square().sum())
        if size < 1e-3 * error**2:
            continue
        gains[levels] = (2 * float((saw * left).sum()) - size) / error**2
    best = int(gains.argmax())
    if float(gains[best]) < _DECISIVE:
        seen = finest * sqrt(samples / _DECISIVE) / max(error, 1e-300) + 1
        return Finding(
            name=name,
            measurement=measurement,
            value=None,
            low=min(seen, _MOST_LEVELS),
            promised=promised,
            agrees=None if promised is None else promised >= seen * 0.7,
            sentence=f"No steps can be seen; of fewer than some {min(seen, _MOST_LEVELS):.0f} levels there would be.",
        )
    close = (gains > gains[best] - _INDIFFERENT).nonzero()[:, 0]
    low, high = int(close.min()), int(close.max())
    return Finding(
        name=name,
        measurement=measurement,
        value=best,
        low=low,
        high=high,
        promised=promised,
        agrees=None if promised is None else low <= promised <= high,
        sentence=f"{best} levels" + (f" (between {low} and {high})." if low < high else "."),
    )
