"""Checks that cost nothing, made before anything is spent."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import DeviceError, OutOfRange, ProtocolError
from .spec import DeviceSpec, Range

__all__ = ["check_controls", "check_inputs", "check_outputs"]

# Scaling into a range in float32 may overshoot its end by an ulp or two.
_ROUNDING = 1e-6


def check_controls(spec: DeviceSpec, controls: Tensor, operation: str, ndim: int = 1) -> None:
    """Refuse controls that are not (..., num_controls), float, finite and within range.

    Raises:
        OutOfRange: says which of these was wrong, and where.
    """
    _check(spec, controls, operation, "controls", spec.num_controls, ndim, spec.control_range)


def check_inputs(spec: DeviceSpec, inputs: Tensor, operation: str) -> None:
    """Refuse inputs that are not (batch, in_features), float, finite and within range.

    Raises:
        OutOfRange: says which of these was wrong, and where.
    """
    _check(spec, inputs, operation, "inputs", spec.in_features, 2, spec.input_range)


def check_outputs(spec: DeviceSpec, outputs: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse an answer of the wrong shape or with values that are not finite.

    Raises:
        ProtocolError: the device or its driver is at fault.
    """

    def fault(message: str) -> ProtocolError:
        return ProtocolError(message, device=spec.name, operation="query")

    if not isinstance(outputs, Tensor):
        raise fault(f"answered a {type(outputs).__name__} where its driver must return a tensor")
    if tuple(outputs.shape) != shape:
        raise fault(f"answered shape {tuple(outputs.shape)} where {shape} was due")
    if not outputs.is_floating_point():
        raise fault(f"answered {outputs.dtype} where a floating-point tensor was due")
    if outputs.numel():
        low, high = torch.aminmax(outputs)
        if not torch.isfinite(high - low):
            rows = (~torch.isfinite(outputs)).reshape(-1, shape[-1]).any(dim=1)
            raise fault(f"{_first(rows)} of the answer is not finite; check the detector chain")


def _check(
    spec: DeviceSpec,
    value: Tensor,
    operation: str,
    what: str,
    width: int,
    ndim: int,
    bounds: Range | None,
) -> None:
    def refuse(message: str) -> DeviceError:
        return OutOfRange(message, device=spec.name, operation=operation)

    leading = {"inputs": ("batch",), "controls": () if ndim == 1 else ("settings",)}[what]
    if not isinstance(value, Tensor):
        raise refuse(f"{what} must be a torch tensor, not {type(value).__name__}")
    if value.ndim != ndim or value.shape[-1] != width:
        due = "(" + ", ".join((*leading, str(width))) + ("," if ndim == 1 else "") + ")"
        raise refuse(f"{what} must have shape {due}, but have {tuple(value.shape)}")
    if value.dtype not in (torch.float32, torch.float64):
        raise refuse(f"{what} must be float32 or float64, not {value.dtype}")
    if not value.numel():
        return
    low, high = (float(end) for end in torch.aminmax(value.detach()))  # NaN comes through as NaN
    if not (-float("inf") < low and high < float("inf")):
        bad = ~torch.isfinite(value)
        where = f" in {_first(bad.any(dim=1))}" if ndim == 2 else f" at index {_index(bad)}"
        raise refuse(f"{what} hold NaN or infinity{where}; they must be finite")
    if bounds is not None:
        slack = _ROUNDING * (bounds[1] - bounds[0])
        if low < bounds[0] - slack or high > bounds[1] + slack:
            unit = f" {spec.control_unit}" if what == "controls" and spec.control_unit else ""
            raise refuse(
                f"{what} reach from {low:.6g} to {high:.6g}, but must stay within "
                f"{bounds[0]:.6g} to {bounds[1]:.6g}{unit}"
            )


def _index(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])


def _first(rows: Tensor) -> str:
    return f"row {_index(rows)}"
