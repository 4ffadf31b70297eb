"""Keep an open device in the process that opened it.

A fork copies an open session or driver into the child, where it would share the line to the chip with the parent: each
process would receive answers that belong to the other one. Sessions and drivers therefore belong to one process, and
refuse every operation in all others.
"""

from __future__ import annotations

import os
import threading
import weakref
from types import TracebackType
from typing import Any, Protocol

from .errors import DeviceError

__all__ = ["Lock", "Ownership", "StaysInProcess"]


class Lock(Protocol):
    """Prevent other threads from using a device; a thread may enter it again."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Return whether the lock was taken within ``timeout`` seconds; -1 waits without limit."""
        ...

    def release(self) -> None:
        """Release the lock."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


class Ownership:
    """Bind a device to the process that opened it, and provide the lock of the device.

    In a child process, `lock` is replaced by one that refuses the device. Operations enter the lock in any case, so the
    check costs them nothing, and it does not wait for a thread that held the lock when the process was forked.

    Attributes:
        lock: lock that every operation enters.
        owner: process number of the owner; None while the device is closed.
    """

    def __init__(self) -> None:
        self.lock: Lock = threading.RLock()
        self.owner: int | None = None
        _known.add(self)

    def claim(self, name: str) -> None:
        """Bind the device to this process; call this before the device is opened.

        Args:
            name: name of the device, for messages.
        """
        self.owner, self._name = os.getpid(), name

    def release(self) -> None:
        """Let any process open the device, because it is closed."""
        self.owner = None

    @property
    def is_foreign(self) -> bool:
        """Return whether another process has opened the device, so that this process must not touch the chip."""
        return self.owner is not None and self.owner != os.getpid()

    def renew(self) -> None:
        """Replace the lock in a child process, because the thread that holds it may not exist there."""
        self.lock = threading.RLock() if self.owner is None else _Refusal(self.owner, self._name)


class _Refusal:
    """Refuse an operation in place of a lock.

    Args:
        owner: process number of the owner.
        name: name of the device.
    """

    def __init__(self, owner: int, name: str) -> None:
        self._owner, self._name = owner, name

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        raise DeviceError(
            f"process {self._owner} opened this device, and process {os.getpid()} cannot use it; "
            f"open the device in the process that uses it",
            device=self._name,
        )

    __enter__ = acquire

    def release(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class StaysInProcess:
    """Refuse to be pickled: base class of sessions and drivers, whose line to a chip cannot be sent to a process."""

    def __getstate__(self) -> Any:
        name = getattr(getattr(self, "spec", None), "name", "")
        raise TypeError(
            f"{type(self).__name__} {name!r} cannot be copied or sent to another process; open the device there, for "
            f"example by calling astralora.open_device in the function that the process runs"
        )


_known: weakref.WeakSet[Ownership] = weakref.WeakSet()


def _renew_all() -> None:
    for ownership in list(_known):
        ownership.renew()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_renew_all)
