"""Align tensors and arrays in memory, so that equal values give equal results."""

from __future__ import annotations

from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ALIGNMENT", "aligned", "aligned_array"]

ALIGNMENT: Final = 64
"""Alignment in bytes; torch allocates every tensor at a multiple of it."""


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor in C order at an address that is a multiple of `ALIGNMENT`; copy it only if necessary.

    On some processors, vector instructions group the terms of a sum by their address. Matrix products of equal values
    then differ in their last bits if the address or the memory order differs.
    """
    if tensor.is_contiguous() and not tensor.data_ptr() % ALIGNMENT:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def aligned_array(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in C order at an address that is a multiple of `ALIGNMENT`; see `aligned`."""
    if array.flags.c_contiguous and not array.__array_interface__["data"][0] % ALIGNMENT:
        return array
    # numpy aligns to 16 bytes only.
    copy: NDArray[Any] = torch.empty(array.nbytes, dtype=torch.uint8).numpy().view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
