"""Keep the data of an unfinished calibration in files with a hash, so that a damaged file is never used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices.files import file_name, write_file
from ..devices.parsing import read_json

__all__ = ["REMEDY", "read_unfinished", "tensor_hash", "write_unfinished"]

REMEDY = "delete the file to begin again"
"""What a user can do about a damaged file."""

_WHAT = "the unfinished calibration"


def write_unfinished(path: Path, content: Mapping[str, Any]) -> None:
    """Write values that JSON can hold.

    Raises:
        DeviceError: the file cannot be written.
    """
    write_file(path, json.dumps({"content": content, "sha256": _hash(content)}) + "\n", _WHAT)


def read_unfinished(path: Path) -> dict[str, Any]:
    """Read the values that `write_unfinished` has written.

    Raises:
        ConfigurationError: the file cannot be read, or it is damaged.
    """

    def refused(message: str) -> ConfigurationError:
        return ConfigurationError(f"{message}; {REMEDY}")

    values = read_json(path, _WHAT, error=refused)
    content = values.get("content")
    if not isinstance(content, dict) or values.get("sha256") != _hash(content):
        raise refused(f"{file_name(path, _WHAT)} is damaged: its hash differs from the saved one")
    return content


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
