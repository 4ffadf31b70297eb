"""What every surrogate has in common."""

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
    """Stands in for the device where the loss's gradient with respect to its inputs is due.

    The layer calls, in this order: `start` once; then in every training step `controls_changed` if they
    did, `observe` with what the forward pass saw, `prepare` when the backward pass begins, `adopt` if the
    estimator measured the transfer matrix, and `vjp`. Only `vjp` must be filled in.

    Args:
        seed: of the surrogate's own random stream.
    """

    requires_linear: ClassVar[bool] = True
    requires_measuring_estimator: ClassVar[bool] = False
    asks_every_time: ClassVar[bool] = False
    """Knows nothing by heart: there is no `vjp` without `prepare` or `catch_up`."""

    def __init__(self, *, seed: int = 0) -> None:
        self.generator = derive_generator(seed, "surrogate")
        self._seen: tuple[Tensor, Tensor] | None = None  # mean squared misfit and answer of the newest batch

    @abstractmethod
    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """Turn d loss / d outputs into d loss / d inputs: (batch, out_features) -> (batch, in_features)."""

    def check(self, session: Session, estimator: Estimator) -> None:
        """Refuse a device or an estimator that this surrogate cannot work with.

        Raises:
            ConfigurationError: says why, and what to use instead.
        """
        name = type(self).__name__.lower()
        if self.requires_linear and not session.spec.linear:
            raise ConfigurationError(
                f"surrogate {name!r} works on linear devices only, and {session.spec.name!r} is not linear; "
                f"use 'online'"
            )
        if self.requires_measuring_estimator and not estimator.measures_transfer_matrix:
            raise ConfigurationError(
                f"surrogate {name!r} needs an estimator that measures the transfer matrix, and "
                f"{type(estimator).__name__.lower()!r} does not; use 'online', or estimator='elementwise'"
            )

    def startup_vectors(self, session: Session) -> int:  # noqa: ARG002
        """Vectors that `start` is going to pass, for the budget to be asked first."""
        return 0

    def start(self, session: Session, controls: Tensor) -> None:
        """Get to know a device that holds ``controls`` and is not known yet."""

    def controls_changed(self, session: Session, controls: Tensor) -> None:
        """The device has just been programmed with other controls than at the last step."""

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """See what the forward pass sent and got: (batch, in_features) and (batch, out_features)."""
        predicted = self.predict(inputs)
        if predicted is not None:
            self._seen = (outputs - predicted).square().mean(), outputs.square().mean()

    def look(self) -> tuple[Tensor, Tensor] | None:
        """Mean squared misfit and answer of the newest batch; None before the first."""
        return self._seen

    def recall(self, inputs: Tensor) -> None:
        """The next `vjp` is about these inputs, (batch, in_features)."""

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:
        """The next `vjp` is about these gradients, and the device still holds the controls of the forward pass."""

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """In place of `prepare`, where the controls are frozen and no estimator is going to run."""

    def adopt(self, matrix: Tensor) -> None:
        """The estimator has measured the transfer matrix, (out_features, in_features)."""

    def predict(self, inputs: Tensor) -> Tensor | None:  # noqa: ARG002
        """What the surrogate would answer: (batch, out_features); None where it cannot tell."""
        return None

    @property
    def drift(self) -> TwinDrift | None:
        """What keeps the surrogate's twin true to its chip; None of surrogates without one."""
        return None

    @property
    def residual(self) -> float | None:
        """How far off the newest batch was, before it was learned from: |Y - predicted| / |Y|."""
        seen = self.look()
        if seen is None:
            return None
        misfit, energy = seen
        return float((misfit / energy.clamp_min(1e-30)).sqrt())

    def explained(self, noise_variance: float) -> float | None:
        """Share of the newest batch's answers, noise aside, that was foreseen: 0 if not better than nothing.

        Args:
            noise_variance: of one output.
        """
        seen = self.look()
        if seen is None:
            return None
        misfit, energy = (max(float(value) - noise_variance, 0.0) for value in seen)
        if energy == 0:
            return None  # an answer that is all noise tells nothing
        return max(1 - misfit / energy, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later gradients depend on."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.generator.set_state(state["generator"])


class MatrixSurrogate(Surrogate):
    """A surrogate that keeps a full transfer matrix.

    Attributes:
        matrix: A, (out_features, in_features).
    """

    matrix: Tensor

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """G A."""
        return grad_outputs @ self.matrix.to(grad_outputs)

    def predict(self, inputs: Tensor) -> Tensor:
        """X A^T."""
        return inputs @ self.matrix.to(inputs).mT

    def state_dict(self) -> dict[str, Any]:
        """The matrix and the random stream."""
        return {**super().state_dict(), "matrix": self.matrix}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self.matrix = state["matrix"]


def measurement_vectors(session: Session) -> int:
    """Vectors that `measure_transfer_matrix` passes, short of saturation."""
    return TransferProbe(session.spec).vectors


def measure_transfer_matrix(session: Session, controls: Tensor) -> Tensor:
    """The transfer matrix at the controls that the device holds, by in_features vectors.

    Args:
        session: guards a linear device.
        controls: those that it holds; for their dtype and torch device.

    Returns:
        (out_features, in_features).
    """
    probe = TransferProbe(session.spec, controls.dtype, controls.device)
    with torch.no_grad():
        return probe.matrix(probe.ask(session))
