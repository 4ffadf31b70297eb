"""Read files of a run folder, and report problems in one sentence."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import ConfigurationError

__all__ = ["parse_json", "read_file", "reports_disk_problems"]


def read_file(path: Path) -> bytes | None:
    """Read a file; return None if there is none.

    Raises:
        ConfigurationError: the file cannot be read, or it is a folder, a device or a pipe.
    """
    try:
        # A device such as /dev/zero has no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigurationError(f"{path} cannot be read: it is not a file")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_json(data: bytes | str, path: Path) -> Any:
    """Parse JSON.

    Args:
        data: content of the file.
        path: path of the file, for the message.

    Raises:
        ConfigurationError: the content is not JSON, or it is nested too deeply.
    """
    try:
        return json.loads(data)
    except ValueError as error:
        raise ConfigurationError(f"{path} is damaged: it is not JSON: {error}") from None
    except RecursionError:
        raise ConfigurationError(f"{path} is damaged: it is nested too deeply") from None


@contextmanager
def reports_disk_problems(path: Path, remedy: str) -> Generator[None]:
    """Report an OSError within a ``with`` block, which writes a file, in one sentence.

    Args:
        path: path of the file.
        remedy: what the user can do.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
        raise ConfigurationError(f"{path} cannot be written: {reason}; {remedy}") from error
