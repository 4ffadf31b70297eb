"""Load texts that every Python installation contains, for language models."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BYTES", "Text", "sources", "topics"]

BYTES = 256
"""Number of different byte tokens."""

# Shares of the text for training and validation; the rest is for testing.
_TRAIN, _VALIDATION = 0.8, 0.1


class Text(NamedTuple):
    """Hold a text in three parts, as tokens: (length,), whole numbers."""

    train: Tensor
    validation: Tensor
    test: Tensor


# Modules that have long been single files of Python source.
_MODULES = (
    *("argparse", "ast", "calendar", "configparser", "dataclasses", "difflib", "doctest", "enum", "fractions"),
    *("functools", "inspect", "ipaddress", "optparse", "pdb", "pickle", "pickletools", "platform", "random", "shutil"),
    *("socket", "statistics", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tokenize", "typing"),
)


def topics() -> Text:
    """Return the topics of ``help()``, about 450 kB of English documentation, byte by byte.

    The text differs a little between Python versions.
    """
    from pydoc_data.topics import topics as entries

    return _parts("\n".join(entries[name] for name in sorted(entries)).encode())


def sources() -> Text:
    """Return source code of Python's standard library, about a megabyte, byte by byte.

    The text differs a little between Python versions.
    """
    found = (find_spec(name) for name in _MODULES)
    return _parts(b"\n".join(Path(spec.origin).read_bytes() for spec in found if spec is not None and spec.origin))


def _parts(text: bytes) -> Text:
    """Split a text into its three parts."""
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    train, validation = (int(share * len(tokens)) for share in accumulate((_TRAIN, _VALIDATION)))
    return Text(tokens[:train], tokens[train:validation], tokens[validation:])
