"""Simulate chips that take light backwards."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..devices import Reciprocal
from ..devices.checks import check_inputs
from .physics import LinearPhysics
from .simulator import SimulatedDevice

__all__ = ["ReciprocalDevice"]


class ReciprocalDevice(SimulatedDevice):
    """Simulate a chip with a reverse port: modulators and detectors of the same kind on the other side.

    Backwards it multiplies by the transpose of the present transfer matrix, through input converters, noise, saturation
    and output converters of its own.

    Args:
        physics: law of a linear kind.
        in_features: n.
        out_features: m.
        **options: as for `SimulatedDevice`.
    """

    def __init__(self, physics: LinearPhysics, in_features: int, out_features: int, **options: Any) -> None:
        super().__init__(physics, in_features, out_features, **options)
        self._backward = self.spec.backward()

    @property
    def capabilities(self) -> tuple[type, ...]:
        """Return the protocols of optional capabilities that the device has."""
        return (*super().capabilities, Reciprocal)

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors in reverse: (batch, out_features) -> (batch, in_features).

        Raises:
            OutOfRange: the modulators of the reverse port refuse them.
            NotConnected: the device is closed, or has not been programmed since it was opened.
        """
        check_inputs(self._backward, outputs, "query_adjoint")
        self._require_programmed("query_adjoint")
        self._state.pass_vectors(len(outputs))
        return self._signals.answer_backwards(outputs, self._state.response(outputs.dtype)).to(outputs.device)
