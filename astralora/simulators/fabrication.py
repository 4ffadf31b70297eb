"""Draw the flaws of one fabricated chip."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..devices import derive_generator
from .impairments import Impairments
from .law import ChipLaw
from .physics import LinearPhysics, Physics

__all__ = ["Flaws", "check_impairments", "draw_flaws"]


class Flaws(NamedTuple):
    """Hold the differences between one chip and a nominal chip.

    Attributes:
        constants: constants of the chip that are not nominal, float64.
        fixed: values of stuck and dead controls, nan for controls that move, (num_controls,); None if all move.
        working: whether each output has a signal; False for dead outputs, (out_features,).
    """

    constants: dict[str, Tensor]
    fixed: Tensor | None
    working: Tensor


def check_impairments(physics: Physics, impairments: Impairments) -> None:
    """Refuse impairments that a kind cannot have.

    Raises:
        ValueError: the kind cannot have one of the impairments; the message names it and gives the reason.
    """
    kind = physics.kind_name()
    if impairments.pcm and not physics.conductances:
        raise ValueError(f"pcm needs a kind whose controls are conductances, but those of {kind} are phases")
    if impairments.weight_noise_std and not isinstance(physics, LinearPhysics):
        raise ValueError(f"weight_noise_std is noise on a transfer matrix, but {kind} has no transfer matrix")
    if impairments.splitter_error_std and "splitter_error" not in type(physics).model_fields:
        raise ValueError(f"splitter_error_std needs a mesh, but {kind} has no couplers")


def draw_flaws(law: ChipLaw, impairments: Impairments, seed: int) -> Flaws:
    """Draw the flaws of one chip.

    Each kind of flaw has its own random stream, so that another impairment does not change the values of the others.

    Args:
        law: law of the nominal chip.
        impairments: spreads of the constants, and shares of stuck and dead parts.
        seed: seed of the chip.
    """
    low, high = law.physics.drive.range
    fixed = torch.full((law.num_controls,), float("nan"), dtype=torch.float64)
    stuck = _choose(seed, "stuck", impairments.stuck_fraction, law.num_controls)
    levels = torch.rand(law.num_controls, generator=derive_generator(seed, "chip", "stuck at"), dtype=torch.float64)
    fixed[stuck] = low + (high - low) * levels[stuck]
    fixed[_choose(seed, "dead", impairments.dead_fraction, law.num_controls)] = low
    working = torch.ones(law.out_features, dtype=torch.bool)
    working[_choose(seed, "dead outputs", impairments.dead_output_fraction, law.out_features)] = False
    return Flaws(_draw_constants(law, impairments, seed), None if bool(fixed.isnan().all()) else fixed, working)


def _draw_constants(law: ChipLaw, impairments: Impairments, seed: int) -> dict[str, Tensor]:
    streams = {"phase_bias": "phase bias"}
    units = {"input_offset": law.magnitude, "output_offset": law.full_scale}
    constants: dict[str, Tensor] = {}
    for name, constant in law.declared.items():
        std = getattr(impairments, f"{name}_std", 0.0) * units.get(name, 1.0)
        if std:
            generator = derive_generator(seed, "chip", streams.get(name, name))
            draw = torch.randn(constant.shape, generator=generator, dtype=torch.float64)
            constants[name] = constant.nominal + std * draw
    if impairments.crosstalk:
        constants["crosstalk"] = torch.tensor(impairments.crosstalk, dtype=torch.float64)
    if impairments.insertion_loss_db:
        gain = constants.get("output_gain", torch.ones(law.out_features, dtype=torch.float64))
        constants["output_gain"] = gain * impairments.transmission
    return constants


def _choose(seed: int, stream: str, fraction: float, count: int) -> Tensor:
    """Choose a fixed number of ``count`` parts, the rounded share, so that all chips have the same number."""
    order = torch.randperm(count, generator=derive_generator(seed, "chip", stream))
    return order[: round(fraction * count)]
