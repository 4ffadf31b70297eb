"""What the libraries below say meanwhile."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from rich.text import Text

from ..console import errors

__all__ = ["noted"]


@contextmanager
def noted() -> Generator[None]:
    """Say what was warned of in a line each, and keep quiet what libraries chat about."""
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
