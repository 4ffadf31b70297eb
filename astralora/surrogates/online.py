"""A running transfer matrix, fitted to what training passes through the device anyway."""

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

# Relative to the mean squared length of an input: keeps the solve well-posed on a noiseless device.
_FLOOR = 1e-8
# Most variance of an entry, relative to that of all entries together.
_UNKNOWN = 100.0


class Online(MatrixSurrogate):
    """Recursive least squares on every training batch, forgetting as fast as the device drifts.

    A Kalman filter for the rows of A, whose errors all have the covariance P. For a batch X with outputs Y:

        P <- P + q I                                      what has changed since
        A <- A + (Y - X A^T)^T (X P X^T + v I)^-1 X P
        P <- P - P X^T (X P X^T + v I)^-1 X P

    with v the variance of an output. The drift q is read off the batch itself: the residual's energy that neither the
    noise nor P explains, mean r^2 - v - mean x P x^T, over mean |x|^2. Where it explains all of it nothing is
    forgotten; after a sudden change all is, but for what the batch does not show.

    Inputs that never occur leave directions unseen. Their share of the gradient's expected error is known from P, and
    where the whole error exceeds `tolerance`, the device is asked for the most uncertain directions, a few at a time.

    On a device that is not linear this is the best linear fit around recent data, without probes.

    Args:
        start: ``"measure"`` the device once with in_features vectors, or start ``"cold"`` from zero.
        forgetting: ``"auto"`` as above, or a fixed factor of at most 1 by which certainty shrinks at every batch; 1
            never
            forgets.
        refresh: most directions to ask for in one step; 0 for never.
        tolerance: relative error of an input gradient, |G dA| / |G A|, below which nothing is asked for.
        seed: unused here; taken for uniformity.
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
            raise ConfigurationError(f"refresh must be a whole number of directions, 0 for never, not {refresh!r}")
        if not (isinstance(tolerance, int | float) and tolerance > 0):
            raise ConfigurationError(f"tolerance must be a positive share, not {tolerance!r}")
        self._how = start
        self._forgetting = forgetting
        self._refresh = refresh
        self._tolerance = tolerance
        self._noise_variance = 0.0
        self._covariance: Tensor | None = None  # P, double, (in_features, in_features); None: nothing is known

    def startup_vectors(self, session: Session) -> int:
        """As many as a measurement takes, if there is to be one."""
        return measurement_vectors(session) if self._measures(session) else 0

    def start(self, session: Session, controls: Tensor) -> None:
        """Measure the device, or assume nothing."""
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
        """Note the residual, then learn from it."""
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
                # What is never seen must not become less certain without end: much less than at a cold start is enough.
                shrink = (_UNKNOWN * prior.clamp_min(1e-30) / P.diagonal()).clamp_max(1).sqrt()
                P = shrink.unsqueeze(1) * P * shrink
        if len(X) > X.shape[1]:
            # More rows than directions: the same information in as many rows as there are directions.
            Q, X = torch.linalg.qr(X)
            residual = Q.mT @ residual
        floor = _FLOOR * float(length) * float(P.diagonal().mean())
        self._learn(P, X, residual, X.new_full((len(X),), max(self._noise_variance, floor)))

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:
        """Ask for directions that matter and are not known."""
        if self._unsure(session, grad_outputs):
            self._ask(session)

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """As `prepare`."""
        if self._unsure(session, grad_outputs):
            session.program(controls)
            self._ask(session)

    def uncertainty(self, grad_outputs: Tensor) -> float:
        """Expected relative error of these input gradients, |G dA| / |G A|, from P; 0 with nothing to go by."""
        gradient = float(self.vjp(grad_outputs).double().square().sum())
        if self._covariance is None or gradient == 0:
            return 0.0
        error = float(grad_outputs.double().square().sum()) * float(self._covariance.diagonal().sum())
        return sqrt(error / gradient)

    def state_dict(self) -> dict[str, Any]:
        """The matrix, and how sure it is."""
        return {**super().state_dict(), "covariance": self._covariance, "noise_variance": self._noise_variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self._covariance, self._noise_variance = state["covariance"], state["noise_variance"]

    def _learn(self, covariance: Tensor, X: Tensor, residual: Tensor, variance: Tensor) -> None:
        """One step of the filter; the noise's variance is given by row."""
        spread = X @ covariance
        inner = spread @ X.mT
        inner.diagonal().add_(variance)
        factor, failed = torch.linalg.cholesky_ex(inner)
        if int(failed):
            return  # nothing to learn from inputs that are all alike and free of noise
        gain = torch.cholesky_solve(spread, factor)  # (batch, in_features)
        self.matrix = self.matrix + (residual.mT @ gain).to(self.matrix)
        covariance = covariance - spread.mT @ gain
        self._covariance = (covariance + covariance.mT) / 2

    def _unsure(self, session: Session, grad_outputs: Tensor) -> bool:
        return self._refresh > 0 and session.spec.linear and self.uncertainty(grad_outputs) > self._tolerance

    def _ask(self, session: Session) -> None:
        P = self._covariance
        assert P is not None
        width = session.spec.in_features
        directions = torch.linalg.eigh(P).eigenvectors[:, -min(self._refresh, width) :]
        # Mixed, so that every probe lights as many inputs as it can.
        order = hadamard_order(directions.shape[1])
        rows = hadamard(order)[:, : directions.shape[1]].to(directions) @ directions.mT
        probe = LinearProbe(session.spec, rows.to(self.matrix))
        answers = probe.ask(session).double()
        residual = answers - rows @ self.matrix.double().mT
        floor = _FLOOR * float(rows.square().sum(dim=1).mean()) * float(P.diagonal().mean())
        self._learn(P, rows, residual, probe.row_variance().double().clamp_min(floor))

    def _measures(self, session: Session) -> bool:
        return self._how == "measure" and session.spec.linear
