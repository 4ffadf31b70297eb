"""Check requests before they are sent, and check answers before they are used."""

from __future__ import annotations

from math import inf, isfinite
from typing import Final

import torch
from torch import Tensor

from .errors import OutOfRange, ProtocolError
from .spec import DeviceSpec, Range

__all__ = ["InvalidAnswer", "check_answer", "check_controls", "check_inputs", "check_outputs"]

# Scaling into a range in float32 may exceed its end by an ulp or two.
_ROUNDING = 1e-6
# Text with six digits rounds an answer by less than this share.
_TEXT_ROUNDING: Final = 1e-5
# The noise of all answers of a year exceeds this many standard deviations less than once.
_NOISE_DEVIATIONS: Final = 8.0
# No chip answers with such a number. SCPI instruments report an overload as 9.9E37 (SCPI 1999, volume 1, section
# 7.2.1), which a driver may have converted to another unit.
_OVERLOAD: Final = 1e30


class InvalidAnswer(ProtocolError):
    """Report an answer that was transmitted without error, but is no measurement."""


def check_controls(spec: DeviceSpec, controls: Tensor, operation: str, ndim: int = 1) -> None:
    """Refuse controls that are not (..., num_controls), float, finite and within range.

    Raises:
        OutOfRange: a condition is broken; the message names the condition and the index.
    """
    _check(spec, controls, operation, "controls", spec.num_controls, ndim, spec.control_range)


def check_inputs(spec: DeviceSpec, inputs: Tensor, operation: str) -> None:
    """Refuse inputs that are not (batch, in_features), float, finite and within range.

    Raises:
        OutOfRange: a condition is broken; the message names the condition and the row.
    """
    _check(spec, inputs, operation, "inputs", spec.in_features, 2, spec.input_range)


def check_outputs(spec: DeviceSpec, outputs: object, shape: tuple[int, ...] | None) -> Tensor:
    """Return the answer of a driver, and refuse an answer of the wrong shape or type.

    Raises:
        ProtocolError: the shape or type is wrong; the driver has a bug, so repeating the query does not help.
    """
    if not isinstance(outputs, Tensor):
        problem = f"the driver returned a {type(outputs).__name__}; it must return a tensor"
    elif outputs.shape != shape:
        problem = f"the driver returned shape {tuple(outputs.shape)}; it must return shape {shape}"
    elif not outputs.is_floating_point():
        problem = f"the driver returned {outputs.dtype}; it must return a floating-point tensor"
    else:
        return outputs
    raise ProtocolError(problem, device=spec.name, operation="query")


def check_answer(spec: DeviceSpec, outputs: Tensor, bounds: Range | None) -> None:
    """Refuse an answer that contains NaN, infinity, an overload value, or a value outside its range.

    Args:
        spec: spec of the device, for its noise and rounding.
        outputs: answer of the device, (..., width).
        bounds: range of the answer; None for no limit.

    Raises:
        InvalidAnswer: a value is no measurement; repeating the query may help.
    """
    if not outputs.numel():
        return
    lowest, highest = torch.aminmax(outputs.detach())
    low, high = lowest.item(), highest.item()  # NaN stays NaN
    least, most = -_OVERLOAD, _OVERLOAD
    if bounds is not None:
        slack = (
            _TEXT_ROUNDING * max(map(abs, bounds)) + (spec.output_step or 0.0) / 2 + _NOISE_DEVIATIONS * spec.noise_std
        )
        least, most = max(least, bounds[0] - slack), min(most, bounds[1] + slack)
    if least < low and high < most:
        return
    bad = ~((outputs > least) & (outputs < most))
    row = _first(bad.flatten(0, -2).any(dim=1)) if outputs.ndim > 1 else "a value"
    value = float(outputs[bad][0])
    if not isfinite(value):
        problem = f"{row} of the answer is not finite; check the detector chain"
    elif abs(value) >= _OVERLOAD:
        problem = (
            f"{row} of the answer contains {value:.3g}, with which instruments report an overload; "
            f"reduce the power or choose a larger range of the detector"
        )
    else:
        assert bounds is not None
        problem = (
            f"{row} of the answer contains {value:.6g}, but the spec claims outputs from {bounds[0]:.6g} to "
            f"{bounds[1]:.6g}; check the detector chain, or correct output_range or noise_std"
        )
    raise InvalidAnswer(problem, device=spec.name, operation="query")


def _check(
    spec: DeviceSpec,
    value: Tensor,
    operation: str,
    what: str,
    width: int,
    ndim: int,
    bounds: Range | None,
) -> None:
    # This runs for every operation, so messages are composed only if something is wrong.
    if not isinstance(value, Tensor):
        problem = f"{what} must be a torch tensor, not {type(value).__name__}"
    elif value.ndim != ndim or value.shape[-1] != width:
        leading = "" if ndim == 1 else "batch, " if what == "inputs" else "settings, "
        due = f"({leading}{width}{',' if ndim == 1 else ''})"
        problem = f"{what} must have shape {due}, but have {tuple(value.shape)}"
    elif value.dtype not in (torch.float32, torch.float64):
        problem = f"{what} must be float32 or float64, not {value.dtype}"
    elif not value.numel() or (bounds is None and isfinite(value.detach().sum().item())):
        return  # finite values whose sum overflows are checked one by one below
    else:
        lowest, highest = torch.aminmax(value.detach())
        low, high = lowest.item(), highest.item()  # NaN stays NaN
        slack = 0.0 if bounds is None else _ROUNDING * (bounds[1] - bounds[0])
        if bounds is not None and bounds[0] - slack <= low and high <= bounds[1] + slack:
            return
        if not (-inf < low and high < inf):
            bad = ~torch.isfinite(value)
            where = f"at index {_index(bad)}" if ndim == 1 else f"in {_first(bad.any(dim=1))}"
            problem = f"{what} contain NaN or infinity {where}; they must be finite"
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
