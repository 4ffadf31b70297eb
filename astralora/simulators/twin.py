"""Make options of a simulated device from a calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..devices import Calibration, DeviceError
from ..devices.wrappers.calibrated import check_constants, make_model
from .impairments import Impairments
from .kinds import KINDS
from .physics import Physics

__all__ = ["twin_options"]


def twin_options(calibration: Calibration | str | Path) -> dict[str, Any]:
    """Return the options of `astralora.simulators.SimulatedDevice` that make the twin of a calibrated chip.

    The twin has the constants, noise and converters of the chip, and its dead and stuck parts. It has the operation
    times and energies of the chip too, so that a run on the twin has the same price. Each detector has the noise of the
    same detector on the chip. The noise in the spec is the root mean square over the outputs that are not dead.

    Args:
        calibration: record of the chip, or a path.

    Raises:
        DeviceError: no law fits the chip, or the law is not a simulated kind.
    """
    if not isinstance(calibration, Calibration):
        calibration = Calibration.load(calibration)
    physics, spec = _fitted_physics(calibration), calibration.measured
    working = torch.ones(spec.out_features, dtype=torch.bool)
    dead = calibration.tensors.get("dead_outputs")
    if dead is not None and len(dead):
        working[dead] = False
    return {
        "physics": physics,
        "in_features": spec.in_features,
        "out_features": spec.out_features,
        "impairments": _twin_impairments(calibration, physics, working),
        "input_range": spec.input_range or (-1.0, 1.0),
        "max_batch": spec.max_batch,
        "fixed": calibration.fixed,
        "noise_by_output": calibration.tensors.get("noise/by_output"),
        "constants": _twin_constants(calibration, working),
    }


def _fitted_physics(calibration: Calibration) -> Physics:
    """Return the law that fits the chip; raise `DeviceError` if there is none."""
    name, model, fit = calibration.device, calibration.model, calibration.fit
    if model is None or fit is None or not fit.fits:
        verdict = "it has no law" if fit is None else fit.verdict
        raise DeviceError(f"a twin cannot be made from the calibration: {verdict}", device=name, operation="twin")
    if model.name not in KINDS:
        raise DeviceError(
            f"the calibration uses the law {model.name!r}, which is not a simulated kind; known are {', '.join(KINDS)}",
            device=name,
            operation="twin",
        )
    # The law of the registered device of this name refuses constants that do not fit.
    check_constants(calibration.constants, make_model(model, calibration.promised), model.name)
    return KINDS[model.name](**model.options)


def _twin_constants(calibration: Calibration, working: Tensor) -> dict[str, Tensor]:
    """Return the calibrated constants, with a gain of zero for dead outputs."""
    constants = {name: value.to(torch.float64) for name, value in calibration.constants.items()}
    if not bool(working.all()):
        gain = constants.get("output_gain", torch.ones(len(working), dtype=torch.float64))
        constants["output_gain"] = gain.where(working, 0.0)
    return constants


def _twin_impairments(calibration: Calibration, physics: Physics, working: Tensor) -> Impairments:
    """Return impairments with the converters, noise, operation times and energies of the chip."""
    spec, by_output = calibration.measured, calibration.tensors.get("noise/by_output")
    noise = spec.noise_std
    if by_output is not None and bool(working.any()):
        noise = float(by_output[working].square().mean().sqrt())
    bound = None if spec.output_range is None else max(map(abs, spec.output_range))
    return Impairments(
        control_levels=spec.control_levels,
        input_levels=spec.input_levels,
        output_levels=spec.output_levels,
        output_bound=bound,
        output_noise_fraction=noise / (bound or physics.full_scale(spec.in_features)),
        program_seconds=spec.program_seconds,
        vector_seconds=spec.vector_seconds,
        program_joules=spec.program_joules,
        vector_joules=spec.vector_joules,
    )
