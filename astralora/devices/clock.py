"""Read and advance the clock that determines drift."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .capabilities import Clock, capability_of
from .device import Device

__all__ = ["Clock", "WallClock", "clock_of", "common_clock"]


class WallClock:
    """Measure real time."""

    @property
    def clock_seconds(self) -> float:
        """Return the present time in seconds, from an arbitrary origin."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """Sleep for a number of seconds."""
        time.sleep(max(seconds, 0.0))


def clock_of(device: Device) -> Clock:
    """Return the clock of the device if it has one, as simulators do, or else the wall clock."""
    own = capability_of(device, Clock)
    return WallClock() if own is None else own


def common_clock(devices: Sequence[Device]) -> Clock | None:
    """Return one clock for chips that work in parallel; None if one of them has no clock."""
    clocks = [capability_of(device, Clock) for device in devices]
    found = [clock for clock in clocks if clock is not None]
    return _CommonClock(found) if len(found) == len(clocks) else None


class _CommonClock:
    """Combine several clocks into one, which shows the latest time of them."""

    def __init__(self, clocks: Sequence[Clock]) -> None:
        self._clocks = clocks

    @property
    def clock_seconds(self) -> float:
        """Return the present time in seconds, from an arbitrary origin."""
        return max(clock.clock_seconds for clock in self._clocks)

    def wait(self, seconds: float) -> None:
        """Advance all clocks by a number of seconds."""
        for clock in self._clocks:
            clock.wait(seconds)
