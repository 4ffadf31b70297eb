"""Hadamard matrices of many orders, and rows of very large ones: the best patterns of +-1 for measuring with."""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CodedSigns", "hadamard", "hadamard_order", "hadamard_transform"]

_Signs = NDArray[np.int8]


def hadamard_order(least: int) -> int:
    """The smallest order, at least this, of a Hadamard matrix that `hadamard` can make.

    Powers of two (Sylvester), q + 1 for primes q = 3 mod 4 and 2 (q + 1) for primes q = 1 mod 4 (Paley 1933), and twice
    any of them: hardly ever more than 4 above ``least`` up to some hundreds, and 3 % above beyond.
    """
    order = least
    while not _constructible(order):
        order += 1
    return order


def hadamard(order: int) -> Tensor:
    """A Hadamard matrix H of +-1 with H^T H = order I: (order, order), int8.

    Raises:
        ValueError: none of the constructions gives this order.
    """
    if not _constructible(order):
        raise ValueError(f"no Hadamard matrix of order {order} can be made here; the next is {hadamard_order(order)}")
    return torch.from_numpy(_construct(order).copy())


def hadamard_transform(values: Tensor) -> Tensor:
    """The product ``values @ hadamard(order)``, for the price of two much smaller ones where the order is even twice.

    H of an order 2^k b is the Kronecker product of those of 2^k and b.

    Args:
        values: (..., order), floating point.

    Returns:
        (..., order).
    """
    order = values.shape[-1]
    left = 1
    while left * left < order and _halves(order // left):
        left *= 2
    first, second = hadamard(left).to(values), hadamard(order // left).to(values)
    folded = values.unflatten(-1, (left, order // left))
    transformed: Tensor = (first.mT @ (folded @ second)).flatten(-2)
    return transformed


class CodedSigns:
    """Random signs for many controls whose patterns are as good as orthogonal from row to row.

    Rows are drawn without repetition from a Sylvester matrix whose columns are dealt out to the controls at random,
    each with a random sign: every pair of controls is uncorrelated on average, and exactly so over a whole set of
    rows, of which there are as many as the next power of two above ``width``. More rows than that begin another set.

    Args:
        width: controls.
        generator: of the draw.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        self._width = width
        self._order = 1 << (width - 1).bit_length()
        self._generator = generator
        self._rows = torch.empty(0, dtype=torch.long)

    def take(self, count: int) -> Tensor:
        """The next rows: (count, width), +1 and -1, int8."""
        parts = []
        while count:
            if not len(self._rows):
                self._rows = torch.randperm(self._order, generator=self._generator)
                self._columns = torch.randperm(self._order, generator=self._generator)[: self._width]
                bits = torch.randint(0, 2, (self._width,), generator=self._generator, dtype=torch.int8)
                self._signs = bits * 2 - 1
            rows, self._rows = self._rows[:count], self._rows[count:]
            count -= len(rows)
            parts.append(_sylvester(rows, self._columns) * self._signs)
        return torch.cat(parts) if parts else torch.empty(0, self._width, dtype=torch.int8)


def _sylvester(rows: Tensor, columns: Tensor) -> Tensor:
    """Entries (-1)^(number of ones that i and j have in common), for any rows i and columns j."""
    odd = rows.unsqueeze(1) & columns
    for shift in (32, 16, 8, 4, 2, 1):
        odd = odd ^ (odd >> shift)
    return (1 - 2 * (odd & 1)).to(torch.int8)


def _constructible(order: int) -> bool:
    return order in (1, 2) or _paley(order) > 0 or (order % 4 == 0 and _constructible(order // 2))


def _paley(order: int) -> int:
    """Which of Paley's two constructions gives this order; 0 for neither."""
    if order % 4 == 0 and _prime(order - 1):  # then order - 1 = 3 mod 4
        return 1
    half = order // 2 - 1
    return 2 if order % 4 == 0 and half % 4 == 1 and _prime(half) else 0


def _halves(order: int) -> bool:
    """Whether the matrix of this order is made of that of half the order."""
    return order == 2 or (order % 4 == 0 and _constructible(order // 2))


@lru_cache(maxsize=16)
def _construct(order: int) -> _Signs:
    if order == 1:
        return np.ones((1, 1), dtype=np.int8)
    if _halves(order):
        half = _construct(order // 2)
        return np.block([[half, half], [half, -half]])
    if _paley(order) == 1:
        skew = _bordered(order - 1, corner=-1)
        return skew + np.eye(order, dtype=np.int8)
    symmetric = _bordered(order // 2 - 1, corner=1)
    eye = np.eye(order // 2, dtype=np.int8)
    plus: _Signs = np.array([[1, 1], [1, -1]], dtype=np.int8)
    minus: _Signs = np.array([[1, -1], [-1, -1]], dtype=np.int8)
    return np.kron(symmetric, plus) + np.kron(eye, minus)


def _bordered(prime: int, corner: int) -> _Signs:
    """Jacobsthal's matrix of a prime, with a border of ones; the left one of ``corner``'s sign."""
    squares = np.zeros(prime, dtype=np.int8)
    squares[1:] = -1
    squares[np.arange(1, prime, dtype=np.int64) ** 2 % prime] = 1
    index = np.arange(prime)
    matrix = np.zeros((prime + 1, prime + 1), dtype=np.int8)
    matrix[0, 1:] = 1
    matrix[1:, 0] = corner
    matrix[1:, 1:] = squares[(index[:, None] - index) % prime]
    return matrix


def _prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))
