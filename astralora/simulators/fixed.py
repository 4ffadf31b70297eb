"""Kinds with few controls: a product of two thin matrices, and none to speak of."""

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
    """Two crossbars in a row, with few lines between them: A = L R.

    Controls: L in the order of outputs by lines, then R in that of lines by inputs, all from -1 to 1.

    Attributes:
        rank: lines between the two.
    """

    coupling: ClassVar[Coupling] = "dense"
    control_unit: ClassVar[str] = ""
    control_range: ClassVar[Range] = (-1.0, 1.0)
    initial_range: ClassVar[Range] = (-0.5, 0.5)
    conductances: ClassVar[bool] = True
    reciprocal: ClassVar[bool] = True

    rank: PositiveInt = 8

    def num_controls(self, in_features: int, out_features: int) -> int:
        """Entries of both factors."""
        return self.rank * (in_features + out_features)

    def layout(self, in_features: int, out_features: int) -> Tensor:
        """Both crossbars side by side, lines by outputs and lines by inputs."""
        left = torch.arange(self.rank * out_features).view(out_features, self.rank).mT
        right = torch.arange(self.rank * in_features).view(self.rank, in_features) + left.numel()
        return torch.cat([left, right], dim=1)

    def full_scale(self, in_features: int) -> float:
        """As of one crossbar, times what as many lines add up to."""
        return sqrt(in_features * self.rank)

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The product of both factors."""
        left, right = controls.split([self.rank * out_features, self.rank * in_features], dim=-1)
        product: Tensor = left.unflatten(-1, (out_features, self.rank)) @ right.unflatten(-1, (self.rank, in_features))
        return product


class Identity(LinearPhysics):
    """A plain link: the inputs, resampled to the width of the outputs, times one gain.

    Resampling is linear interpolation with both ends in place: the channel it is, and no more, for a baseline of what
    a device adds.
    """

    coupling: ClassVar[Coupling] = "dense"
    control_unit: ClassVar[str] = ""
    control_range: ClassVar[Range] = (0.0, 1.0)
    initial_range: ClassVar[Range] = (1.0, 1.0)
    reciprocal: ClassVar[bool] = True

    def num_controls(self, in_features: int, out_features: int) -> int:  # noqa: ARG002
        """One: the gain."""
        return 1

    def layout(self, in_features: int, out_features: int) -> Tensor:  # noqa: ARG002
        """One place."""
        return torch.zeros(1, 1, dtype=torch.int64)

    def full_scale(self, in_features: int) -> float:  # noqa: ARG002
        """One: an output is never more than the largest input."""
        return 1.0

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The gain times the interpolation."""
        places = torch.linspace(0, in_features - 1, out_features, dtype=controls.dtype, device=controls.device)
        if out_features == 1:
            places = places + (in_features - 1) / 2  # one output sees the middle
        steps = torch.arange(in_features, dtype=controls.dtype, device=controls.device)
        weights = (1 - (places.unsqueeze(-1) - steps).abs()).clamp_min(0)
        return controls.unsqueeze(-1) * weights
