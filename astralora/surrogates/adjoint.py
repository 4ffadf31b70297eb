"""Measure input gradients by sending output gradients backwards through the device."""

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
    """Measure G A on an `astralora.devices.Reciprocal` device, by sending G = d loss / d outputs into its reverse port.

    The gradient is measured on the device at the controls of the forward pass, so there is no error of a model, only
    the noise of the reverse port. A step costs no program, and as many vectors as the rank of G: at most the smaller of
    batch size and number of outputs.
    """

    queries_every_step = True
    _gradient: Tensor

    def check(self, session: Session, estimator: Estimator) -> None:
        """Refuse a device without a reverse port."""
        super().check(session, estimator)
        if session.capability(Reciprocal) is None:
            raise ConfigurationError(
                f"surrogate 'adjoint' sends vectors backwards, but {session.spec.name!r} has no reverse port "
                f"(query_adjoint); use 'online'"
            )

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:
        """Send the gradients backwards, while the device still has the controls of the forward pass."""
        if not len(grad_outputs):
            self._gradient = grad_outputs.new_zeros(0, session.spec.in_features)
            return
        U, s, V = torch.linalg.svd(grad_outputs, full_matrices=False)
        rank = max(1, int((s > torch.finfo(s.dtype).eps * max(grad_outputs.shape) * s[:1]).sum()))
        probe = LinearProbe(session.spec, V[:rank].contiguous(), backward=True)
        self._gradient = (U[:, :rank] * s[:rank]) @ probe.ask(session)

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """Program the controls, and send the gradients backwards."""
        session.program(controls)
        self.prepare(session, grad_outputs)

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """Return the answer of the reverse port."""
        return self._gradient
