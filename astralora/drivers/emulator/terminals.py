"""Name pseudo-terminals by symbolic links, and remove the links that a killed process has left."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from ...devices import DeviceError

__all__ = ["TerminalName"]

# A folder of a process: its number, and random characters.
_FOLDER: Final = re.compile(r"astralora-(\d{1,10})-\w+\Z")
_PORT: Final = "port"
_DRAFT: Final = "port.new"


class TerminalName:
    """Give a pseudo-terminal a name that stays the same for its successors.

    The name is a symbolic link in a new temporary folder, which leads to the terminal. A name that the user has chosen
    is a link to that link. The folder has the number of the process in its name, and is locked while the process runs.
    So the next process recognises the links of one that was killed, and deletes them, and nothing else.

    Args:
        link: path of the link; None for the link in the temporary folder alone.

    Attributes:
        path: path for a driver.

    Raises:
        DeviceError: there is a file or a link of that name already.
        OSError: the links cannot be made.
    """

    def __init__(self, link: Path | None) -> None:
        _clear_folders(Path(tempfile.gettempdir()))
        if link is not None:
            link = link.absolute()
            _clear_link(link)
        self._folder = Path(tempfile.mkdtemp(prefix=f"astralora-{os.getpid()}-"))
        self._lock = _locked(self._folder)
        self._link: Path | None = None
        self.path = self._folder / _PORT
        if link is not None:
            try:
                # Not replaced: if another process has made this link meanwhile, it keeps it.
                link.symlink_to(self.path)
            except OSError:
                self.remove()
                raise
            self._link = self.path = link

    def point_to(self, terminal: str) -> None:
        """Make the name lead to this terminal."""
        draft = self._folder / _DRAFT
        draft.unlink(missing_ok=True)
        draft.symlink_to(terminal)
        draft.replace(self._folder / _PORT)

    def remove(self) -> None:
        """Delete the links and the temporary folder; do nothing the second time."""
        link, self._link = self._link, None
        if link is not None and _target(link) == self._folder / _PORT:
            link.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def _clear_folders(place: Path) -> None:
    """Delete the temporary folders of dead processes."""
    with suppress(OSError):
        for folder in list(place.iterdir()):
            _clear_folder(folder)


def _clear_folder(folder: Path) -> None:
    """Delete a folder if it is ours and its process is dead."""
    found = _FOLDER.match(folder.name)
    if found is None or not _is_dead(int(found[1])):
        return
    with suppress(OSError):
        status = folder.lstat()
        if folder.is_symlink() or not folder.is_dir() or status.st_uid != os.getuid():
            return
        lock = _locked(folder)
        if lock < 0:
            return
        try:
            content = list(folder.iterdir())
            if all(entry.name in (_PORT, _DRAFT) and entry.is_symlink() for entry in content):
                for entry in content:
                    entry.unlink()
                folder.rmdir()
        finally:
            os.close(lock)


def _clear_link(link: Path) -> None:
    """Delete a link, and the drafts beside it, that a dead process has left; refuse everything else of that name."""
    for draft in _siblings(link):
        number = draft.name.removeprefix(f"{link.name}.")
        if draft.is_symlink() and number.isdecimal() and _is_dead(int(number)) and _is_ours(draft):
            with suppress(OSError):
                draft.unlink()
    target = _target(link)
    if target is None:
        if link.exists():
            raise FileExistsError(errno.EEXIST, "a file of that name exists")
        return
    folder = target.parent
    if not _is_ours(link):
        raise DeviceError(f"{link} is a link to {target}; delete it, or choose another name")
    if _FOLDER.match(folder.name) and folder.is_dir():
        lock = _locked(folder)
        if lock < 0:
            raise DeviceError(f"another emulator serves {link}; stop it, or choose another name")
        os.close(lock)
        _clear_folder(folder)
    link.unlink(missing_ok=True)


def _is_ours(link: Path) -> bool:
    """Return whether an emulator has made this link: to a link in a folder of ours, or to a terminal that is gone."""
    target = _target(link)
    assert target is not None
    if _FOLDER.match(target.parent.name) and target.name == _PORT:
        return True
    return target.parent == Path("/dev/pts") and not link.exists()


def _target(link: Path) -> Path | None:
    """Return where a symbolic link leads; None if there is no link."""
    try:
        return Path(os.readlink(link))
    except OSError:
        return None


def _siblings(link: Path) -> list[Path]:
    try:
        return [path for path in link.parent.iterdir() if path.name.startswith(f"{link.name}.")]
    except OSError:
        return []


def _is_dead(number: int) -> bool:
    """Return whether there is no process of this number, or only the rest of one that nobody has waited for."""
    if number == os.getpid():
        # The folders of this process are locked, so an unlocked one is of an earlier process with the same number.
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    with suppress(OSError, IndexError):
        return Path(f"/proc/{number}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[
            0
        ] in ("Z", "X")
    return False


def _locked(folder: Path) -> int:
    """Lock a folder, and return the file number that holds the lock; -1 if another process holds it."""
    import fcntl

    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return -1
    return number
