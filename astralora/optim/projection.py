"""Compress one side of a matrix by random projections, which are drawn from a seed when needed."""

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
    """Compress the smaller side of an n x m matrix by a random P of r rows, d = min(n, m), with E[P^T P] = I.

    C = P G if n < m, else C = G P^T; the transpose decompresses (Hao, Cao and Mou, arXiv 2402.03293, section 2.3).
    Compression and decompression together are unbiased, E[P^T P G] = G.

    Attributes:
        matrix: projection P, (rank, d).
        tall: whether n >= m, so that the columns are compressed.
    """

    matrix: Tensor
    tall: bool

    @classmethod
    def draw(cls, kind: str, rank: int, shape: tuple[int, int], seed: int, *purpose: str | int, like: Tensor) -> Self:
        """Draw the projection for a seed and a purpose; it is the same on every machine and torch device.

        Args:
            kind: one of `PROJECTIONS`.
            rank: rank r, at most d.
            shape: n and m.
            seed: seed of all projections of one optimizer or compressor.
            *purpose: words and numbers that identify this projection.
            like: tensor of the dtype and torch device of the result.
        """
        n, m = shape
        matrix = PROJECTIONS[kind](rank, min(n, m), derive_generator(seed, "projection", *purpose))
        return cls(matrix.to(like), tall=n >= m)

    def down(self, matrix: Tensor) -> Tensor:
        """Compress a matrix: (n, m) -> (rank, m) if n < m, else (n, rank)."""
        return matrix @ self.matrix.mT if self.tall else self.matrix @ matrix

    def up(self, compressed: Tensor) -> Tensor:
        """Decompress a matrix: (rank, m) or (n, rank) -> (n, m)."""
        return compressed @ self.matrix if self.tall else self.matrix.mT @ compressed


def check_projection(kind: object) -> None:
    """Refuse an unknown kind of projection.

    Raises:
        ConfigurationError: the kind is not in `PROJECTIONS`; the message lists them.
    """
    if kind not in PROJECTIONS:
        raise ConfigurationError(f"projection must be {' or '.join(map(repr, PROJECTIONS))}, not {kind!r}")


def _gaussian(rank: int, d: int, generator: torch.Generator) -> Tensor:
    """Draw entries N(0, 1) / sqrt(r): |P^T P g - g|^2 is (d + 1) / r times |g|^2 on average."""
    return torch.randn(rank, d, generator=generator) / sqrt(rank)


def _orthonormal(rank: int, d: int, generator: torch.Generator) -> Tensor:
    """Draw sqrt(d / r) Q with uniform orthonormal rows Q: d / r - 1 in place of (d + 1) / r, and exact at r = d."""
    # Rounding from double precision removes small differences between the libraries of two machines.
    q, upper = torch.linalg.qr(torch.randn(d, rank, generator=generator, dtype=torch.float64))
    # With a positive diagonal the factorisation is unique, and Q uniform (Mezzadri 2007).
    rows: Tensor = q.mul_(sqrt(d / rank) * upper.diagonal().sign()).mT
    return rows


PROJECTIONS: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {
    "gaussian": _gaussian,
    "orthonormal": _orthonormal,
}
"""Functions that draw P, (rank, d), by name."""
