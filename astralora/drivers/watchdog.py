"""Bring a chip into its safe state when its host is gone: the timer of the device, and the heartbeat of the host."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from ..devices import DeviceError, NotConnected

__all__ = [
    "LONGEST_WATCHDOG",
    "SHORTEST_WATCHDOG",
    "Heartbeat",
    "Watchdog",
    "check_watchdog",
    "milliseconds_of",
    "seconds_of",
]

_log = logging.getLogger(__name__)

SHORTEST_WATCHDOG: Final = 0.1
"""Shortest time that a driver accepts, in seconds; a host may pause for some milliseconds at any time."""

LONGEST_WATCHDOG: Final = 4_294_967.0
"""Longest time that a driver accepts, in seconds; the device counts milliseconds in 32 bits."""

# Beats in the time of the watchdog.
_BEATS: Final = 3


def check_watchdog(seconds: object) -> float | None:
    """Return the time of a watchdog in seconds; None for no watchdog.

    Raises:
        ValueError: this is not a time that a device can count.
    """
    if seconds is None:
        return None
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not SHORTEST_WATCHDOG <= float(seconds) <= LONGEST_WATCHDOG:  # type: ignore[arg-type]
        raise ValueError(
            f"watchdog must be a time from {SHORTEST_WATCHDOG:g} to {LONGEST_WATCHDOG:.0f} seconds, "
            f"or None for no watchdog, not {seconds!r}"
        )
    return float(seconds)  # type: ignore[arg-type]


class Watchdog:
    """Count the time since the newest request, as the device; off at first.

    Args:
        expire: function that brings the device into its safe state.
    """

    def __init__(self, expire: Callable[[], object]) -> None:
        self._expire = expire
        self.milliseconds = 0
        self._since = 0.0

    def set(self, milliseconds: int) -> None:
        """Set the time without a request after which the device becomes safe; 0 for no limit."""
        self.milliseconds = milliseconds
        self.restart()

    def restart(self) -> None:
        """Start to count again, because a request has arrived or has been answered."""
        self._since = time.monotonic()

    def check(self) -> None:
        """Bring the device into its safe state if the time is over; the watchdog is then off."""
        if self.milliseconds and time.monotonic() - self._since >= self.milliseconds / 1000:
            _log.warning("no request arrived for %g s: the device becomes safe", self.milliseconds / 1000)
            self.milliseconds = 0
            self._expire()


class Heartbeat:
    """Set the watchdog of a device again and again, as the host, while the program computes.

    A thread sends the request if no other was sent for a third of the time. It never waits for the lock of the driver:
    an operation that holds the lock is a request itself. The thread ends when the driver is closed or deleted, and a
    forked process does not have it.

    Args:
        seconds: time of the watchdog.
        lock: lock (reentrant) that the driver holds during every exchange.
        beat: bound method of the driver that sets the watchdog.
        sent_at: bound method that returns the time of the newest request, by the clock `time.monotonic`.
        name: name of the device, for messages.
    """

    def __init__(
        self,
        seconds: float,
        lock: Any,
        beat: Callable[[], None],
        sent_at: Callable[[], float],
        name: str,
    ) -> None:
        self._seconds = seconds
        self._lock = lock
        # Weak references, because a thread must not keep a driver that was deleted without being closed.
        self._beat = weakref.WeakMethod(beat)
        self._sent_at = weakref.WeakMethod(sent_at)
        self._name = name
        self._stopped = threading.Event()
        self._failed = False
        self._owner = os.getpid()
        # Held during a beat, so that no process is forked in the middle of it with the lock of the driver.
        self._beating = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"astralora watchdog of {name}", daemon=True)

    def start(self) -> None:
        """Start to send requests."""
        _running.add(self)
        self._thread.start()

    def stop(self) -> None:
        """Stop sending requests; the caller may hold the lock of the driver."""
        self._stopped.set()
        _running.discard(self)
        if self._owner == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join()

    def before_request(self) -> None:
        """Set the watchdog at once if it may be off; the caller holds the lock of the driver.

        It may be off when the process was stopped for longer than its time, or the newest beat failed.

        Raises:
            NotConnected: the watchdog cannot be set. It is no other error, because nothing was sent that could be sent
                again.
        """
        beat, sent_at = self._beat(), self._sent_at()
        if beat is None or sent_at is None or self._owner != os.getpid():
            return
        if not self._failed and time.monotonic() - sent_at() < 2 * self._seconds / _BEATS:
            return
        try:
            beat()
        except DeviceError as error:
            raise NotConnected(f"the watchdog cannot be set again: {error.message}", device=self._name) from error
        self._failed = False

    def _run(self) -> None:
        pause = period = self._seconds / _BEATS
        while not self._stopped.wait(pause) and self._owner == os.getpid():
            sent_at = self._sent_at()
            if sent_at is None:
                return
            due = sent_at() + period - time.monotonic()
            del sent_at
            # A beat that failed, or that an operation prevented, is tried again soon.
            pause = due if due > 0 else self.beat_now()

    def beat_now(self) -> float:
        """Send one request if no operation is under way; return the time in seconds until the next one is due."""
        period = self._seconds / _BEATS
        with self._beating:
            if not self._lock.acquire(blocking=False):
                return period / 4
            try:
                beat = self._beat()
                if beat is None or self._stopped.is_set():
                    return period
                beat()
                self._failed = False
                return period
            except Exception as error:
                # Reported here once, and by the next operation, which sets the watchdog first.
                level = logging.DEBUG if self._failed else logging.WARNING
                _log.log(level, "%s: the watchdog cannot be set again: %s", self._name, error)
                self._failed = True
                return period / 4
            finally:
                self._lock.release()

    def hold(self) -> None:
        """Wait for the end of a beat, and prevent the next one, before this process forks."""
        self._beating.acquire()

    def release(self) -> None:
        """Allow beats again."""
        self._beating.release()


_running: weakref.WeakSet[Heartbeat] = weakref.WeakSet()
_held: list[Heartbeat] = []


def _before_fork() -> None:
    _held[:] = list(_running)
    for heartbeat in _held:
        heartbeat.hold()


def _after_fork() -> None:
    while _held:
        _held.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)


def seconds_of(milliseconds: int) -> str:
    """Return a time in seconds as decimal digits, such as ``0.25``."""
    return f"{milliseconds / 1000:.3f}".rstrip("0").rstrip(".")


def milliseconds_of(seconds: float) -> int:
    """Return a time in whole milliseconds; only 0 becomes 0."""
    return max(1, math.ceil(1000 * seconds - 1e-6)) if seconds > 0 else 0
