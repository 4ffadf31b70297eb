"""Estimate the gradient on devices in which every control sets one matrix entry."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ..common.checks import check_whole
from ..common.errors import ConfigurationError
from ..devices import Session
from ..probing.probes import answer_variance
from .pooling import pool_slopes
from .steps import Step
from .transfer import TransferEstimator

__all__ = ["Elementwise"]


class Elementwise(TransferEstimator):
    """Move all controls by one step at once, and compute the derivative of every entry from the transfer matrices.

    This needs one extra program and 2 n vectors for any number of controls. A(w) is measured, then A(w + mu s) with
    random signs s, and

        d loss / d w_ij = (G^T X)_ij (A(w + mu s) - A(w))_ij / (mu s_ij).

    With random signs, errors from curvature and from crosstalk between neighbours do not add up over the steps. On
    devices with many elements the slopes are then improved by a fit to elements with similar settings, see
    `astralora.estimators.pooling.pool_slopes`. A(w) is stored in `transfer_matrix`, so input gradients cost nothing.

    Slopes change slowly, because training moves the controls in small steps. With ``every`` above 1 they are reused,
    and the matrix is extrapolated to A + slopes (w' - w) without any operation. A new measurement is made after
    ``every`` changes of the controls, or earlier if the outputs of the forward pass show that the matrix is wrong.

    Args:
        step: size mu of the move in control units; see `choose_step`. ``"auto"`` also keeps the expected change of an
            entry above the noise of its measurement.
        every: largest number of changes of the controls between two measurements.
        stale: largest `staleness` without a new measurement.
        pooling: whether to improve the slopes by a fit to similar elements.
        repeats: number of times that each probe is sent; more vectors reduce the noise without more programs.
        seed: seed of the estimator's own random stream.
    """

    couplings = ("elementwise",)

    def __init__(
        self,
        *,
        step: Step = "auto",
        every: int = 1,
        stale: float = 0.25,
        pooling: bool = True,
        repeats: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(step=step, repeats=repeats, seed=seed)
        if not (isinstance(stale, int | float) and stale > 0):
            raise ConfigurationError(f"stale must be a positive share of the outputs, not {stale!r}")
        self.every = self.period = check_whole("every", every)
        self.stale = float(stale)
        self.pooling = pooling
        self.staleness: float = 0.0
        self.age = 0
        """Number of changes of the controls since the slopes were measured."""
        # Slopes of the last measurement, (num_controls,), and the newest controls with their extrapolated matrix.
        self._slopes: Tensor | None = None
        self._at: Tensor | None = None
        self._matrix: Tensor | None = None
        self._entry_variance = 0.0

    def estimate(
        self,
        session: Session,
        controls: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        grad_outputs: Tensor,
    ) -> Tensor:
        """Multiply G^T X by the measured derivatives; see the class."""
        if not self._extrapolate(session, controls, inputs, outputs):
            self._measure(session, controls)
        assert self._slopes is not None
        self.transfer_matrix = self._matrix
        return (grad_outputs.mT @ inputs).flatten() * self._slopes

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next estimate depends on."""
        return {
            **super().state_dict(),
            "age": self.age,
            "slopes": self._slopes,
            "at": self._at,
            "matrix": self._matrix,
            "entry_variance": self._entry_variance,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.age = state["age"]
        self._slopes, self._at, self._matrix = state["slopes"], state["at"], state["matrix"]
        self._entry_variance = state["entry_variance"]

    def _extrapolate(self, session: Session, controls: Tensor, inputs: Tensor, outputs: Tensor) -> bool:
        """Extrapolate the matrix to these controls; return whether the last measurement is still accurate enough."""
        at, slopes, matrix = self._at, self._slopes, self._matrix
        if self.every == 1 or at is None or slopes is None or matrix is None or at.dtype != controls.dtype:
            return False
        if not torch.equal(at, controls):
            self.age += 1
            matrix = matrix + (slopes * (controls - at)).view_as(matrix)
            self._at, self._matrix = controls.clone(), matrix
        if self.age >= self.every:
            return False
        # Noise of the outputs and of the measurement does not count as staleness.
        noise = answer_variance(session.spec) + self._entry_variance * inputs.square().sum(dim=1).mean()
        error = float((outputs - inputs @ matrix.mT).square().mean() - noise)
        energy = float(outputs.square().mean()) - answer_variance(session.spec)
        # An error within three standard errors of this noise does not count either.
        chance = 3 * sqrt(2 / max(outputs.numel(), 1)) * float(noise)
        self.staleness = sqrt(error / energy) if error > chance and energy > chance else 0.0
        return self.staleness <= self.stale

    def _measure(self, session: Session, controls: Tensor) -> None:
        spec = session.spec
        self.step_choice = self._step_for(spec)
        step = self.step_choice.size
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
        self._entry_variance = probe.entry_variance()
        matrix = probe.matrix(before)
        slopes = probe.matrix(after - before).flatten() * (signs / step)
        if self.pooling:
            slopes = pool_slopes(
                slopes,
                2 * self._entry_variance / step**2,
                controls,
                matrix.flatten(),
                signs,
                step,
                spec.control_range or (float(controls.min()), float(controls.max()) + step),
                self.generator,
            )
        self._adapt(probe)
        self._slopes, self._at, self._matrix = slopes, controls.clone(), matrix
        self.age, self.staleness = 0, 0.0
