"""How far to move the controls in order to see what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec

__all__ = ["Step", "StepChoice", "choose_step"]

Step = float | Literal["auto"]

Bound = Literal["given", "levels", "noise", "curvature"]

# Of the control range: beyond this the device's curve bends, whatever the noise.
_MOST = 1 / 8


@dataclass(frozen=True, slots=True)
class StepChoice:
    """The size of a perturbation, and what decided it.

    Attributes:
        size: in control units.
        bound: ``"given"`` by the user; two control ``"levels"``, below which it would be no step, or one of another
            size;
            the ``"noise"``, in which the answer to a smaller one would drown; or the ``"curvature"`` of the device's
            response, which a larger one would feel.
    """

    size: float
    bound: Bound


def choose_step(spec: DeviceSpec, step: Step, share: float, noise: float = 0.0) -> StepChoice:
    """The size of a perturbation of the controls.

    ``"auto"`` takes a share of the control range, as large as curvature comfortably allows; more where the answer would
    drown in noise, up to an eighth of the range; and never less than two control levels.

    Args:
        spec: of the device.
        step: a size in control units, or ``"auto"``.
        share: of the control range; of 1 where there is none.
        noise: the step below which the answer would drown in noise, in control units; 0 where that is not known.

    Raises:
        ConfigurationError: the step is smaller than one control level, or larger than half the range.
    """
    low, high = spec.control_range or (0.0, 1.0)
    span, level = high - low, spec.control_step
    if step == "auto":
        size, bound = share * span, "curvature"
        if noise > size:
            size, bound = (noise, "noise") if noise <= _MOST * span else (_MOST * span, "curvature")
        if level is None:
            return StepChoice(size, bound)  # type: ignore[arg-type]  # one of the literals above
        # Whole levels: then a step is the same wherever between two codes it starts. From the middle of the range
        # there must be room for it.
        room = int(span / 2 / level + 1e-9)
        if room < 1:
            raise ConfigurationError(
                f"{spec.name!r} has {spec.control_levels} control levels: too few to take a step from one to another"
            )
        levels = round(size / level)
        if levels < 2:
            levels, bound = 2, "levels"
        return StepChoice(min(levels, room) * level, bound)  # type: ignore[arg-type]
    if isinstance(step, bool | str):
        raise ConfigurationError(f"a step is a number of control units, or 'auto', not {step!r}")
    size = float(step)
    if not size > 0:
        raise ConfigurationError(f"a step must be positive, not {size:g}; or leave it at 'auto'")
    if level is not None and size < level:
        raise ConfigurationError(
            f"a step of {size:g} is below one control level of {spec.name!r}, {level:.4g} {spec.control_unit}: "
            f"it would be no step at all; use 'auto' or at least {2 * level:.4g}"
        )
    if spec.control_range is not None and size > span / 2:
        raise ConfigurationError(
            f"a step of {size:g} is more than half the control range of {spec.name!r}, {low:g} to {high:g}"
        )
    return StepChoice(size, "given")
