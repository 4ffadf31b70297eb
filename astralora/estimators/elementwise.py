"""The estimator for devices on which every control sets one matrix entry."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from devices import DeviceSpec, Session

from ..probing import TransferProbe
from .base import Estimator, Step, choose_step
from .pooling import pool_slopes

__all__ = ["Elementwise"]


class Elementwise(Estimator):
    """Moves all controls by one step at once, and sees every entry's own derivative in the transfer matrix.

    One extra program and 2 n vectors, whatever the number of controls: measure A(w), then A(w + mu s) with random
    signs s, and

        d loss / d w_ij = (G^T X)_ij (A(w + mu s) - A(w))_ij / (mu s_ij).

    Random signs keep the errors of curvature and of crosstalk between neighbours from adding up over the steps. On
    devices with many elements the slopes are then sharpened by what elements of like setting have in common, see
    `astralora.estimators.pooling.pool_slopes`. A(w) itself is left in `transfer_matrix`: input gradients for free.

    Args:
        step: size mu of the move in control units; see `choose_step`. ``"auto"`` also keeps the expected change of an
            entry above the noise of its measurement.
        pooling: sharpen the slopes.
        seed: of the estimator's own random stream.
    """

    requires_linear = True
    couplings = ("elementwise",)
    measures_transfer_matrix = True
    step_share = 1 / 64

    def __init__(self, *, step: Step = "auto", pooling: bool = True, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.step = step
        self.pooling = pooling
        self._probe: TransferProbe | None = None
        self._amplitude: Tensor | None = None

    def check(self, session: Session) -> None:
        """Refuse a device that is not linear and elementwise, or a step that it would not notice."""
        super().check(session)
        self._step_for(session.spec)

    def estimate(
        self,
        session: Session,
        controls: Tensor,
        inputs: Tensor,
        outputs: Tensor,  # noqa: ARG002
        grad_outputs: Tensor,
    ) -> Tensor:
        """The exact product of data and measured derivatives; see the class."""
        spec = session.spec
        step = self._step_for(spec)
        probe = self._probe_for(session, controls)
        session.afford("estimate", programs=2, vectors=2 * probe.vectors, first=controls)
        signs = self._signs(1, controls)[0]
        if spec.control_range is not None:
            low, high = spec.control_range
            signs = torch.where(controls + step > high, -1.0, signs)
            signs = torch.where(controls - step < low, 1.0, signs)
        with session.transaction():
            session.program(controls)
            before = probe.ask(session)
            session.program(torch.add(controls, signs, alpha=step))
            after = probe.ask_again(session)
        probe.adapt()
        self._amplitude = probe.amplitude
        self.transfer_matrix = probe.matrix(before)
        slopes = probe.matrix(after - before).flatten() * (signs / step)
        if self.pooling:
            slopes = pool_slopes(
                slopes,
                2 * probe.entry_variance() / step**2,
                controls,
                self.transfer_matrix.flatten(),
                signs,
                step,
                spec.control_range or (float(controls.min()), float(controls.max()) + step),
                self.generator,
            )
        return (grad_outputs.mT @ inputs).flatten() * slopes

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next estimate depends on."""
        return {**super().state_dict(), "amplitude": self._amplitude}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self._amplitude = state["amplitude"]
        self._probe = None

    def _step_for(self, spec: DeviceSpec) -> float:
        noise = None
        if spec.output_range is not None and spec.input_range is not None:
            # Full scale of the detector over the root of the width is about what one entry can reach.
            low, high = spec.control_range or (0.0, 1.0)
            entry = max(map(abs, spec.output_range)) / max(map(abs, spec.input_range)) / sqrt(spec.in_features)
            noise = (high - low) / (2 * entry) * sqrt(2 / spec.in_features) * spec.noise_std
        return choose_step(spec, self.step, self.step_share, noise)

    def _probe_for(self, session: Session, like: Tensor) -> TransferProbe:
        probe = self._probe
        if probe is None or probe.rows.dtype != like.dtype or probe.rows.device != like.device:
            probe = self._probe = TransferProbe(session.spec, like.dtype, like.device)
            if self._amplitude is not None:
                probe.amplitude = self._amplitude.to(probe.rows)
        return probe
