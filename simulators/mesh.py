"""Meshes of Mach-Zehnder interferometers: every control reaches every output."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from devices import Coupling

from .physics import LinearPhysics

__all__ = ["MZI"]


class MZI(LinearPhysics):
    """Rectangular Mach-Zehnder mesh: A = Re(U(w)), with U a product of columns of 2 x 2 cells.

    Each cell is [[e^(i theta) sin phi, e^(i theta) cos phi], [cos phi, -sin phi]]. A mesh of N ports has N
    columns; even ones couple ports (0, 1), (2, 3), ..., odd ones (1, 2), (3, 4), ... (the layout of
    Clements et al., Optica 2016). N is the larger side of the layer, rounded up to even; surplus ports stay
    dark.

    Controls run column by column, cell by cell; with two phases a cell, theta stands before phi.

    Attributes:
        phases_per_cell: 2, or 1 for a mesh that sets phi alone (theta = 0).
    """

    coupling: ClassVar[Coupling] = "dense"
    reciprocal: ClassVar[bool] = True

    phases_per_cell: Literal[1, 2] = 2

    @staticmethod
    def ports(in_features: int, out_features: int) -> int:
        """Number of ports N."""
        return max(in_features, out_features) + max(in_features, out_features) % 2

    def num_controls(self, in_features: int, out_features: int) -> int:
        """N (N - 1) / 2 cells, times the phases of a cell."""
        ports = self.ports(in_features, out_features)
        return self.phases_per_cell * ports * (ports - 1) // 2

    def layout(self, in_features: int, out_features: int) -> Tensor:
        """Columns of the mesh as rows of the grid; odd columns are one cell short."""
        ports = self.ports(in_features, out_features)
        width = self.phases_per_cell * ports // 2
        grid = torch.full((ports, width), -1)
        short = width - self.phases_per_cell
        start = 0
        for column in range(ports):
            length = short if column % 2 else width
            grid[column, :length] = torch.arange(start, start + length)
            start += length
        return grid

    def full_scale(self, in_features: int) -> float:  # noqa: ARG002
        """Rows of Re(U) have norm 0.7 or so: three standard deviations of full-power inputs."""
        return 3 / sqrt(2)

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The real part of the mesh's unitary, cut to the ports in use."""
        return self.unitary(controls, in_features, out_features)[..., :out_features, :in_features].real

    def unitary(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """The mesh's own matrix U(w), of all ports or of those that light enters.

        Returns:
            (..., ports, in_features), complex.
        """
        ports = self.ports(in_features, out_features)
        half = ports // 2
        leading = controls.shape[:-1]
        cells = controls.reshape(*leading, -1, self.phases_per_cell)
        sine, cosine = torch.sin(cells[..., -1]), torch.cos(cells[..., -1])
        turn = torch.polar(torch.ones_like(sine), cells[..., 0]) if self.phases_per_cell == 2 else torch.ones_like(sine)
        rows = torch.stack([turn * sine, turn * cosine, cosine.to(turn.dtype), -sine.to(turn.dtype)], dim=-1)
        blocks = rows.unflatten(-1, (2, 2))  # (..., cells, 2, 2)
        light = torch.eye(ports, in_features, dtype=turn.dtype, device=controls.device)
        light = light.expand(*leading, ports, in_features)
        start = 0
        for column in range(ports):
            odd = column % 2
            count = half - odd
            block = blocks[..., start : start + count, :, :]
            start += count
            pairs = light[..., odd : ports - odd, :].unflatten(-2, (count, 2))
            mixed = (block @ pairs).flatten(-3, -2)
            light = torch.cat([light[..., :1, :], mixed, light[..., -1:, :]], dim=-2) if odd else mixed
        return light
