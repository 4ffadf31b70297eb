"""Start processes to which tests send signals."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["start"]

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def start(command: Sequence[str | Path], **options: Any) -> subprocess.Popen[str]:
    """Start a child that reacts to signals as from a terminal, with its output as text.

    A child inherits ignored and blocked signals. Under nohup, in a shell's background job and in many hosted builds,
    SIGINT or SIGHUP is ignored.

    Args:
        command: program and arguments.
        **options: of `subprocess.Popen`.
    """
    if hasattr(signal, "pthread_sigmask"):
        options = {"preexec_fn": _restore_signals, **options}
    process: subprocess.Popen[str] = subprocess.Popen(command, text=True, **options)
    return process


def _restore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
