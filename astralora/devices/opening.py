"""Open a device by name, in one call."""

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
    """Make a device, connect to it, and return a session on it.

    Args:
        name: a registered name, a bench file, or a factory in a Python file such as ``path/to/mychip.py:make_chip``,
            which is imported; see `astralora.devices.find_device`.
        budget: limit of the operations of the session; None sets no limit.
        retry: number of attempts after a fault of the link, and the pauses between them.
        calibration: calibration of this chip, or its path. The chip then acts like a nominal chip: controls, inputs and
            outputs are corrected; see `CalibratedDevice`.
        **options: options for the device's factory, such as ``in_features``.

    Returns:
        An open session.

    Raises:
        DeviceError: the name is unknown, the factory refuses the options, or the device cannot be opened.
        CalibrationMismatch: the calibration was taken on another chip.
    """
    device: Device = make_device(name, **options)
    if calibration is not None:
        device = CalibratedDevice(device, calibration, retry=retry)
    session = Session(device, budget=budget, retry=retry)
    session.open()
    return session
