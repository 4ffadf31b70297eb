"""Check requests before anything is spent, and answers before anything uses them."""

from __future__ import annotations

from math import inf, isfinite

import torch
from torch import Tensor

from .errors import OutOfRange, ProtocolError
from .spec import DeviceSpec, Range

__all__ = ["NotFinite", "check_controls", "check_finite", "check_inputs", "check_outputs"]

# Scaling into a range in float32 may exceed its end by an ulp or two.
_ROUNDING = 1e-6


class NotFinite(ProtocolError):
    """Report an answer that arrived intact, with NaN or infinity in it."""


def check_controls(spec: DeviceSpec, controls: Tensor, operation: str, ndim: int = 1) -> None:
    """Refuse controls that are not (..., num_controls), float, finite and within range.

    Raises:
        OutOfRange: names the condition and the place.
    """
    _check(spec, controls, operation, "controls", spec.num_controls, ndim, spec.control_range)


def check_inputs(spec: DeviceSpec, inputs: Tensor, operation: str) -> None:
    """Refuse inputs that are not (batch, in_features), float, finite and within range.

    Raises:
        OutOfRange: names the condition and the place.
    """
    _check(spec, inputs, operation, "inputs", spec.in_features, 2, spec.input_range)


def check_outputs(spec: DeviceSpec, outputs: object, shape: tuple[int, ...] | None) -> Tensor:
    """Return the answer of a driver, or refuse one of the wrong shape or type.

    Raises:
        ProtocolError: the driver is at fault; a repetition would not help.
    """
    if not isinstance(outputs, Tensor):
        problem = f"answered a {type(outputs).__name__} where its driver must return a tensor"
    elif outputs.shape != shape:
        problem = f"answered shape {tuple(outputs.shape)} where {shape} was expected"
    elif not outputs.is_floating_point():
        problem = f"answered {outputs.dtype} where a floating-point tensor was expected"
    else:
        return outputs
    raise ProtocolError(problem, device=spec.name, operation="query")


def check_finite(spec: DeviceSpec, outputs: Tensor) -> None:
    """Refuse an answer with NaN or infinity in it.

    Raises:
        NotFinite: a repetition may cure it.
    """
    # The sum takes one pass and is nearly always finite; only where it is not are the values checked one by one.
    if not isfinite(outputs.detach().sum().item()):
        bad = ~torch.isfinite(outputs)
        if bool(bad.any()):
            row = _first(bad.flatten(0, -2).any(dim=1)) if outputs.ndim > 1 else "a value"
            raise NotFinite(
                f"{row} of the answer is not finite; check the detector chain", device=spec.name, operation="query"
            )


def _check(
    spec: DeviceSpec,
    value: Tensor,
    operation: str,
    what: str,
    width: int,
    ndim: int,
    bounds: Range | None,
) -> None:
    # Every operation passes here: messages are composed only where something is wrong.
    if not isinstance(value, Tensor):
        problem = f"{what} must be a torch tensor, not {type(value).__name__}"
    elif value.ndim != ndim or value.shape[-1] != width:
        leading = "" if ndim == 1 else "batch, " if what == "inputs" else "settings, "
        due = f"({leading}{width}{',' if ndim == 1 else ''})"
        problem = f"{what} must have shape {due}, but have {tuple(value.shape)}"
    elif value.dtype not in (torch.float32, torch.float64):
        problem = f"{what} must be float32 or float64, not {value.dtype}"
    elif not value.numel() or (bounds is None and isfinite(value.detach().sum().item())):
        return  # a sum that overflows is checked value by value below
    else:
        lowest, highest = torch.aminmax(value.detach())
        low, high = lowest.item(), highest.item()  # NaN stays NaN
        slack = 0.0 if bounds is None else _ROUNDING * (bounds[1] - bounds[0])
        if bounds is not None and bounds[0] - slack <= low and high <= bounds[1] + slack:
            return
        if not (-inf < low and high < inf):
            bad = ~torch.isfinite(value)
            where = f"at index {_index(bad)}" if ndim == 1 else f"in {_first(bad.any(dim=1))}"
            problem = f"{what} hold NaN or infinity {where}; they must be finite"
        elif bounds is None:
            return
        else:
            unit = f" {spec.control_unit}" if what == "controls" and spec.control_unit else ""
            problem = (
                f"{what} reach from {low:.6g} to {high:.6g}, but must stay within "
                f"{bounds[0]:.6g} to {bounds[1]:.6g}{unit}"
            )
    raise OutOfRange(problem, device=spec.name, operation=operation)


def _index(mask: Tensor) -> int:
    return int(mask.nonzero()[0, 0])


def _first(rows: Tensor) -> str:
    return f"row {_index(rows)}"
