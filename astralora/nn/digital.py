"""Compute some entries of a layer's matrix digitally, and all others on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec

__all__ = ["check_digital", "largest_entries"]


def check_digital(spec: DeviceSpec, digital: Tensor | None) -> None:
    """Refuse a digital matrix whose shape differs from the shape of the device's transfer matrix.

    Raises:
        ConfigurationError: the shape is not (out_features, in_features).
    """
    if digital is not None and digital.shape != (spec.out_features, spec.in_features):
        raise ConfigurationError(
            f"the digital part must have shape {(spec.out_features, spec.in_features)}, but has {tuple(digital.shape)}"
        )


def largest_entries(weight: Tensor, fraction: float) -> Tensor:
    """Return a copy of a matrix with only its largest entries; all other entries are zero.

    Args:
        weight: (out_features, in_features).
        fraction: share of the entries to keep; at least one is kept.
    """
    count = max(1, round(fraction * weight.numel()))
    places = weight.abs().flatten().topk(count).indices
    kept = torch.zeros_like(weight).flatten()
    kept[places] = weight.flatten()[places]
    return kept.view_as(weight)
