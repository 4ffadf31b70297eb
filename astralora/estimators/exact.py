"""The gradient itself, for devices whose law is known: a yardstick, not a method."""

from __future__ import annotations

import torch
from torch import Tensor

from devices import Differentiable, Session

from ..errors import ConfigurationError
from .base import Estimator

__all__ = ["Exact", "differentiable"]


def differentiable(session: Session) -> Differentiable:
    """The device as a torch function that autograd can follow.

    Raises:
        ConfigurationError: it is none.
    """
    law = session.capability(Differentiable)
    if law is None:
        raise ConfigurationError(
            f"'exact' needs a device whose law autograd can follow, and {session.spec.name!r} has no "
            f"transfer(controls, inputs); use method='auto'"
        )
    return law


class Exact(Estimator):
    """Backpropagates through a `devices.Differentiable` device's own law; costs no operation.

    For tests and ablation: simulators and calibrated twins have such a law, chips do not.
    """

    def check(self, session: Session) -> None:
        """Refuse a device without a law."""
        super().check(session)
        differentiable(session)

    def estimate(
        self,
        session: Session,
        controls: Tensor,
        inputs: Tensor,
        outputs: Tensor,  # noqa: ARG002
        grad_outputs: Tensor,
    ) -> Tensor:
        """The vector-Jacobian product of the law at the controls."""
        law = differentiable(session)
        with torch.enable_grad():
            leaf = controls.detach().requires_grad_()
            answer = law.transfer(leaf, inputs.detach())
            (gradient,) = torch.autograd.grad(answer, leaf, grad_outputs)
        return gradient
