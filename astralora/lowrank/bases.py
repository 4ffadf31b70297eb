"""Orthogonal bases of a matrix: how much of them is left after a while, and how many of them are worth keeping."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ..common.errors import ConfigurationError

__all__ = ["BasisWatch", "basis_overlap", "check_share", "decompose", "in_the_frame_of", "kept_rank"]

# Looks in a row at which the bases must have stayed where they were.
_PATIENCE = 2


def basis_overlap(U1: Tensor, V1: Tensor, U2: Tensor, V2: Tensor) -> float:
    """How far two pairs of bases agree: sum((U1^T U2) * (V1^T V2)) / r, the cosine between U1 V1^T and U2 V2^T.

    It is 1 for the same pair, and does not change where a column of U and that of V turn their signs together, as
    those of a singular value decomposition may. The products U V^T, of the size of the weight, are never formed
    (Coquelin et al., arXiv 2401.08505, section 3).

    Args:
        U1: (m, r1), with orthonormal columns.
        V1: (n, r1), with orthonormal columns.
        U2: (m, r2), with orthonormal columns.
        V2: (n, r2), with orthonormal columns.

    Returns:
        Between -1 and 1; for different ranks r is the root of r1 r2.

    Raises:
        ConfigurationError: the shapes do not belong together.
    """
    shapes = [tuple(factor.shape) for factor in (U1, V1, U2, V2)]
    fits = all(len(shape) == 2 for shape in shapes) and (
        shapes[0][0] == shapes[2][0]
        and shapes[1][0] == shapes[3][0]
        and shapes[0][1] == shapes[1][1] > 0
        and shapes[2][1] == shapes[3][1] > 0
    )
    if not fits:
        raise ConfigurationError(
            f"bases must have the shapes (m, r1), (n, r1), (m, r2), (n, r2), and not {', '.join(map(str, shapes))}"
        )
    return float(((U1.mT @ U2) * (V1.mT @ V2)).sum()) / sqrt(U1.shape[1] * U2.shape[1])


def in_the_frame_of(basis: Tensor, other: Tensor) -> Tensor:
    """The basis of the same space that is closest to another (orthogonal Procrustes): (m, r2), (m, r1) -> (m, r2).

    Where a full core stands between U and V, turning a basis within its space is a matter of the core. Overlaps of
    bases in each other's frame see what their spaces have moved, and nothing of what was mixed within.
    """
    P, _, Q = torch.linalg.svd(basis.mT @ other, full_matrices=False)
    turned: Tensor = basis @ (P @ Q)
    return turned


def kept_rank(s: Tensor, cutoff: float, floor: int = 1) -> int:
    """Singular values to keep: those before the first s_i < cutoff s_0, but no less than half, nor than a floor.

    A spectrum that is flat altogether has nothing below its largest value, and keeps everything.

    Args:
        s: singular values, falling, (r,).
        cutoff: share of the largest.
        floor: the least to keep, where there are as many.
    """
    rank = len(s)
    below = (s < cutoff * s[0]).nonzero()
    first = int(below[0]) if len(below) else rank
    return max(first, (rank + 1) // 2, min(floor, rank))


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, s and V with matrix = U diag(s) V^T, computed in double precision: (m, r), (r,) and (n, r), r = min(m, n)."""
    U, s, Vh = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    return U, s, Vh.mT


class BasisWatch:
    """Tells whether bases have settled: their overlap with those of the last look stays above a threshold.

    Args:
        threshold: of `basis_overlap`; twice in a row it has to be reached.

    Attributes:
        overlap: at the last look; None before the second.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.overlap: float | None = None
        self._bases: tuple[Tensor, Tensor] | None = None
        self._looks = 0  # in a row that the threshold was reached

    @property
    def settled(self) -> bool:
        """Whether the bases have stayed in place for a while."""
        return self._looks >= _PATIENCE

    def look(self, U: Tensor, V: Tensor) -> float | None:
        """Compare bases, (m, r) and (n, r), with those of the last look, and remember them.

        Returns:
            The overlap; None at the first look.
        """
        if self._bases is not None:
            self.note(basis_overlap(*self._bases, U, V))
        self._bases = U, V
        return self.overlap

    def note(self, overlap: float) -> None:
        """Take in an overlap that was found elsewhere."""
        self.overlap = overlap
        self._looks = self._looks + 1 if overlap >= self.threshold else 0

    def forget(self) -> None:
        """Give the memory of the bases free; what was found about them stays."""
        self._bases = None

    def state_dict(self) -> dict[str, Any]:
        """What the next look depends on."""
        return {"overlap": self.overlap, "looks": self._looks, "bases": self._bases}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.overlap, self._looks = state["overlap"], state["looks"]
        self._bases = None if state["bases"] is None else (state["bases"][0].clone(), state["bases"][1].clone())


def check_share(name: str, value: Any, *, least: float = 0.0) -> float:
    """A number that has to be between ``least`` and 1.

    Raises:
        ConfigurationError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= 1:
        raise ConfigurationError(f"{name} must be between {least:g} and 1, not {value!r}")
    return float(value)
