"""Print the warnings that matter and silence the messages of libraries."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from rich.text import Text

from ..console import errors

__all__ = ["print_warnings"]


@contextmanager
def print_warnings() -> Generator[None]:
    """Print warnings about tied scores at the end, one line for each, and silence all other messages."""
    from ...adapters.scoring import TiedScoresWarning
    from ...common.extras import require

    require("transformers", "'astralora adapters'", extra="lowrank").utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TiedScoresWarning)
        yield
    for sentence in dict.fromkeys(str(warning.message) for warning in caught):
        errors.print("[yellow]note:[/]", Text(sentence), soft_wrap=True)
