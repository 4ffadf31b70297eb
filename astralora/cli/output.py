"""Check and write the files and folders that ``--out`` names.

A file that exists is replaced at once and completely. Its folder must exist. A folder is made where there is none.
Commands check the path before they spend anything.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from ..common.errors import ConfigurationError
from ..devices.files import check_writable, file_name
from ..devices.files import write_file as write_with_reason
from .console import to_json

__all__ = ["check_file", "check_folder", "folder_or_new", "new_folder", "write_file", "write_json"]


_RUNS = Path("runs")


def check_file(path: Path | None, *endings: str) -> None:
    """Refuse a file that cannot be written, or whose name promises another format.

    Args:
        path: path of the file; None if there is none.
        endings: endings of the formats that the command writes, such as ``".json"``; a name without an ending is
            accepted.

    Raises:
        ConfigurationError: its folder does not exist or cannot be written to, the path is a folder, or the name ends
            in another way.
    """
    if path is None:
        return
    check_writable(path, error=ConfigurationError)
    if path.suffix and path.suffix.lower() not in endings:
        written = " or ".join(ending for ending in endings if ending != ".htm")
        example = path.with_suffix(endings[0])
        raise ConfigurationError(
            f"{file_name(path)} cannot be written: this command writes {written}; name it, for example, {example}"
        )


def check_folder(path: Path | None) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        ConfigurationError: the path or a part of it is a file, or the folder cannot be written to.
    """
    if path is None:
        return
    existing = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not existing.is_dir():
        raise ConfigurationError(f"{path} cannot be made: {existing} is a file; name a folder")
    _check_permission(path, existing)


def new_folder(name: str) -> Path:
    """Make a new folder in ``runs/``, named by the time of day, that no other process can get.

    Raises:
        ConfigurationError: the folder cannot be made.
    """
    name = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        folder = _RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            _RUNS.mkdir(exist_ok=True)
            # Another process may have made this folder, or removed runs/, which was empty, at this moment.
            with suppress(FileExistsError, FileNotFoundError):
                folder.mkdir()
                break
        except OSError as error:
            raise ConfigurationError(f"{folder} cannot be made: {error.strerror or error}") from None
    return folder


@contextmanager
def folder_or_new(output: Path | None, name: str) -> Generator[Path]:
    """Yield the folder that ``--out`` names or a new one, which is removed if it is empty at the end.

    Args:
        output: ``--out``.
        name: name of a new folder; see `new_folder`.

    Raises:
        ConfigurationError: the folder cannot be made or written to.
    """
    if output is not None:
        check_folder(output)
        yield output
        return
    folder = new_folder(name)
    try:
        yield folder
    finally:
        for empty in (folder, folder.parent):
            with suppress(OSError):
                empty.rmdir()


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, or replace it, completely or not at all.

    Raises:
        ConfigurationError: it cannot be written.
    """
    write_with_reason(path, content, error=ConfigurationError)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; see `write_file`."""
    write_file(path, to_json(value))


def _check_permission(path: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{path} cannot be written: no permission to write in {folder}")
