"""Bring chips into their safe state, however a session or the process ends.

`Connection` holds the device of an open session. A registry refers to all open connections of this process, and not to
their sessions. So a connection is closed

- by its session: `Session.close`, or the end of a ``with`` block;
- when its session is garbage, such as at the end of a function or after a variable of a notebook was bound again;
- when the interpreter exits, normally, by an exception or by a signal: see `signals`.

Only `os._exit`, SIGKILL and a loss of power leave a chip as it is.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import multiprocessing.util
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import nullcontext, suppress
from queue import SimpleQueue
from threading import Thread
from typing import Final, Protocol

from .errors import DeviceTimeout, NotConnected
from .ownership import Ownership
from .signals import end_by_signal, shielded, stop_on_signals, watch_signals
from .spec import DeviceSpec

__all__ = ["PATIENCE", "Connection", "close_each", "run_within", "stop_on_signals", "undo_open"]

_log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Longest time to bring a chip into its safe state, in seconds; times of its spec are added."""
_PAUSE: Final = 0.1
"""Pause before the second attempt, in seconds."""
_SHORT: Final = 2.0
"""Longest time that the garbage collector waits for a chip, in seconds."""
_MOST_SIGNALS: Final = 10
"""Largest number of signals that may interrupt the exit hook before it has started."""
_MOST_IDLE: Final = 4 if sys.version_info >= (3, 12) else 0
"""Number of idle threads to keep: Python 3.12 and newer start no thread while the interpreter exits."""


class _Device(Protocol):
    @property
    def spec(self) -> DeviceSpec: ...

    def open(self) -> None: ...

    def close(self) -> None: ...


class Connection(Ownership):
    """Hold the device of a session, and bring it into its safe state within a time limit.

    Args:
        device: device of the session.
        nested: whether the device contains sessions, which have connections of their own.
        in_process: whether the device has no line to hardware, so that closing it takes no time and cannot fail.

    Attributes:
        is_open: whether the device accepts operations.
    """

    def __init__(self, device: _Device, *, nested: bool, in_process: bool) -> None:
        super().__init__()
        self.is_open = False
        self._device = device
        self._nested = nested
        self._direct = nested or in_process
        self._must_close = False

    def open(self) -> None:
        """Open the device, and close it again if that fails; call this within the lock.

        Raises:
            BaseException: error of the device; an error of closing it is logged.
        """
        self.claim(self._device.spec.name)
        self._must_close = True
        _register(self, has_line=not self._direct)
        try:
            self._device.open()
            self.is_open = True
        except BaseException:
            self.close_quietly()
            raise

    def close(self) -> None:
        """Bring the device into its safe state; do nothing when closed already, or in a process that did not open it.

        After an error, the device is opened and closed once more. Signals are delivered when the device is safe.

        Raises:
            DeviceTimeout: the device, or an operation of another thread, did not end in time.
            Exception: first error of the device, which counts as closed.
        """
        if self.is_foreign or not self._must_close:
            return
        # Other threads start no further operation, so that the lock becomes free.
        self.is_open = False
        with nullcontext() if self._direct else shielded():
            try:
                self._close()
            except Exception as error:
                if not self._nested:  # the parts have logged their own errors
                    _log.error("%s; the chip may not be in its safe state: check it, or switch it off", error)
                raise

    def close_quietly(self) -> None:
        """Close the device as `close` does, without raising its errors, which are logged."""
        with suppress(Exception):
            self.close()

    def abandon(self) -> None:
        """Close the device of a session that is garbage, unless another open session uses the same device."""
        if self.is_foreign or not self._must_close:
            return
        if any(other is not self and other.uses(self._device) for other in list(_open.values())):
            self._end()
        elif self._direct:
            self.close_quietly()
        else:
            # The garbage collector may have interrupted a thread that holds a lock which the driver needs. This thread
            # therefore does not wait to the end. An error that a signal raises here would be lost.
            with shielded(later=True):
                run_within(_SHORT, self.close_quietly)

    def uses(self, device: object) -> bool:
        """Return whether this is a connection to a device."""
        return self._device is device

    def _close(self) -> None:
        spec = self._device.spec
        seconds = PATIENCE + spec.program_seconds + (spec.max_batch or 1) * spec.vector_seconds
        lock, until = self.lock, time.monotonic() + seconds
        if not lock.acquire(timeout=seconds):
            reason = f"an operation of another thread has not ended within {seconds:.3g} s"
            raise DeviceTimeout(reason, device=spec.name, operation="close")
        try:
            if self._must_close and not self._try_to_close(until):
                raise DeviceTimeout(f"has not closed within {seconds:.3g} s", device=spec.name, operation="close")
        finally:
            lock.release()

    def _try_to_close(self, until: float) -> bool:
        """Return whether the device was closed in time."""
        try:
            if self._direct:
                self._device.close()
                in_time = True
            else:
                in_time = self._try_twice(until)
        except Exception:
            # A device counts as closed after an error. After an interruption, it is closed later.
            self._end()
            raise
        self._end()
        return in_time

    def _try_twice(self, until: float) -> bool:
        try:
            return run_within(until - time.monotonic(), self._device.close)
        except Exception as error:
            _log.info("%r: %s; it is opened and closed again", self._device.spec.name, error)
            time.sleep(_PAUSE)
            with suppress(Exception):
                return run_within(until - time.monotonic(), self._open_and_close)
            raise

    def _open_and_close(self) -> None:
        self._device.open()
        self._device.close()

    def _end(self) -> None:
        self._must_close = False
        self.release()
        _open.pop(id(self), None)


def close_each(closes: Iterable[Callable[[], object]]) -> None:
    """Call functions that close chips: all of them, whatever happens; signals are delivered afterwards.

    Raises:
        BaseException: first error of a function.
    """
    first: BaseException | None = None
    with shielded():
        for close in closes:
            try:
                close()
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first


def undo_open(device: _Device) -> None:
    """Close a device whose `open` has failed half-way; an error is logged."""
    try:
        with shielded():
            if not run_within(PATIENCE, device.close):
                raise DeviceTimeout(f"has not closed within {PATIENCE:g} s")
    except Exception as error:
        # Without a connection there is usually nothing to close, and the error of opening it says so.
        level = logging.DEBUG if isinstance(error, NotConnected) else logging.WARNING
        _log.log(level, "%r could not be closed after it failed to open: %s", device.spec.name, error)


# -- open connections of this process -------------------------------------------------------------

_open: dict[int, Connection] = {}
# Connections of the parent of this process. They are kept, because collecting a device may close its line.
_inherited: list[dict[int, Connection]] = []
# Number of the process whose end closes the connections.
_process: int | None = None


def _register(connection: Connection, *, has_line: bool) -> None:
    global _process
    is_first = _process != os.getpid()
    _process = os.getpid()
    if has_line:
        watch_signals(_close_all)
        if len(_idle) < min(len(_open) + 1, _MOST_IDLE):
            _idle.append(_Helper())
    else:
        stop_on_signals()
    _open[id(connection)] = connection
    if has_line or is_first:
        # Functions that were registered last are called first: before those of libraries that drivers need, as Ray.
        atexit.unregister(_close_at_exit)
        atexit.register(_close_at_exit)
    if is_first and multiprocessing.parent_process() is not None:
        # A process of multiprocessing may end without calling the functions of atexit.
        multiprocessing.util.Finalize(None, _close_at_exit, exitpriority=100)


def _close_all() -> None:
    with suppress(Exception):
        close_each([connection.close_quietly for connection in list(_open.values())])


def _close_at_exit() -> None:
    for _ in range(_MOST_SIGNALS):
        # A signal may arrive before the shield is up. It is not delivered, because the process ends already.
        with suppress(KeyboardInterrupt, SystemExit):
            _close_all()
            # A chip may be late because the thread that has closed it held a lock of the driver.
            wait_for(_late, _SHORT)
            end_by_signal()
            return


def _after_fork() -> None:
    _idle.clear()
    _late.clear()
    _inherited.append(dict(_open))
    _open.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)


# -- time limits ----------------------------------------------------------------------------------


class _Helper:
    """Run functions in a daemon thread, one at a time."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], object]] = SimpleQueue()
        Thread(target=self._serve, name="astralora closing", daemon=True).start()

    def start(self, job: Callable[[], object]) -> None:
        """Run a function that raises no errors."""
        self._jobs.put(job)

    def _serve(self) -> None:
        self._jobs.get()()
        while len(_idle) < _MOST_IDLE:
            _idle.append(self)
            self._jobs.get()()


_idle: deque[_Helper] = deque()
# Functions that did not end in time.
_late: list[Future[None]] = []


def run_within(seconds: float, work: Callable[[], object]) -> bool:
    """Run a function in another thread, and wait for its end; run it in this thread if no thread can be started.

    Args:
        seconds: longest time to wait; a function that takes longer continues to run.
        work: the function.

    Returns:
        Whether the function has ended.

    Raises:
        Exception: error of the function.
    """
    try:
        helper = _idle.pop() if _idle else _Helper()
    except RuntimeError:
        work()
        return True
    outcome: Future[None] = Future()

    def job() -> None:
        try:
            work()
        except BaseException as error:
            outcome.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            outcome.set_result(None)

    helper.start(job)
    _late.append(outcome)
    wait_for([outcome], max(seconds, 0.0))
    if not outcome.done():
        return False
    _late.remove(outcome)
    outcome.result()
    return True
