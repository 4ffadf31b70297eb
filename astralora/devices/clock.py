"""Read and advance the time that drift follows."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .capabilities import Clock, capability_of
from .device import Device

__all__ = ["Clock", "WallClock", "clock_of", "common_clock"]


class WallClock:
    """Follow real time."""

    @property
    def clock_seconds(self) -> float:
        """Return the present time in seconds, from an arbitrary origin."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(max(seconds, 0.0))


def clock_of(device: Device) -> Clock:
    """Return the clock of the device, which simulators have, or else the wall clock."""
    own = capability_of(device, Clock)
    return WallClock() if own is None else own


def common_clock(devices: Sequence[Device]) -> Clock | None:
    """Return one clock for chips that work side by side; None where one of them has no clock."""
    clocks = [capability_of(device, Clock) for device in devices]
    found = [clock for clock in clocks if clock is not None]
    return _CommonClock(found) if len(found) == len(clocks) else None


class _CommonClock:
    """Combine several clocks; its time is that of the clock that is farthest ahead."""

    def __init__(self, clocks: Sequence[Clock]) -> None:
        self._clocks = clocks

    @property
    def clock_seconds(self) -> float:
        """Return the present time in seconds, from an arbitrary origin."""
        return max(clock.clock_seconds for clock in self._clocks)

    def wait(self, seconds: float) -> None:
        """Let time pass on all clocks."""
        for clock in self._clocks:
            clock.wait(seconds)
