"""Keeping a calibrated twin true to its chip while both are in use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import hypot, sqrt
from typing import Any

import torch
from torch import Tensor

from ..devices import CalibratedTwin, DeviceSpec

__all__ = ["StaleCalibrationWarning", "TwinDrift"]

# What wanders on a chip that is in use: where its controls act, and how bright its outputs are.
_FOLLOWED = ("phase_bias", "output_gain")
# A move of the constants that is small enough for their effect to be linear, in units of their spread.
_SMALL = 1e-2
# Steps that averages look back on, and those that are waited before anything is said.
_MEMORY = 20
_PATIENCE = 20


class StaleCalibrationWarning(UserWarning):
    """A twin has lost its chip, and cannot catch up from training data alone: calibrate again."""


class TwinDrift:
    """A twin that follows its chip, from forward passes that are paid for anyway.

    What a training batch answers and the twin has not foreseen is, above noise, drift of the chip: offsets of its
    controls and gains of its outputs. Each time some is seen, they move one step of steepest descent along what would
    explain it, with the exact length for a linear law and a prior that they have moved little since the last time:

        d = S J^T r,  length = <r, J d> / (|J d|^2 + noise^2 <d, S^-1 d>)

    with the answers' Jacobian J by the constants, what is left r, and the square S of what they move in a step.
    Nothing is asked of the chip. A batch tells of its own setting only, so a twin stays good near where training goes,
    and does not come back from far: when more than ``band`` of the answers' power has been beyond it for a while, it
    asks for a new calibration.

    Args:
        twin: as calibrated.
        every: batches from one look to the next.
        band: share of the answers' power, noise aside, that may be unforeseen.

    Attributes:
        unexplained: that share at present, averaged over the latest looks; None before the first.
        needs_calibration: it has been above the band for long.
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
        # The fit was not perfect on the first day: that much is no drift.
        self._floor = self._noise if fit is None else max(self._noise, fit.held_out_rms)

    @property
    def spec(self) -> DeviceSpec:
        """That of the twin."""
        return self.twin.spec

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """What the chip is thought to answer by now; see `astralora.devices.Differentiable`."""
        return self.twin.transfer_with(self._now(inputs), controls, inputs)

    def observe(self, controls: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """See what the chip answered: (num_controls,), (batch, in_features), (batch, out_features)."""
        self._batches += 1
        if (self._batches - 1) % self.every or not len(inputs):
            return
        now = {name: value.detach().clone().requires_grad_() for name, value in self._now(inputs).items()}
        with torch.enable_grad():
            foreseen = self.twin.transfer_with(now, controls.detach(), inputs.detach())
            left = outputs - foreseen.detach()
            slopes = torch.autograd.grad(foreseen, list(now.values()), left)
        misfit, power = float(left.square().mean()), float(outputs.square().mean()) - self._noise**2
        self._judge(misfit, power)
        if misfit > 1.1 * self._floor**2:
            self._follow(now, dict(zip(now, slopes, strict=True)), controls, inputs, foreseen.detach(), left)

    def state_dict(self) -> dict[str, Any]:
        """Where the constants have gone, and what has been seen."""
        return {
            "moved": dict(self._moved),
            "batches": self._batches,
            "looks": self._looks,
            "unexplained": self.unexplained,
            "needs_calibration": self.needs_calibration,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._moved = {name: value.clone() for name, value in state["moved"].items()}
        self._batches, self._looks = state["batches"], state["looks"]
        self.unexplained, self.needs_calibration = state["unexplained"], state["needs_calibration"]

    def _now(self, like: Tensor) -> dict[str, Tensor]:
        return {name: value.to(like) for name, value in self._moved.items()}

    @torch.no_grad()
    def _follow(
        self,
        now: Mapping[str, Tensor],
        slopes: Mapping[str, Tensor],
        controls: Tensor,
        inputs: Tensor,
        foreseen: Tensor,
        left: Tensor,
    ) -> None:
        steps = {name: self._spread[name] ** 2 * slope for name, slope in slopes.items()}
        size = sqrt(sum(float((steps[name] / self._spread[name]).square().mean()) for name in steps))
        if not size > 0:
            return
        probe = _SMALL / size
        tried = {name: now[name] + probe * step for name, step in steps.items()}
        change = (self.twin.transfer_with(tried, controls, inputs) - foreseen) / probe
        # A hundredth of the spread of chips is what one chip may move from look to look.
        stiff = sum(float((steps[name] / (_SMALL * self._spread[name])).square().sum()) for name in steps)
        length = float((left * change).sum()) / (float(change.square().sum()) + self._noise**2 * stiff)
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
                f"{100 * self.unexplained:.0f} % of its answers' power is beyond the twin, where "
                f"{100 * self.band:.0f} % are allowed; calibrate it again",
                StaleCalibrationWarning,
                stacklevel=2,
            )
