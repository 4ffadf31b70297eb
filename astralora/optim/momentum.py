"""Keep the momentum of a weight in a random subspace that changes from time to time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .projection import Projection

__all__ = ["compressed_shape", "is_compressed", "step_momentum"]

# Largest ratio of the longer to the shorter side; beyond it, the compressed momentum is hardly smaller than the weight.
_MAX_ASPECT_RATIO = 4


def is_compressed(shape: Sequence[int], options: Mapping[str, Any]) -> bool:
    """Report whether the momentum of a weight is compressed.

    It is compressed for matrices with min(n, m) >= rank and max(n, m) <= 4 min(n, m).

    Args:
        shape: shape of the weight.
        options: ``rank`` and ``beta1`` of the weight's group.
    """
    rank = options["rank"]
    if not options["beta1"] or rank is None or len(shape) != 2:
        return False
    return rank <= min(shape) and max(shape) <= _MAX_ASPECT_RATIO * min(shape)


def compressed_shape(rank: int, shape: Sequence[int]) -> tuple[int, int]:
    """Return the shape of the compressed momentum C: r max(n, m) numbers for a matrix of n x m."""
    n, m = shape
    return (rank, m) if n < m else (n, rank)


def step_momentum(
    compressed: Tensor, update: Tensor, beta1: float, here: Projection, there: Projection | None = None
) -> tuple[Tensor, Tensor]:
    """Compute one step of momentum in a subspace: algorithm 2 of arXiv 2402.03293.

        out = (1 - beta1) u + beta1 up(C)
        C  <- down_new(up_old(C))               if the subspace moves
        C  <- beta1 C + (1 - beta1) down(u)

    With an exact projection, ``out`` is the exponential moving average of all u.

    Args:
        compressed: compressed momentum C, in the subspace ``here``.
        update: update u, (n, m).
        beta1: decay of the average.
        here: current subspace.
        there: new subspace, if the subspace moves.

    Returns:
        The averaged update, (n, m), and the new C.
    """
    dense = here.up(compressed)
    averaged = update.lerp(dense, beta1)
    if there is not None:
        compressed, here = there.down(dense), there
    return averaged, here.down(update).lerp(compressed, beta1)
