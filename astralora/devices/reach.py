"""Describe which part of the transfer matrix each control can change, for sparse coupling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, PositiveInt

from .validation import Described

__all__ = ["Patch", "Stripe", "check_reach"]

_Index = Annotated[int, Field(ge=0)]

Stripe = tuple[_Index, _Index] | tuple[_Index, _Index, PositiveInt]
"""Evenly spaced indices: start, stop (not included) and step (may be left out if 1). Empty if stop equals start."""


class Patch(Described):
    """Describe a run of consecutive controls and the rectangle of the transfer matrix that they can change.

    The patches of a `DeviceSpec` follow one another: the first begins with control 0. On a device that is not linear,
    only the outputs are used.

    Attributes:
        controls: number of controls in the run.
        outputs: rows of the rectangle.
        inputs: columns of the rectangle.
        split: ``"inputs"`` or ``"outputs"`` divides this side of the rectangle into equal shares, one for each control
            in order. None: each control changes the whole rectangle.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    controls: PositiveInt
    outputs: Stripe
    inputs: Stripe
    split: Literal["inputs", "outputs"] | None = None


def check_reach(patches: Sequence[Patch], num_controls: int, in_features: int, out_features: int) -> None:
    """Refuse patches that do not fit the device.

    Raises:
        ValueError: a patch does not fit; the message names the patch and the reason.
    """
    for place, patch in enumerate(patches):
        for side, width in (("outputs", out_features), ("inputs", in_features)):
            indices = range(*getattr(patch, side))
            if (indices and indices[-1] >= width) or getattr(patch, side)[1] < getattr(patch, side)[0]:
                raise ValueError(
                    f"patch {place} of the reach has {side} {getattr(patch, side)}, but the device has only "
                    f"{width} {side}"
                )
            if patch.split == side and (not indices or len(indices) % patch.controls):
                raise ValueError(
                    f"patch {place} of the reach cannot split {len(indices)} {side} among {patch.controls} controls"
                )
    total = sum(patch.controls for patch in patches)
    if total != num_controls:
        raise ValueError(f"the patches of the reach have {total} controls, but num_controls is {num_controls}")
