"""Define kinds with few controls: a product of two thin matrices, and a link with one gain."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor

from ..devices import Coupling, Range
from .physics import LinearPhysics

__all__ = ["Identity", "LowRank"]


class LowRank(LinearPhysics):
    """Simulate two crossbars in series, with few lines between them: A = L R.

    Controls: L, (outputs, lines), then R, (lines, inputs), all from -1 to 1.

    Attributes:
        rank: number of lines between the crossbars.
    """

    coupling: ClassVar[Coupling] = "dense"
    control_unit: ClassVar[str] = ""
    control_range: ClassVar[Range] = (-1.0, 1.0)
    initial_range: ClassVar[Range] = (-0.5, 0.5)
    conductances: ClassVar[bool] = True
    reciprocal: ClassVar[bool] = True

    rank: PositiveInt = 8

    def num_controls(self, in_features: int, out_features: int) -> int:
        """Return the number of entries of both factors."""
        return self.rank * (in_features + out_features)

    def layout(self, in_features: int, out_features: int) -> Tensor:
        """Return the positions of the controls: both crossbars side by side, (lines, outputs) and (lines, inputs)."""
        left = torch.arange(self.rank * out_features).view(out_features, self.rank).mT
        right = torch.arange(self.rank * in_features).view(self.rank, in_features) + left.numel()
        return torch.cat([left, right], dim=1)

    def full_scale(self, in_features: int) -> float:
        """Return the full scale of one crossbar times sqrt(rank)."""
        return sqrt(in_features * self.rank)

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """Compute the product of both factors; see `LinearPhysics.matrix`."""
        left, right = controls.split([self.rank * out_features, self.rank * in_features], dim=-1)
        product: Tensor = left.unflatten(-1, (out_features, self.rank)) @ right.unflatten(-1, (self.rank, in_features))
        return product


class Identity(LinearPhysics):
    """Simulate a link with one gain: resample the inputs to the number of outputs, and multiply them by the gain.

    Resampling is linear interpolation that keeps both ends. The link is a baseline to compare devices with.
    """

    coupling: ClassVar[Coupling] = "dense"
    control_unit: ClassVar[str] = ""
    control_range: ClassVar[Range] = (0.0, 1.0)
    initial_range: ClassVar[Range] = (1.0, 1.0)
    reciprocal: ClassVar[bool] = True

    def num_controls(self, in_features: int, out_features: int) -> int:
        """Return 1, because the gain is the only control."""
        del in_features, out_features
        return 1

    def layout(self, in_features: int, out_features: int) -> Tensor:
        """Return a grid with one position."""
        del in_features, out_features
        return torch.zeros(1, 1, dtype=torch.int64)

    def full_scale(self, in_features: int) -> float:
        """Return 1, because no output is larger than the largest input."""
        del in_features
        return 1.0

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """Compute the gain times the interpolation; see `LinearPhysics.matrix`."""
        places = torch.linspace(0, in_features - 1, out_features, dtype=controls.dtype, device=controls.device)
        if out_features == 1:
            places = places + (in_features - 1) / 2  # a single output is taken from the middle of the inputs
        steps = torch.arange(in_features, dtype=controls.dtype, device=controls.device)
        weights = (1 - (places.unsqueeze(-1) - steps).abs()).clamp_min(0)
        return controls.unsqueeze(-1) * weights
