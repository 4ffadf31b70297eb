"""Assemble the record of a calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import DeviceSpec, FitQuality, Identifiable
from .direct_measurements import dead_outputs
from .identification import Identification
from .pairs import Pairs

__all__ = ["fit_quality", "fit_tensors", "spec_with_noise"]


def spec_with_noise(spec: DeviceSpec, pairs: Pairs, found: Identification) -> DeviceSpec:
    """Return the spec with the measured noise: the residual if the law fits, else the noise from repeated vectors.

    A residual clearly above the noise of the repeats is an error of the law or drift, and does not count as noise.
    """
    total = found.noise_std
    samples = pairs.again.numel()
    if found.fits and (not samples or found.training_rms < total * (1 + 3 / (2 * samples) ** 0.5)):
        total = found.training_rms
    rounding = (spec.output_step or 0.0) ** 2 / 12
    return spec.model_copy(update={"noise_std": max(total**2 - rounding, 0.0) ** 0.5})


def fit_quality(found: Identification, pairs: Pairs) -> FitQuality:
    """Return the quality of a fit for the record."""
    held_out = len(found.held_out[0])
    return FitQuality(
        fits=found.fits,
        verdict=found.verdict,
        unexplained=found.unexplained,
        unexplained_error=found.unexplained_error,
        held_out_rms=found.held_out_rms,
        training_rms=found.training_rms,
        noise_std=found.noise_std,
        starts=found.starts,
        settings=len(pairs.settings) - held_out,
        held_out_settings=held_out,
        errors="full" if found.dense else "diagonal",
    )


def fit_tensors(found: Identification, law: Identifiable, pairs: Pairs, measured: DeviceSpec) -> dict[str, Tensor]:
    """Return the tensors of a fit for the record."""
    # Keep the ratios between outputs, and scale them to the noise on average: the error of the law is not noise.
    average = float(found.noise_by_output.square().mean().sqrt())
    by_output = found.noise_by_output * (measured.noise_std / average if average > 0 else 1.0)
    nominal = {name: torch.full(known.shape, known.nominal) for name, known in law.constants().items()}
    return {
        **{f"constants/{name}": value.clone() for name, value in found.constants.items()},
        **{f"errors/{name}": value.clone() for name, value in found.errors.items()},
        **{f"nominal/{name}": value for name, value in nominal.items()},
        "dead_outputs": dead_outputs(pairs.outputs, pairs.noise_std(measured)),
        **({"noise/by_output": by_output} if found.fits else {}),
        "held_out/measured": found.held_out[0].clone(),
        "held_out/foreseen": found.held_out[1].clone(),
        **({} if found.fixed is None else {"fixed": found.fixed}),
        **({} if found.fixed_errors is None else {"fixed_errors": found.fixed_errors}),
    }
