"""The texts that every Python brings along: small, real, and nothing to download."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BYTES", "Text", "sources", "topics"]

BYTES = 256
"""Different tokens that a byte can be."""

# Of the text that are trained on, and that choices are made by; the rest is for testing.
_TRAIN, _VALIDATION = 0.8, 0.1


class Text(NamedTuple):
    """A text in three parts, as tokens: (length,), whole numbers."""

    train: Tensor
    validation: Tensor
    test: Tensor


# Modules that have been one readable file of Python for long.
_MODULES = (
    *("argparse", "ast", "calendar", "configparser", "dataclasses", "difflib", "doctest", "enum", "fractions"),
    *("functools", "inspect", "ipaddress", "optparse", "pdb", "pickle", "pickletools", "platform", "random", "shutil"),
    *("socket", "statistics", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tokenize", "typing"),
)


def topics() -> Text:
    """What ``help()`` knows about Python's topics, some 450 kB of documentation, byte by byte.

    The text is that of the Python in use, and differs a little between its versions.
    """
    from pydoc_data.topics import topics as entries

    return _parts("\n".join(entries[name] for name in sorted(entries)).encode())


def sources() -> Text:
    """Modules of Python's own library as they are written, some megabyte of code, byte by byte.

    The text is that of the Python in use, and differs a little between its versions.
    """
    found = (find_spec(name) for name in _MODULES)
    return _parts(b"\n".join(Path(spec.origin).read_bytes() for spec in found if spec is not None and spec.origin))


def _parts(text: bytes) -> Text:
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    train, validation = (int(share * len(tokens)) for share in accumulate((_TRAIN, _VALIDATION)))
    return Text(tokens[:train], tokens[train:validation], tokens[validation:])
