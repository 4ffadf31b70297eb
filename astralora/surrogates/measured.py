"""Use the transfer matrix that the estimator measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..devices import Session
from .base import MatrixSurrogate, measure_transfer_matrix, measurement_vectors

__all__ = ["Measured"]


class Measured(MatrixSurrogate):
    """Use the transfer matrix that the estimator has just measured, at the controls of the forward pass."""

    requires_measuring_estimator = True

    _stale = False
    _batch: tuple[Tensor, Tensor] | None = None

    def startup_vectors(self, session: Session) -> int:
        """Return the number of vectors: one for each input, or two if the inputs can have one sign only."""
        return measurement_vectors(session)

    def start(self, session: Session, controls: Tensor) -> None:
        """Measure the matrix once."""
        self.adopt(measure_transfer_matrix(session, controls))

    def controls_changed(self, session: Session, controls: Tensor) -> None:
        """Mark the matrix as stale until the estimator measures it again."""
        self._stale = True

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """Measure the matrix if it is stale, because no estimator runs after the controls were changed and frozen."""
        if self._stale:
            session.program(controls)
            self.start(session, controls)

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Store the batch, because its gradient and its residual are computed with the next matrix."""
        self._batch = inputs, outputs

    def batch_error(self) -> tuple[Tensor, Tensor] | None:
        """Return the errors of the newest batch for the matrix of its gradient; see `Surrogate.batch_error`."""
        if self._batch is not None:
            super().observe(*self._batch)
            self._batch = None
        return super().batch_error()

    def adopt(self, matrix: Tensor) -> None:
        """Store the new matrix."""
        self.matrix = matrix
        self._stale = False

    def state_dict(self) -> dict[str, Any]:
        """Return the matrix, the state of the random stream, and whether the matrix is stale."""
        return {**super().state_dict(), "stale": self._stale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._stale = state["stale"]
