"""Derive the spec of a simulated device from its physics and impairments."""

from __future__ import annotations

import hashlib

from ..devices import DeviceSpec, Range
from .impairments import Impairments
from .noise import declared_noise_std
from .physics import Physics

__all__ = ["simulated_spec"]


def simulated_spec(
    physics: Physics,
    in_features: int,
    out_features: int,
    *,
    impairments: Impairments,
    full_scale: float,
    input_range: Range,
    max_batch: int | None,
    seed: int,
) -> DeviceSpec:
    """Return the spec of a simulated device; all its claims are true.

    Args:
        physics: law of the kind.
        in_features: number n of inputs.
        out_features: number m of outputs.
        impairments: converters, noise, durations and energies.
        full_scale: full scale of the detectors, in output units.
        input_range: range of legal inputs.
        max_batch: largest batch of a query; None for no limit.
        seed: seed of the chip; part of the serial number.
    """
    kind, drive = physics.kind_name(), physics.drive
    return DeviceSpec(
        name=kind,
        in_features=in_features,
        out_features=out_features,
        num_controls=physics.num_controls(in_features, out_features),
        input_range=input_range,
        control_range=drive.range,
        output_range=(-full_scale, full_scale) if impairments.bounded else None,
        input_levels=impairments.input_levels,
        control_levels=impairments.control_levels,
        output_levels=impairments.output_levels,
        control_unit=drive.unit,
        initial_range=drive.initial,
        linear=physics.linear,
        coupling=physics.coupling,
        reach=physics.reach(in_features, out_features),
        noise_std=declared_noise_std(impairments, full_scale, in_features),
        idempotent_program=True,
        max_batch=max_batch,
        program_seconds=impairments.program_seconds + impairments.settle_seconds,
        vector_seconds=impairments.vector_seconds,
        program_joules=impairments.program_joules,
        vector_joules=impairments.vector_joules,
        serial_number=f"sim-{kind}-{in_features}x{out_features}-{seed}-{_fingerprint(physics, impairments)}",
    )


def _fingerprint(physics: Physics, impairments: Impairments) -> str:
    """Return a short hash of the design, which differs for chips with the same seed but different designs."""
    design = f"{physics!r} {impairments!r}"
    return hashlib.blake2b(design.encode(), digest_size=4).hexdigest()
