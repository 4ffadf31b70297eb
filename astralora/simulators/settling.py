"""Move controls exponentially from one program to the next."""

from __future__ import annotations

from math import exp

from torch import Tensor

from .impairments import Impairments

__all__ = ["Settling"]

# Time constants until a chip has settled, to 1e-9.
_SETTLED = 20.0


class Settling:
    """Blend acting controls with those before the newest program: the difference falls as exp(-t / tau).

    Args:
        impairments: settling time constant tau, and the time that a program waits for settling.

    Attributes:
        before: acting controls before the newest program, (num_controls,); None once settling is over.
        ends_at: clock time at which settling is over.
    """

    def __init__(self, impairments: Impairments) -> None:
        self._tau = impairments.settle_tau_seconds
        self._waited = impairments.settle_seconds
        self.before: Tensor | None = None
        self.ends_at = 0.0

    def start(self, before: Tensor | None, now: float) -> None:
        """Start to settle from acting controls ``before``; ``now`` is the clock time after the program and its wait."""
        self.before = before if self._tau else None
        self.ends_at = now - self._waited + _SETTLED * self._tau

    def blend(self, acting: Tensor, now: float) -> Tensor:
        """Return the controls on their way to ``acting``, (num_controls,), at clock time ``now``."""
        left = self.ends_at - now
        if self.before is None or left <= 0:
            return acting
        rest = exp(left / self._tau - _SETTLED)
        return acting + rest * (self.before.to(acting.dtype) - acting)

    def advance(self, now: float) -> bool:
        """Move on to clock time ``now``; return whether the controls have moved since the last call.

        This is also true once after settling is over, since the last known controls are from before its end.
        """
        moved = self.before is not None
        if now >= self.ends_at:
            self.before = None
        return moved
