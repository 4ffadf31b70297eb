"""Read files safely and write them atomically; every failure is described in one sentence.

All files of the package pass through this module. The caller chooses the class of the error: `DeviceError`, or the
error for wrong options.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DeviceError
from .validation import printable

try:
    import fcntl
except ImportError:  # Windows, where a file that a process has open cannot be deleted
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "TEXT_LIMIT",
    "ErrorClass",
    "check_writable",
    "file_name",
    "read_bytes",
    "read_text",
    "remove_file",
    "write_atomically",
    "write_errors",
    "write_file",
]  # fmt: skip

ErrorClass = Callable[[str], Exception]
"""Class of the error to raise, which takes the sentence."""

TEXT_LIMIT = 64 * 2**20
"""Largest size of a text file in bytes, unless the caller sets another limit."""

_REMEDIES = {
    errno.ENOSPC: "free some space, or write elsewhere",
    errno.EDQUOT: "free some space, or write elsewhere",
    errno.EFBIG: "raise the limit on the size of files ('ulimit -f'), or write elsewhere",
    errno.EROFS: "write elsewhere",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_LONGEST_NAME = 255  # bytes, on all common file systems


# -- reading ------------------------------------------------------------------------------------


def read_bytes(path: str | Path, what: str = "", *, error: ErrorClass = DeviceError, limit: int = TEXT_LIMIT) -> bytes:
    """Read a file.

    A pipe is read to its end, so that ``<(command)`` and ``/dev/stdin`` work. A pipe without a writer is empty.

    Args:
        path: path of the file.
        what: kind of the file for messages, such as ``"the calibration"``.
        error: class of the error to raise.
        limit: largest size, in bytes.

    Raises:
        DeviceError, or ``error``: the file cannot be read, or it is larger than the limit.
    """
    subject = file_name(path, what)
    try:
        # Without O_NONBLOCK, opening a pipe waits for its writer, perhaps for ever.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            found = os.fstat(number)
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file")
            too_large = stat.S_ISREG(found.st_mode) and found.st_size > limit
            data = b"" if too_large else _read_to_end(number, limit)
        finally:
            os.close(number)
    except (OSError, ValueError) as problem:
        raise error(f"{subject} cannot be read: {_reason(problem)}") from None
    if too_large or len(data) > limit:
        raise error(f"{subject} is larger than {limit:,} bytes, the most that is read; is it another file?")
    return data


def read_text(path: str | Path, what: str = "", *, error: ErrorClass = DeviceError, limit: int = TEXT_LIMIT) -> str:
    """Read a file of UTF-8 text, with or without a byte order mark; see `read_bytes`.

    Raises:
        DeviceError, or ``error``: the file cannot be read, or it is not UTF-8.
    """
    data = read_bytes(path, what, error=error, limit=limit)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "it begins like UTF-16" if wide else f"byte {problem.start} is 0x{data[problem.start]:02x}"
        raise error(f"{file_name(path, what)} is not UTF-8 text: {found}; save it as UTF-8") from None


def _read_to_end(number: int, limit: int) -> bytes:
    """Return the rest of a file, at most one byte more than the limit."""
    parts, size = [], 0
    while size <= limit:
        try:
            part = os.read(number, min(2**24, limit + 1 - size))
        except BlockingIOError:  # a pipe whose writer has written nothing yet
            os.set_blocking(number, True)
            continue
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts)


# -- writing ------------------------------------------------------------------------------------


def write_file(path: str | Path, content: bytes | str, what: str = "", *, error: ErrorClass = DeviceError) -> None:
    """Write a file as `write_atomically` does, and describe a failure in one sentence.

    Args:
        path: path of the file.
        content: bytes, or text to be encoded as UTF-8.
        what: kind of the file for messages, such as ``"the calibration"``.
        error: class of the error to raise.

    Raises:
        DeviceError, or ``error``: the file cannot be written; an earlier file is unchanged.
    """
    with write_errors(path, what, error=error):
        write_atomically(Path(path), content)


def check_writable(path: str | Path, what: str = "", *, error: ErrorClass = DeviceError) -> None:
    """Refuse a file that `write_file` could not write, before anything is spent on its content.

    Args:
        path: path of the file.
        what: kind of the file for messages, such as ``"the calibration"``.
        error: class of the error to raise.

    Raises:
        DeviceError, or ``error``: the folder does not exist or cannot be written to, or the path cannot be a file.
    """
    with write_errors(path, what, error=error):
        path, folder = Path(path), Path(path).parent
        try:
            earlier = os.stat(path)
        except FileNotFoundError:
            if not os.path.isdir(folder):
                raise FileNotFoundError(errno.ENOENT, f"there is no folder {printable(str(folder))}") from None
            if path.is_symlink() and not os.path.isdir(os.path.dirname(os.path.realpath(path))):
                raise FileNotFoundError(errno.ENOENT, "it is a link to a folder that does not exist") from None
        except NotADirectoryError:
            raise NotADirectoryError(errno.ENOTDIR, f"{printable(str(folder))} is not a folder") from None
        else:
            if stat.S_ISDIR(earlier.st_mode):
                raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file")
            if not _may_write(path):
                raise PermissionError(errno.EACCES, "no permission to write to it")
            if not stat.S_ISREG(earlier.st_mode):
                return
        folder = Path(os.path.realpath(path)).parent
        if not _may_write(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write in {printable(str(Path(path).parent))}")


@contextmanager
def write_errors(
    path: str | Path, what: str = "", *, error: ErrorClass = DeviceError, remedy: str | None = None
) -> Generator[None]:
    """Turn the errors of the operating system in a ``with`` block into one sentence.

    Args:
        path: path of the file that the block writes, or of its folder.
        what: kind of the file for messages, such as ``"the calibration"``.
        error: class of the error to raise.
        remedy: what the user can do; None for the usual remedy of the error.

    Raises:
        DeviceError, or ``error``: the block could not write.
    """
    try:
        yield
    except (OSError, ValueError) as problem:
        if (
            isinstance(problem, ValueError)
            and type(problem) is not ValueError
            and not isinstance(problem, UnicodeError)
        ):
            raise  # a sentence already
        remedy = remedy or _REMEDIES.get(getattr(problem, "errno", None) or 0)
        reason = f"{_reason(problem)}; {remedy}" if remedy else _reason(problem)
        raise error(f"{file_name(path, what)} cannot be written: {reason}") from None


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file atomically: at any moment, even after a crash, it has either the old or the new content.

    The content is written to a draft in the same folder, which then replaces the file. Several processes may write the
    same file at the same time: the last one wins, and no content is mixed. A draft that a killed process has left is
    deleted by the next write of the same file.

    An earlier file keeps its permissions; one without permission to write is not replaced. Where the path is a symbolic
    link, its target is replaced and the link stays. A hard link is separated from its other names. A device or a pipe,
    such as ``/dev/stdout``, is written directly.

    Args:
        path: path of the file; its folder must exist.
        content: bytes, or text to be encoded as UTF-8.

    Raises:
        OSError: the file cannot be written; an earlier file is unchanged.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        earlier: os.stat_result | None = os.stat(path)
    except FileNotFoundError:
        earlier = None
    except ValueError as error:  # a null character in the path
        raise OSError(errno.EINVAL, str(error)) from None
    if earlier is not None and not stat.S_ISREG(earlier.st_mode):
        _write_directly(path, earlier.st_mode, data)
        return
    if earlier is not None and not _may_write(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    target = Path(os.path.realpath(path))
    _clear_drafts(target)
    number, draft = _create_draft(target)
    try:
        with open(number, "wb") as file:
            if earlier is not None and hasattr(os, "fchmod"):
                os.fchmod(number, stat.S_IMODE(earlier.st_mode))
            file.write(data)
            file.flush()
            os.fsync(number)
            # Replaced while the draft is open: its lock keeps other processes from deleting it.
            if fcntl is not None:
                os.replace(draft, target)
        if fcntl is None:
            os.replace(draft, target)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    _sync_folder(target.parent)


def remove_file(path: str | Path, what: str = "", *, error: ErrorClass = DeviceError) -> None:
    """Delete a file if it exists.

    Raises:
        DeviceError, or ``error``: the file exists and cannot be deleted.
    """
    try:
        Path(path).unlink(missing_ok=True)
    except (OSError, ValueError) as problem:
        raise error(f"{file_name(path, what)} cannot be deleted: {_reason(problem)}") from None


def _write_directly(path: Path, mode: int, data: bytes) -> None:
    """Write to a device or a pipe, which a file must not replace."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file", str(path))
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        raise OSError(errno.EINVAL, "it is neither a file nor a pipe; name a file", str(path))
    # Without O_NONBLOCK, opening a pipe waits for its reader, perhaps for ever.
    number = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(number, True)
    with open(number, "wb") as file:
        file.write(data)


def _create_draft(target: Path) -> tuple[int, Path]:
    """Create an empty draft that no other process uses, and return its descriptor and path."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        draft = target.with_name(f"{_draft_prefix(target)}{secrets.token_hex(8)}.tmp")
        number = os.open(draft, flags, 0o666)
        if _lock(number) is None or _is_same(number, draft):
            return number, draft
        os.close(number)  # another process took the draft for an old one, and has deleted it


def _clear_drafts(target: Path) -> None:
    """Delete the drafts of this file whose writers are dead; a living writer holds a lock on its draft."""
    prefix = _draft_prefix(target)
    pattern = re.compile(re.escape(prefix) + r"[0-9a-f]{16}\.tmp")
    try:
        found = [entry.path for entry in os.scandir(target.parent) if pattern.fullmatch(entry.name)]
    except OSError:
        return  # the write itself will report the reason
    for draft in found:
        with suppress(OSError):
            if fcntl is None:
                os.unlink(draft)
                continue
            number = os.open(draft, os.O_RDONLY)
            try:
                if _lock(number, wait=False):
                    os.unlink(draft)
            finally:
                os.close(number)


def _draft_prefix(target: Path) -> str:
    """Return the beginning of the names of a file's drafts; short names begin with the name of the file."""
    name = target.name
    length = len(os.fsencode(name))
    if length + len(".0123456789abcdef.tmp") + 1 > _LONGEST_NAME and length <= _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return f".{name}."


def _lock(number: int, *, wait: bool = True) -> bool | None:
    """Lock an open file, and return whether this has succeeded; None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None  # a file system without locks
    return True


def _is_same(number: int, path: Path) -> bool:
    """Return whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(path))
    except FileNotFoundError:
        return False


def _may_write(path: Path, mode: int = os.W_OK) -> bool:
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _sync_folder(folder: Path) -> None:
    """Make the new name of a file durable, where the file system can."""
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(number)


# -- messages -----------------------------------------------------------------------------------


def file_name(path: str | Path, what: str = "") -> str:
    """Return the name of a file for a message: its kind, and its path without control characters."""
    return f"{what} {printable(str(path)) or repr('')}".strip()


def _reason(problem: Exception) -> str:
    """Return the reason of a failure without the path, which the message names already."""
    if isinstance(problem, UnicodeError):
        return "its name or its text has characters that cannot be encoded"
    return (problem.strerror if isinstance(problem, OSError) else None) or str(problem) or type(problem).__name__
