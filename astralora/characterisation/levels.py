"""Find the number of levels of converters."""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor

from .context import lattice_step
from .findings import Finding
from .measurement import Cost, Measurement

__all__ = ["MOST_LEVELS", "OutputLevels", "scan_levels"]

MOST_LEVELS = 4096
"""Largest number of levels that is tried."""

# The best candidate must reduce the squared residuals by at least this much, in units of the noise's variance. Pure
# noise reaches about 2 ln 4096 plus a few among some thousands of candidates.
_DECISIVE = 40.0
# The same in standard deviations, if the fit differs between candidates: noise exceeds it in one of 300,000 cases.
_CERTAIN = 4.5
# Candidates remain possible within three standard errors of the best.
_INDIFFERENT = 9.0


class OutputLevels(Measurement):
    """Find the step of the output converters from all answers so far, without further queries."""

    name = "converters"
    priority = 9

    def cost(self) -> Cost:
        """Count no programs and no vectors."""
        return Cost(0, 0)

    def run(self) -> list[Finding]:
        """Return the number of output levels."""
        spec, outputs = self.context.spec, self.context.outputs
        step = lattice_step(torch.cat([part.flatten() for part in outputs]))
        bounds = spec.output_range
        levels = round((bounds[1] - bounds[0]) / step) + 1 if step and bounds is not None else None
        if step:
            sentence = f"The outputs have a step of {step:.4g}" + (f", which is {levels} codes." if levels else ".")
        else:
            sentence = f"{sum(part.numel() for part in outputs):,} outputs show no steps."
        claimed = spec.output_levels
        return [
            Finding(
                name="output_levels",
                measurement=self.name,
                value=levels,
                low=levels,
                high=levels,
                promised=claimed,
                # Levels too fine to be resolved contradict no claim.
                agrees=None if claimed is None or levels is None else claimed == levels,
                sentence=sentence,
                data={"step": step or None},
            )
        ]


def scan_levels(
    name: str,
    measurement: str,
    gains: Tensor,
    total: float,
    error: float,
    freedom: float,
    claimed: int | None,
    spread: Tensor | None = None,
) -> Finding:
    """Choose the number of levels of a converter that explains the answers best.

    The residual of the best candidate counts as noise. A candidate is excluded if it explains the answers worse than a
    converter without steps, by three standard errors.

    Args:
        name: name of the finding.
        measurement: measurement that the finding belongs to.
        gains: decrease of the sum of squared residuals for each number of levels, which is the index, from 2 on.
        total: sum of squared residuals without any steps.
        error: smallest possible standard error of one sample.
        freedom: number of samples minus the number of fitted parameters.
        claimed: number of levels in the spec.
        spread: standard deviation of the gains that noise alone causes, in units of the squared noise; None means 0.
    """
    what = name.removesuffix("_levels") + "s"
    gains = gains.clone()
    gains[:2] = -torch.inf
    spread = torch.zeros_like(gains) if spread is None else spread
    best = int(gains.argmax())
    most = float(gains[best])
    least = error**2 / 2  # the noise estimate and the residual of few samples have errors
    noise = max(least, (total - max(most, 0.0)) / freedom, 1e-300)
    if most < max(_DECISIVE, _CERTAIN * float(spread[best])) * noise:
        noise = max(least, total / freedom, 1e-300)
        possible = (gains > -(_INDIFFERENT + 3 * spread) * noise).nonzero()[:, 0]
        low = int(possible[0]) if len(possible) else len(gains) - 1
        return Finding(
            name=name,
            measurement=measurement,
            value=None,
            low=low,
            promised=claimed,
            agrees=None if claimed is None else claimed >= low,
            sentence=f"The {what} show no steps; fewer than {low} levels would be visible.",
        )
    close = (gains > most - _INDIFFERENT * noise).nonzero()[:, 0]
    low, high = int(close.min()), int(close.max())
    return Finding(
        name=name,
        measurement=measurement,
        value=best,
        low=low,
        high=high,
        promised=claimed,
        agrees=None if claimed is None else low <= claimed <= high,
        sentence=f"The {what} have {best} levels, which is {log2(best):.1f} bits"
        + (f" (between {low} and {high} levels)." if low < high else "."),
    )
