"""Save nested state as safetensors and JSON, so that loading never executes code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices.files import write_atomically

__all__ = ["load_state", "save_state"]

_INDEX = "state.json"


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Save nested dicts, lists, tensors, numbers, strings and None.

    Tensors go to a new file. The index, which names this file, is replaced last, so that a crash in between keeps the
    earlier state.

    Args:
        folder: folder, created if needed.
        state: state to save.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, tensors)
    data = save_tensors(tensors)
    digest = hashlib.sha256(data).hexdigest()
    name = f"tensors-{digest[:16]}.safetensors"
    write_atomically(folder / name, data)
    index = {"format": 1, "tensors": name, "sha256": digest, "state": tree}
    write_atomically(folder / _INDEX, json.dumps(index))
    for old in folder.glob("tensors-*"):
        if old.name != name:
            old.unlink()


def load_state(folder: Path) -> dict[str, Any] | None:
    """Load the state that `save_state` saved last; None where there is none.

    Raises:
        ConfigurationError: the files are damaged.
    """
    index = folder / _INDEX
    if not index.exists():
        return None
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        if content["format"] != 1:
            raise ConfigurationError(f"{index} has format {content['format']}, and this astralora reads format 1")
        data = (folder / Path(content["tensors"]).name).read_bytes()
        if hashlib.sha256(data).hexdigest() != content["sha256"]:
            raise ValueError("the tensors differ from those that were saved")
        state: dict[str, Any] = _unpack(content["state"], load_tensors(data))
    except ConfigurationError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"the checkpoint in {folder} is damaged: {error}") from None
    return state


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
