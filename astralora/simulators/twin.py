"""What a calibration says of a chip, as options of a simulated one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..devices import Calibration, DeviceError
from .impairments import Impairments
from .kinds import KINDS

__all__ = ["twin_options"]


def twin_options(calibration: Calibration | str | Path) -> dict[str, Any]:
    """Options of `astralora.simulators.SimulatedDevice` that make the twin of a calibrated chip.

    Its constants, its noise and its converters, and what of it is dead or stuck; and its time and energy, so that a
    rehearsal costs what the chip costs. Each of its detectors is as noisy as the chip's, and what its spec says of that
    is the average of those that see something.

    Args:
        calibration: the chip's record, or a path.

    Raises:
        DeviceError: no law fits the chip, or one that is not simulated.
    """
    if not isinstance(calibration, Calibration):
        calibration = Calibration.load(calibration)
    name, fit = calibration.device, calibration.fit
    if calibration.model is None or fit is None or not fit.fits:
        verdict = "it has no law" if fit is None else fit.verdict
        raise DeviceError(f"no twin can be made from its calibration: {verdict}", device=name, operation="twin")
    if calibration.model.name not in KINDS:
        raise DeviceError(
            f"its calibration is of the law {calibration.model.name!r}, which is no simulated kind; "
            f"known are {', '.join(KINDS)}",
            device=name,
            operation="twin",
        )
    spec = calibration.measured
    options: dict[str, Any] = dict(calibration.model.options)
    law = KINDS[calibration.model.name](**options)
    constants = {name: value.to(torch.float64) for name, value in calibration.constants.items()}
    dead = calibration.tensors.get("dead_outputs")
    seeing = torch.ones(spec.out_features, dtype=torch.bool)
    if dead is not None and len(dead):
        seeing[dead] = False
        gain = constants.get("output_gain", torch.ones(spec.out_features, dtype=torch.float64))
        constants["output_gain"] = gain.where(seeing, 0.0)
    noise, by_output = spec.noise_std, calibration.tensors.get("noise/by_output")
    if by_output is not None and bool(seeing.any()):
        noise = float(by_output[seeing].square().mean().sqrt())
    bound = None if spec.output_range is None else max(map(abs, spec.output_range))
    impairments = Impairments(
        control_levels=spec.control_levels,
        input_levels=spec.input_levels,
        output_levels=spec.output_levels,
        output_bound=bound,
        output_noise_fraction=noise / (bound or law.full_scale(spec.in_features)),
        program_seconds=spec.program_seconds,
        vector_seconds=spec.vector_seconds,
        program_joules=spec.program_joules,
        vector_joules=spec.vector_joules,
    )
    return {
        "physics": law,
        "in_features": spec.in_features,
        "out_features": spec.out_features,
        "impairments": impairments,
        "input_range": spec.input_range or (-1.0, 1.0),
        "max_batch": spec.max_batch,
        "fixed": calibration.fixed,
        "noise_by_output": by_output,
        "constants": constants,
    }
