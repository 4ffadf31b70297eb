"""What neighbouring controls do to the entry of each: one kernel for all, from settings in which everything moved."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, sqrt

import torch
from torch import Tensor

__all__ = ["REACH", "Leak"]

REACH = 2
"""Neighbours this far away, along both axes, are looked at."""

# Numbers that describe an entry's curve: those of a cubic, and more where there are settings for them.
_CUBIC, _QUINTIC = 4, 6
_MANY = 30
_BETTER = 0.8

_ROUNDS = 5
# A share of the slopes' squares, noise aside, below which they say nothing of what neighbours do.
_CLEAR = 0.2
# Relative eigenvalues below which moves are all on the same codes.
_DISTINCT = 1e-8
_BEST = 64


class Leak:
    """Entries that follow their own control and, weakly, its neighbours.

        y_ps = f_p(u_ps),   u_ps = m_ps + sum_d k_d m_(p+d)s

    for the entry p at the setting s, with moves m, a polynomial f_p of each entry's own, and one kernel k. Gauss-Newton
    by turns: curves for the kernel at hand, then the kernel for the curves. Slopes that are themselves estimates are
    noise squared where they meet themselves; that is subtracted, or a kernel would come out too small.

    Args:
        entries: y, (settings, controls).
        moves: m, about one in size, (settings, controls).
        grid: rows and columns of the controls.
        error: standard error of an entry.

    Attributes:
        kernel: k, by rows and columns away, (2 REACH + 1, 2 REACH + 1), one in the middle.
        errors: standard errors; infinite where nothing can be said.
        left: what is left of the entries, (settings, controls).
        error: as given.
        curve: numbers that describe the curve of an entry.
    """

    def __init__(self, entries: Tensor, moves: Tensor, grid: tuple[int, int], error: float) -> None:
        self._entries, self.error = entries, error
        self.curve = _CUBIC
        if len(entries) >= _MANY:
            squares = []
            for count in (_CUBIC, _QUINTIC):
                left = _without(torch.linalg.qr(_powers(moves, count)).Q, entries)
                squares.append(float(left.square().sum()) / (len(entries) - count))
            self.curve = _QUINTIC if squares[1] < _BETTER * squares[0] else _CUBIC
        size = 2 * REACH + 1
        self.kernel = torch.zeros(size, size, dtype=torch.float64)
        self.errors = torch.full((size, size), inf, dtype=torch.float64)
        self.kernel[REACH, REACH], self.errors[REACH, REACH] = 1.0, 0.0
        places = [(i, j) for i in range(size) for j in range(size) if (i, j) != (REACH, REACH)]
        places = [(i, j) for i, j in places if abs(i - REACH) < grid[0] and abs(j - REACH) < grid[1]]
        for _ in range(_ROUNDS):
            self._beside = torch.zeros_like(moves)
            for i, j in places:
                self._beside += self.kernel[i, j] * _shifted(moves, grid, i - REACH, j - REACH)
            self._fit(moves + self._beside)
            found = {place: self._step(_shifted(moves, grid, place[0] - REACH, place[1] - REACH)) for place in places}
            for place, (change, spread) in found.items():
                self.kernel[place] += change
                self.errors[place] = spread
        self.slopes = self._slopes.square().mean(dim=0).sqrt()

    def strongest(self, count: int) -> Tensor:
        """The controls whose entries move most: the others only add noise."""
        best: Tensor = self.slopes.topk(min(count, len(self.slopes))).indices
        return best

    def left_with(self, moves: Tensor, which: Tensor) -> tuple[float, float, float]:
        """What would be left of some entries, had their own controls moved like this.

        Returns:
            Squares; numbers that were fitted; and the variance of what noise alone makes of the difference of both
            fits, 2 tr (P - P0)^2 in squares of the noise, with their projectors P.
        """
        basis = _powers(moves + self._beside[:, which], self.curve)
        values = self._entries[:, which].mT.unsqueeze(-1)
        normal, slope = basis.mT @ basis, basis.mT @ values
        # Controls that stay on one code, or two, have fewer numbers to be described by.
        inverse = torch.linalg.pinv(normal, hermitian=True, rtol=_DISTINCT)
        left = values.square().sum() - (slope * (inverse @ slope)).sum()
        fitted = float((inverse * normal).sum())
        shared = self._basis[which].mT @ basis
        common = float(((shared @ inverse) * shared).sum())
        return float(left.clamp_min(0)), fitted, 2 * max(fitted + self.curve * len(which) - 2 * common, 0.0)

    def gains(self, off: Callable[[int], Tensor], levels: range, which: Tensor) -> Tensor:
        """By how much less would be left with controls that were off by as little as ``off`` says: (len(levels),).

        Of all candidates about, that is with the usual share of a saw in a curve; of the best, exactly.

        Args:
            off: of a number of levels: (settings, len(which)).
            levels: candidates.
            which: the controls to go by.
        """
        slopes, left, basis = self._slopes[:, which], self.left[:, which], self._basis[which]
        free = 1 - self.curve / len(left)
        found = torch.empty(len(levels), dtype=torch.float64)
        for place, count in enumerate(levels):
            saw = off(count) * slopes
            found[place] = 2 * torch.vdot(saw.flatten(), left.flatten()) - free * saw.square().sum()
        for place in found.topk(min(_BEST, len(found))).indices.tolist():
            saw = _without(basis, off(levels[place]) * slopes)
            found[place] = 2 * (saw * left).sum() - saw.square().sum()
        return found

    def _fit(self, acted: Tensor) -> None:
        powers = _powers(acted, self.curve)
        self._basis, triangle = torch.linalg.qr(powers)
        values = self._entries.mT.unsqueeze(-1)
        # A control that hardly moved has no curve: of its converter there is one code within reach.
        inverse = torch.linalg.pinv(triangle, rtol=1e-7)
        self._curves = (inverse @ (self._basis.mT @ values))[..., 0]  # (controls, curve)
        self._covariance = inverse @ inverse.mT
        x = acted.mT
        self._derivatives = torch.stack([n * x ** max(n - 1, 0) for n in range(self.curve)], dim=-1)
        self._slopes = (self._derivatives @ self._curves.unsqueeze(-1))[..., 0].mT  # (settings, controls)
        self.left = _without(self._basis, self._entries)

    def _step(self, neighbours: Tensor) -> tuple[float, float]:
        """How much of these moves is still in what is left, and the standard error of that."""
        expected = _without(self._basis, neighbours * self._slopes)
        # What the slopes' own noise adds to their squares: tr(C D^T M D), M = X (1 - Q Q^T) X.
        moved = neighbours.mT.unsqueeze(-1) * self._derivatives
        free = moved - self._basis @ (self._basis.mT @ moved)
        # Scatter that is not noise, such as of saws, blurs slopes as well.
        freedom = len(self.left) - self.curve
        scatter = (self.left.square().sum(dim=0) / freedom).clamp_min(self.error**2)
        blur = ((self._covariance * (moved.mT @ free)).sum(dim=(1, 2)) * scatter).sum()
        raw = float(expected.square().sum())
        power = raw - float(blur)
        if power <= _CLEAR * raw or raw == 0.0:
            return 0.0, inf
        spread = max(
            self.error**2 * raw, float((expected.square() * self.left.square()).sum()) * len(self.left) / freedom
        )
        return float((expected * self.left).sum()) / power, sqrt(spread) / power


def _powers(moves: Tensor, count: int) -> Tensor:
    """Of moves (settings, controls): (controls, settings, count)."""
    return torch.stack([moves**power for power in range(count)], dim=-1).movedim(1, 0)


def _without(basis: Tensor, values: Tensor) -> Tensor:
    """What a fit by these functions leaves: (controls, count, k) and (count, controls) -> (count, controls)."""
    columns = values.mT.unsqueeze(-1)
    left: Tensor = (columns - basis @ (basis.mT @ columns))[..., 0].mT
    return left


def _shifted(moves: Tensor, grid: tuple[int, int], down: int, right: int) -> Tensor:
    """What the control so many rows and columns before each place did; nothing beyond the edge."""
    rows, columns = grid
    source = moves.view(-1, rows, columns)
    shifted = torch.zeros_like(source)
    to = slice(max(down, 0), rows + min(down, 0)), slice(max(right, 0), columns + min(right, 0))
    of = slice(max(-down, 0), rows + min(-down, 0)), slice(max(-right, 0), columns + min(-right, 0))
    shifted[:, to[0], to[1]] = source[:, of[0], of[1]]
    return shifted.flatten(1)
