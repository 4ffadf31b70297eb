"""Quantize values like a converter."""

from __future__ import annotations

from torch import Tensor

from ..devices import Range

__all__ = ["quantize"]


def quantize(values: Tensor, bounds: Range, levels: int | None) -> Tensor:
    """Clip values to a range, and round them to the nearest of ``levels`` equally spaced codes in this range.

    Args:
        values: values of any shape.
        bounds: lowest and highest code.
        levels: number of codes; None to clip without rounding.
    """
    low, high = bounds
    if levels is None:
        return values.clamp(low, high)
    step = (high - low) / (levels - 1)
    lowest = low / step
    if lowest == round(lowest):  # zero is a code, which saves two passes over the values
        return (values / step).round_().clamp_(lowest, lowest + levels - 1).mul_(step)
    codes = (values - low).div_(step).round_().clamp_(0, levels - 1)
    return codes.mul_(step).add_(low)
