"""Count the memory of optimizer states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, optim

__all__ = ["state_bytes"]


def state_bytes(holder: optim.Optimizer | Mapping[Any, Any] | Iterable[Any] | Tensor) -> int:
    """Count the bytes of all tensors in an optimizer's state, or in nested containers.

    This works for every torch optimizer. `torch.optim.Adam` keeps 8 bytes for each float32 number that it trains, and 4
    bytes for the step of each tensor.

    Args:
        holder: an optimizer, or nested mappings and sequences of tensors.
    """
    if isinstance(holder, optim.Optimizer):
        holder = holder.state
    if isinstance(holder, Tensor):
        return holder.numel() * holder.element_size()
    if isinstance(holder, Mapping):
        return sum(map(state_bytes, holder.values()))
    if isinstance(holder, Iterable) and not isinstance(holder, str | bytes):
        return sum(map(state_bytes, holder))
    return 0
