"""Parse JSON, TOML and safetensors from files and options; every failure is described in one sentence.

Nothing is unpickled or evaluated. Beyond the rules of the formats, these contents are refused: duplicate keys, numbers
that are not finite in JSON, whole numbers of more than 64 bits, and values nested more than 64 levels deep.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from .errors import DeviceError
from .files import ErrorClass, file_name, read_bytes, read_text
from .validation import printable

__all__ = ["Tensors", "parse_json", "parse_tensors", "parse_toml", "read_json", "read_tensors", "read_toml"]

_DEEPEST = 64
_TOML_LIMIT = 8 * 2**20  # the parser is slow, and no configuration is near this size
_TENSORS_LIMIT = 16 * 2**30
_NAMES = {dict: "a table", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Tensors:
    """Hold the content of a safetensors file.

    Attributes:
        tensors: tensors by name.
        metadata: texts by name.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_json(path: str | Path, what: str = "", *, error: ErrorClass = DeviceError) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Args:
        path: path of the file.
        what: kind of the file for messages, such as ``"the calibration"``.
        error: class of the error to raise.

    Raises:
        DeviceError, or ``error``: the file cannot be read, or its content is not valid; the message is one sentence.
    """
    content = parse_json(read_text(path, what, error=error), file_name(path, what), error=error)
    if not isinstance(content, dict):
        kind = _NAMES.get(type(content), "null")
        raise error(f"{file_name(path, what)} must contain a JSON object with keys and values, not {kind}")
    return content


def read_toml(path: str | Path, what: str = "", *, error: ErrorClass = DeviceError) -> dict[str, Any]:
    """Read a TOML file; see `read_json`."""
    text = read_text(path, what, error=error, limit=_TOML_LIMIT)
    return parse_toml(text, file_name(path, what), error=error)


def read_tensors(path: str | Path, what: str = "", *, error: ErrorClass = DeviceError) -> Tensors:
    """Read a safetensors file; see `read_json`."""
    return parse_tensors(read_bytes(path, what, error=error, limit=_TENSORS_LIMIT), file_name(path, what), error=error)


def parse_json(text: str, subject: str, *, error: ErrorClass = DeviceError, any_number: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: the JSON.
        subject: name of its origin, for messages.
        error: class of the error to raise.
        any_number: accept NaN and numbers of any size, as in data of other programs.

    Raises:
        DeviceError, or ``error``: the text is not valid JSON.
    """
    if not text.strip():
        raise error(f"{subject} is empty, where JSON is expected")

    def parse() -> Any:
        constant = None if any_number else _refuse_constant
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=constant)

    return _checked(parse, subject, "JSON", error, finite=not any_number, bounded=not any_number)


def parse_toml(text: str, subject: str, *, error: ErrorClass = DeviceError) -> dict[str, Any]:
    """Parse TOML; see `parse_json`. An empty text is an empty table."""
    content: dict[str, Any] = _checked(lambda: tomllib.loads(text), subject, "TOML", error, finite=False, bounded=True)
    return content


def parse_tensors(data: bytes, subject: str, *, error: ErrorClass = DeviceError) -> Tensors:
    """Parse the content of a safetensors file; see `parse_json`."""
    if not data:
        raise error(f"{subject} is empty, where tensors are expected")
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    except MemoryError:
        raise error(f"{subject} does not fit into memory") from None
    # Of a wrong type of numbers, the library makes a KeyError, and of wrong sizes, errors of several classes.
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, RecursionError) as problem:
        raise error(f"{subject} is not a safetensors file: {_reason(problem)}") from None
    return Tensors(tensors, metadata)


def _checked(
    parse: Callable[[], Any], subject: str, form: str, error: ErrorClass, *, finite: bool, bounded: bool
) -> Any:
    """Return the result of a parser, and refuse values that no reader expects."""
    try:
        content = parse()
        _check_values(content, finite=finite, bounded=bounded)
    except RecursionError:
        raise error(f"{subject} is not valid {form}: it is nested more than {_DEEPEST} levels deep") from None
    except MemoryError:
        raise error(f"{subject} does not fit into memory") from None
    except ValueError as problem:
        raise error(f"{subject} is not {form}: {_reason(problem)}") from None
    return content


def _check_values(content: Any, *, finite: bool, bounded: bool) -> None:
    """Refuse deep nesting and numbers that are too large, level by level.

    Raises:
        RecursionError: a value is nested too deeply.
        ValueError: a number is too large, or not finite where this is required.
    """
    level = [content]
    for _ in range(_DEEPEST + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for name in value:
                    _check_text(name)
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                _check_text(value)
            elif bounded and isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError("a whole number has more than 64 bits")
            elif finite and isinstance(value, float) and not isfinite(value):
                raise ValueError("a number is larger than any number of 64 bits")
        if not below:
            return
        level = below
    raise RecursionError


def _check_text(text: str) -> None:
    """Refuse half of a surrogate pair, which cannot be encoded or printed."""
    if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
        raise ValueError("a text has half of a surrogate pair")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {printable(twice)!r} is given twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON; write null where there is no value")


def _reason(problem: Exception) -> str:
    """Return the message of a parser in one line."""
    text = " ".join(str(problem).split())
    if isinstance(problem, ValueError) and "integer string conversion" in text:
        return "a whole number has more than 64 bits"
    if isinstance(problem, KeyError):
        return f"{text} is unknown"
    return printable(text) or type(problem).__name__
