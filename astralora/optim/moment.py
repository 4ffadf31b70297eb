"""Momentum that is kept in a random subspace, and moves along with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .projection import Projection

__all__ = ["advance", "compressed_shape", "is_compressed"]

# Of longer to shorter side: beyond, C is hardly smaller than the weight for its number of rows.
_MOST_ELONGATED = 4


def is_compressed(shape: Sequence[int], options: Mapping[str, Any]) -> bool:
    """Whether the momentum of a weight is kept compressed: matrices that are not too long, of rank enough.

    Args:
        shape: of the weight.
        options: ``rank`` and ``beta1`` of its group.
    """
    rank = options["rank"]
    if not options["beta1"] or rank is None or len(shape) != 2:
        return False
    return rank <= min(shape) and max(shape) <= _MOST_ELONGATED * min(shape)


def compressed_shape(rank: int, shape: Sequence[int]) -> tuple[int, int]:
    """Of C: r max(n, m) numbers for a matrix of n x m."""
    n, m = shape
    return (rank, m) if n < m else (n, rank)


def advance(
    compressed: Tensor, update: Tensor, beta1: float, here: Projection, there: Projection | None = None
) -> tuple[Tensor, Tensor]:
    """One step of momentum in a subspace: algorithm 2 of arXiv 2402.03293.

        out = (1 - beta1) u + beta1 up(C)
        C  <- down_new(up_old(C))               where the subspace moves
        C  <- beta1 C + (1 - beta1) down(u)

    With an exact projection ``out`` is the exponential moving average of all u.

    Args:
        compressed: C, in the subspace ``here``.
        update: u, (n, m).
        beta1: decay of the average.
        here: the subspace.
        there: the subspace to move to, if any.

    Returns:
        The averaged update, (n, m), and the new C.
    """
    dense = here.up(compressed)
    averaged = update.lerp(dense, beta1)
    if there is not None:
        compressed, here = there.down(dense), there
    return averaged, here.down(update).lerp(compressed, beta1)
