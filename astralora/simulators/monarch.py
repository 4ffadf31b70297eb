"""Monarch matrices: two stacks of blocks with a permutation between them."""

from __future__ import annotations

from math import isqrt, pi, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from ..devices import Coupling, Patch
from .physics import LinearPhysics

__all__ = ["Monarch"]


class Monarch(LinearPhysics):
    """Monarch matrix: two stacks of block phase masks with a permutation between them.

    A_(aq)(kc) = cos(u_kac + v_aqk) / sqrt(n). The inputs stand in blocks k of elements c, the outputs in blocks a
    of elements q. The first stack spreads every input block over all output blocks, the permutation gathers what is
    due to each, and the second stack mixes it (Dao et al., ICML 2022); the detector takes the real part of the
    product of both phase factors. The number of blocks is the largest power of two that divides the width and is
    not above its square root.

    Controls: u in the order (k, a, c), then v in the order (a, q, k). Each control of the first stack moves one input's
    share in one block of outputs, each of the second one output's share of one block of inputs.
    """

    coupling: ClassVar[Coupling] = "sparse"
    period: ClassVar[float] = 2 * pi

    @staticmethod
    def blocks(width: int) -> int:
        """Number of blocks that a side of this width stands in."""
        count = 1
        while width % (2 * count) == 0 and 2 * count <= isqrt(width):
            count *= 2
        return count

    def num_controls(self, in_features: int, out_features: int) -> int:
        """Output blocks times inputs, and input blocks times outputs."""
        return self.blocks(out_features) * in_features + self.blocks(in_features) * out_features

    def reach(self, in_features: int, out_features: int) -> tuple[Patch, ...]:
        """A block of outputs for an input, and an output for a block of inputs."""
        incoming, outgoing = self.blocks(in_features), self.blocks(out_features)
        width, height = in_features // incoming, out_features // outgoing
        first = [
            Patch(
                controls=width,
                outputs=(a * height, (a + 1) * height),
                inputs=(k * width, (k + 1) * width),
                split="inputs",
            )
            for k in range(incoming)
            for a in range(outgoing)
        ]
        second = [
            Patch(controls=incoming, outputs=(row, row + 1), inputs=(0, in_features), split="inputs")
            for row in range(out_features)
        ]
        return (*first, *second)

    def layout(self, in_features: int, out_features: int) -> Tensor:
        """The first stack's rows, (k a) by c, and the second's below them, (a q) by k."""
        incoming, outgoing = self.blocks(in_features), self.blocks(out_features)
        width = in_features // incoming
        first = torch.arange(outgoing * in_features).view(-1, width)
        second = torch.arange(incoming * out_features).view(-1, incoming) + first.numel()
        grid = torch.full((len(first) + len(second), max(width, incoming)), -1)
        grid[: len(first), :width] = first
        grid[len(first) :, :incoming] = second
        return grid

    def full_scale(self, in_features: int) -> float:  # noqa: ARG002
        """One: the matrix carries the 1 / sqrt(in_features) itself."""
        return 1.0

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The cosine of the two stacks' phases on the way from each input to each output."""
        incoming, outgoing = self.blocks(in_features), self.blocks(out_features)
        split = outgoing * in_features
        first = controls[..., :split].unflatten(-1, (incoming, outgoing, -1)).movedim(-3, -2)  # (..., a, k, c)
        second = controls[..., split:].unflatten(-1, (outgoing, -1, incoming))  # (..., a, q, k)
        phases = first.unsqueeze(-3) + second.unsqueeze(-1)  # (..., a, q, k, c)
        return (torch.cos(phases) / sqrt(in_features)).flatten(-4, -3).flatten(-2)
