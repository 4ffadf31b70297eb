"""Leaving no chip under power behind: open sessions are closed however the process ends."""

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


# Of the process that opened them: a fork inherits the objects, but the chips are not its own.
_open: weakref.WeakSet[_Closes] = weakref.WeakSet()
_owner: int | None = None


def watch(session: _Closes) -> None:
    """Close this when the interpreter exits: at the end, by an exception, by SIGINT, SIGTERM or SIGHUP."""
    global _owner
    if _owner != os.getpid():
        _owner = os.getpid()
        _open.clear()
        atexit.register(_close_all)
    stop_on_signals()
    _open.add(session)


def unwatch(session: _Closes) -> None:
    """It was closed in good order."""
    _open.discard(session)


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the interpreter as SIGINT does, with every ``finally`` on the way.

    Nothing is changed where the program has a handler of its own, ignores the signal, or this is not the
    main thread.
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
    for session in list(_open):
        try:
            session.close()
        except Exception:
            # The others have to be closed as well.
            _log.exception("%r could not be closed at exit; check that the chip is safe", session)
