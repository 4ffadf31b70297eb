"""Counting what an optimizer remembers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, optim

__all__ = ["state_bytes"]


def state_bytes(holder: optim.Optimizer | Mapping[Any, Any] | Iterable[Any] | Tensor) -> int:
    """Bytes of all tensors in an optimizer's state, or in any nested containers.

    Works on every torch optimizer: `torch.optim.Adam` keeps 8 bytes for each float32 number that it trains, and 4 for
    each tensor's step.

    Args:
        holder: an optimizer, or mappings and sequences with tensors in them.
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
