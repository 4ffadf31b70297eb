"""The surrogate that comes free with the elementwise estimator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..devices import Session
from .base import MatrixSurrogate, measure_transfer_matrix, measurement_vectors

__all__ = ["Measured"]


class Measured(MatrixSurrogate):
    """The transfer matrix that the estimator measured a moment ago, at the very controls of the forward pass."""

    requires_measuring_estimator = True

    _stale = False
    _batch: tuple[Tensor, Tensor] | None = None

    def startup_vectors(self, session: Session) -> int:
        """One vector an input, or two where the inputs have only one sign."""
        return measurement_vectors(session)

    def start(self, session: Session, controls: Tensor) -> None:
        """Measure once."""
        self.adopt(measure_transfer_matrix(session, controls))

    def controls_changed(self, session: Session, controls: Tensor) -> None:  # noqa: ARG002
        """Wait for the estimator to measure anew."""
        self._stale = True

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:  # noqa: ARG002
        """Measure, since no estimator will: the controls were changed, and then frozen."""
        if self._stale:
            session.program(controls)
            self.start(session, controls)

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Keep the batch: it is by the next matrix that its gradient and its residual are going to be."""
        self._batch = inputs, outputs

    def look(self) -> tuple[Tensor, Tensor] | None:
        """Compare the newest batch with the matrix of its gradient."""
        if self._batch is not None:
            super().observe(*self._batch)
            self._batch = None
        return super().look()

    def adopt(self, matrix: Tensor) -> None:
        """Take the new matrix."""
        self.matrix = matrix
        self._stale = False

    def state_dict(self) -> dict[str, Any]:
        """The matrix, the random stream, and whether the matrix is up to date."""
        return {**super().state_dict(), "stale": self._stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self._stale = state["stale"]
