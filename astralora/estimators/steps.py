"""Choose the size of a perturbation of the controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec

__all__ = ["Step", "StepChoice", "choose_step"]

Step = float | Literal["auto"]

Bound = Literal["given", "levels", "noise", "curvature"]

# Largest share of the control range: with larger steps curvature is too strong, independent of the noise.
_MOST = 1 / 8


@dataclass(frozen=True, slots=True)
class StepChoice:
    """Hold the size of a perturbation and the reason for it.

    Attributes:
        size: size in control units.
        bound: reason for the size. ``"given"``: the user gave the size. ``"levels"``: the size is two control levels,
            because smaller steps may be rounded away. ``"noise"``: the response to a smaller step would be below the
            noise. ``"curvature"``: the response to a larger step would not be linear.
    """

    size: float
    bound: Bound


def choose_step(spec: DeviceSpec, step: Step, share: float, noise: float = 0.0) -> StepChoice:
    """Choose the size of a perturbation of the controls.

    ``"auto"`` uses a share of the control range for which curvature is small. The step is larger, up to an eighth of
    the range, if the response would be below the noise. It is at least two control levels.

    Args:
        spec: spec of the device.
        step: size in control units, or ``"auto"``.
        share: share of the control range; if the device has no range, the size itself.
        noise: smallest step with a response above the noise, in control units; 0 if unknown.

    Raises:
        ConfigurationError: the step is smaller than one control level, or larger than half the range.
    """
    low, high = spec.control_range or (0.0, 1.0)
    span, level = high - low, spec.control_step
    if step == "auto":
        bound: Bound
        size, bound = share * span, "curvature"
        if noise > size:
            size, bound = (noise, "noise") if noise <= _MOST * span else (_MOST * span, "curvature")
        if level is None:
            return StepChoice(size, bound)
        # Whole levels, so that a step has the same size from any value between two codes. The step must fit into the
        # range on both sides of the middle.
        room = int(span / 2 / level + 1e-9)
        if room < 1:
            raise ConfigurationError(
                f"{spec.name!r} has {spec.control_levels} control levels, too few for a perturbation; use more levels"
            )
        levels = round(size / level)
        if levels < 2:
            levels, bound = 2, "levels"
        return StepChoice(min(levels, room) * level, bound)
    if isinstance(step, bool | str):
        raise ConfigurationError(f"step must be a number of control units, or 'auto', not {step!r}")
    size = float(step)
    if not size > 0:
        raise ConfigurationError(f"a step must be positive, not {size:g}; or use 'auto'")
    if level is not None and size < level:
        raise ConfigurationError(
            f"a step of {size:g} is below one control level of {spec.name!r}, {level:.4g} {spec.control_unit}: "
            f"it may have no effect; use 'auto' or at least {2 * level:.4g}"
        )
    if spec.control_range is not None and size > span / 2:
        raise ConfigurationError(
            f"a step of {size:g} is more than half the control range of {spec.name!r}, {low:g} to {high:g}; "
            f"use 'auto' or a smaller step"
        )
    return StepChoice(size, "given")
