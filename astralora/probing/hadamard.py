"""Make Hadamard matrices, whose rows of +-1 are optimal for measurements, and single rows of very large ones."""

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
    """Return the smallest order, at least ``least``, of a Hadamard matrix that `hadamard` can make.

    The orders are powers of two (Sylvester), q + 1 for primes q = 3 mod 4 and 2 (q + 1) for primes q = 1 mod 4 (Paley
    1933), and twice each of these. For ``least`` up to some hundreds, the order is rarely more than 4 above ``least``;
    for larger ones it is rarely more than 3 % above.
    """
    order = least
    while not _constructible(order):
        order += 1
    return order


def hadamard(order: int) -> Tensor:
    """Return a Hadamard matrix H of +-1 with H^T H = order I, (order, order), int8.

    Raises:
        ValueError: `hadamard` cannot make this order.
    """
    if not _constructible(order):
        raise ValueError(f"no Hadamard matrix of order {order} can be made; the next order is {hadamard_order(order)}")
    return torch.from_numpy(_construct(order).copy())


def hadamard_transform(values: Tensor) -> Tensor:
    """Return ``values @ hadamard(order)``; if the order is a multiple of 4, compute two much smaller products.

    The matrix of order 2^k b is the Kronecker product of the matrices of orders 2^k and b.

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
    """Draw random signs for many controls, in rows that are nearly orthogonal.

    Rows are drawn without repetition from a Sylvester matrix. Its columns are assigned to the controls at random, each
    with a random sign. Every pair of controls is uncorrelated on average, and exactly uncorrelated over a complete set
    of rows. The number of rows in a set is the next power of two above ``width``. After a set, a new set begins.

    Args:
        width: number of controls.
        generator: random stream.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        self._width = width
        self._order = 1 << (width - 1).bit_length()
        self._generator = generator
        self._rows = torch.empty(0, dtype=torch.long)

    def take(self, count: int) -> Tensor:
        """Return the next rows, (count, width), of +1 and -1, int8."""
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
    """Return (-1)^b for rows i and columns j, where b is the number of binary digits that are 1 in both i and j."""
    odd = rows.unsqueeze(1) & columns
    for shift in (32, 16, 8, 4, 2, 1):
        odd = odd ^ (odd >> shift)
    return (1 - 2 * (odd & 1)).to(torch.int8)


def _constructible(order: int) -> bool:
    return order in (1, 2) or _paley(order) > 0 or (order % 4 == 0 and _constructible(order // 2))


def _paley(order: int) -> int:
    """Return 1 or 2 if Paley's first or second construction gives this order, otherwise 0."""
    if order % 4 == 0 and _prime(order - 1):  # then order - 1 = 3 mod 4
        return 1
    half = order // 2 - 1
    return 2 if order % 4 == 0 and half % 4 == 1 and _prime(half) else 0


def _halves(order: int) -> bool:
    """Return whether this order is constructed by doubling the matrix of half the order."""
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
    """Return the Jacobsthal matrix of a prime, with a top border of ones and a left one of sign ``corner``."""
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
