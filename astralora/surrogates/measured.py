"""The surrogate that comes free with the elementwise estimator."""

from __future__ import annotations

from torch import Tensor

from devices import Session

from .base import MatrixSurrogate, measure_transfer_matrix

__all__ = ["Measured"]


class Measured(MatrixSurrogate):
    """The transfer matrix that the estimator measured a moment ago, at the very controls of the forward pass."""

    requires_measuring_estimator = True

    def start(self, session: Session, controls: Tensor) -> None:
        """Measure once, for layers whose controls are frozen."""
        self.matrix = measure_transfer_matrix(session, controls)

    def adopt(self, matrix: Tensor) -> None:
        """Take the new matrix."""
        self.matrix = matrix
