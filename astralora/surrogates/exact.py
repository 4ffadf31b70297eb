"""The input gradient itself, for devices whose law is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from devices import Session

from ..estimators import Estimator
from ..estimators.exact import differentiable
from .base import Surrogate

__all__ = ["Exact"]


class Exact(Surrogate):
    """Backpropagates through a `devices.Differentiable` device's own law; costs no operation."""

    requires_linear = False

    def check(self, session: Session, estimator: Estimator) -> None:
        """Refuse a device without a law."""
        super().check(session, estimator)
        differentiable(session)

    def start(self, session: Session, controls: Tensor) -> None:
        """Note the device and its controls."""
        self._session = session
        self._controls = controls.detach().clone()

    def controls_changed(self, session: Session, controls: Tensor) -> None:  # noqa: ARG002
        """Note the new controls."""
        self._controls = controls.detach().clone()

    def recall(self, inputs: Tensor) -> None:
        """The next `vjp` is about these inputs."""
        self._inputs = inputs.detach()

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """The vector-Jacobian product of the law at the inputs."""
        with torch.enable_grad():
            leaf = self._inputs.detach().requires_grad_()
            answer = differentiable(self._session).transfer(self._controls.to(leaf), leaf)
            (gradient,) = torch.autograd.grad(answer, leaf, grad_outputs)
        return gradient

    def predict(self, inputs: Tensor) -> Tensor:
        """The law's own answer."""
        with torch.no_grad():
            return differentiable(self._session).transfer(self._controls.to(inputs), inputs)

    def state_dict(self) -> dict[str, Any]:
        """The controls."""
        return {**super().state_dict(), "controls": self._controls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self._controls = state["controls"]
