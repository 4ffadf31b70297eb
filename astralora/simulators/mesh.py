"""Define meshes of Mach-Zehnder interferometers, in which every control changes every output."""

from __future__ import annotations

from abc import abstractmethod
from math import pi, sqrt
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..devices import Constant, Coupling
from .lattice import mesh_matrix
from .physics import Heated, LinearPhysics

__all__ = ["MZI", "MZI3", "Mesh"]


class Mesh(Heated, LinearPhysics):
    """Simulate a rectangular mesh of 2 x 2 cells: A = Re(U(w)), where U is a product of columns; implement `cells`.

    A mesh of N ports has N columns. Even columns couple the ports (0, 1), (2, 3), ..., and odd columns the ports
    (1, 2), (3, 4), ... (the layout of Clements et al., Optica 2016). N is the larger side of the layer, rounded up to
    an even number; surplus ports get no light. Controls are ordered column by column, cell by cell.

    Attributes:
        couplers: number of couplers in a cell.
        phases_per_cell: number of controls in a cell.
        splitter_error: difference of the couplers' angles from pi / 4, in radians.
    """

    coupling: ClassVar[Coupling] = "dense"
    period: ClassVar[float] = 2 * pi
    reciprocal: ClassVar[bool] = True
    couplers: ClassVar[int]

    phases_per_cell: int = 2
    splitter_error: float = 0.0

    @abstractmethod
    def cells(self, phases: Tensor) -> Tensor:
        """Compute the unitary of each cell: (..., cells, phases_per_cell) -> (..., cells, 2, 2)."""

    @staticmethod
    def ports(in_features: int, out_features: int) -> int:
        """Return the number of ports N."""
        return max(in_features, out_features) + max(in_features, out_features) % 2

    def num_controls(self, in_features: int, out_features: int) -> int:
        """Return the number of cells, N (N - 1) / 2, times the phases of a cell."""
        ports = self.ports(in_features, out_features)
        return self.phases_per_cell * ports * (ports - 1) // 2

    def layout(self, in_features: int, out_features: int) -> Tensor:
        """Return the positions of the controls: each row is a column of the mesh; odd columns have one cell less."""
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

    def full_scale(self, in_features: int) -> float:
        """Return three standard deviations of the outputs for full-power inputs; rows of Re(U) have norm about 0.7."""
        del in_features
        return 3 / sqrt(2)

    def constants(self, in_features: int, out_features: int) -> dict[str, Constant]:
        """Return the error of every coupler, cell by cell, in radians."""
        ports = self.ports(in_features, out_features)
        return {"splitter_error": Constant((ports * (ports - 1) // 2, self.couplers), 0.0, 0.02, unit="rad")}

    def matrix(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """Compute the real part of the unitary of the mesh, for the used ports only; see `LinearPhysics.matrix`."""
        return self.unitary(controls, in_features, out_features)[..., :out_features, :].real

    def unitary(self, controls: Tensor, in_features: int, out_features: int) -> Tensor:
        """Compute the unitary matrix U(w) of the mesh, for the input ports in use.

        Returns:
            (..., ports, in_features).
        """
        blocks = self.cells(controls.unflatten(-1, (-1, self.phases_per_cell)))
        return mesh_matrix(blocks, self.ports(in_features, out_features), in_features)

    def _errors(self) -> tuple[Any, ...] | None:
        """Return the error of each coupler in a cell; None if all couplers are nominal."""
        errors = self.splitter_error
        if isinstance(errors, Tensor):
            return errors.unbind(-1)
        return (errors,) * self.couplers if errors else None


class MZI(Mesh):
    """Simulate a rectangular Mach-Zehnder mesh: A = Re(U(w)), with U a product of columns of 2 x 2 cells.

    Each cell is [[e^(i theta) sin phi, e^(i theta) cos phi], [cos phi, -sin phi]]: two couplers with a phase 2 phi
    between them, then a phase theta; common phases are left out. With two phases per cell, theta comes before phi.

    If couplers split by cos(pi/4 + e) with errors e_1 and e_2, let s = e_1 + e_2 and d = e_2 - e_1. The cell is then
    [[e^(i theta) (cos d sin phi + i sin s cos phi), e^(i theta) (cos s cos phi - i sin d sin phi)],
    [cos s cos phi + i sin d sin phi, -cos d sin phi + i sin s cos phi]].

    Attributes:
        phases_per_cell: 2, or 1 for a mesh that sets only phi (theta = 0).
    """

    couplers: ClassVar[int] = 2
    phases_per_cell: Literal[1, 2] = 2

    def cells(self, phases: Tensor) -> Tensor:
        """Compute the unitary of each cell; see `Mesh.cells`."""
        sine, cosine = torch.sin(phases[..., -1]), torch.cos(phases[..., -1])
        errors = self._errors()
        if errors is None:
            upper, lower = (sine, cosine), (cosine, -sine)
        else:
            total, difference = (
                torch.as_tensor(angle, dtype=sine.dtype, device=sine.device)
                for angle in (errors[0] + errors[1], errors[1] - errors[0])
            )
            bar, leak = torch.cos(difference) * sine, torch.sin(total) * cosine
            cross, skew = torch.cos(total) * cosine, torch.sin(difference) * sine
            upper = torch.complex(bar, leak), torch.complex(cross, -skew)
            lower = torch.complex(cross, skew), torch.complex(-bar, leak)
        if self.phases_per_cell == 2:
            turn = torch.polar(torch.ones_like(sine), phases[..., 0])
            upper = upper[0] * turn, upper[1] * turn
            lower = lower[0].to(turn.dtype), lower[1].to(turn.dtype)
        blocks: Tensor = torch.stack([*upper, *lower], dim=-1).unflatten(-1, (2, 2))
        return blocks


class MZI3(Mesh):
    """Simulate a mesh of three-splitter cells, which tolerate errors of their couplers: A = Re(U(w)).

    With p = (t1 - t2) / 2 and q = (t1 + t2) / 2 a cell is e^(iq) / sqrt 2 [[sin p + i sin q, -cos p + i cos q],
    [cos p + i cos q, sin p - i sin q]] (Hamerly et al., Nat. Commun. 2022): coupler, phase t2, rotation by pi/4,
    phase t1, coupler, with the phases in the upper arm. The layout is the same as in `MZI`; t1 comes before t2.
    """

    couplers: ClassVar[int] = 3
    phases_per_cell: Literal[2] = 2

    def cells(self, phases: Tensor) -> Tensor:
        """Compute the unitary of each cell; see `Mesh.cells`."""
        one, two = torch.polar(torch.ones_like(phases), phases).unbind(-1)
        angles = [pi / 4 + error for error in self._errors() or (0.0,) * 3]
        (cos1, sin1), (cos2, sin2), (cos3, sin3) = (
            (torch.cos(angle), torch.sin(angle))
            for angle in (torch.as_tensor(angle, dtype=phases.dtype, device=phases.device) for angle in angles)
        )
        above = two * cos1, 1j * sin1 * two
        below = 1j * sin1, cos1
        rows = [
            (one * (cos2 * up - sin2 * down), sin2 * up + cos2 * down) for up, down in zip(above, below, strict=True)
        ]
        upper = [cos3 * up + 1j * sin3 * down for up, down in rows]
        lower = [1j * sin3 * up + cos3 * down for up, down in rows]
        blocks: Tensor = torch.stack([*upper, *lower], dim=-1).unflatten(-1, (2, 2))
        return blocks
