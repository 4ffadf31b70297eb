"""Choose which parts of a low-rank approximation to measure again."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import sqrt
from typing import Any

from torch import Tensor

from ..common.checks import check_share, check_whole
from ..common.errors import ConfigurationError
from .bases import kept_rank

__all__ = ["Refresh", "RefreshController"]


class Refresh(StrEnum):
    """Name the factors of A ~ U Sigma V^T that a refresh measures again, in order of increasing cost."""

    REFIT = "refit"
    """Sigma only, with unchanged bases: r vectors."""
    SPLIT = "split"
    """Sigma and both bases, by one step of projector splitting: 2r + M vectors."""
    REBUILD = "rebuild"
    """All factors, from a full measurement: n vectors."""


class RefreshController:
    """Choose the refresh of a low-rank approximation, and its rank, from its bases and its errors.

    Bases settle early, and the mixing between them continues (Coquelin et al., arXiv 2401.08505). While the bases are
    stable and the drift is small, it is enough to measure Sigma. An error is a share of the amplitude of the answers,
    with noise subtracted. The *floor* is the error right after a refresh, which the limited rank causes. The *drift* is
    the error added since then: drift^2 = error^2 - floor^2.

    `kept_rank` reduces the rank if the error allows it. If the floor is above the tolerance, the rank doubles, and all
    factors are measured again.

    Args:
        rank: initial rank r.
        max_rank: largest rank; four times the initial rank unless given.
        stability_threshold: smallest overlap of stable bases.
        large_drift: largest drift before all factors are measured again.
        tolerance: largest acceptable floor.
        sigma_cutoff_fraction: share of the largest singular value below which singular values may be cut.

    Attributes:
        rank: current rank.
        floor: error right after the last refresh; None before the first.
        counts: number of refreshes so far, by kind.

    Raises:
        ConfigurationError: an argument is outside of its range.
    """

    def __init__(
        self,
        rank: int,
        *,
        max_rank: int | None = None,
        stability_threshold: float = 0.99,
        large_drift: float = 0.5,
        tolerance: float = 0.1,
        sigma_cutoff_fraction: float = 0.01,
    ) -> None:
        self.max_rank = 4 * rank if max_rank is None else max_rank
        for name, value in (("rank", rank), ("max_rank", self.max_rank)):
            check_whole(name, value)
        if self.max_rank < rank:
            raise ConfigurationError(f"max_rank must be at least the rank {rank}, not {max_rank}")
        self.rank = rank
        self.stability_threshold = check_share("stability_threshold", stability_threshold)
        self.large_drift = check_share("large_drift", large_drift)
        self.tolerance = check_share("tolerance", tolerance)
        self.cutoff = check_share("sigma_cutoff_fraction", sigma_cutoff_fraction)
        self.floor: float | None = None
        self.counts = dict.fromkeys(Refresh, 0)
        self._grows = False

    def drift(self, error: float) -> float:
        """Return the error added since the last refresh: sqrt(error^2 - floor^2)."""
        return sqrt(max(error**2 - (self.floor or 0.0) ** 2, 0.0))

    def choose(self, overlap: float, error: float) -> Refresh:
        """Choose which factors to measure again, and count the choice.

        Args:
            overlap: `basis_overlap` of the current bases and the bases that fit the newest data, at most 1.
            error: error on the newest answers, before the refresh.
        """
        if self._grows or self.drift(error) > self.large_drift:
            choice = Refresh.REBUILD
        else:
            choice = Refresh.REFIT if overlap >= self.stability_threshold else Refresh.SPLIT
        self.counts[choice] += 1
        return choice

    def rank_of(self, s: Tensor) -> int:
        """Set and return the rank of a rebuild, from all singular values, (min(m, n),)."""
        limit = min(self.max_rank, len(s))
        if self._grows:
            self.rank = min(2 * self.rank, limit)
        self._grows = False
        self.rank = min(self.rank, limit)
        return self.rank

    def cut(self, s: Tensor) -> int:
        """Return the number of these singular values, (r,), that remain after a cut."""
        return kept_rank(s, self.cutoff)

    def allows(self, error: float, cut_error: float) -> bool:
        """Report whether a cut may raise the error from ``error`` to ``cut_error``."""
        return cut_error <= max(self.tolerance, error)

    def judge(self, choice: Refresh, error: float, rank: int) -> None:
        """Record the result of a refresh, and decide whether the next one raises the rank.

        A refit cannot correct the bases. The error above the floor that remains after it still counts as drift.

        Args:
            choice: kind of the refresh.
            error: error on the newest answers after the refresh.
            rank: rank after the refresh.
        """
        refitted = choice is Refresh.REFIT and self.floor is not None
        self.floor = min(error, self.floor or 0.0) if refitted else error
        self.rank = rank
        self._grows = self.floor > self.tolerance and rank < self.max_rank

    def state_dict(self) -> dict[str, Any]:
        """Return the rank, the floor, the counts and whether the rank is about to grow."""
        return {
            "rank": self.rank,
            "floor": self.floor,
            "grows": self._grows,
            "counts": {str(kind): count for kind, count in self.counts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.rank, self.floor, self._grows = state["rank"], state["floor"], state["grows"]
        self.counts = {Refresh(kind): count for kind, count in state["counts"].items()}
