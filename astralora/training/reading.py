"""Read files of a run folder, and report problems in one sentence."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from ..common.errors import ConfigurationError
from ..devices.files import read_bytes
from ..devices.parsing import parse_json

__all__ = ["parse_record", "read_file"]

# Largest size of a file of a run, in bytes.
_LIMIT = 1 << 40


def read_file(path: Path) -> bytes | None:
    """Read a file; return None if there is none.

    Raises:
        ConfigurationError: the file cannot be read, or it is a folder, a device or a pipe.
    """
    try:
        # A device such as /dev/zero has no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigurationError(f"{path} cannot be read: it is not a file")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    return read_bytes(path, error=ConfigurationError, limit=_LIMIT)


def parse_record(data: bytes, path: Path) -> Any:
    """Parse JSON whose checksum is right; it may contain NaN, such as the loss of a run that diverged.

    Raises:
        ConfigurationError: the content is not JSON.
    """
    return parse_json(data.decode(errors="replace"), str(path), error=ConfigurationError, any_number=True)
