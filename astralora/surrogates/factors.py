"""Represent a transfer matrix by factors of low rank."""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

__all__ = ["Factors", "absorb"]

# Smallest ridge, relative to the mean squared length of an input; it keeps the solution stable without noise.
_FLOOR = 1e-8


class Factors(NamedTuple):
    """Hold the factors of A ~ U S V.

    Attributes:
        U: left factor, (out_features, rank), with orthonormal columns.
        S: core, (rank, rank).
        V: right factor, (rank, in_features), with orthonormal rows.
    """

    U: Tensor
    S: Tensor
    V: Tensor

    def answer(self, inputs: Tensor) -> Tensor:
        """Return X (U S V)^T: (batch, in_features) -> (batch, out_features)."""
        return inputs @ self.V.to(inputs).mT @ self.S.to(inputs).mT @ self.U.to(inputs).mT

    def folded(self) -> tuple[Self, Tensor]:
        """Return equal factors with a diagonal core, computed by the SVD of S, and the singular values."""
        P, s, Q = torch.linalg.svd(self.S)
        return type(self)(self.U @ P, torch.diag(s), Q @ self.V), s

    def cut(self, rank: int) -> Self:
        """Return the factors truncated to a smaller rank; the core must be diagonal."""
        return type(self)(self.U[:, :rank], self.S[:rank, :rank], self.V[:rank])


def absorb(core: Tensor, V: Tensor, inputs: Tensor, residual: Tensor, variance: float) -> Factors | None:
    """Add to A = W V the smallest change that explains a residual up to its noise, and truncate the sum to the rank.

        U S V = truncate(W V + (Y - X A^T)^T (X X^T + ridge I)^-1 X)

    This is one step of the block Kaczmarz method. The ridge is the variance of the noise divided by the variance of
    the error of A, which follows from the residual: mean r^2 = variance + |x|^2 var(A). Neither A nor its change is
    computed as a full matrix.

    Args:
        core: factor W, (out_features, rank).
        V: factor V, (rank, in_features), with orthonormal rows.
        inputs: inputs X, (batch, in_features), double.
        residual: residual Y - X A^T, (batch, out_features), double.
        variance: variance of the noise on one output.

    Returns:
        The factors, double, with S diagonal; None if the residual is only noise, or all inputs are zero.
    """
    X = inputs
    length = X.square().sum(dim=1).mean()
    if not len(X) or float(length) == 0:
        return None
    surplus = residual.square().mean() - variance
    if float(surplus) <= 0:
        return None
    ridge = torch.maximum(variance * length / surplus, _FLOOR * length)
    if len(X) > X.shape[1]:
        Q, X = torch.linalg.qr(X)
        residual = Q.mT @ residual
    gram = X @ X.mT
    gram.diagonal().add_(ridge)
    weights = torch.cholesky_solve(residual, torch.linalg.cholesky(gram))  # (batch, out_features)
    # W V + weights^T X is a product of two thin factors; the SVD of its core truncates it to the rank.
    left, core_left = torch.linalg.qr(torch.cat([core.double(), weights.mT], dim=1))
    right, core_right = torch.linalg.qr(torch.cat([V.double(), X]).mT)
    P, s, Q = torch.linalg.svd(core_left @ core_right.mT)
    rank = len(V)
    return Factors(left @ P[:, :rank], torch.diag(s[:rank]), Q[:rank] @ right.mT)
