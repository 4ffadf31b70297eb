"""Compute input gradients by backpropagation through a differentiable model of the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..devices import Differentiable, Session, pull_back
from ..estimators import Estimator
from ..estimators import Twin as EstimatorTwin
from ..estimators.twin import check_twin, differentiable
from .base import Surrogate
from .twin_drift import TwinDrift

__all__ = ["Exact", "Twin"]


class Twin(Surrogate):
    """Backpropagate through a model of the device, at the inputs of the forward pass; this costs no operation.

    Args:
        twin: model with ``transfer(controls, inputs)``.
        seed: unused; accepted because all surrogates accept it.
    """

    requires_linear = False

    def __init__(self, *, twin: Differentiable | None = None, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self._twin = twin
        self._estimator: EstimatorTwin | None = None

    def check(self, session: Session, estimator: Estimator) -> None:
        """Refuse a missing twin, and a twin whose size differs from the device's."""
        super().check(session, estimator)
        check_twin(self._twin, session.spec)
        if isinstance(estimator, EstimatorTwin) and estimator.law(session) is self._twin:
            # The estimator uses the same model, so one backward pass computes both gradients.
            self._estimator = estimator
            estimator.shares = True

    def start(self, session: Session, controls: Tensor) -> None:
        """Store the controls."""
        self._controls = controls.detach().clone()

    def controls_changed(self, session: Session, controls: Tensor) -> None:
        """Store the new controls."""
        self._controls = controls.detach().clone()

    def recall(self, inputs: Tensor) -> None:
        """Set the inputs of the next `vjp`."""
        self._inputs = inputs

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Compute the error of the model for the batch, and pass the batch to a `TwinDrift`."""
        super().observe(inputs, outputs)
        if self.drift is not None:
            self.drift.observe(self._controls.to(inputs), inputs, outputs)

    @property
    def drift(self) -> TwinDrift | None:
        """Return the twin if it is a `TwinDrift`, otherwise None."""
        return self._twin if isinstance(self._twin, TwinDrift) else None

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """Return the vector-Jacobian product of the model at the inputs."""
        assert self._twin is not None
        found = self._estimator.take(self._inputs, grad_outputs) if self._estimator is not None else None
        if found is None:
            controls = self._controls.to(self._inputs)
            _, found = pull_back(self._twin, controls, self._inputs, grad_outputs, by_controls=False)
        assert found is not None
        return found

    def predict(self, inputs: Tensor) -> Tensor:
        """Return the answer of the model."""
        assert self._twin is not None
        with torch.no_grad():
            return self._twin.transfer(self._controls.to(inputs), inputs)

    def state_dict(self) -> dict[str, Any]:
        """Return the controls, and the state of a `TwinDrift`."""
        drift = None if self.drift is None else self.drift.state_dict()
        return {**super().state_dict(), "controls": self._controls, "drift": drift}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._controls = state["controls"]
        if self.drift is not None and state["drift"] is not None:
            self.drift.load_state_dict(state["drift"])


class Exact(Twin):
    """Backpropagate through the law of a `Differentiable` device."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)

    def check(self, session: Session, estimator: Estimator) -> None:
        """Refuse a device without a differentiable law."""
        self._twin = differentiable(session)
        super().check(session, estimator)

    def start(self, session: Session, controls: Tensor) -> None:
        """Store the law of the device, and the controls."""
        self._twin = differentiable(session)
        super().start(session, controls)

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Ignore the batch, because the law is exact and the rest is noise."""
