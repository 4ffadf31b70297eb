"""Simulate devices by torch functions for their physics, with the impairments of real chips.

`KINDS` is the table of simulated kinds. To add your own kind, write a `Physics` class with one method; `device_factory`
makes a factory from this class, for `astralora.devices.register_device`.
"""

from __future__ import annotations

from .diffraction import Diffractive
from .elementwise import MRR, SLM, MatVec
from .factories import (
    device_factory,
    open_diffractive,
    open_identity,
    open_lowrank,
    open_matvec,
    open_monarch,
    open_mrr,
    open_mzi,
    open_mzi3,
    open_slm,
    open_twin,
)
from .fixed import Identity, LowRank
from .impairments import PRESETS, Impairments
from .kinds import KINDS
from .mesh import MZI, MZI3
from .monarch import Monarch
from .physics import Drive, Heated, LinearPhysics, Physics
from .simulator import SimulatedDevice

__all__ = [
    "KINDS",
    "MRR",
    "MZI",
    "MZI3",
    "PRESETS",
    "SLM",
    "Diffractive",
    "Drive",
    "Heated",
    "Identity",
    "Impairments",
    "LinearPhysics",
    "LowRank",
    "MatVec",
    "Monarch",
    "Physics",
    "SimulatedDevice",
    "device_factory",
    "open_diffractive",
    "open_identity",
    "open_lowrank",
    "open_matvec",
    "open_monarch",
    "open_mrr",
    "open_mzi",
    "open_mzi3",
    "open_slm",
    "open_twin",
]
