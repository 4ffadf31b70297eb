"""Measure how well a surrogate predicts the device of a layer, and how many outputs saturate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..devices import ReportsPeaks, Session

__all__ = ["Health", "StaleGradientWarning", "saturated_share"]

# A warning is given when the average falls below _STALE, and again only after it has risen above the second value.
_STALE = 0.5
_SOUND = 0.7
# Number of steps in the average, and number of steps before the first warning.
_MEMORY = 20
_PATIENCE = 20


class StaleGradientWarning(UserWarning):
    """Warn that a surrogate predicts its device so poorly that its gradients are not reliable."""


class Health:
    """Average the share of a device's answers, without noise, that its surrogate predicts in the latest steps.

    Gradients with a relative error e have a cosine of about 1 / sqrt(1 + e^2) to the true gradients. Their health is
    1 - e^2, if the batches contain the directions of the error. The share is measured on each batch before the
    surrogate learns from the batch, and costs no operation.

    Args:
        device: name of the device, for the warning.

    Attributes:
        value: average share, between 0 and 1; None before the first step.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._steps = 0
        self._warned = False
        self.value: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the average, the number of steps, and whether the warning was given."""
        return {"value": self.value, "steps": self._steps, "warned": self._warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.value, self._steps, self._warned = state["value"], state["steps"], state["warned"]

    def update(self, explained: float | None) -> None:
        """Add the newest batch to the average; warn once when the average falls below one half.

        Args:
            explained: predicted share of the answers of the batch; None if the batch contains no information.
        """
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
                f"the surrogate predicts only {100 * self.value:.0f} % of the answers of {self._device!r}, so the "
                f"gradients for earlier layers are not reliable; use surrogate='online' or 'measured', a higher rank, "
                f"or rebuild the surrogate more often",
                StaleGradientWarning,
                stacklevel=2,
            )


def saturated_share(session: Session, outputs: Tensor) -> float | None:
    """Return the share of outputs at an end of the output range; None if the device has no output range.

    Args:
        session: session of the device that has just answered.
        outputs: answer of the device, (batch, out_features).
    """
    spec, source = session.spec, session.capability(ReportsPeaks)
    if source is not None:
        return float((source.peaks >= 1).to(outputs).mean()) if outputs.numel() else 0.0
    if not spec.rails or not outputs.numel():
        return None
    margin = (spec.output_step or 0.0) / 2
    ends = [outputs >= rail - margin if rail > 0 else outputs <= rail + margin for rail in spec.rails]
    return sum(float(end.sum()) for end in ends) / outputs.numel()
