"""Define the base class of estimators that measure the whole transfer matrix."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar

from torch import Tensor

from ..common.checks import check_whole
from ..devices import DeviceSpec, Session
from ..probing.probes import TransferProbe
from .base import Estimator
from .steps import Step, StepChoice, choose_step

__all__ = ["TransferEstimator"]


class TransferEstimator(Estimator):
    """Measure the transfer matrix of a linear device before and after a move of the controls.

    Args:
        step: size mu of the move in control units; see `choose_step`. ``"auto"`` also keeps the expected change of an
            entry above the noise of its measurement.
        repeats: number of times that each probe is sent; more vectors reduce the noise without more programs.
        seed: seed of the estimator's own random stream.
    """

    requires_linear = True
    measures_transfer_matrix = True
    step_share: ClassVar[float] = 1 / 64

    def __init__(self, *, step: Step = "auto", repeats: int = 1, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.step = step
        self.repeats = check_whole("repeats", repeats)
        self._probe: TransferProbe | None = None
        self._amplitude: Tensor | None = None

    def check(self, session: Session) -> None:
        """Refuse a device that is not linear or has another coupling, and a step below its control levels."""
        super().check(session)
        self._step_for(session.spec)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next estimate depends on."""
        return {**super().state_dict(), "amplitude": self._amplitude}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._amplitude = state["amplitude"]
        self._probe = None

    def _step_for(self, spec: DeviceSpec) -> StepChoice:
        noise = 0.0
        if spec.output_range is not None and spec.input_range is not None:
            # An entry can be about as large as the full scale of the detector over the square root of the width.
            low, high = spec.control_range or (0.0, 1.0)
            entry = max(map(abs, spec.output_range)) / max(map(abs, spec.input_range)) / sqrt(spec.in_features)
            noise = (high - low) / (2 * entry) * sqrt(2 / spec.in_features) * spec.noise_std
        return choose_step(spec, self.step, self.step_share, noise)

    def _probe_for(self, session: Session, like: Tensor) -> TransferProbe:
        probe = self._probe
        if probe is None or probe.rows.dtype != like.dtype or probe.rows.device != like.device:
            probe = self._probe = TransferProbe(session.spec, like.dtype, like.device, repeats=self.repeats)
            if self._amplitude is not None:
                probe.amplitude = self._amplitude.to(probe.rows)
        return probe

    def _adapt(self, probe: TransferProbe) -> None:
        probe.adapt()
        self._amplitude = probe.amplitude
