"""Improve measured slopes by a fit to elements of the same device with similar settings."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import Range

__all__ = ["pool_slopes"]

# A group needs many more elements than the fit has terms. More than _FITTED entries do not improve the fit.
_GROUP = 128
_MOST_GROUPS = 64
_FITTED = _GROUP * _MOST_GROUPS
_LEAST = 16


def pool_slopes(
    slopes: Tensor,
    variance: float,
    controls: Tensor,
    entries: Tensor,
    signs: Tensor,
    step: float,
    bounds: Range,
    generator: torch.Generator,
) -> Tensor:
    """Reduce the noise and the curvature error of one-sided slopes of many similar elements.

    Elements are grouped by their setting w. Within a group, the measured slope is fitted by least squares as

        D = c0 + c1 (w - <w>) + c2 (A - <A>) + s (c3 + c4 (w - <w>) + c5 (A - <A>)).

    The entry A represents the offset of the element. The terms with the sign s of the step describe the error of a
    one-sided difference by curvature, and are removed. The residual is reduced by its share of measurement noise
    (James-Stein): D <- fit + max(0, 1 - variance / mean residual^2) (D - fit). So elements that differ from their group
    by more than the noise keep their own slopes, and other elements get the slope of their group.

    Args:
        slopes: slopes D, measured with steps of signs s, (num_controls,).
        variance: variance of the noise on one slope.
        controls: controls w, (num_controls,).
        entries: matrix entries A at w, (num_controls,).
        signs: signs s of the steps, +1 or -1, (num_controls,).
        step: size of the steps.
        bounds: range of the controls.
        generator: random stream that chooses a sample of elements to fit, if there are very many.

    Returns:
        Improved slopes, (num_controls,); unchanged if there are too few elements.
    """
    low, high = bounds
    # A group is at least two steps wide, because all steps near an end of the range have the same sign.
    groups = min(len(slopes) // _GROUP, _MOST_GROUPS, int((high - low) / (2 * step)))
    if groups < 2:
        return slopes
    group = ((controls - low) * (groups / (high - low))).long().clamp_(0, groups - 1)
    sums = _GroupSums(group, groups, generator)
    members = sums.of(torch.ones_like(slopes)).clamp_min(1)
    columns = torch.stack([controls, entries, signs], dim=1)
    centre = sums.of(columns) / members.unsqueeze(1)
    terms, scale = _terms(columns - centre[group], signs, sums)
    coefficients = _fit(terms, slopes, members, sums)
    fit = (terms * coefficients[group]).sum(dim=1)
    freedom = (members - terms.shape[1]).clamp_min(1)
    spread = sums.of((slopes - fit).square()) / freedom
    trust = (1 - variance / spread.clamp_min(1e-30)).clamp(0, 1)
    residual = trust[group] * (slopes - fit)
    # The fit for a step of size zero has no sign terms, and s = 0 instead of the mean of the group.
    without_step = terms.clone()
    without_step[:, 3] = -centre[group, 2] / scale[3]
    without_step[:, 4:] = 0
    pooled = (without_step * coefficients[group]).sum(dim=1) + residual
    return torch.where(members[group] >= _LEAST, pooled, slopes)


class _GroupSums:
    """Sum values over the elements of each group, or over a random sample of elements if there are very many.

    Args:
        group: group of each element, (num_controls,).
        groups: number of groups.
        generator: random stream of the sample.
    """

    def __init__(self, group: Tensor, groups: int, generator: torch.Generator) -> None:
        self._groups = groups
        self.sample: Tensor | slice = slice(None)
        if len(group) > 2 * _FITTED:
            self.sample = torch.randint(len(group), (_FITTED,), generator=generator).to(group.device)
        self._group = group[self.sample]

    def of(self, values: Tensor) -> Tensor:
        """Return the sum of values over each group: (num_controls, ...) -> (groups, ...)."""
        return self.of_sample(values[self.sample])

    def of_sample(self, values: Tensor) -> Tensor:
        """Return the sum of values of the sampled elements over each group: (sampled, ...) -> (groups, ...)."""
        return values.new_zeros(self._groups, *values.shape[1:]).index_add_(0, self._group, values)


def _terms(offset: Tensor, signs: Tensor, sums: _GroupSums) -> tuple[Tensor, Tensor]:
    """Return the six terms of the fit, scaled to a mean square of 1, (num_controls, 6), and their scales, (6,)."""
    even = torch.cat([torch.ones_like(offset[:, :1]), offset[:, :2]], dim=1)
    terms = torch.cat([even, offset[:, 2:], signs.unsqueeze(1) * offset[:, :2]], dim=1)
    scale = terms[sums.sample].square().mean(dim=0).sqrt().clamp_min(1e-12)
    return terms / scale, scale


def _fit(terms: Tensor, slopes: Tensor, members: Tensor, sums: _GroupSums) -> Tensor:
    """Return the least-squares coefficients of each group, (groups, 6)."""
    sample = terms[sums.sample]
    gram = sums.of_sample(sample.unsqueeze(2) * sample.unsqueeze(1))
    # A small ridge term is added, because curvature and slope cannot be separated if all steps have the same sign.
    gram.diagonal(dim1=1, dim2=2).add_(1e-4 * members.unsqueeze(1))
    coefficients: Tensor = torch.linalg.solve(gram, sums.of_sample(sample * slopes[sums.sample].unsqueeze(1)))
    return coefficients
