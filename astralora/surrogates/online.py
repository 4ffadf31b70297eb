"""A running transfer matrix, fitted to what training passes through the device anyway."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from devices import Session

from ..errors import ConfigurationError
from ..probing import answer_variance
from .base import MatrixSurrogate, measure_transfer_matrix, measurement_vectors

__all__ = ["Online"]

# Relative to the mean squared length of an input: keeps the solve well-posed on a noiseless device.
_FLOOR = 1e-8


class Online(MatrixSurrogate):
    """Block Kaczmarz with a ridge: the smallest change of A that explains the newest batch up to its noise.

    A <- A + (Y - X A^T)^T (X X^T + ridge I)^-1 X.

    The ridge is the noise's variance over that of A's own error, which shows in the residual: mean r^2 =
    noise^2 + |x|^2 var(A). A residual that is all noise changes nothing. On a device that is not linear
    this is the best linear fit around recent data.

    Args:
        start: ``"measure"`` the device once with in_features vectors, or start ``"cold"`` from zero.
        seed: unused here; taken for uniformity.
    """

    requires_linear = False

    def __init__(self, *, start: Literal["measure", "cold"] = "measure", seed: int = 0) -> None:
        super().__init__(seed=seed)
        if start not in ("measure", "cold"):
            raise ConfigurationError(f"start must be 'measure' or 'cold', not {start!r}")
        self._how = start
        self._noise_variance = 0.0

    def startup_vectors(self, session: Session) -> int:
        """As many as a measurement takes, if there is to be one."""
        return measurement_vectors(session) if self._measures(session) else 0

    def start(self, session: Session, controls: Tensor) -> None:
        """Measure the device, or assume nothing."""
        spec = session.spec
        self._noise_variance = answer_variance(spec)
        if self._measures(session):
            self.matrix = measure_transfer_matrix(session, controls)
        else:
            self.matrix = controls.new_zeros(spec.out_features, spec.in_features)

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Note the residual, then learn from it."""
        super().observe(inputs, outputs)
        X = inputs.double()
        residual = outputs.double() - X @ self.matrix.double().mT
        length = X.square().sum(dim=1).mean()
        surplus = residual.square().mean() - self._noise_variance
        if float(surplus) <= 0 or float(length) == 0:
            return
        ridge = torch.maximum(self._noise_variance * length / surplus, _FLOOR * length)
        batch, width = X.shape
        gram = X @ X.mT if batch <= width else X.mT @ X
        gram.diagonal().add_(ridge)
        factor = torch.linalg.cholesky(gram)
        if batch <= width:
            change = torch.cholesky_solve(residual, factor).mT @ X
        else:
            change = torch.cholesky_solve(X.mT @ residual, factor).mT
        self.matrix = self.matrix + change.to(self.matrix)

    def _measures(self, session: Session) -> bool:
        return self._how == "measure" and session.spec.linear
