"""Draw noise, and compute the noise that a spec declares."""

from __future__ import annotations

from math import hypot

import torch
from torch import Tensor

from .impairments import Impairments

__all__ = ["declared_noise_std", "standard_normal"]


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw independent standard normal numbers with the shape and dtype of ``like``, on the generator's device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)


def declared_noise_std(impairments: Impairments, full_scale: float, in_features: int) -> float:
    """Return the standard deviation of the noise of an output at full scale, which is the largest for all outputs.

    Args:
        impairments: strengths of the noise.
        full_scale: full scale of the detectors, in output units; the result is in output units too.
        in_features: number of inputs.
    """
    detector = hypot(
        impairments.output_noise_fraction, impairments.output_noise_relative, impairments.shot_noise_fraction
    )
    return hypot(
        detector * full_scale,
        impairments.input_noise_std * full_scale,
        impairments.weight_noise_std * in_features**0.5,
    )
