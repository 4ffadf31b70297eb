"""One call from a name to a device that is ready for use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .calibration import Calibration
from .device import Device
from .recovery import Retry
from .registry import make_device
from .session import Session
from .usage import Budget
from .wrappers.calibrated import CalibratedDevice

__all__ = ["open_device"]


def open_device(
    name: str,
    *,
    budget: Budget | None = None,
    retry: Retry | None = None,
    calibration: Calibration | str | Path | None = None,
    **options: Any,
) -> Session:
    """Make the device of this name, connect to it, and put a session in front of it.

    Args:
        name: a registered name, or a bench file; see `astralora.devices.find_device`.
        budget: the most that may be spent through the session.
        retry: how often to try again after a fault of the link, and how soon.
        calibration: of this very chip, or a path: controls are then those of a flawless one, and inputs and outputs are
            corrected; see `astralora.devices.CalibratedDevice`.
        **options: for the device's factory, such as ``in_features``.

    Returns:
        An open session.

    Raises:
        DeviceError: unknown name, options that the factory refuses, or the device cannot be opened.
        CalibrationMismatch: the calibration is another chip's.
    """
    device: Device = make_device(name, **options)
    if calibration is not None:
        device = CalibratedDevice(device, calibration, retry=retry)
    session = Session(device, budget=budget, retry=retry)
    session.open()
    return session
