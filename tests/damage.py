"""Damage files in many ways, for tests of the commands that read them."""

from __future__ import annotations

import copy
import json
import random
import tomllib
from collections.abc import Iterator
from typing import Any

import tomli_w

__all__ = ["HOSTILE", "damaged", "damaged_values", "hostile_values"]

HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t\n",
    "nul": b"\0" * 100,
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "utf-16 without mark": '{"a": 1}'.encode("utf-16-le"),
    "latin-1": 'device = "höhe"'.encode("latin-1"),
    "mark alone": b"\xef\xbb\xbf",
    "binary": bytes(range(256)),
    "deep list": b"[" * 20_000,
    "deep closed list": b"[" * 500 + b"]" * 500,
    "deep table": b'{"a":' * 20_000,
    "deep toml": b"a = " + b"[" * 5000,
    "dotted toml": b"a." * 3000 + b"a = 1",
    "long number": b'{"a": ' + b"9" * 5000 + b"}",
    "long number toml": b"a = " + b"9" * 5000,
    "nan": b'{"a": NaN, "b": Infinity}',
    "list": b"[1, 2]",
    "number": b"1",
    "null": b"null",
    "text": b'"text"',
    "duplicate": b'{"a": 1, "a": 2}',
    "surrogate": b'{"checks": "\\ud800", "characterisation": null}',
    "large header": (2**62).to_bytes(8, "little") + b"{}",
    "python": b"import os\n",
    "syntax": b"def make(:\n",
    "zip": b"PK\x03\x04" + b"\0" * 60,
    "pickle": b"\x80\x04\x95\x1f\0\0\0",
}
"""Contents that are no valid file of any kind, by name."""

_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63 - 1, -(2**63), -0.0, 0.5, -1.5, 1e-320, 1e308, -1e308, "", "x",
    "x" * 2000, "a\nb", "\0", "../../etc/passwd", "nan", [], [[]], [1, 2], ["a"], [[1.0, 2.0], [3.0]], {}, {"a": 1},
    {"1": {"2": 3}},
]  # fmt: skip


_REMOVED, _DOUBLED = object(), object()


def damaged(content: bytes, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield damaged versions of a file with a description: bits flipped, parts cut, moved, doubled or replaced."""
    for number in range(count):
        data = bytearray(content)
        kind = ("flip", "flips", "cut", "head", "remove", "double", "insert", "move")[number % 8]
        place, length = rng.randrange(len(data)), rng.randrange(1, 40)
        match kind:
            case "flip":
                data[place] ^= 1 << rng.randrange(8)
            case "flips":
                for _ in range(rng.randrange(2, 30)):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case "cut":
                del data[place:]
            case "head":
                del data[:place]
            case "remove":
                del data[place : place + length]
            case "double":
                data[place:place] = data[place : place + length]
            case "insert":
                data[place:place] = rng.choice(
                    [bytes([rng.randrange(256)]), b"\0", b"NaN", b"-", b"9" * 25, b"[", b'"']
                )
            case "move":
                part = data[place : place + length]
                del data[place : place + length]
                data += part
        yield f"{kind} at {place}", bytes(data)


def hostile_values(values: Any) -> Iterator[tuple[str, Any]]:
    """Yield nested values with one of them replaced, removed or renamed, for every place and every replacement."""
    for path, change in _changes(values):
        yield _changed(values, path, change)


def damaged_values(content: bytes, form: str, rng: random.Random, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield files of JSON or TOML with one value replaced, chosen at random from all places and replacements."""
    values = json.loads(content) if form == "json" else tomllib.loads(content.decode())
    found = list(_changes(values))
    for path, change in rng.sample(found, min(count, len(found))):
        name, changed = _changed(values, path, change)
        try:
            text = json.dumps(changed) if form == "json" else tomli_w.dumps(changed)
        except TypeError:  # TOML has no null
            continue
        yield name, text.encode()


def _places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value; of a long list, those of its first two."""
    below: Iterator[tuple[Any, Any]] | list[tuple[Any, Any]] = []
    if isinstance(values, dict):
        below = iter(values.items())
    elif isinstance(values, list):
        below = list(enumerate(values))[:2]
    for key, value in below:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _changes(values: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the path of a value with a change: removed, renamed or doubled, or the value that replaces it."""
    for path in _places(values):
        yield from ((path, change) for change in (_REMOVED, _DOUBLED, *_VALUES))


def _changed(values: Any, path: tuple[Any, ...], change: Any) -> tuple[str, Any]:
    """Return nested values with one change, and its description."""
    found = copy.deepcopy(values)
    table, key = found, path[-1]
    for part in path[:-1]:
        table = table[part]
    if change is _REMOVED:
        del table[key]
    elif change is _DOUBLED and isinstance(table, list):
        table.insert(key, table[key])
    elif change is _DOUBLED:
        table[f"{key}x"] = table[key]
    else:
        table[key] = change
    return f"{'.'.join(map(str, path))}: {str(change)[:20]!r}", found
