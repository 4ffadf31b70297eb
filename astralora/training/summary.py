"""Write and read a summary with a checksum, so that no damaged number is reported.

The last key of the file is "check": the SHA-256 of all text before this key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import ConfigurationError
from ..devices.files import write_atomically
from .reading import parse_record, read_file

__all__ = ["load_summary", "save_summary"]

_CHECK = re.compile(rb',\n  "check": "sha256:([0-9a-f]{64})"\n}\n\Z')


def save_summary(file: Path, summary: Mapping[str, Any]) -> None:
    """Write a summary, which is not empty, as JSON with its checksum.

    Raises:
        OSError: the file cannot be written.
    """
    content = json.dumps(summary, indent=2).removesuffix("\n}")
    digest = hashlib.sha256(content.encode()).hexdigest()
    write_atomically(file, f'{content},\n  "check": "sha256:{digest}"\n}}\n')


def load_summary(file: Path) -> dict[str, Any] | None:
    """Return the summary that `save_summary` wrote, without the checksum; None if there is no file.

    Raises:
        ConfigurationError: the file differs from the one that was written, or has no checksum.
    """
    data = read_file(file)
    if data is None:
        return None
    check = _CHECK.search(data)
    if check is None:
        raise ConfigurationError(
            f"{file} ends without its checksum: it is damaged, was edited, or an earlier astralora wrote it; "
            f"its numbers are not used; repeat the run from its config.toml"
        )
    content = data[: check.start()]
    if hashlib.sha256(content).hexdigest() != check[1].decode():
        raise ConfigurationError(
            f"{file} does not match its checksum: it is damaged or was edited; its numbers are not used; "
            f"repeat the run from its config.toml"
        )
    summary: dict[str, Any] = parse_record(content + b"\n}", file)
    return summary
