"""Encode text as tokens, byte by byte or with a model's tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..common.errors import ConfigurationError
from ..common.extras import require
from ..devices.validation import printable

__all__ = ["SPECIAL_TOKENS", "VOCABULARY", "Tokens", "load_tokens"]

SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MASK = 3
_FIRST_BYTE = 4

VOCABULARY = _FIRST_BYTE + 256
"""Number of tokens of a byte-by-byte model: padding, begin, end, mask, and every byte."""


class Tokens:
    """Encode texts as tokens.

    Args:
        encode: function that returns the tokens of a text, without special tokens.
        begin: token before a text, if any.
        end: token after a text, if any.
        pad: padding token.
        mask: token that hides another, for masked models.
        size: number of different tokens.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        *,
        begin: int | None,
        end: int | None,
        pad: int,
        mask: int | None,
        size: int,
    ) -> None:
        self.encode, self.begin, self.end, self.pad, self.mask, self.size = encode, begin, end, pad, mask, size

    def example(self, text: str, pair: str | None, length: int) -> list[int]:
        """Encode one text, or two with an end token between them, and shorten the longer one to fit ``length``."""
        begin = [] if self.begin is None else [self.begin]
        end = [] if self.end is None else [self.end]
        parts = [self.encode(part) for part in (text, pair) if part is not None]
        room = length - len(begin) - len(end) * len(parts)
        while sum(map(len, parts)) > max(room, 0):
            max(parts, key=len).pop()
        return begin + [token for part in parts for token in (*part, *end)]


def load_tokens(name: str) -> Tokens:
    """Make an encoder of bytes, or load the tokenizer of a model in a folder or on the hub.

    Args:
        name: ``"bytes"``, a folder, or a name on the hub.

    Raises:
        ConfigurationError: transformers is not installed, or the tokenizer cannot be loaded.
    """
    if name == "bytes":
        return Tokens(
            lambda text: [_FIRST_BYTE + byte for byte in text.encode()],
            begin=SPECIAL_TOKENS["bos_token_id"],
            end=SPECIAL_TOKENS["eos_token_id"],
            pad=SPECIAL_TOKENS["pad_token_id"],
            mask=_MASK,
            size=VOCABULARY,
        )
    transformers = require("transformers", "'astralora adapters'", extra="lowrank")
    try:
        found = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    # The libraries below have no common base class for errors of damaged files.
    except Exception as error:
        reason = printable(str(error).strip().partition("\n")[0].rstrip(".")) or type(error).__name__
        hint = "" if Path(name).exists() else "; without a network, give the folder of a saved one, or 'bytes'"
        raise ConfigurationError(f"the tokenizer {name!r} cannot be loaded: {reason}{hint}") from None
    first = found.bos_token_id if found.cls_token_id is None else found.cls_token_id
    last = found.eos_token_id if found.sep_token_id is None else found.sep_token_id
    return Tokens(
        lambda text: list(found(text, add_special_tokens=False)["input_ids"]),
        begin=first,
        end=last,
        pad=found.pad_token_id if found.pad_token_id is not None else last or 0,
        mask=found.mask_token_id,
        size=len(found),
    )
