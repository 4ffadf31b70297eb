"""The decision how much of a low-rank likeness has to be found anew."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import sqrt
from typing import Any

from torch import Tensor

from ..common.errors import ConfigurationError
from .bases import check_share, kept_rank

__all__ = ["Refresh", "RefreshController"]


class Refresh(StrEnum):
    """What is found anew of A ~ U Sigma V^T, from the cheapest on."""

    REFIT = "refit"
    """Sigma alone, in bases that have stayed: r vectors."""
    SPLIT = "split"
    """The bases too, by one step of projector splitting: 2r + M vectors."""
    REBUILD = "rebuild"
    """Everything, from a measurement: n vectors."""


class RefreshController:
    """Chooses the refresh of a low-rank likeness, and its rank, by what its bases and its errors do.

    Bases settle early, mixing goes on (Coquelin et al., arXiv 2401.08505): while bases stay and the drift is small,
    Sigma alone is worth asking for. Errors are shares of the amplitude of the answers, noise aside. What is left right
    after a refresh is the *floor*, that of the rank; the *drift* is what has come on top since:
    drift^2 = error^2 - floor^2.

    The rank falls by the cut of `kept_rank`, where the error allows it, and doubles by way of a rebuild where the floor
    is above the tolerance.

    Args:
        rank: r to begin with.
        max_rank: the most that it may grow to; four times the rank unless given.
        stability_threshold: overlap of the bases from which on they count as stable.
        large_drift: beyond, everything is measured anew.
        tolerance: floor that is good enough.
        sigma_cutoff_fraction: singular values below this share of the largest may be cut.

    Attributes:
        rank: at present.
        floor: error right after the last refresh; None before the first.
        counts: refreshes so far, by kind.

    Raises:
        ConfigurationError: for numbers that mean nothing.
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
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.max_rank < rank:
            raise ConfigurationError(f"max_rank must be no less than the rank of {rank}, and {max_rank} is")
        self.rank = rank
        self.stability_threshold = check_share("stability_threshold", stability_threshold)
        self.large_drift = check_share("large_drift", large_drift)
        self.tolerance = check_share("tolerance", tolerance)
        self.cutoff = check_share("sigma_cutoff_fraction", sigma_cutoff_fraction)
        self.floor: float | None = None
        self.counts = dict.fromkeys(Refresh, 0)
        self._grows = False

    def drift(self, error: float) -> float:
        """What has come on top of the floor: sqrt(error^2 - floor^2)."""
        return sqrt(max(error**2 - (self.floor or 0.0) ** 2, 0.0))

    def choose(self, overlap: float, error: float) -> Refresh:
        """What to find anew.

        Args:
            overlap: `basis_overlap` of the bases with those that the newest data suggest, at most 1.
            error: of the newest answers, before anything is done about it.
        """
        if self._grows or self.drift(error) > self.large_drift:
            choice = Refresh.REBUILD
        else:
            choice = Refresh.REFIT if overlap >= self.stability_threshold else Refresh.SPLIT
        self.counts[choice] += 1
        return choice

    def rank_of(self, s: Tensor) -> int:
        """The rank that a rebuild is to have, from all singular values, (min(m, n),)."""
        limit = min(self.max_rank, len(s))
        if self._grows:
            self.rank = min(2 * self.rank, limit)
        self._grows = False
        self.rank = min(self.rank, limit)
        return self.rank

    def cut(self, s: Tensor) -> int:
        """The rank that is left of these singular values, (r,)."""
        return kept_rank(s, self.cutoff)

    def allows(self, error: float, cut_error: float) -> bool:
        """Whether a cut that brings the error from one to the other does no harm."""
        return cut_error <= max(self.tolerance, error)

    def judge(self, choice: Refresh, error: float, rank: int) -> None:
        """See what a refresh has left: its error on the newest answers, and the rank that was kept.

        A refit cannot take back what the bases have lost: what it leaves above the floor goes on counting as drift.
        """
        refitted = choice is Refresh.REFIT and self.floor is not None
        self.floor = min(error, self.floor or 0.0) if refitted else error
        self.rank = rank
        self._grows = self.floor > self.tolerance and rank < self.max_rank

    def state_dict(self) -> dict[str, Any]:
        """What the next choice depends on."""
        return {
            "rank": self.rank,
            "floor": self.floor,
            "grows": self._grows,
            "counts": {str(kind): count for kind, count in self.counts.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.rank, self.floor, self._grows = state["rank"], state["floor"], state["grows"]
        self.counts = {Refresh(kind): count for kind, count in state["counts"].items()}
