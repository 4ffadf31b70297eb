"""The time that a device lives in: its own virtual one, or that on the wall."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from .device import Device, PassesOn
from .session import Session

__all__ = ["Clock", "WallClock", "clock_of", "common_clock"]


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
    """The device's own clock if it has one, as simulators do, also behind what `PassesOn` such; else the wall's."""
    own = device.capability(Clock) if isinstance(device, Session | PassesOn) else device
    return own if isinstance(own, Clock) else WallClock()


def common_clock(sessions: Sequence[Session]) -> Clock | None:
    """The clock of chips that work side by side; None where one of them has none of its own."""
    clocks = [session.capability(Clock) for session in sessions]
    own = [clock for clock in clocks if clock is not None]
    return _Clocks(own) if len(own) == len(clocks) else None


class _Clocks:
    """Several clocks as one, which is where the foremost of them is."""

    def __init__(self, clocks: Sequence[Clock]) -> None:
        self._clocks = clocks

    @property
    def clock_seconds(self) -> float:
        """Time at present, from an origin of its own."""
        return max(clock.clock_seconds for clock in self._clocks)

    def wait(self, seconds: float) -> None:
        """Let time go by on all of them."""
        for clock in self._clocks:
            clock.wait(seconds)
