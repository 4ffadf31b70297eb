"""Random projections that compress one side of a matrix, made from a seed whenever they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Self

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import derive_generator

__all__ = ["PROJECTIONS", "Projection", "check_projection"]


@dataclass(frozen=True, slots=True)
class Projection:
    """A random r-dimensional view P of the smaller side of an n x m matrix, d = min(n, m), with E[P^T P] = I.

    C = P G where n < m, else C = G P^T; back with the transpose (Hao, Cao and Mou, arXiv 2402.03293, section 2.3). The
    way there and back is unbiased, E[P^T P G] = G.

    Attributes:
        matrix: P, (rank, d).
        tall: the matrix has no fewer rows than columns, and its columns are compressed.
    """

    matrix: Tensor
    tall: bool

    @classmethod
    def draw(cls, kind: str, rank: int, shape: tuple[int, int], seed: int, *purpose: str | int, like: Tensor) -> Self:
        """The projection of this seed and purpose: the same on every machine, and on every kind of accelerator.

        Args:
            kind: one of `PROJECTIONS`.
            rank: r, at most d.
            shape: n and m.
            seed: of all projections of one user.
            *purpose: what this one is for.
            like: the tensor whose dtype and device it gets.
        """
        n, m = shape
        matrix = PROJECTIONS[kind](rank, min(n, m), derive_generator(seed, "projection", *purpose))
        return cls(matrix.to(like), tall=n >= m)

    def down(self, matrix: Tensor) -> Tensor:
        """Compress: (n, m) -> (rank, m) where n < m, else (n, rank)."""
        return matrix @ self.matrix.mT if self.tall else self.matrix @ matrix

    def up(self, compressed: Tensor) -> Tensor:
        """Decompress: (rank, m) or (n, rank) -> (n, m)."""
        return compressed @ self.matrix if self.tall else self.matrix.mT @ compressed


def check_projection(kind: object) -> None:
    """Refuse a projection that there is not.

    Raises:
        ConfigurationError: names those that there are.
    """
    if kind not in PROJECTIONS:
        raise ConfigurationError(f"projection must be {' or '.join(map(repr, PROJECTIONS))}, not {kind!r}")


def _gaussian(rank: int, d: int, generator: torch.Generator) -> Tensor:
    """Entries N(0, 1) / sqrt(r): |P^T P g - g|^2 is (d + 1) / r times |g|^2 on average."""
    return torch.randn(rank, d, generator=generator) / sqrt(rank)


def _orthonormal(rank: int, d: int, generator: torch.Generator) -> Tensor:
    """sqrt(d / r) Q, Q uniform among r orthonormal rows: d / r - 1 in place of (d + 1) / r, and exact at r = d."""
    # In double precision, so that what two machines' libraries differ by is rounded away.
    q, upper = torch.linalg.qr(torch.randn(d, rank, generator=generator, dtype=torch.float64))
    # With a positive diagonal the factorisation is unique, and Q uniform (Mezzadri 2007).
    rows: Tensor = q.mul_(sqrt(d / rank) * upper.diagonal().sign()).mT
    return rows


PROJECTIONS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "gaussian": _gaussian,
    "orthonormal": _orthonormal,
}
"""Ways to draw P, (rank, d), by name."""
