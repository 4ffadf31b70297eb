"""Bring numbers to addresses at which equal numbers give equal results."""

from __future__ import annotations

from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ALIGNMENT", "aligned", "aligned_array"]

ALIGNMENT: Final = 64
"""Bytes; torch allocates every tensor at a multiple of it."""


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor in C order whose address is a multiple of `ALIGNMENT`; copy it only where it has another one.

    Vector instructions group the terms of a sum by address on some processors. Matrix products of equal numbers at
    other addresses or in another order then differ in their last bits.
    """
    if tensor.is_contiguous() and not tensor.data_ptr() % ALIGNMENT:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def aligned_array(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in C order whose address is a multiple of `ALIGNMENT`; as `aligned`."""
    if array.flags.c_contiguous and not array.__array_interface__["data"][0] % ALIGNMENT:
        return array
    # numpy aligns to 16 bytes only.
    copy: NDArray[Any] = torch.empty(array.nbytes, dtype=torch.uint8).numpy().view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
