"""Define the interface of surrogates, and the base class of surrogates that store a full matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import Session, derive_generator
from ..estimators import Estimator
from ..probing.probes import TransferProbe
from .twin_drift import TwinDrift

__all__ = ["MatrixSurrogate", "Surrogate", "measure_transfer_matrix", "measurement_vectors"]


class Surrogate(ABC):
    """Compute the gradient of the loss with respect to a device's inputs.

    The layer calls `start` once. In every training step it calls, in this order: `controls_changed` if the controls
    have changed, `observe` with the vectors of the forward pass, `prepare` when the backward pass begins, `adopt` if
    the estimator measured the transfer matrix, `recall`, and `vjp`. A subclass must implement `vjp` only.

    Args:
        seed: seed of the surrogate's own random stream.
    """

    requires_linear: ClassVar[bool] = True
    requires_measuring_estimator: ClassVar[bool] = False
    queries_every_step: ClassVar[bool] = False
    """Whether `vjp` needs a new `prepare` or `catch_up` in every step, because no model is stored."""

    def __init__(self, *, seed: int = 0) -> None:
        self.generator = derive_generator(seed, "surrogate")
        self._batch_error: tuple[Tensor, Tensor] | None = None  # mean squared misfit and mean squared answer

    @abstractmethod
    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """Compute d loss / d inputs from d loss / d outputs: (batch, out_features) -> (batch, in_features)."""

    def check(self, session: Session, estimator: Estimator) -> None:
        """Refuse a device or an estimator that this surrogate cannot work with.

        Raises:
            ConfigurationError: the message gives the reason and an alternative.
        """
        name = type(self).__name__.lower()
        if self.requires_linear and not session.spec.linear:
            raise ConfigurationError(
                f"surrogate {name!r} works on linear devices only, but {session.spec.name!r} is not linear; "
                f"use 'online'"
            )
        if self.requires_measuring_estimator and not estimator.measures_transfer_matrix:
            raise ConfigurationError(
                f"surrogate {name!r} needs an estimator that measures the transfer matrix, but "
                f"{type(estimator).__name__.lower()!r} does not; use 'online', or estimator='elementwise'"
            )

    def startup_vectors(self, session: Session) -> int:
        """Return the number of vectors that `start` will send, so that the budget can be checked first."""
        return 0

    def start(self, session: Session, controls: Tensor) -> None:
        """Initialize the surrogate for a device that is programmed with ``controls``, (num_controls,)."""

    def controls_changed(self, session: Session, controls: Tensor) -> None:
        """Update the surrogate after the device was programmed with new controls, (num_controls,)."""

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Learn from the forward pass: vectors, (batch, in_features), and answers, (batch, out_features)."""
        predicted = self.predict(inputs)
        if predicted is not None:
            self._batch_error = (outputs - predicted).square().mean(), outputs.square().mean()

    def batch_error(self) -> tuple[Tensor, Tensor] | None:
        """Return the mean squared misfit and the mean squared answer of the newest batch; None before any batch."""
        return self._batch_error

    def recall(self, inputs: Tensor) -> None:
        """Set the inputs of the next `vjp`, (batch, in_features)."""

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:
        """Prepare the call of `vjp` with these gradients; the device still has the controls of the forward pass."""

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """Replace `prepare` if the controls are frozen: no estimator runs, and the device may have other controls."""

    def adopt(self, matrix: Tensor) -> None:
        """Use the transfer matrix that the estimator has measured, (out_features, in_features)."""

    def predict(self, inputs: Tensor) -> Tensor | None:
        """Predict the answer of the device, (batch, out_features); return None if the surrogate cannot predict it."""
        return None

    @property
    def drift(self) -> TwinDrift | None:
        """Return the `TwinDrift`, which updates the twin when the chip drifts; None for surrogates without one."""
        return None

    @property
    def residual(self) -> float | None:
        """Return |Y - predicted| / |Y| of the newest batch, as predicted before the surrogate learned from it."""
        error = self.batch_error()
        if error is None:
            return None
        misfit, energy = error
        return float((misfit / energy.clamp_min(1e-30)).sqrt())

    def explained(self, noise_variance: float) -> float | None:
        """Return the share of the answers of the newest batch, without noise, that the surrogate predicted.

        Args:
            noise_variance: variance of the noise on one output.

        Returns:
            Share between 0 (useless prediction) and 1; None before the first batch, and if the answers are only noise.
        """
        error = self.batch_error()
        if error is None:
            return None
        misfit, energy = (max(float(value) - noise_variance, 0.0) for value in error)
        if energy == 0:
            return None
        return max(1 - misfit / energy, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later gradients depend on."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.generator.set_state(state["generator"])


class MatrixSurrogate(Surrogate):
    """Store a full transfer matrix.

    Attributes:
        matrix: A, (out_features, in_features).
    """

    matrix: Tensor

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """Return G A."""
        return grad_outputs @ self.matrix.to(grad_outputs)

    def predict(self, inputs: Tensor) -> Tensor:
        """Return X A^T."""
        return inputs @ self.matrix.to(inputs).mT

    def state_dict(self) -> dict[str, Any]:
        """Return the matrix and the state of the random stream."""
        return {**super().state_dict(), "matrix": self.matrix}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.matrix = state["matrix"]


def measurement_vectors(session: Session) -> int:
    """Return the number of vectors that `measure_transfer_matrix` sends if no probe saturates."""
    return TransferProbe(session.spec).vectors


def measure_transfer_matrix(session: Session, controls: Tensor) -> Tensor:
    """Measure the transfer matrix at the present controls of the device, with about in_features vectors.

    Args:
        session: session of a linear device.
        controls: present controls of the device; the probes have the same dtype and torch device.

    Returns:
        (out_features, in_features).
    """
    probe = TransferProbe(session.spec, controls.dtype, controls.device)
    with torch.no_grad():
        return probe.matrix(probe.ask(session))
