"""Replace a weight of a module by its factors U Sigma V^T."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .bases import decompose

__all__ = ["Factored", "Weight"]

_U, _SIGMA, _V = "original0", "original1", "original2"


class Factored(nn.Module):
    """Parametrize a weight as W = U Sigma V^T, for `torch.nn.utils.parametrize`.

    Args:
        shape: shape of W; its first axis counts as rows and all others as columns, (m, n).
        factors: initial U, Sigma and V; from the singular value decomposition of W unless given.
    """

    def __init__(self, shape: torch.Size, factors: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self._shape = shape
        self._first = factors

    def forward(self, U: Tensor, sigma: Tensor, V: Tensor) -> Tensor:
        """Return W = U Sigma V^T in its own shape, from (m, r), (r, r) and (n, r)."""
        # In lower precision, the products would round the weight three times.
        with torch.autocast(U.device.type, enabled=False):
            return (U @ sigma @ V.mT).view(self._shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the given factors at the first call, and later U, Sigma and V of a weight at full rank."""
        if self._first is not None:
            factors, self._first = self._first, None
            return factors
        U, s, V = decompose(weight.flatten(1))
        return U.to(weight).contiguous(), torch.diag(s).to(weight), V.to(weight).contiguous()


class Weight:
    """Give access to one matrix of a model, trained whole or as Sigma between fixed orthogonal bases U and V.

    Args:
        module: module that has the matrix.
        attribute: name of the matrix in the module.
        name: full name of the matrix in the model.

    Attributes:
        rows: number of rows, m.
        columns: number of columns, n.
    """

    def __init__(self, module: nn.Module, attribute: str, name: str) -> None:
        self.module, self.attribute, self.name = module, attribute, name
        shape = getattr(module, attribute).shape
        self.rows: int = shape[0]
        self.columns: int = shape[1:].numel()

    @property
    def full_rank(self) -> int:
        """Return min(m, n)."""
        return min(self.rows, self.columns)

    @property
    def is_factored(self) -> bool:
        """Report whether Sigma is trained in place of the weight."""
        return parametrize.is_parametrized(self.module, self.attribute)

    @property
    def rank(self) -> int:
        """Return the rank r of a factored weight, or the full rank of a whole one."""
        return self.trained.shape[0] if self.is_factored else self.full_rank

    @property
    def trained(self) -> nn.Parameter:
        """Return the parameter that is trained: Sigma or the weight."""
        holder, name = (self._factors, _SIGMA) if self.is_factored else (self.module, self.attribute)
        parameter: nn.Parameter = getattr(holder, name)
        return parameter

    @property
    def bases(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return U and V, (m, r) and (n, r), of a factored weight."""
        return getattr(self._factors, _U), getattr(self._factors, _V)

    @property
    def size(self) -> int:
        """Count the numbers in the weight, or in its three factors."""
        if not self.is_factored:
            return self.trained.numel()
        return self.trained.numel() + sum(basis.numel() for basis in self.bases)

    def factorise(self, U: Tensor, sigma: Tensor, V: Tensor) -> nn.Parameter:
        """Replace the weight by Sigma between these fixed bases, and return the new parameter Sigma."""
        weight = self.trained
        U, sigma, V = (factor.detach().to(weight).contiguous().clone() for factor in (U, sigma, V))
        if not self.is_factored:
            parametrization = Factored(weight.shape, (U, sigma, V))
            parametrize.register_parametrization(self.module, self.attribute, parametrization, unsafe=True)
        else:
            for name, factor in ((_U, U), (_SIGMA, sigma), (_V, V)):
                setattr(self._factors, name, nn.Parameter(factor))
        for basis in self.bases:
            basis.requires_grad_(False)
        return self.trained

    def make_whole(self) -> nn.Parameter:
        """Replace the factors by the whole weight, and return its new parameter."""
        parametrize.remove_parametrizations(self.module, self.attribute, leave_parametrized=True)
        self.trained.requires_grad_()
        return self.trained

    def reshape(self, rank: int | None) -> nn.Parameter:
        """Change the shape of the parameters before values are loaded into them.

        Args:
            rank: rank of the factors; None for the whole weight.

        Returns:
            The parameter that is trained.
        """
        if rank is None:
            return self.make_whole() if self.is_factored else self.trained
        if self.is_factored and self.rank == rank:
            return self.trained
        like = self.trained.detach()
        return self.factorise(*(like.new_zeros(rows, rank) for rows in (self.rows, rank, self.columns)))

    @property
    def _factors(self) -> nn.Module:
        parametrizations = self.module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        return parametrizations[self.attribute]
