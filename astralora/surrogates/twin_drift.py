"""Update a calibrated twin during training when its chip drifts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import hypot, sqrt
from typing import Any

import torch
from torch import Tensor

from ..devices import CalibratedTwin, DeviceSpec

__all__ = ["StaleCalibrationWarning", "TwinDrift"]

# Constants that drift during use: the offsets of the controls, and the gains of the outputs.
_FOLLOWED = ("phase_bias", "output_gain")
# Change of the constants that still has a linear effect, in units of their spread.
_SMALL = 1e-2
# Number of updates in the average, and number of updates before the first warning.
_MEMORY = 20
_PATIENCE = 20


class StaleCalibrationWarning(UserWarning):
    """Warn that training data are not sufficient to update a twin, and that the chip must be calibrated again."""


class TwinDrift:
    """Update the constants of a twin when its chip drifts, from the forward passes of training.

    The part of the answers that the twin does not predict, above noise, is attributed to drift of control offsets and
    output gains. If there is drift, these constants move by one step of steepest descent. The length of the step is
    exact for a linear law and a prior that the constants have changed little since the last step:

        d = S J^T r,  length = <r, J d> / (|J d|^2 + noise^2 <d, S^-1 d>)

    where J is the Jacobian of the answers with respect to the constants, r the residual, and S the prior variance of
    one step. This costs no operation. A batch contains information about its own setting only, so the twin stays
    accurate near the settings of training, but cannot recover from a large error. If the unexplained share of the
    answers' power stays above ``band``, it warns that a new calibration is necessary.

    Args:
        twin: calibrated twin.
        every: number of batches between two updates.
        band: largest acceptable unexplained share of the answers' power, without noise.

    Attributes:
        unexplained: present unexplained share, averaged over the latest updates; None before the first update.
        needs_calibration: whether the share has stayed above ``band``.
    """

    def __init__(self, twin: CalibratedTwin, *, every: int = 2, band: float = 0.1) -> None:
        self.twin = twin
        self.every, self.band = every, band
        self.unexplained: float | None = None
        self.needs_calibration = False
        self._batches = self._looks = 0
        declared = twin.model.constants()
        self._spread = {name: declared[name].spread for name in _FOLLOWED if name in declared}
        self._moved = {name: twin.constants[name].clone() for name in self._spread}
        spec, fit = twin.calibration.measured, twin.calibration.fit
        self._noise = hypot(spec.noise_std, (spec.output_step or 0.0) / sqrt(12))
        # An error of the size that the calibration had from the start does not count as drift.
        self._floor = self._noise if fit is None else max(self._noise, fit.held_out_rms)

    @property
    def spec(self) -> DeviceSpec:
        """Return the spec of the twin."""
        return self.twin.spec

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Predict the present answer of the chip; see `astralora.devices.Differentiable`."""
        return self.twin.transfer_with(self._constants(inputs), controls, inputs)

    def observe(self, controls: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """Use the batch of a forward pass; one of ``every`` batches updates the constants.

        Args:
            controls: controls of the chip, (num_controls,).
            inputs: inputs of the chip, (batch, in_features).
            outputs: answer of the chip, (batch, out_features).
        """
        self._batches += 1
        if (self._batches - 1) % self.every or not len(inputs):
            return
        now = {name: value.detach().clone().requires_grad_() for name, value in self._constants(inputs).items()}
        with torch.enable_grad():
            predicted = self.twin.transfer_with(now, controls.detach(), inputs.detach())
            residual = outputs - predicted.detach()
            slopes = torch.autograd.grad(predicted, list(now.values()), residual)
        misfit, power = float(residual.square().mean()), float(outputs.square().mean()) - self._noise**2
        self._judge(misfit, power)
        if misfit > 1.1 * self._floor**2:
            self._follow(now, dict(zip(now, slopes, strict=True)), controls, inputs, predicted.detach(), residual)

    def state_dict(self) -> dict[str, Any]:
        """Return the present constants, the counters and the average."""
        return {
            "moved": dict(self._moved),
            "batches": self._batches,
            "looks": self._looks,
            "unexplained": self.unexplained,
            "needs_calibration": self.needs_calibration,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._moved = {name: value.clone() for name, value in state["moved"].items()}
        self._batches, self._looks = state["batches"], state["looks"]
        self.unexplained, self.needs_calibration = state["unexplained"], state["needs_calibration"]

    def _constants(self, like: Tensor) -> dict[str, Tensor]:
        return {name: value.to(like) for name, value in self._moved.items()}

    @torch.no_grad()
    def _follow(
        self,
        now: Mapping[str, Tensor],
        slopes: Mapping[str, Tensor],
        controls: Tensor,
        inputs: Tensor,
        predicted: Tensor,
        residual: Tensor,
    ) -> None:
        steps = {name: self._spread[name] ** 2 * slope for name, slope in slopes.items()}
        size = sqrt(sum(float((steps[name] / self._spread[name]).square().mean()) for name in steps))
        if not size > 0:
            return
        probe = _SMALL / size
        tried = {name: now[name] + probe * step for name, step in steps.items()}
        change = (self.twin.transfer_with(tried, controls, inputs) - predicted) / probe
        # Between two updates, a chip drifts by about a hundredth of the spread between chips.
        stiff = sum(float((steps[name] / (_SMALL * self._spread[name])).square().sum()) for name in steps)
        length = float((residual * change).sum()) / (float(change.square().sum()) + self._noise**2 * stiff)
        for name, step in steps.items():
            self._moved[name] = (now[name] + length * step).detach()

    def _judge(self, misfit: float, power: float) -> None:
        if power <= 0:
            return
        share = max(misfit - self._noise**2, 0.0) / power
        weight = max(1 / _MEMORY, 1 / (self._looks + 1))
        self._looks += 1
        self.unexplained = share if self.unexplained is None else self.unexplained + weight * (share - self.unexplained)
        if self.unexplained < self.band:
            self.needs_calibration = False
        elif self._looks >= _PATIENCE and not self.needs_calibration:
            self.needs_calibration = True
            calibration = self.twin.calibration
            warnings.warn(
                f"{calibration.device!r} has drifted from its calibration of {calibration.created:%Y-%m-%d}: "
                f"the twin does not explain {100 * self.unexplained:.0f} % of its answers' power, but only "
                f"{100 * self.band:.0f} % are allowed; calibrate it again",
                StaleCalibrationWarning,
                stacklevel=2,
            )
