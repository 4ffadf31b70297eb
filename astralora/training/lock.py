"""Let one process at a time write into the folder of a run."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from errno import EACCES, EAGAIN, EDEADLK, EWOULDBLOCK
from pathlib import Path
from typing import Self

from ..common.errors import ConfigurationError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["LOCK_FILES", "FolderLock"]

_LOCK, _CLAIM = ".lock", ".lock-owner"
LOCK_FILES = (_LOCK, _CLAIM)
"""Names of the files of a lock."""

_PATIENCE = 0.5  # seconds, in which an owner writes its name or a released lock is removed
_TAKEN = (EACCES, EAGAIN, EDEADLK, EWOULDBLOCK)
_LOCKED_BYTE = 1 << 20  # beyond the content, which others read
_STARTED = 19  # place of the start time behind the name of the process in /proc/PID/stat


@dataclass(frozen=True, slots=True)
class _Owner:
    """Name the process that holds a folder.

    Attributes:
        process: number of the process.
        host: name of its machine.
        started: start time of the process, as its system counts it; None where it is not known.
    """

    process: int
    host: str
    started: str | None

    @classmethod
    def this_process(cls) -> Self:
        return cls(os.getpid(), socket.gethostname(), _start_time(os.getpid()))

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Return the owner that a file names, or None."""
        try:
            values = json.loads(file.read_bytes()[:1000])
            owner = cls(int(values["process"]), str(values["host"]), values["started"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return owner

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def may_live(self) -> bool:
        """Return whether the process may still run; that of another machine may."""
        if self.host != socket.gethostname() or sys.platform == "win32":
            return True
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except (OSError, OverflowError):
            pass  # it runs for another user
        return self.started == _start_time(self.process)


class FolderLock:
    """Hold a folder for this process, until `release` or the end of the process.

    The operating system releases the lock when the process ends in any way. On file systems without locks, a file names
    the owner: its machine, its number and its start time.

    Args:
        folder: folder to hold.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._claimed = False

    @property
    def held(self) -> bool:
        """Return whether this object holds the folder."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Hold the folder, which exists.

        Raises:
            ConfigurationError: another run holds the folder; the message names its process.
            OSError: the folder cannot be written to.
        """
        deadline = time.monotonic() + _PATIENCE
        while not self.held and not self._try():
            if time.monotonic() > deadline:
                raise ConfigurationError(self._in_use())
            time.sleep(0.02)

    def check(self) -> None:
        """Refuse to continue in a folder that was removed or replaced.

        Raises:
            ConfigurationError: the folder that this object holds is no longer at its place.
        """
        if self._descriptor is not None and not _is_at(self._descriptor, self._folder / _LOCK):
            raise ConfigurationError(
                f"{self._folder} was removed or replaced while its run wrote into it; "
                f"restore it and resume the run, or begin a new run"
            )

    def release(self) -> None:
        """Let others have the folder, and remove the files of the lock; do nothing if it is not held."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        # Removed while it is held, so that no other process can lock the removed file and believe it holds the folder.
        with suppress(OSError):
            if self._claimed:
                (self._folder / _CLAIM).unlink()
            if _is_at(descriptor, self._folder / _LOCK):
                (self._folder / _LOCK).unlink()
        self._claimed = False
        os.close(descriptor)
        if sys.platform == "win32":  # which cannot remove an open file
            with suppress(OSError):
                (self._folder / _LOCK).unlink()

    def close_in_child(self) -> None:
        """Close the lock in a forked process, which would otherwise hold it after the end of its parent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _try(self) -> bool:
        """Try to hold the folder."""
        descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            locked = _lock(descriptor)
            self._claimed = locked is None and self._claim()
            # Between opening and locking, the owner before may have removed the file.
            if (locked or self._claimed) and _is_at(descriptor, self._folder / _LOCK):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, _Owner.this_process().to_json())
                self._descriptor = descriptor
                _held.add(self)
        finally:
            if self._descriptor is None:
                os.close(descriptor)
        return self.held

    def _claim(self) -> bool:
        """Try to hold the folder by a file that names this process."""
        claim = self._folder / _CLAIM
        try:
            descriptor = os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            owner = _Owner.read(claim)
            if owner is not None and not owner.may_live():
                # Renamed first, so that only one process removes it.
                ended = self._folder / f"{_CLAIM}-{os.getpid()}.tmp"
                with suppress(OSError):
                    os.rename(claim, ended)
                    if _Owner.read(ended) == owner:
                        ended.unlink()
                    else:
                        os.rename(ended, claim)
            return False
        try:
            os.write(descriptor, _Owner.this_process().to_json())
        finally:
            os.close(descriptor)
        return True

    def _in_use(self) -> str:
        claimed = _Owner.read(self._folder / _CLAIM)
        owner = claimed or _Owner.read(self._folder / _LOCK)
        process = "another process" if owner is None else f"process {owner.process} on host {owner.host}"
        # Only a claim can outlive its process.
        claim = self._folder / _CLAIM
        remedy = f"; if this process has ended, delete {claim}" if claim.exists() else ""
        return f"{self._folder} is in use by {process}; wait until its run ends, or give another folder{remedy}"


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_all_in_child() -> None:
    for lock in list(_held):
        lock.close_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all_in_child)


def _lock(descriptor: int) -> bool | None:
    """Lock a file; return False if another process holds it, and None if its file system has no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _TAKEN else None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _start_time(process: int) -> str | None:
    """Return when a process of this machine was started, as Linux counts it; None where that is not known."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[_STARTED]
    except (OSError, ValueError, IndexError):
        return None
