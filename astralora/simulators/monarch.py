"""Define Monarch matrices: two stacks of blocks with a permutation between them."""

from __future__ import annotations

from math import isqrt, pi, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from ..devices import Coupling, Patch
from .physics import LinearPhysics

__all__ = ["Monarch"]


class Monarch(LinearPhysics):
    """Simulate a Monarch matrix: two stacks of block phase masks with a permutation between them.

    A_(aq)(kc) = cos(u_kac + v_aqk) / sqrt(n). The inputs are divided into blocks k with elements c, the outputs into
    blocks a with elements q. The first stack distributes every input block over all output blocks. The permutation
    collects the parts of each output block. The second stack mixes these parts (Dao et al., ICML 2022). The detector
    measures the real part of the product of both phase factors. The number of blocks is the largest power of two that
    divides the width and is not above its square root.

    Controls: u in the order (k, a, c), then v in the order (a, q, k). A control of the first stack changes the entries
    of one input and one block of outputs. A control of the second stack changes the entries of one block of inputs and
    one output.
    """

    coupling: ClassVar[Coupling] = "sparse"
    period: ClassVar[float] = 2 * pi

    @staticmethod
    def blocks(width: int) -> int:
        """Return the number of blocks for this number of inputs or outputs."""
        count = 1
        while width % (2 * count) == 0 and 2 * count <= isqrt(width):
            count *= 2
        return count

    def num_controls(self, in_features: int, out_features: int) -> int:
        """Return the number of controls: output blocks times inputs, plus input blocks times outputs."""
        return self.blocks(out_features) * in_features + self.blocks(in_features) * out_features

    def reach(self, in_features: int, out_features: int) -> tuple[Patch, ...]:
        """Return the reach: a block of outputs for controls of the first stack, a block of inputs for the second."""
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
        """Return the positions of the controls: the first stack, (k a, c), and below it the second stack, (a q, k)."""
        incoming, outgoing = self.blocks(in_features), self.blocks(out_features)
        width = in_features // incoming
        first = torch.arange(outgoing * in_features).view(-1, width)
        second = torch.arange(incoming * out_features).view(-1, incoming) + first.numel()
        grid = torch.full((len(first) + len(second), max(width, incoming)), -1)
        grid[: len(first), :width] = first
        grid[len(first) :, :incoming] = second
        return grid

    def full_scale(self, in_features: int) -> float:
        """Return 1, because the matrix already has the factor 1 / sqrt(in_features)."""
        del in_features
        return 1.0

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """Compute cos(u + v) / sqrt(n) for each input and output, with the phases u and v of the two stacks."""
        incoming, outgoing = self.blocks(in_features), self.blocks(out_features)
        split = outgoing * in_features
        first = controls[..., :split].unflatten(-1, (incoming, outgoing, -1)).movedim(-3, -2)  # (..., a, k, c)
        second = controls[..., split:].unflatten(-1, (outgoing, -1, incoming))  # (..., a, q, k)
        phases = first.unsqueeze(-3) + second.unsqueeze(-1)  # (..., a, q, k, c)
        return (torch.cos(phases) / sqrt(in_features)).flatten(-4, -3).flatten(-2)
