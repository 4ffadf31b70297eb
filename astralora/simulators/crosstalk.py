"""Compute crosstalk between neighbouring controls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Crosstalk"]


class Crosstalk:
    """Add to each control a share of the action of its four neighbours.

    Args:
        layout: positions of the controls on the chip, (rows, columns) of control indices, -1 for an empty place.
        device: torch device to keep the positions on.
    """

    def __init__(self, layout: Tensor, device: torch.device) -> None:
        indices = layout.flatten()
        occupied = indices >= 0
        count = int(occupied.sum())
        self._grid = tuple(layout.shape)
        # If the controls fill the grid row by row, no scatter operation is needed.
        in_order = bool(occupied.all()) and torch.equal(indices, torch.arange(count))
        self._places = None if in_order else occupied.nonzero()[indices[occupied].argsort(), 0].to(device)

    def add(self, acting: Tensor, share: Tensor) -> Tensor:
        """Return (1 + c L) x, where L sums over the four neighbours.

        The map is symmetric, so it is equal to its adjoint. It is differentiable with respect to both arguments.

        Args:
            acting: x, acting controls, (..., num_controls).
            share: c, share of a control's action that each neighbour receives, ().
        """
        leading = acting.shape[:-1]
        if self._places is None:
            grid = acting.unflatten(-1, self._grid)
        else:
            empty = acting.new_zeros(*leading, self._grid[0] * self._grid[1])
            grid = empty.index_copy(-1, self._places, acting).unflatten(-1, self._grid)
        needs_graph = torch.is_grad_enabled() and (acting.requires_grad or share.requires_grad)
        mixed: Tensor = _AddNeighbours.apply(grid, share) if needs_graph else _add_neighbours(grid, share)  # type: ignore[no-untyped-call]
        flat = mixed.flatten(-2)
        return flat if self._places is None else flat.index_select(-1, self._places)


class _AddNeighbours(torch.autograd.Function):
    """Compute (1 + c L) x on a grid, with an explicit gradient.

    L is symmetric, so it is equal to its adjoint. Autograd through the slices would take five times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grid: Tensor, share: Tensor) -> Tensor:
        return _add_neighbours(grid, share)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], _output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grid, share = ctx.saved_tensors
        wants_grid, wants_share = ctx.needs_input_grad
        by_grid = _AddNeighbours.apply(grad, share) if wants_grid else None  # type: ignore[no-untyped-call]
        if not wants_share:
            return by_grid, None
        neighbours = _AddNeighbours.apply(grid, torch.ones_like(share)) - grid  # type: ignore[no-untyped-call]
        return by_grid, (grad * neighbours).sum().to(share)


def _add_neighbours(grid: Tensor, share: Tensor) -> Tensor:
    part, mixed = share * grid, grid.clone()
    for dim in (-2, -1):
        most = grid.shape[dim] - 1
        # Not `mixed[...] += ...`, which would also copy the sum onto itself.
        mixed.narrow(dim, 1, most).add_(part.narrow(dim, 0, most))
        mixed.narrow(dim, 0, most).add_(part.narrow(dim, 1, most))
    return mixed
