"""End the process on a signal only after the chips are safe."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

__all__ = ["end_by_signal", "shielded", "stop_on_signals", "watch_signals"]

_log = logging.getLogger(__name__)

_MOMENT: Final = 0.01
_SAFE_FIRST: Final = "%s: the chips are brought into their safe state first"

_ENDING: Final = tuple(
    number for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if (number := getattr(signal, name, None)) is not None
)
"""Signals that end a process without running its ``finally`` blocks, unless it handles them."""

# Pipes to the threads that wait for signals outside the main thread: (read end, write end) by signal.
_pipes: dict[int, tuple[int, int]] = {}
# Signals that such a thread has received.
_received: list[int] = []
# Handlers of the signals that are delayed at present, by signal.
_delayed: dict[int, Any] = {}


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP end the interpreter like SIGINT, so that every ``finally`` block runs.

    A signal that the program handles itself or ignores keeps its handler. Outside the main thread, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            _unwatch(number)
            signal.signal(number, _exit)


def watch_signals(close_all: Callable[[], object]) -> None:
    """Make SIGTERM and SIGHUP call a function before they end the process; for sessions opened in any thread.

    In the main thread this is `stop_on_signals`. In other threads Python cannot install a handler. There, a handler of
    `faulthandler` writes to a pipe, and a thread that reads from the pipe calls the function and ends the process by
    the same signal. Signals that the program handles itself or ignores keep their handlers.

    Args:
        close_all: function that closes all open devices; it raises no errors.
    """
    if threading.current_thread() is threading.main_thread():
        stop_on_signals()
        return
    if not hasattr(faulthandler, "register"):  # Windows
        return
    for number in _ENDING:
        if number not in _pipes and signal.getsignal(number) is signal.SIG_DFL:
            read, write = os.pipe()
            # A full pipe must not block the handler.
            os.set_blocking(write, False)
            _pipes[number] = read, write
            threading.Thread(
                target=_end_after, args=(number, read, close_all), name="astralora signals", daemon=True
            ).start()
            faulthandler.register(number, file=write, all_threads=False, chain=False)


@contextmanager
def shielded(*, later: bool = False) -> Generator[None]:
    """Delay SIGINT, SIGTERM and SIGHUP within a ``with`` block, and deliver them at its end.

    Handlers of Python run in the main thread only, so nothing happens in other threads. Nested blocks end with the
    outermost one.

    Args:
        later: whether to deliver the signals a moment after the end, because the caller's errors are ignored.
    """
    if _delayed or threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def record(number: int, _frame: FrameType | None) -> None:
        if not arrived:
            _log.warning(_SAFE_FIRST, signal.Signals(number).name)
        arrived.append(number)

    # SIGINT is restored last, because its handler may raise KeyboardInterrupt before the others are restored.
    for number in (*_ENDING, signal.SIGINT):
        if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN) and not _is_watched(number):
            _delayed[number] = handler
    try:
        for number in reversed(_delayed):
            signal.signal(number, record)
        yield
    finally:
        _restore()
        for number in dict.fromkeys(arrived):
            if later:
                threading.Timer(_MOMENT, _send_to_main, (number,)).start()
            else:
                signal.raise_signal(number)


def _send_to_main(number: int) -> None:
    ident = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        signal.pthread_kill(ident, number)  # interrupts a system call of the main thread too
    else:
        signal.raise_signal(number)


def _restore() -> None:
    handlers = dict(_delayed)
    _delayed.clear()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _end_after(number: int, read: int, close_all: Callable[[], object]) -> None:
    """Wait for a signal, call a function, and end the process by this signal."""
    with open(read, "rb", buffering=0) as pipe:
        if not pipe.read(1):
            return  # the other end was closed
    _received.append(number)
    _log.warning(_SAFE_FIRST, signal.Signals(number).name)
    try:
        close_all()
    finally:
        end_by_signal()


def end_by_signal() -> None:
    """End the process by the signal that the thread of `watch_signals` has received; do nothing if there is none.

    The main thread may come to its end before that thread, because its sessions are closed; the exit code is the same.
    """
    for number in _received:
        faulthandler.unregister(number)
        os.kill(os.getpid(), number)


def _is_watched(number: int) -> bool:
    """Return whether `watch_signals` handles a signal outside the main thread."""
    return number in _pipes and signal.getsignal(number) is signal.SIG_DFL


def _unwatch(number: int) -> None:
    """Remove the handler that `watch_signals` installed outside the main thread."""
    if _is_watched(number):
        faulthandler.unregister(number)
    if number in _pipes:
        os.close(_pipes.pop(number)[1])  # ends the thread


def _after_fork() -> None:
    _received.clear()
    # The pipes of a child lead to its parent, which must not end when the child receives a signal.
    for number in list(_pipes):
        read = _pipes[number][0]
        _unwatch(number)
        os.close(read)
    _restore()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
