"""Input gradients by backpropagation through a differentiable model of the device."""

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
    """Backpropagates through a model of the device, at the inputs of the forward pass; costs no operation.

    Args:
        twin: the model, with ``transfer(controls, inputs)``.
        seed: unused here; taken for uniformity.
    """

    requires_linear = False

    def __init__(self, *, twin: Differentiable | None = None, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self._twin = twin
        self._estimator: EstimatorTwin | None = None

    def check(self, session: Session, estimator: Estimator) -> None:
        """Refuse a missing twin, or one of another size than the device."""
        super().check(session, estimator)
        check_twin(self._twin, session.spec)
        if isinstance(estimator, EstimatorTwin) and estimator.law(session) is self._twin:
            # Both go through the same model: one pass serves both.
            self._estimator = estimator
            estimator.shares = True

    def start(self, session: Session, controls: Tensor) -> None:  # noqa: ARG002
        """Note the controls."""
        self._controls = controls.detach().clone()

    def controls_changed(self, session: Session, controls: Tensor) -> None:  # noqa: ARG002
        """Note the new controls."""
        self._controls = controls.detach().clone()

    def recall(self, inputs: Tensor) -> None:
        """The next `vjp` is about these inputs."""
        self._inputs = inputs

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """See how far the model is off, and let it follow the chip where it can."""
        super().observe(inputs, outputs)
        if self.drift is not None:
            self.drift.observe(self._controls.to(inputs), inputs, outputs)

    @property
    def drift(self) -> TwinDrift | None:
        """The twin itself, where it follows its chip."""
        return self._twin if isinstance(self._twin, TwinDrift) else None

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """The vector-Jacobian product of the model at the inputs."""
        assert self._twin is not None
        found = self._estimator.take(self._inputs, grad_outputs) if self._estimator is not None else None
        if found is None:
            controls = self._controls.to(self._inputs)
            _, found = pull_back(self._twin, controls, self._inputs, grad_outputs, by_controls=False)
        assert found is not None
        return found

    def predict(self, inputs: Tensor) -> Tensor:
        """The model's own answer."""
        assert self._twin is not None
        with torch.no_grad():
            return self._twin.transfer(self._controls.to(inputs), inputs)

    def state_dict(self) -> dict[str, Any]:
        """The controls, and where the model has followed the chip to."""
        drift = None if self.drift is None else self.drift.state_dict()
        return {**super().state_dict(), "controls": self._controls, "drift": drift}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self._controls = state["controls"]
        if self.drift is not None and state["drift"] is not None:
            self.drift.load_state_dict(state["drift"])


class Exact(Twin):
    """Backpropagates through a `Differentiable` device's own law: the twin that is the device itself."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(seed=seed)

    def check(self, session: Session, estimator: Estimator) -> None:
        """Refuse a device without a law."""
        self._twin = differentiable(session)
        super().check(session, estimator)

    def start(self, session: Session, controls: Tensor) -> None:
        """Note the device and its controls."""
        self._twin = differentiable(session)
        super().start(session, controls)

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Nothing to see: what the law does not foresee is noise."""
