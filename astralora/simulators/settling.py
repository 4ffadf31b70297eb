"""Move controls exponentially from one program to the next."""

from __future__ import annotations

from math import exp

from torch import Tensor

from .impairments import Impairments

__all__ = ["Settling"]

# Number of time constants after which a chip counts as settled; the error is then about 1e-9.
_SETTLED = 20.0


class Settling:
    """Mix the present acting controls with the earlier ones: the difference decays as exp(-t / tau) after a program.

    Args:
        impairments: settling time constant tau, and the time that a program waits for settling.

    Attributes:
        before: acting controls before the newest program, (num_controls,); None after the end of settling.
        ends_at: clock time of the end of settling.
    """

    def __init__(self, impairments: Impairments) -> None:
        self._tau = impairments.settle_tau_seconds
        self._waited = impairments.settle_seconds
        self.before: Tensor | None = None
        self.ends_at = 0.0

    def start(self, before: Tensor | None, now: float) -> None:
        """Start settling from acting controls ``before``; ``now`` is the clock time after the program and its wait."""
        self.before = before if self._tau else None
        self.ends_at = now - self._waited + _SETTLED * self._tau

    def blend(self, acting: Tensor, now: float) -> Tensor:
        """Return the controls at clock time ``now``, between ``before`` and ``acting``, (num_controls,)."""
        left = self.ends_at - now
        if self.before is None or left <= 0:
            return acting
        rest = exp(left / self._tau - _SETTLED)
        return acting + rest * (self.before.to(acting.dtype) - acting)

    def advance(self, now: float) -> bool:
        """Advance to clock time ``now``; return whether the controls have changed since the last call.

        The first call after the end of settling also returns True, because the previous call was before the end.
        """
        moved = self.before is not None
        if now >= self.ends_at:
            self.before = None
        return moved
