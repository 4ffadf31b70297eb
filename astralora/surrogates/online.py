"""Fit a transfer matrix to the training batches by recursive least squares."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import Session
from ..probing.hadamard import hadamard, hadamard_order
from ..probing.probes import LinearProbe, TransferProbe, answer_variance
from .base import MatrixSurrogate, measurement_vectors

__all__ = ["Online"]

# Smallest noise variance, relative to the mean squared length of an input; it keeps the solution stable without noise.
_FLOOR = 1e-8
# Largest variance of an entry, relative to the prior variance of all entries.
_UNKNOWN = 100.0


class Online(MatrixSurrogate):
    """Learn from every training batch by recursive least squares, and discount old data as fast as the device drifts.

    This is a Kalman filter for the rows of A. The error of each row has the covariance P. For a batch X with outputs Y:

        P <- P + q I                                      drift since the last batch
        A <- A + (Y - X A^T)^T (X P X^T + v I)^-1 X P
        P <- P - P X^T (X P X^T + v I)^-1 X P

    where v is the noise variance of an output. The drift q is computed from the batch: it is the part of the squared
    residual that neither noise nor P explains, mean r^2 - v - mean x P x^T, divided by mean |x|^2. If noise and P
    explain the whole residual, q is zero and old data keep their weight. After a sudden change, old data lose all
    weight, except in directions that the batch does not contain.

    Training batches do not measure directions that never occur in the inputs. P gives their contribution to the
    expected error of a gradient. If the expected error exceeds ``tolerance``, the device is queried with the most
    uncertain directions, a few in each step.

    On a device that is not linear the result is the best linear fit to recent data, and no probes are sent.

    Args:
        start: ``"measure"`` to measure the device once with in_features vectors, or ``"cold"`` to start from zero.
        forgetting: ``"auto"`` as above, or a fixed factor of at most 1 for the weight of old data at every batch; 1
            keeps their weight.
        refresh: largest number of directions to measure in one step; 0 for none.
        tolerance: relative error of an input gradient, |G dA| / |G A|, up to which nothing is measured.
        seed: unused; accepted because all surrogates accept it.
    """

    requires_linear = False

    def __init__(
        self,
        *,
        start: Literal["measure", "cold"] = "measure",
        forgetting: float | Literal["auto"] = "auto",
        refresh: int = 16,
        tolerance: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        if start not in ("measure", "cold"):
            raise ConfigurationError(f"start must be 'measure' or 'cold', not {start!r}")
        if forgetting != "auto" and not (isinstance(forgetting, int | float) and 0 < forgetting <= 1):
            raise ConfigurationError(f"forgetting must be 'auto', or above 0 and at most 1, not {forgetting!r}")
        if isinstance(refresh, bool) or not isinstance(refresh, int) or refresh < 0:
            raise ConfigurationError(f"refresh must be a whole number of directions, or 0 for none, not {refresh!r}")
        if not (isinstance(tolerance, int | float) and tolerance > 0):
            raise ConfigurationError(f"tolerance must be a positive share, not {tolerance!r}")
        self._start = start
        self._forgetting = forgetting
        self._refresh = refresh
        self._tolerance = tolerance
        self._noise_variance = 0.0
        self._covariance: Tensor | None = None  # P, double, (in_features, in_features); None after a cold start

    def startup_vectors(self, session: Session) -> int:
        """Return the number of vectors of one measurement; 0 for a cold start."""
        return measurement_vectors(session) if self._measures(session) else 0

    def start(self, session: Session, controls: Tensor) -> None:
        """Measure the device, or start from zero."""
        spec = session.spec
        self._noise_variance = answer_variance(spec)
        if self._measures(session):
            probe = TransferProbe(spec, controls.dtype, controls.device)
            self.matrix = probe.matrix(probe.ask(session))
            eye = torch.eye(spec.in_features, dtype=torch.float64, device=controls.device)
            self._covariance = probe.entry_variance() * eye
        else:
            self.matrix = controls.new_zeros(spec.out_features, spec.in_features)
            self._covariance = None

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Compute the residual of the batch, and update the matrix with it."""
        super().observe(inputs, outputs)
        X, Y = inputs.double(), outputs.double()
        residual = Y - X @ self.matrix.double().mT
        length = X.square().sum(dim=1).mean()
        if not len(X) or float(length) == 0:
            return
        if self._covariance is None:
            self._covariance = torch.zeros(X.shape[1], X.shape[1], dtype=torch.float64, device=X.device)
        P = self._covariance
        if self._forgetting == "auto":
            expected = self._noise_variance + ((X @ P) * X).sum(dim=1).mean()
            drift = ((residual.square().mean() - expected) / length).clamp_min(0)
            P = P + drift * torch.eye(len(P), dtype=P.dtype, device=P.device)
        else:
            prior = Y.square().mean() / length
            cold = float(P.diagonal().sum()) == 0
            P = prior * torch.eye(len(P)).to(P) if cold else P / self._forgetting
            if self._forgetting < 1:
                # The variance of directions that never occur must not grow without limit.
                shrink = (_UNKNOWN * prior.clamp_min(1e-30) / P.diagonal()).clamp_max(1).sqrt()
                P = shrink.unsqueeze(1) * P * shrink
        if len(X) > X.shape[1]:
            # Reduce the rows to as many as there are directions, with the same information.
            Q, X = torch.linalg.qr(X)
            residual = Q.mT @ residual
        floor = _FLOOR * float(length) * float(P.diagonal().mean())
        self._learn(P, X, residual, X.new_full((len(X),), max(self._noise_variance, floor)))

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:
        """Measure the most uncertain directions if the gradient is too uncertain."""
        if self._is_uncertain(session, grad_outputs):
            self._measure_uncertain(session)

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """Program the controls and measure, if the gradient is too uncertain."""
        if self._is_uncertain(session, grad_outputs):
            session.program(controls)
            self._measure_uncertain(session)

    def uncertainty(self, grad_outputs: Tensor) -> float:
        """Return the relative error of input gradients, |G dA| / |G A|, that P predicts; 0 before the first data."""
        gradient = float(self.vjp(grad_outputs).double().square().sum())
        if self._covariance is None or gradient == 0:
            return 0.0
        error = float(grad_outputs.double().square().sum()) * float(self._covariance.diagonal().sum())
        return sqrt(error / gradient)

    def state_dict(self) -> dict[str, Any]:
        """Return the matrix and its covariance."""
        return {**super().state_dict(), "covariance": self._covariance, "noise_variance": self._noise_variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self._covariance, self._noise_variance = state["covariance"], state["noise_variance"]

    def _learn(self, covariance: Tensor, X: Tensor, residual: Tensor, variance: Tensor) -> None:
        """Make one step of the filter, with the noise variance of each row."""
        spread = X @ covariance
        inner = spread @ X.mT
        inner.diagonal().add_(variance)
        factor, failed = torch.linalg.cholesky_ex(inner)
        if int(failed):
            return  # identical inputs without noise give a singular matrix and contain no information
        gain = torch.cholesky_solve(spread, factor)  # (batch, in_features)
        self.matrix = self.matrix + (residual.mT @ gain).to(self.matrix)
        covariance = covariance - spread.mT @ gain
        self._covariance = (covariance + covariance.mT) / 2

    def _is_uncertain(self, session: Session, grad_outputs: Tensor) -> bool:
        return self._refresh > 0 and session.spec.linear and self.uncertainty(grad_outputs) > self._tolerance

    def _measure_uncertain(self, session: Session) -> None:
        P = self._covariance
        assert P is not None
        width = session.spec.in_features
        directions = torch.linalg.eigh(P).eigenvectors[:, -min(self._refresh, width) :]
        # A Hadamard matrix mixes the directions, so that every probe uses as many inputs as possible.
        order = hadamard_order(directions.shape[1])
        rows = hadamard(order)[:, : directions.shape[1]].to(directions) @ directions.mT
        probe = LinearProbe(session.spec, rows.to(self.matrix))
        answers = probe.ask(session).double()
        residual = answers - rows @ self.matrix.double().mT
        floor = _FLOOR * float(rows.square().sum(dim=1).mean()) * float(P.diagonal().mean())
        self._learn(P, rows, residual, probe.row_variance().double().clamp_min(floor))

    def _measures(self, session: Session) -> bool:
        return self._start == "measure" and session.spec.linear
