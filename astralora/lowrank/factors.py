"""A weight of a module as U Sigma V^T, in the place of the weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .bases import decompose

__all__ = ["Factored", "Weight"]

_U, _SIGMA, _V = "original0", "original1", "original2"


class Factored(nn.Module):
    """The parametrization W = U Sigma V^T, for `torch.nn.utils.parametrize`.

    Args:
        shape: of W, whose first axis counts as rows and all others as columns: (m, n).
        factors: U, Sigma and V to begin with; those of W's singular value decomposition unless given.
    """

    def __init__(self, shape: torch.Size, factors: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
        super().__init__()
        self._shape = shape
        self._first = factors

    def forward(self, U: Tensor, sigma: Tensor, V: Tensor) -> Tensor:
        """U Sigma V^T: (m, r), (r, r) and (n, r) -> the shape of W."""
        # Multiplied out in lower precision, the weight would be rounded three times.
        with torch.autocast(U.device.type, enabled=False):
            return (U @ sigma @ V.mT).view(self._shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U, Sigma and V of a weight, at full rank."""
        if self._first is not None:
            factors, self._first = self._first, None
            return factors
        U, s, V = decompose(weight.flatten(1))
        return U.to(weight).contiguous(), torch.diag(s).to(weight), V.to(weight).contiguous()


class Weight:
    """One matrix of a model, trained whole or as Sigma between fixed orthogonal bases U and V.

    Args:
        module: that it belongs to.
        attribute: its name there.
        name: its full name in the model.
    """

    def __init__(self, module: nn.Module, attribute: str, name: str) -> None:
        self.module, self.attribute, self.name = module, attribute, name
        shape = getattr(module, attribute).shape
        self.rows: int = shape[0]
        self.columns: int = shape[1:].numel()

    @property
    def full_rank(self) -> int:
        """min(m, n)."""
        return min(self.rows, self.columns)

    @property
    def is_factored(self) -> bool:
        """Whether Sigma is trained in place of the weight."""
        return parametrize.is_parametrized(self.module, self.attribute)

    @property
    def rank(self) -> int:
        """r; that of the whole weight counts as full."""
        return self.trained.shape[0] if self.is_factored else self.full_rank

    @property
    def trained(self) -> nn.Parameter:
        """Sigma, or the weight."""
        holder, name = (self._list, _SIGMA) if self.is_factored else (self.module, self.attribute)
        parameter: nn.Parameter = getattr(holder, name)
        return parameter

    @property
    def bases(self) -> tuple[nn.Parameter, nn.Parameter]:
        """U and V, (m, r) and (n, r), of a factored weight."""
        return getattr(self._list, _U), getattr(self._list, _V)

    @property
    def size(self) -> int:
        """Numbers of the weight, or of its three factors."""
        if not self.is_factored:
            return self.trained.numel()
        return self.trained.numel() + sum(basis.numel() for basis in self.bases)

    def factorise(self, U: Tensor, sigma: Tensor, V: Tensor) -> nn.Parameter:
        """Train Sigma from here on, between these bases; returns it."""
        weight = self.trained
        factors = tuple(factor.detach().to(weight).contiguous().clone() for factor in (U, sigma, V))
        if not self.is_factored:
            parametrization = Factored(weight.shape, factors)  # type: ignore[arg-type]
            parametrize.register_parametrization(self.module, self.attribute, parametrization, unsafe=True)
        else:
            for name, factor in zip((_U, _SIGMA, _V), factors, strict=True):
                setattr(self._list, name, nn.Parameter(factor))
        for basis in self.bases:
            basis.requires_grad_(False)
        return self.trained

    def make_whole(self) -> nn.Parameter:
        """Train the weight itself again; returns it."""
        parametrize.remove_parametrizations(self.module, self.attribute, leave_parametrized=True)
        self.trained.requires_grad_()
        return self.trained

    def reshape(self, rank: int | None) -> nn.Parameter:
        """Make room for loaded values: factors of a rank, or the whole weight for None; returns what is trained."""
        if rank is None:
            return self.make_whole() if self.is_factored else self.trained
        if self.is_factored and self.rank == rank:
            return self.trained
        like = self.trained.detach()
        return self.factorise(*(like.new_zeros(rows, rank) for rows in (self.rows, rank, self.columns)))

    @property
    def _list(self) -> nn.Module:
        parametrizations = self.module.parametrizations
        assert isinstance(parametrizations, nn.ModuleDict)
        return parametrizations[self.attribute]
