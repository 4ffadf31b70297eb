"""Fit the crosstalk kernel of neighbouring controls, from settings in which all controls move."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, sqrt

import torch
from torch import Tensor

__all__ = ["REACH", "CrosstalkFit"]

REACH = 2
"""Largest distance of a neighbour, along both axes."""

# Number of coefficients of an entry's curve: a cubic, or a quintic where there are enough settings for it and it
# leaves clearly smaller squares.
_CUBIC, _QUINTIC = 4, 6
_MANY = 30
_BETTER = 0.8

_ROUNDS = 5
# Squared slopes with a smaller share above the noise do not resolve the effect of neighbours.
_LEAST_SLOPE = 0.2
# Relative eigenvalues below this mean that all moves are on the same codes.
_DISTINCT = 1e-8
# Number of candidates for which the gain is computed exactly.
_BEST = 64


class CrosstalkFit:
    """Fit entries of the transfer matrix that depend on their own control and, weakly, on its neighbours.

        y_ps = f_p(u_ps),   u_ps = m_ps + sum_d k_d m_(p+d)s

    for the entry p at the setting s, with moves m, a polynomial f_p for each entry, and one kernel k. Gauss-Newton
    steps alternate: they fit the curves for the current kernel, and then the kernel for the current curves. The slopes
    are estimates, so their squares contain their noise. It is subtracted, because the kernel would otherwise be too
    small.

    Args:
        entries: entries y, (settings, controls).
        moves: moves m, of about unit size, (settings, controls).
        grid: number of rows and columns of the controls.
        error: standard error of an entry.

    Attributes:
        kernel: kernel k by distance in rows and columns, (2 REACH + 1, 2 REACH + 1), with 1 in the middle.
        errors: standard errors of the kernel; infinite where it is not resolved.
        residual: residual of the entries, (settings, controls).
        error: standard error of an entry.
        curve: number of coefficients of the curve of an entry.
        slopes: root mean square slope of each entry, (controls,).
    """

    def __init__(self, entries: Tensor, moves: Tensor, grid: tuple[int, int], error: float) -> None:
        self._entries, self.error = entries, error
        self.curve = _CUBIC
        if len(entries) >= _MANY:
            squares = []
            for count in (_CUBIC, _QUINTIC):
                residual = _residual(torch.linalg.qr(_powers(moves, count)).Q, entries)
                squares.append(float(residual.square().sum()) / (len(entries) - count))
            self.curve = _QUINTIC if squares[1] < _BETTER * squares[0] else _CUBIC
        size = 2 * REACH + 1
        self.kernel = torch.zeros(size, size, dtype=torch.float64)
        self.errors = torch.full((size, size), inf, dtype=torch.float64)
        self.kernel[REACH, REACH], self.errors[REACH, REACH] = 1.0, 0.0
        places = [(i, j) for i in range(size) for j in range(size) if (i, j) != (REACH, REACH)]
        places = [(i, j) for i, j in places if abs(i - REACH) < grid[0] and abs(j - REACH) < grid[1]]
        for _ in range(_ROUNDS):
            self._crosstalk = torch.zeros_like(moves)
            for i, j in places:
                self._crosstalk += self.kernel[i, j] * _shifted(moves, grid, i - REACH, j - REACH)
            self._fit(moves + self._crosstalk)
            found = {place: self._step(_shifted(moves, grid, place[0] - REACH, place[1] - REACH)) for place in places}
            for place, (change, spread) in found.items():
                self.kernel[place] += change
                self.errors[place] = spread
        self.slopes = self._slopes.square().mean(dim=0).sqrt()

    def strongest(self, count: int) -> Tensor:
        """Return the controls whose entries change most; the other controls would only add noise."""
        best: Tensor = self.slopes.topk(min(count, len(self.slopes))).indices
        return best

    def residual_with(self, moves: Tensor, which: Tensor) -> tuple[float, float, float]:
        """Fit some entries again, with other moves of their controls.

        Returns:
            Sum of squared residuals; number of fitted coefficients; and the variance of the difference to the current
            fit that noise alone causes: 2 tr (P - P0)^2, in units of the squared noise, with the projectors P and P0 of
            both fits.
        """
        basis = _powers(moves + self._crosstalk[:, which], self.curve)
        values = self._entries[:, which].mT.unsqueeze(-1)
        normal, slope = basis.mT @ basis, basis.mT @ values
        # A control that stays on one or two codes determines fewer coefficients.
        inverse = torch.linalg.pinv(normal, hermitian=True, rtol=_DISTINCT)
        residual = values.square().sum() - (slope * (inverse @ slope)).sum()
        fitted = float((inverse * normal).sum())
        shared = self._basis[which].mT @ basis
        common = float(((shared @ inverse) * shared).sum())
        return float(residual.clamp_min(0)), fitted, 2 * max(fitted + self.curve * len(which) - 2 * common, 0.0)

    def gains(self, off: Callable[[int], Tensor], levels: range, which: Tensor) -> Tensor:
        """Return the decrease of squared residuals if controls deviate by ``off``, by candidate: (len(levels),).

        The decrease is exact for the best candidates. For the others, it assumes that the curves absorb the mean share
        of a sawtooth.

        Args:
            off: function of a number of levels that returns the deviation, (settings, len(which)).
            levels: candidate numbers of levels.
            which: controls to use.
        """
        slopes, residual, basis = self._slopes[:, which], self.residual[:, which], self._basis[which]
        free = 1 - self.curve / len(residual)
        found = torch.empty(len(levels), dtype=torch.float64)
        for place, count in enumerate(levels):
            saw = off(count) * slopes
            found[place] = 2 * torch.vdot(saw.flatten(), residual.flatten()) - free * saw.square().sum()
        for place in found.topk(min(_BEST, len(found))).indices.tolist():
            saw = _residual(basis, off(levels[place]) * slopes)
            found[place] = 2 * (saw * residual).sum() - saw.square().sum()
        return found

    def _fit(self, acted: Tensor) -> None:
        """Fit the curve of every entry to the moves with crosstalk."""
        powers = _powers(acted, self.curve)
        self._basis, triangle = torch.linalg.qr(powers)
        values = self._entries.mT.unsqueeze(-1)
        # A control that stays on one code of its converter has no curve.
        inverse = torch.linalg.pinv(triangle, rtol=1e-7)
        self._curves = (inverse @ (self._basis.mT @ values))[..., 0]  # (controls, curve)
        self._covariance = inverse @ inverse.mT
        x = acted.mT
        self._derivatives = torch.stack([n * x ** max(n - 1, 0) for n in range(self.curve)], dim=-1)
        self._slopes = (self._derivatives @ self._curves.unsqueeze(-1))[..., 0].mT  # (settings, controls)
        self.residual = _residual(self._basis, self._entries)

    def _step(self, neighbours: Tensor) -> tuple[float, float]:
        """Return the Gauss-Newton step of a kernel entry, and its standard error."""
        expected = _residual(self._basis, neighbours * self._slopes)
        # The noise of the slopes adds tr(C D^T M D) to their squares, with M = X (1 - Q Q^T) X.
        moved = neighbours.mT.unsqueeze(-1) * self._derivatives
        free = moved - self._basis @ (self._basis.mT @ moved)
        # Scatter that is not noise, such as the sawtooth of a converter, also adds to the error of the slopes.
        freedom = len(self.residual) - self.curve
        scatter = (self.residual.square().sum(dim=0) / freedom).clamp_min(self.error**2)
        blur = ((self._covariance * (moved.mT @ free)).sum(dim=(1, 2)) * scatter).sum()
        raw = float(expected.square().sum())
        power = raw - float(blur)
        if power <= _LEAST_SLOPE * raw or raw == 0.0:
            return 0.0, inf
        spread = max(
            self.error**2 * raw,
            float((expected.square() * self.residual.square()).sum()) * len(self.residual) / freedom,
        )
        return float((expected * self.residual).sum()) / power, sqrt(spread) / power


def _powers(moves: Tensor, count: int) -> Tensor:
    """Return powers 0 ... count - 1 of moves (settings, controls): (controls, settings, count)."""
    return torch.stack([moves**power for power in range(count)], dim=-1).movedim(1, 0)


def _residual(basis: Tensor, values: Tensor) -> Tensor:
    """Return the residual of a fit: basis (controls, count, k) and values (count, controls) -> (count, controls)."""
    columns = values.mT.unsqueeze(-1)
    residual: Tensor = (columns - basis @ (basis.mT @ columns))[..., 0].mT
    return residual


def _shifted(moves: Tensor, grid: tuple[int, int], down: int, right: int) -> Tensor:
    """Return the moves of the control at this offset before each control; 0 beyond the edge."""
    rows, columns = grid
    source = moves.view(-1, rows, columns)
    shifted = torch.zeros_like(source)
    to = slice(max(down, 0), rows + min(down, 0)), slice(max(right, 0), columns + min(right, 0))
    of = slice(max(-down, 0), rows + min(-down, 0)), slice(max(-right, 0), columns + min(-right, 0))
    shifted[:, to[0], to[1]] = source[:, of[0], of[1]]
    return shifted.flatten(1)
