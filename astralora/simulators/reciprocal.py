"""Simulated chips that light can be sent through backwards."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..devices import Reciprocal
from ..devices.checks import check_inputs
from .physics import LinearPhysics
from .simulator import SimulatedDevice

__all__ = ["ReciprocalDevice"]


class ReciprocalDevice(SimulatedDevice):
    """A simulated chip with a reverse port: modulators and detectors of the same kind on the other side.

    Backwards it multiplies by the transpose of what it multiplies by forwards at that moment, through input converters,
    noise, saturation and output converters of its own.

    Args:
        physics: a linear kind.
        in_features: n.
        out_features: m.
        **options: as for `SimulatedDevice`.
    """

    def __init__(self, physics: LinearPhysics, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(physics, in_features, out_features, **options)
        self.capabilities = (*self.capabilities, Reciprocal)
        self._backward = self.spec.backward()

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors in reverse: (batch, out_features) -> (batch, in_features).

        Raises:
            OutOfRange: the modulators of the reverse port refuse it.
            NotConnected: the device is closed, or has not been programmed since it was opened.
        """
        check_inputs(self._backward, outputs, "query_adjoint")
        signals = self._lit(outputs, "query_adjoint")
        loss = 10 ** (-self.impairments.insertion_loss_db / 20)
        return self._detect(loss * (signals @ self._noisy(self._matrix_now(signals.dtype)))).to(outputs.device)
