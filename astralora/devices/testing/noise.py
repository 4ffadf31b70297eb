"""Check the claim of a spec about noise, on which the tolerances of the other checks depend."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, sqrt
from statistics import NormalDist

import torch

from .subject import NotApplicable, Subject, fail

__all__ = ["Scatter", "measure_scatter"]


def check_noise(subject: Subject) -> None:
    """Check that answers to the same query scatter by the noise that the spec claims.

    The other checks use the larger of the claimed and the measured noise, so that a wrong claim fails this check only.
    """
    scatter = measure_scatter(subject)
    if scatter is None:
        raise NotApplicable("every output saturates")
    subject.measured_noise = scatter.tolerated
    if scatter.is_above_claim:
        fail(
            f"outputs scatter by {scatter.measured:.4g}, but the spec claims only {scatter.claimed:.4g}; "
            f"set noise_std of the spec to {scatter.measured:.2g}"
        )
    if scatter.is_below_claim:
        fail(
            f"outputs scatter by only {scatter.measured:.4g}, but the spec claims {scatter.claimed:.4g}; "
            f"set noise_std of the spec to {scatter.measured:.2g}"
        )


@dataclass(frozen=True, slots=True)
class Scatter:
    """Compare the measured scatter of answers to the same query with the claim of the spec.

    Attributes:
        claimed: standard deviation that the spec claims, in output units.
        measured: measured standard deviation.
        typical: measured standard deviation, without the largest tenth of the deviations, which may be wrong answers.
        rounding: largest standard deviation that rounding explains.
        freedom: number of independent deviations that were measured.
    """

    claimed: float
    measured: float
    typical: float
    rounding: float
    freedom: float

    @property
    def is_above_claim(self) -> bool:
        """Return whether the claim and rounding do not explain the measured scatter."""
        return self.measured**2 > self.claimed**2 * (1 + 6 * sqrt(2 / self.freedom)) + self.rounding**2

    @property
    def is_below_claim(self) -> bool:
        """Return whether the scatter is less than a fifth of a claim that rounding does not hide."""
        return self.measured < self.claimed / 5 and self.claimed > self.rounding

    @property
    def tolerated(self) -> float:
        """Return the noise to allow in other checks if the claim is too small; 0 if it is not."""
        # The estimate from so few deviations may be too small by this factor.
        return 1.2 * self.typical if self.is_above_claim else 0.0


def measure_scatter(subject: Subject) -> Scatter | None:
    """Measure the scatter of answers to the same query; return None if every output saturates."""
    device = subject.running()
    spec = device.spec
    inputs, repeats = subject.inputs(spec, 4), 64
    for _ in range(3):
        subject.query(device, inputs)  # a stale answer would be a large deviation
    answers = torch.stack([subject.query(device, inputs).double() for _ in range(repeats)])
    rails = torch.tensor(spec.rails, dtype=torch.float64)
    unsaturated = ~(torch.isclose(answers[..., None], rails, rtol=1e-4, atol=0.0).any(-1).any(0))
    if not unsaturated.any():
        return None
    # Differences of consecutive answers are used, because deviations from a mean would include slow drift.
    steps = (answers[1:] - answers[:-1])[:, unsaturated]
    return Scatter(
        claimed=spec.noise_std,
        measured=float(steps.square().mean() / 2) ** 0.5,
        typical=float(steps.abs().flatten().quantile(0.9)) / (NormalDist().inv_cdf(0.95) * sqrt(2)),
        rounding=hypot((spec.output_step or 0.0) / 2, 2e-5 * float(answers.abs().max())),
        freedom=steps.numel() / 2,
    )
