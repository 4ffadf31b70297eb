"""Watching whether a surrogate still knows its device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

__all__ = ["Health", "StaleGradientWarning"]

# A warning is due when the average falls below the first, and again after it has been above the second.
_STALE = 0.5
_SOUND = 0.7
# Steps that the average looks back on, and those that it waits before it judges.
_MEMORY = 20
_PATIENCE = 20


class StaleGradientWarning(UserWarning):
    """A surrogate explains so little of its device's answers that its gradients are not to be trusted."""


class Health:
    """The share of a device's answers, noise aside, that its surrogate foresees, averaged over the latest steps.

    Gradients that are wrong by a relative error e have a cosine of about 1 / sqrt(1 + e^2) to the truth, and a
    health of 1 - e^2 as far as the batches show it. Measured on each batch before it is learned from, at no
    operation.

    Args:
        device: its name, for the warning.

    Attributes:
        value: between 0 and 1; None before the first step.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._steps = 0
        self._warned = False
        self.value: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """What the next judgement depends on."""
        return {"value": self.value, "steps": self._steps, "warned": self._warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.value, self._steps, self._warned = state["value"], state["steps"], state["warned"]

    def update(self, explained: float | None) -> None:
        """Take in the newest batch; warns, once, when the average has fallen below a half."""
        if explained is None:
            return
        weight = max(1 / _MEMORY, 1 / (self._steps + 1))
        self._steps += 1
        self.value = explained if self.value is None else self.value + weight * (explained - self.value)
        if self.value > _SOUND:
            self._warned = False
        if self.value < _STALE and self._steps >= _PATIENCE and not self._warned:
            self._warned = True
            warnings.warn(
                f"the surrogate foresees {100 * self.value:.0f} % of what {self._device!r} answers: gradients for the "
                f"layers before it have gone stale; use surrogate='online' or 'measured', a higher rank, or rebuild it "
                f"more often",
                StaleGradientWarning,
                stacklevel=2,
            )
