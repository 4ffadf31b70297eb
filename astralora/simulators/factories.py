"""Make simulated devices by kind, or from a calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..devices import Calibration, Range
from .diffraction import Diffractive
from .elementwise import MRR, SLM, MatVec
from .fixed import Identity, LowRank
from .impairments import Impairments
from .mesh import MZI, MZI3
from .monarch import Monarch
from .physics import Physics
from .simulator import SimulatedDevice

__all__ = [
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


def open_twin(calibration: str | Path | Calibration, *, seed: int = 0) -> SimulatedDevice:
    """Make the simulated twin of a calibrated chip, with the chip's noise, to train without the chip.

    Args:
        calibration: record of the chip, or a path.
        seed: seed of the noise.
    """
    return SimulatedDevice.from_calibration(calibration, seed=seed)


def device_factory(kind: type[Physics]) -> Callable[..., SimulatedDevice]:
    """Return a factory of simulated devices of one kind, for `astralora.devices.register_device` or an entry point.

    The factory passes options that `SimulatedDevice` does not take to the kind, which refuses unknown options.
    """

    def make(
        in_features: int,
        out_features: int,
        *,
        impairments: str | Impairments | dict[str, Any] = "ideal",
        seed: int = 0,
        input_range: Range = (-1.0, 1.0),
        max_batch: int | None = None,
        torch_device: str = "cpu",
        **physics: Any,
    ) -> SimulatedDevice:
        if isinstance(impairments, dict):
            impairments = Impairments(**impairments)
        return SimulatedDevice(
            kind(**physics),
            in_features,
            out_features,
            impairments=impairments,
            seed=seed,
            input_range=input_range,
            max_batch=max_batch,
            torch_device=torch_device,
        )

    make.__doc__ = kind.__doc__
    return make


open_matvec = device_factory(MatVec)
open_slm = device_factory(SLM)
open_mrr = device_factory(MRR)
open_mzi = device_factory(MZI)
open_mzi3 = device_factory(MZI3)
open_monarch = device_factory(Monarch)
open_lowrank = device_factory(LowRank)
open_identity = device_factory(Identity)
open_diffractive = device_factory(Diffractive)
