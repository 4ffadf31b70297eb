"""Make a calibrated twin follow the drift of its chip during training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import hypot, sqrt
from typing import Any

import torch
from torch import Tensor

from ..devices import CalibratedTwin, DeviceSpec

__all__ = ["StaleCalibrationWarning", "TwinDrift"]

# Constants that drift on a chip in use: the offsets of its controls, and the gains of its outputs.
_FOLLOWED = ("phase_bias", "output_gain")
# Move of the constants with a linear effect, in units of their spread.
_SMALL = 1e-2
# Looks that the average covers, and looks before the first warning.
_MEMORY = 20
_PATIENCE = 20


class StaleCalibrationWarning(UserWarning):
    """Warn that a twin cannot follow its chip by training data alone: calibrate again."""


class TwinDrift:
    """Follow the drift of a chip with its twin, from the forward passes of training.

    The part of the answers that the twin does not predict is, above noise, drift of the chip: of the offsets of its
    controls and the gains of its outputs. When there is drift, these constants move one step of steepest descent, with
    the exact length for a linear law and a prior that they have moved little since the last step:

        d = S J^T r,  length = <r, J d> / (|J d|^2 + noise^2 <d, S^-1 d>)

    with the Jacobian J of the answers by the constants, the residual r, and S the variance of one step of the
    constants. This costs no operation. A batch contains information about its own setting only: the twin stays accurate
    near the settings of training, and cannot recover from a large error. When more than ``band`` of the answers' power
    has been unexplained for a while, it requests a new calibration.

    Args:
        twin: calibrated twin.
        every: number of batches from one look at the drift to the next.
        band: share of the answers' power, noise aside, that may be unexplained.

    Attributes:
        unexplained: this share at present, averaged over the latest looks; None before the first.
        needs_calibration: the share has been above the band for long.
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
        # The calibration had an error from the start; an error of this size is no drift.
        self._floor = self._noise if fit is None else max(self._noise, fit.held_out_rms)

    @property
    def spec(self) -> DeviceSpec:
        """Return the spec of the twin."""
        return self.twin.spec

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Predict the chip's present answer; see `astralora.devices.Differentiable`."""
        return self.twin.transfer_with(self._constants(inputs), controls, inputs)

    def observe(self, controls: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """Take the batch of a forward pass; at every ``every``-th batch, let the constants follow the chip.

        Args:
            controls: (num_controls,).
            inputs: (batch, in_features).
            outputs: the chip's answer, (batch, out_features).
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
        # One chip moves by about a hundredth of the spread between chips from one look to the next.
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
                f"{calibration.device!r} has moved away from its calibration of {calibration.created:%Y-%m-%d}: "
                f"the twin does not explain {100 * self.unexplained:.0f} % of its answers' power, where "
                f"{100 * self.band:.0f} % are allowed; calibrate it again",
                StaleCalibrationWarning,
                stacklevel=2,
            )
