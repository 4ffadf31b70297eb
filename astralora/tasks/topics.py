"""The English that every Python brings along: small, real, and nothing to download."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BYTES", "Text", "topics"]

BYTES = 256
"""Different tokens that a byte can be."""

# Of the text that are trained on, and that choices are made by; the rest is for testing.
_TRAIN, _VALIDATION = 0.8, 0.1


class Text(NamedTuple):
    """A text in three parts, as tokens: (length,), whole numbers."""

    train: Tensor
    validation: Tensor
    test: Tensor


def topics() -> Text:
    """What ``help()`` knows about Python's topics, some 450 kB of documentation, byte by byte.

    The text is that of the Python in use, and differs a little between its versions.
    """
    from pydoc_data.topics import topics as entries

    tokens = torch.tensor(list("\n".join(entries[name] for name in sorted(entries)).encode()), dtype=torch.long)
    train, validation = (int(share * len(tokens)) for share in accumulate((_TRAIN, _VALIDATION)))
    return Text(tokens[:train], tokens[train:validation], tokens[validation:])
