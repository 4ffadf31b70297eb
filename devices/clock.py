"""The time that a device lives in: its own virtual one, or that on the wall."""

from __future__ import annotations

import time
from typing import Protocol, runtime_checkable

from .device import Device
from .session import Session

__all__ = ["Clock", "WallClock", "clock_of"]


@runtime_checkable
class Clock(Protocol):
    """Something with a time of its own, which drift goes by."""

    @property
    def clock_seconds(self) -> float:
        """Time at present, from an origin of its own."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time go by."""
        ...


class WallClock:
    """The time that really goes by."""

    @property
    def clock_seconds(self) -> float:
        """Time at present, from an origin of its own."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(max(seconds, 0.0))


def clock_of(device: Device) -> Clock:
    """The device's own clock if it has one, as simulators do, else the wall's."""
    own = device.capability(Clock) if isinstance(device, Session) else device
    return own if isinstance(own, Clock) else WallClock()
