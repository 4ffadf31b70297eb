"""Elements of one device are alike: what one of them shows tells of its neighbours in setting."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import Range

__all__ = ["pool_slopes"]

# A group has to outnumber the terms fitted to it by far; more entries than these add nothing to the fit.
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
    """Sharpen one-sided slopes of many like elements by what they have in common.

    Elements are grouped by their setting w. Within a group, the measured slope is fitted by least squares as

        D = c0 + c1 (w - <w>) + c2 (A - <A>) + s (c3 + c4 (w - <w>) + c5 (A - <A>)),

    where the entry A tells of the element's own offset, and the terms with the step's sign s are the curvature's share
    in a one-sided difference, which is taken off. What is left over is trusted as far as it exceeds the measurement's
    own noise (James-Stein): D <- fit + max(0, 1 - variance / mean residual^2) (D - fit). Elements that are truly
    unlike their group keep their own slopes; elements drowned in noise get their group's.

    Args:
        slopes: D, measured with steps of these signs, (num_controls,).
        variance: of the noise on one slope.
        controls: w, (num_controls,).
        entries: A, the matrix entries at w, (num_controls,).
        signs: s, +1 or -1, (num_controls,).
        step: size of the step.
        bounds: range of the controls.
        generator: draws the entries that are fitted where there are very many.

    Returns:
        (num_controls,); the slopes as they were where there are too few to compare.
    """
    count = len(slopes)
    low, high = bounds
    # Two steps wide at least: at the ends of the range all steps point inward; only farther in do both signs occur.
    groups = min(count // _GROUP, _MOST_GROUPS, int((high - low) / (2 * step)))
    if groups < 2:
        return slopes
    group = ((controls - low) * (groups / (high - low))).long().clamp_(0, groups - 1)
    chosen: Tensor | slice = slice(None)
    if count > 2 * _FITTED:
        chosen = torch.randint(count, (_FITTED,), generator=generator).to(slopes.device)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(groups, *values.shape[1:]).index_add_(0, group[chosen], values)

    members = total(torch.ones_like(slopes[chosen])).clamp_min(1)
    columns = torch.stack([controls, entries, signs], dim=1)
    centre = total(columns[chosen]) / members.unsqueeze(1)
    offset = columns - centre[group]
    even = torch.cat([torch.ones_like(offset[:, :1]), offset[:, :2]], dim=1)
    terms = torch.cat([even, offset[:, 2:], signs.unsqueeze(1) * offset[:, :2]], dim=1)
    scale = terms[chosen].square().mean(dim=0).sqrt().clamp_min(1e-12)
    terms = terms / scale
    sample = terms[chosen]
    gram = total(sample.unsqueeze(2) * sample.unsqueeze(1))
    # A whisper of ridge: where all steps of a group point the same way, curvature cannot be told from slope.
    gram.diagonal(dim1=1, dim2=2).add_(1e-4 * members.unsqueeze(1))
    coefficients = torch.linalg.solve(gram, total(sample * slopes[chosen].unsqueeze(1)))
    fit = (terms * coefficients[group]).sum(dim=1)
    freedom = (members - terms.shape[1]).clamp_min(1)
    spread = total((slopes - fit)[chosen].square()) / freedom
    trust = (1 - variance / spread.clamp_min(1e-30)).clamp(0, 1)
    trusted = trust[group] * (slopes - fit)
    # The fit at a step of no size: the sign's own terms dropped, from s = 0 rather than the group's mean.
    still = terms.clone()
    still[:, 3] = -centre[group, 2] / scale[3]
    still[:, 4:] = 0
    pooled = (still * coefficients[group]).sum(dim=1) + trusted
    return torch.where(members[group] >= _LEAST, pooled, slopes)
