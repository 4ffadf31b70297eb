"""The product of a mesh's columns, fast: forwards and backwards without one autograd node a cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["mesh_matrix"]

# A product of few columns in one go is all overhead: below this many entries a column, the mesh is cut in
# stretches that are multiplied out side by side, and then with each other.
_NARROW = 1 << 16
_STRETCHES = 4


def mesh_matrix(blocks: Tensor, ports: int, in_features: int) -> Tensor:
    """U, the product of the columns of a rectangular mesh.

    Args:
        blocks: the cells' own matrices, column by column, (..., ports (ports - 1) / 2, 2, 2), real or complex.
        ports: N, even.
        in_features: how many of U's columns are wanted.

    Returns:
        (..., ports, in_features).
    """
    leading = blocks.shape[:-3]
    pairs = ports // 2  # an even column with the odd one behind it: N - 1 cells
    columns = blocks.reshape(-1, pairs, ports - 1, 2, 2)
    settings = len(columns)
    stretches = 1 if settings * ports * ports > _NARROW or pairs % _STRETCHES else _STRETCHES
    width = in_features if stretches == 1 else ports
    light = torch.eye(ports, width, dtype=blocks.dtype, device=blocks.device)
    light = light.expand(settings * stretches, ports, width)
    product: Tensor = _Columns.apply(columns.reshape(-1, pairs // stretches, ports - 1, 2, 2), light)  # type: ignore[no-untyped-call]
    if stretches > 1:
        first, *rest = product.unflatten(0, (settings, stretches)).unbind(1)
        product = first[..., :in_features]
        for stretch in rest:
            product = stretch @ product
    return product.reshape(*leading, ports, in_features)


class _Columns(torch.autograd.Function):
    """Sends light through column after column.

    Each column mixes neighbouring ports by its cells: top' = b00 top + b01 bottom, bottom' = b10 top + b11 bottom.
    """

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, light: Tensor) -> Tensor:
        entries = [entry.contiguous() for entry in blocks.flatten(-2).unsqueeze(-2).unbind(-1)]
        states = [light]
        for pair in range(blocks.shape[1]):
            for odd in (0, 1):
                light = _mix(light, [entry[:, pair, _cells(blocks, odd)] for entry in entries], odd)
                states.append(light)
        ctx.entries, ctx.states = entries, states
        return light

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        entries, states = ctx.entries, ctx.states
        settings, pairs, cells, _ = entries[0].shape
        grads = grad.new_empty(settings, pairs, cells, 2, 2)
        e00, e01, e10, e11 = (entry.conj().resolve_conj() for entry in entries)
        ports = cells + 1
        for pair in reversed(range(pairs)):
            for odd in (1, 0):
                light = states[2 * pair + odd]
                here = _cells(grads, odd)
                before = light[:, odd : ports - odd].unflatten(1, (-1, 2))
                after = grad[:, odd : ports - odd].unflatten(1, (-1, 2))
                grads[:, pair, here] = after @ before.mH
                grad = _mix(grad, [entry[:, pair, here] for entry in (e00, e10, e01, e11)], odd)
        return grads, None


def _cells(blocks: Tensor, odd: int) -> slice:
    """The cells of the even or the odd column of a pair."""
    half = (blocks.shape[2] + 1) // 2
    return slice(half, None) if odd else slice(half)


def _mix(light: Tensor, entries: list[Tensor], odd: int) -> Tensor:
    ports = light.shape[1]
    top, bottom = light[:, odd : ports - odd : 2], light[:, 1 + odd : ports - odd : 2]
    mixed = torch.empty_like(light, memory_format=torch.contiguous_format)
    if odd:
        mixed[:, :: ports - 1] = light[:, :: ports - 1]  # the outermost ports pass by
    b00, b01, b10, b11 = entries
    torch.addcmul(b00 * top, b01, bottom, out=mixed[:, odd : ports - odd : 2])
    torch.addcmul(b10 * top, b11, bottom, out=mixed[:, 1 + odd : ports - odd : 2])
    return mixed
