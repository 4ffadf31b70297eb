"""The running fit in the memory of the published surrogate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from devices import Session

from ..estimators.base import whole
from ..probing import answer_variance
from .base import Surrogate, measure_transfer_matrix, measurement_vectors

__all__ = ["LowRankOnline"]

_FLOOR = 1e-8


class LowRankOnline(Surrogate):
    """A ~ U V of a given rank, moved by every training batch: r (m + n) numbers, and no operation of its own.

    The smallest change of A that explains the batch up to its noise (block Kaczmarz with a ridge), cut back to the
    rank:

        U V <- truncate(U V + (Y - X V^T U^T)^T (X X^T + ridge I)^-1 X),

    with as ridge the noise's variance over that of A's error, which shows in the residual: mean r^2 = noise^2 +
    |x|^2 var(A). Neither the matrix nor its change is ever formed in full. For devices whose transfer matrix is of
    low rank, or too
    large: of a unitary mesh no low rank is a good likeness.

    Args:
        rank: r, at most the smaller side of the device.
        seed: unused here; taken for uniformity.
    """

    U: Tensor
    """Left factor, (out_features, rank)."""
    V: Tensor
    """Right factor, (rank, in_features), with orthonormal rows."""

    def __init__(self, *, rank: int = 10, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.rank = whole("rank", rank)
        self._noise_variance = 0.0

    def startup_vectors(self, session: Session) -> int:
        """As many as a measurement takes."""
        return measurement_vectors(session)

    def start(self, session: Session, controls: Tensor) -> None:
        """The truncated SVD of the device's measured transfer matrix."""
        self._noise_variance = answer_variance(session.spec)
        U, s, V = torch.linalg.svd(measure_transfer_matrix(session, controls), full_matrices=False)
        self.U, self.V = (U[:, : self.rank] * s[: self.rank]).contiguous(), V[: self.rank].contiguous()

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Note the residual, then learn from it."""
        super().observe(inputs, outputs)
        X = inputs.double()
        residual = outputs.double() - self.predict(inputs).double()
        length = X.square().sum(dim=1).mean()
        if not len(X) or float(length) == 0:
            return
        surplus = residual.square().mean() - self._noise_variance
        if float(surplus) <= 0:
            return
        ridge = torch.maximum(self._noise_variance * length / surplus, _FLOOR * length)
        if len(X) > X.shape[1]:
            Q, X = torch.linalg.qr(X)
            residual = Q.mT @ residual
        gram = X @ X.mT
        gram.diagonal().add_(ridge)
        weights = torch.cholesky_solve(residual, torch.linalg.cholesky(gram))  # (batch, out_features)
        # U V + weights^T X, as a product of two thin factors, and back to the rank by the SVD of their core.
        left, core_left = torch.linalg.qr(torch.cat([self.U.double(), weights.mT], dim=1))
        right, core_right = torch.linalg.qr(torch.cat([self.V.double(), X]).mT)
        P, s, Q = torch.linalg.svd(core_left @ core_right.mT)
        rank = len(self.V)
        self.U = (left @ (P[:, :rank] * s[:rank])).to(self.U).contiguous()
        self.V = (Q[:rank] @ right.mT).to(self.V).contiguous()

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """G U V."""
        return grad_outputs @ self.U.to(grad_outputs) @ self.V.to(grad_outputs)

    def predict(self, inputs: Tensor) -> Tensor:
        """X (U V)^T."""
        return inputs @ self.V.to(inputs).mT @ self.U.to(inputs).mT

    def state_dict(self) -> dict[str, Any]:
        """The factors."""
        return {**super().state_dict(), "U": self.U, "V": self.V, "noise_variance": self._noise_variance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self.U, self.V, self._noise_variance = state["U"], state["V"], state["noise_variance"]
