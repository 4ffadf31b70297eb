"""Close open sessions when the process ends, so that no chip stays under power."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import weakref
from types import FrameType
from typing import Protocol

__all__ = ["stop_on_signals", "unwatch", "watch"]

_log = logging.getLogger(__name__)


class _Closes(Protocol):
    def close(self) -> None: ...


# Only sessions that this process has opened: a forked process inherits the objects, but must not close the chips.
_sessions: weakref.WeakSet[_Closes] = weakref.WeakSet()
_owner: int | None = None


def watch(session: _Closes) -> None:
    """Close a session when the interpreter exits: normally, after an exception, or by SIGINT, SIGTERM or SIGHUP."""
    global _owner
    if _owner != os.getpid():
        _owner = os.getpid()
        _sessions.clear()
        atexit.register(_close_all)
    stop_on_signals()
    _sessions.add(session)


def unwatch(session: _Closes) -> None:
    """Remove a closed session from the sessions to close at exit."""
    _sessions.discard(session)


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP end the interpreter like SIGINT, so that every ``finally`` block runs.

    A signal that the program handles itself or ignores keeps its handler. Outside the main thread, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _close_all() -> None:
    if os.getpid() != _owner:
        return
    for session in list(_sessions):
        try:
            session.close()
        except Exception:
            # Continue after an error, because the other sessions must be closed as well.
            _log.exception("%r could not be closed at exit; check that the chip is safe", session)
