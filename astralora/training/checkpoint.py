"""Save nested state as safetensors and JSON, so that loading never executes code and detects every damage.

A checkpoint is a folder with two files. ``state.json`` is ``{"format": 2, "sha256": HASH, "content": CONTENT}``, where
HASH is the SHA-256 of the text of CONTENT. CONTENT holds the state without its tensors, and the name and the SHA-256 of
the file of tensors. Format 1 had no hash of the content, so that a damaged number was not detected; it is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices.files import write_atomically
from .reading import read_file

__all__ = ["load_state", "save_state"]

_FORMAT = 2
_INDEX = "state.json"
_LAYOUT = re.compile(rb'\A\{"format": 2, "sha256": "([0-9a-f]{64})", "content": ')
_ANY_LAYOUT = re.compile(rb'\A\{"format": ([0-9]{1,9}), ')


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Save nested dicts, lists, tensors, numbers, strings and None.

    Tensors go to a new file. The index, which names this file, is replaced last, so that a crash in between keeps the
    earlier state.

    Args:
        folder: folder, created if needed; the folder above it must exist.
        state: state to save.

    Raises:
        OSError: a file cannot be written; the earlier state is kept.
    """
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors)
    data = save_tensors(tensors)
    digest = _hash(data)
    name = f"tensors-{digest[:16]}.safetensors"
    content = json.dumps({"tensors": name, "sha256": digest, "state": tree}).encode()
    # Without the folder above, which somebody may have removed, a part of a run would be written.
    folder.mkdir(exist_ok=True)
    write_atomically(folder / name, data)
    head = b'{"format": %d, "sha256": "%s", "content": ' % (_FORMAT, _hash(content).encode())
    write_atomically(folder / _INDEX, head + content + b"}\n")
    for old in folder.glob("tensors-*"):
        if old.name != name:
            old.unlink()


def load_state(folder: Path) -> dict[str, Any] | None:
    """Load the state that `save_state` saved last; None where there is none.

    Raises:
        ConfigurationError: a file is damaged or cannot be read, or has another format.
    """
    index = folder / _INDEX
    data = read_file(index)
    if data is None:
        return None
    content = _checked_content(index, data)
    try:
        values = json.loads(content)
        tensors = read_file(folder / Path(values["tensors"]).name)
        if tensors is None:
            raise ValueError(f"{values['tensors']} is missing")
        if _hash(tensors) != values["sha256"]:
            raise ValueError("the tensors differ from those that were saved")
        state: dict[str, Any] = _unpack(values["state"], load_tensors(tensors))
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"the checkpoint in {folder} is damaged: {error}; begin a new run") from None
    return state


def _checked_content(index: Path, data: bytes) -> bytes:
    """Return the content of an index.

    Raises:
        ConfigurationError: the content does not match its hash, or the index has another format.
    """
    head = _LAYOUT.match(data)
    if head is None:
        other = _ANY_LAYOUT.match(data)
        if other is None or int(other[1]) == _FORMAT:
            raise ConfigurationError(f"the checkpoint {index} is damaged: it is no checkpoint; begin a new run")
        raise ConfigurationError(
            f"{index} has format {int(other[1])}, and this astralora reads format {_FORMAT}; begin a new run, "
            f"or use the astralora that wrote it"
        )
    content = data[head.end() :].removesuffix(b"}\n")
    if len(data) != head.end() + len(content) + 2 or _hash(content) != head[1].decode():
        raise ConfigurationError(f"the checkpoint {index} is damaged: it does not match its hash; begin a new run")
    return content


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace tensors by keys, and mark tuples and dicts that JSON cannot hold."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"$tensor": key}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _pack(item, tensors) for key, item in value.items()}
        return {"$map": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Restore a value from `_pack`."""
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$map" in value:
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in value["$map"]}
    if "$tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["$tuple"])
    return {key: _unpack(item, tensors) for key, item in value.items()}
