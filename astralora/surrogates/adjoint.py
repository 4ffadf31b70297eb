"""Input gradients by sending them through the device itself, backwards."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import Reciprocal, Session
from ..estimators import Estimator
from ..probing.probes import LinearProbe
from .base import Surrogate

__all__ = ["Adjoint"]


class Adjoint(Surrogate):
    """G A, asked of a `astralora.devices.Reciprocal` device: d loss / d outputs goes in where the outputs came out.

    Nothing to model and nothing to go stale: the gradient is the device's own, at the controls of the forward pass,
    with the reverse port's noise. A step costs as many vectors as G has rank, at most the smaller of batch and
    outputs, and no program.
    """

    asks_every_time = True
    _gradient: Tensor

    def check(self, session: Session, estimator: Estimator) -> None:
        """Refuse a device without a reverse port."""
        super().check(session, estimator)
        if session.capability(Reciprocal) is None:
            raise ConfigurationError(
                f"surrogate 'adjoint' sends light backwards, and {session.spec.name!r} has no reverse port "
                f"(query_adjoint); use 'online'"
            )

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:
        """Send the gradients through, while the device holds the controls of the forward pass."""
        if not len(grad_outputs):
            self._gradient = grad_outputs.new_zeros(0, session.spec.in_features)
            return
        U, s, V = torch.linalg.svd(grad_outputs, full_matrices=False)
        rank = max(1, int((s > torch.finfo(s.dtype).eps * max(grad_outputs.shape) * s[:1]).sum()))
        probe = LinearProbe(session.spec, V[:rank].contiguous(), backward=True)
        self._gradient = (U[:, :rank] * s[:rank]) @ probe.ask(session)

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """The same; the device may hold other controls by now."""
        session.program(controls)
        self.prepare(session, grad_outputs)

    def vjp(self, grad_outputs: Tensor) -> Tensor:  # noqa: ARG002
        """What came back."""
        return self._gradient
