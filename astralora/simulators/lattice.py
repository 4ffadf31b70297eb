"""Multiply the cells of a mesh by merging squares of cells into larger and larger squares.

Multiplying the cells of a mesh of N ports column by column takes N sequential steps. But along its diagonals, a
rectangular mesh is a square lattice: a cell in column c on the ports (p, p + 1) is at u = (c + p) / 2 and
v = (c - p) / 2, and light goes from it to its neighbours at u + 1 (one port down) and at v + 1 (one port up). A square
of k x k cells of this lattice acts only on 2 k neighbouring ports. Four of these squares make a square of twice the
size. Light passes A first, then C above and B below, and D last:

    (1 + D + 1) (C + B) (1 + A + 1),    where + forms a block-diagonal matrix.

So log2 N rounds of small products give the whole mesh; a round computes all its squares at once. Squares without a cell
of the mesh are identities, and are not computed.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["mesh_matrix"]


def mesh_matrix(blocks: Tensor, ports: int, in_features: int) -> Tensor:
    """Compute U, the product of the cells of a rectangular mesh.

    Args:
        blocks: matrices of the cells, column by column, (..., ports (ports - 1) / 2, 2, 2), real or complex.
        ports: N, even.
        in_features: number of columns of U to return.

    Returns:
        (..., ports, in_features).
    """
    leading = blocks.shape[:-3]
    cells = blocks.reshape(prod(leading), *blocks.shape[-3:])
    product: Tensor = _Product.apply(cells, ports, in_features)  # type: ignore[no-untyped-call]
    return product.reshape(*leading, ports, in_features)


class _Product(torch.autograd.Function):
    """Multiply the cells of a mesh, (settings, cells, 2, 2) -> (settings, ports, in_features)."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, ports: int, in_features: int) -> Tensor:
        squares, merges = cells, []
        *rounds, last = _rounds(ports)
        for round_ in rounds:
            children = _children_of_parents(squares, round_)
            merged, middle = _merge(children.flatten(0, 1))
            squares = merged.view(len(cells), round_.parents, *merged.shape[1:])
            merges.append((children, middle))
        (A, C, B, D), half = _children_of_parents(squares, last)[:, 0].unbind(1), last.size // 2
        # Light enters only at the ports of A, and leaves only at the ports of D.
        light = A[..., :in_features]
        middle = torch.cat([C[:, half:, half:] @ light[:, :half], B[:, :half, :half] @ light[:, half:]], dim=1)
        ctx.last, ctx.merges, ctx.ports = (A, C, B, D, middle), merges, ports
        return (D @ middle)[:, :ports]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (A, C, B, D, middle), ports = ctx.last, ctx.ports
        *rounds, last = _rounds(ports)
        half, width = last.size // 2, grad.shape[-1]
        # With a conjugated gradient, all adjoints are plain transposes. It is conjugated again at the end.
        grad = grad.conj().resolve_conj()
        rows = D[:, :ports]
        grads = A.new_zeros(len(A), 4, last.size, last.size)
        to_A, to_C, to_B, to_D = grads.unbind(1)
        to_D[:, :ports] = grad @ middle.mT
        above, below = (rows.mT @ grad).split(half, dim=1)
        to_C[:, half:, half:] = above @ A[:, :half, :width].mT
        to_B[:, :half, :half] = below @ A[:, half:, :width].mT
        to_A[:, :half, :width] = C[:, half:, half:].mT @ above
        to_A[:, half:, :width] = B[:, :half, :half].mT @ below
        grads = _existing_squares(grads.unsqueeze(1), last)
        for round_, (children, middle) in zip(reversed(rounds), reversed(ctx.merges), strict=True):
            back = _unmerge(children.flatten(0, 1), middle, grads.flatten(0, 1))
            grads = _existing_squares(back.view_as(children), round_)
        return grads.conj().resolve_conj(), None, None


def _merge(children: Tensor) -> tuple[Tensor, Tensor]:
    """Merge each group of four squares into one square of twice the size.

    Args:
        children: A, C, B, D of each merged square, (squares, 4, size, size).

    Returns:
        The merged squares, (squares, 2 size, 2 size), and the rows of (C + B)(1 + A + 1) that D acts on.
    """
    A, C, B, D = children.unbind(1)
    size = A.shape[-1]
    half = size // 2
    merged = children.new_zeros(len(children), 2 * size, 2 * size)
    centre = slice(half, half + size)
    merged[:, :size, :half] = C[..., :half]
    merged[:, size:, half + size :] = B[..., half:]
    merged[:, :size, centre] = torch.bmm(C[..., half:], A[:, :half])
    merged[:, size:, centre] = torch.bmm(B[..., :half], A[:, half:])
    middle = merged[:, centre].clone()
    merged[:, centre] = torch.bmm(D, middle)
    return merged, middle


def _unmerge(children: Tensor, middle: Tensor, grad: Tensor) -> Tensor:
    """Compute the gradients with respect to the children of `_merge` from those with respect to the merged squares.

    All gradients are conjugated. This overwrites ``grad``.
    """
    A, C, B, D = children.unbind(1)
    grads = torch.empty_like(children)
    to_A, to_C, to_B, to_D = grads.unbind(1)
    size = A.shape[-1]
    half = size // 2
    centre = slice(half, half + size)
    behind = grad[:, centre]
    to_D.copy_(torch.bmm(behind, middle.mT))
    behind.copy_(torch.bmm(D.mT, behind))
    above, below = grad[:, :size, centre], grad[:, size:, centre]
    to_C[..., :half] = grad[:, :size, :half]
    to_C[..., half:] = torch.bmm(above, A[:, :half].mT)
    to_B[..., :half] = torch.bmm(below, A[:, half:].mT)
    to_B[..., half:] = grad[:, size:, half + size :]
    to_A[:, :half] = torch.bmm(C[..., half:].mT, above)
    to_A[:, half:] = torch.bmm(B[..., :half].mT, below)
    return grads


class _Round(NamedTuple):
    """Describe one round of merging.

    Attributes:
        size: number of ports of a square before the round.
        parents: number of squares after the round.
        places: indices of the existing squares among the children of all parents; None if every child exists.
    """

    size: int
    parents: int
    places: Tensor | None


def _children_of_parents(squares: Tensor, round_: _Round) -> Tensor:
    """Return the children of each parent, (settings, parents, 4, size, size), with identities for missing squares."""
    size, parents, places = round_
    if places is not None:
        passing = torch.eye(size, dtype=squares.dtype, device=squares.device)
        empty = passing.expand(len(squares), 4 * parents, size, size)
        squares = empty.index_copy(1, places.to(squares.device), squares)
    return squares.view(len(squares), parents, 4, size, size)


def _existing_squares(children: Tensor, round_: _Round) -> Tensor:
    """Invert `_children_of_parents`: return the existing squares, (settings, squares, size, size)."""
    squares = children.flatten(1, 2)
    return squares if round_.places is None else squares.index_select(1, round_.places.to(squares.device))


@lru_cache(maxsize=64)
def _rounds(ports: int) -> list[_Round]:
    """Return the rounds of a mesh, from the merging of its cells to the merging of the last four squares."""
    side = 1 << (ports - 1).bit_length()  # side of the smallest square of the lattice that contains the mesh
    first = 1 - side // 2  # smallest v of that square
    squares = []
    for column in range(ports):
        port = torch.arange(column % 2, ports - 1, 2)
        u, v = (column + port) // 2, (column - port) // 2 - first
        squares.append(_interleaved(v, u))  # children of a square get neighbouring numbers, in the order A, C, B, D
    existing, rounds, size = torch.cat(squares), [], 2
    while True:
        parents, parent = (existing // 4).unique(return_inverse=True)
        places = 4 * parent + existing % 4
        complete = len(existing) == 4 * len(parents) and size > 2
        rounds.append(_Round(size, len(parents), None if complete else places))
        if len(parents) == 1 and size >= side:
            return rounds
        existing, size = parents, 2 * size


def _interleaved(low: Tensor, high: Tensor) -> Tensor:
    """Interleave the bits of two numbers (Morton, 1966), so that neighbours in both directions get close numbers."""
    code = torch.zeros_like(low)
    for bit in range(16):
        code |= (low >> bit & 1) << 2 * bit | (high >> bit & 1) << 2 * bit + 1
    return code
