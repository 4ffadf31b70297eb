"""Compare orthogonal bases of a matrix over time, and choose how many singular values to keep."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ..common.errors import ConfigurationError

__all__ = ["BasisWatch", "align_basis", "basis_overlap", "decompose", "kept_rank"]

# Number of consecutive comparisons that must reach the threshold.
_PATIENCE = 2


def basis_overlap(U1: Tensor, V1: Tensor, U2: Tensor, V2: Tensor) -> float:
    """Measure how well two pairs of bases agree: sum((U1^T U2) * (V1^T V2)) / r.

    The overlap is the cosine between U1 V1^T and U2 V2^T. It is 1 for equal pairs. It does not change when a column of
    U and the same column of V change their signs together, which a singular value decomposition leaves open. The
    products U V^T, of the size of the weight, are never formed (Coquelin et al., arXiv 2401.08505, section 3).

    Args:
        U1: (m, r1), with orthonormal columns.
        V1: (n, r1), with orthonormal columns.
        U2: (m, r2), with orthonormal columns.
        V2: (n, r2), with orthonormal columns.

    Returns:
        Overlap between -1 and 1; r is sqrt(r1 r2) if the ranks differ.

    Raises:
        ConfigurationError: the shapes do not match.
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


def align_basis(basis: Tensor, other: Tensor) -> Tensor:
    """Rotate a basis within its space until it is closest to another basis (orthogonal Procrustes).

    A full core between U and V can undo any rotation of a basis within its space. With aligned bases, `basis_overlap`
    therefore measures how far the spaces have moved, and ignores rotations within them.

    Args:
        basis: (m, r1), with orthonormal columns.
        other: (m, r2), with orthonormal columns.

    Returns:
        The aligned basis, (m, r2).
    """
    P, _, Q = torch.linalg.svd(basis.mT @ other, full_matrices=False)
    aligned: Tensor = basis @ (P @ Q)
    return aligned


def kept_rank(s: Tensor, cutoff: float, floor: int = 1) -> int:
    """Count the singular values to keep: all before the first s_i < cutoff s_0, but at least half and ``floor``.

    All are kept if none is below the cutoff, as in a flat spectrum.

    Args:
        s: singular values, from the largest to the smallest, (r,).
        cutoff: cutoff as a share of the largest singular value.
        floor: smallest number to keep, if r is not smaller.
    """
    rank = len(s)
    below = (s < cutoff * s[0]).nonzero()
    first = int(below[0]) if len(below) else rank
    return max(first, (rank + 1) // 2, min(floor, rank))


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s and V of matrix = U diag(s) V^T in double precision: (m, r), (r,) and (n, r), r = min(m, n)."""
    U, s, Vh = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    return U, s, Vh.mT


class BasisWatch:
    """Detect that bases have settled: their overlap with the previous bases reaches a threshold twice in a row.

    Args:
        threshold: smallest `basis_overlap` of settled bases.

    Attributes:
        overlap: overlap at the last comparison; None before the first.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.overlap: float | None = None
        self._bases: tuple[Tensor, Tensor] | None = None
        self._stable_count = 0  # consecutive comparisons that reached the threshold

    @property
    def settled(self) -> bool:
        """Report whether the last two comparisons reached the threshold."""
        return self._stable_count >= _PATIENCE

    def compare(self, U: Tensor, V: Tensor) -> float | None:
        """Compare bases, (m, r) and (n, r), with the bases of the previous call, and store them.

        Returns:
            The overlap; None at the first call.
        """
        if self._bases is not None:
            self.record_overlap(basis_overlap(*self._bases, U, V))
        self._bases = U, V
        return self.overlap

    def record_overlap(self, overlap: float) -> None:
        """Record an overlap that the caller has computed, as one comparison."""
        self.overlap = overlap
        self._stable_count = self._stable_count + 1 if overlap >= self.threshold else 0

    def release_bases(self) -> None:
        """Free the memory of the stored bases, and keep the overlap and the count."""
        self._bases = None

    def state_dict(self) -> dict[str, Any]:
        """Return the overlap, the count and the stored bases."""
        return {"overlap": self.overlap, "looks": self._stable_count, "bases": self._bases}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.overlap, self._stable_count = state["overlap"], state["looks"]
        self._bases = None if state["bases"] is None else (state["bases"][0].clone(), state["bases"][1].clone())
